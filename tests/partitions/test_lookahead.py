"""partitions.lookahead: no eviction reads fewer tables than the farthest next use."""

from functools import cache
from itertools import combinations

import hypothesis.strategies as st
from hypothesis import given

from partitions.lookahead import Lookahead, Swap, num_swaps
from partitions.schema import Slot

SLOTS = [Slot("node", at) for at in range(5)]
VISITS = st.lists(st.frozensets(st.sampled_from(SLOTS), min_size=1, max_size=2), max_size=8)


def fewest_loads(visits: list[frozenset[Slot]], capacity: int) -> int:
    """By trying every way to make room."""

    @cache
    def loads(at: int, held: frozenset[Slot]) -> int:
        if at == len(visits):
            return 0
        wanted = held | visits[at]
        excess = max(len(wanted) - capacity, 0)
        new = len(visits[at] - held)
        ways = combinations(sorted(wanted - visits[at]), excess)
        return new + min(loads(at + 1, wanted - set(leaving)) for leaving in ways)

    return loads(0, frozenset())


@given(visits=VISITS, capacity=st.integers(2, 4))
def test_no_way_of_evicting_loads_less(visits: list[frozenset[Slot]], capacity: int) -> None:
    planned = list(Lookahead(visits).swaps((), capacity))
    assert len(planned) == fewest_loads(visits, capacity)
    evicted = sum(swap.leaves is not None for swap in planned)
    assert num_swaps(visits, capacity) == evicted == max(len(planned) - capacity, 0)


@given(visits=VISITS, held=st.sets(st.sampled_from(SLOTS), max_size=3))
def test_what_is_needed_is_there_and_no_more_than_fits(
    visits: list[frozenset[Slot]], held: set[Slot]
) -> None:
    inside, planned = set(held), list(Lookahead(visits).swaps(sorted(held), 3))
    for at, needed in enumerate(visits):
        for swap in (swap for swap in planned if swap.at == at):
            inside -= {swap.leaves}
            inside.add(swap.enters)
        assert needed <= inside and len(inside) <= 3


@given(
    visits=VISITS,
    held=st.lists(st.sampled_from(SLOTS), max_size=3, unique=True),
    since=st.integers(0, 9),
)
def test_swaps_are_what_walking_every_visit_finds(
    visits: list[frozenset[Slot]], held: list[Slot], since: int
) -> None:
    lookahead = Lookahead(visits)
    lookahead.at = since
    inside, wanted = dict.fromkeys(held), []
    for at, needed in list(enumerate(visits))[since:]:
        for slot in sorted(needed - inside.keys()):
            leaves = None
            if len(inside) >= 3:
                leaves = lookahead.farthest([s for s in inside if s not in needed], at)
                del inside[leaves]
            inside[slot] = None
            wanted.append(Swap(at, slot, leaves))
    assert list(lookahead.swaps(held, 3)) == wanted


def test_finding_the_next_swap_does_not_walk_every_visit() -> None:
    """Asked at every bucket, a walk to the end is the square of their number over an epoch."""

    class Counted(tuple[frozenset[Slot], ...]):
        looks = 0

        def __getitem__(self, at: object) -> frozenset[Slot]:
            Counted.looks += 1
            return super().__getitem__(at)  # type: ignore[call-overload,no-any-return]

    pairs = [frozenset(pair) for pair in combinations(SLOTS[:4], 2)]
    lookahead = Lookahead([*pairs * 1000, frozenset({SLOTS[4]})])
    lookahead._coming = Counted(lookahead._coming)
    assert list(lookahead.swaps(SLOTS[:4], 5)) == [Swap(6000, SLOTS[4], None)]
    assert len(list(lookahead.swaps(SLOTS[:4], 4))) == 1
    assert Counted.looks <= 2


def test_what_is_not_needed_any_more_leaves_in_the_order_of_its_last_use() -> None:
    lookahead = Lookahead([frozenset({SLOTS[4]})])
    assert lookahead.farthest([SLOTS[2], SLOTS[0], SLOTS[4]], 0) == SLOTS[2]
    assert lookahead.expects([SLOTS[4]]) and not lookahead.expects([SLOTS[3]])
    assert len(lookahead) == 1 and not Lookahead().expects([])
