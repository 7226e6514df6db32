"""partitions.lookahead: no eviction reads fewer tables than the farthest next use."""

from functools import cache
from itertools import combinations

import hypothesis.strategies as st
from hypothesis import given

from partitions.lookahead import Lookahead, num_swaps
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


def test_what_is_not_needed_any_more_leaves_in_the_order_of_its_last_use() -> None:
    lookahead = Lookahead([frozenset({SLOTS[4]})])
    assert lookahead.farthest([SLOTS[2], SLOTS[0], SLOTS[4]], 0) == SLOTS[2]
    assert lookahead.expects([SLOTS[4]]) and not lookahead.expects([SLOTS[3]])
    assert len(lookahead) == 1 and not Lookahead().expects([])
