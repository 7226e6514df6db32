"""Sequences of buffer states: which tables are in memory together, one swap after the other.

A state is a set of at most c tables. Over a sequence, every set of tables that a bucket needs has
to lie in some state. Of p partitions of one type, all pairs met, each swap can meet c - 1 new
pairs, which bounds the number of swaps from below (`least_swaps`).

* `elimination`: BETA (Mohoney et al. 2021): c - 1 tables stay while every other one passes through
  the last place; then those are done with, and c - 1 others take their places. `beta_swaps`.
* `shortest`: sequences that scripts/search_orders.py found, shorter than BETA's.
* `greedy`: for graphs where not all pairs are needed, or buckets of more than two tables: always
  the swap that makes the most new buckets possible.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from partitions.schema import Bucket, Slot
from partitions.short_orders import SHORT_ORDERS

State = frozenset[Slot]
Needs = Mapping[Bucket, frozenset[Slot]]  # the tables of each bucket, without those never swapped


def least_swaps(p: int, c: int) -> int:
    """No sequence of states of c of p partitions meets all pairs with fewer swaps."""
    return _bound(p, p * (p - 1) // 2, c)


def beta_swaps(p: int, c: int) -> int:
    """How many swaps BETA takes: x + 1 rounds after the first, each shorter by c - 1."""
    if c >= p:
        return 0
    x = (p - c) // (c - 1)
    return (p - c) + (x + 1) * (p - c) - x * (x + 1) // 2 * (c - 1)


def fewest_swaps(needs: Needs, capacity: int) -> int:
    """The bound for any buckets: by tables that must come in, and by pairs that must meet."""
    return _bound(len(tables_of(needs)), len(_pairs(needs)), capacity)


def _bound(num_tables: int, num_pairs: int, capacity: int) -> int:
    excess = num_pairs - capacity * (capacity - 1) // 2
    by_pairs = -(-excess // (capacity - 1)) if capacity > 1 else 0
    return max(num_tables - capacity, by_pairs, 0)


def tables_of(needs: Needs) -> list[Slot]:
    return sorted(frozenset().union(*needs.values()))


def all_pairs_meet(needs: Needs) -> bool:
    """Whether buckets need at most two tables, and every pair is needed: one type, none missing."""
    num = len(tables_of(needs))
    return max(map(len, needs.values()), default=0) <= 2 and (
        len(_pairs(needs)) == num * (num - 1) // 2
    )


def _pairs(needs: Needs) -> set[frozenset[Slot]]:
    return {frozenset((a, b)) for tables in needs.values() for a in tables for b in tables if a < b}


def shortest(tables: Sequence[Slot], capacity: int) -> list[State] | None:
    """The stored sequence over these tables, in which they take part in the order given."""
    swaps = SHORT_ORDERS.get((len(tables), capacity))
    if swaps is None:
        return None
    states = [frozenset(tables[:capacity])]
    for leaves, enters in zip(swaps[::2], swaps[1::2], strict=True):
        states.append(states[-1] - {tables[int(leaves, 36)]} | {tables[int(enters, 36)]})
    return states


def elimination(needs: Needs, capacity: int, rng: np.random.Generator) -> list[State]:
    """BETA, for buckets of at most two tables. Tables that need not meet are not brought together.

    Of one type with all buckets, `beta_swaps` swaps. Of two types, one stays and the other passes.
    """
    tables = _shuffled(tables_of(needs), rng)
    if len(tables) <= capacity:
        return [frozenset(tables)]
    meets: dict[Slot, set[Slot]] = {slot: set() for slot in tables}
    for a, b in map(tuple, _pairs(needs)):
        meets[a].add(b)
        meets[b].add(a)
    states: list[State] = []
    last: frozenset[Slot] = frozenset()  # what is in the last place, if it is still needed

    def bring(slot: Slot, keep: frozenset[Slot]) -> None:
        held = states[-1] if states else frozenset()
        if slot not in held:
            if len(held) >= capacity:
                held -= {min(held - keep, key=lambda s: (bool(meets[s]), s))}
            states.append(held | {slot})

    while left := [slot for slot in tables if meets[slot]]:
        stay = _stayers(left, meets, capacity - 1, last)
        for slot in stay:
            bring(slot, frozenset(stay) | last)
        guests = [slot for slot in left if slot not in stay and not meets[slot].isdisjoint(stay)]
        for guest in sorted(guests, key=lambda slot: slot not in last):  # one is there already
            bring(guest, frozenset(stay))
            last = frozenset({guest})
        for slot in stay:
            for other in meets[slot]:
                meets[other].discard(slot)
            meets[slot] = set()
        last = frozenset(slot for slot in last if meets[slot])
    for slot in tables:
        if all(slot not in state for state in states):  # meets none but itself
            bring(slot, frozenset())
    return states


def _stayers(
    left: Sequence[Slot], meets: Mapping[Slot, set[Slot]], count: int, last: frozenset[Slot]
) -> list[Slot]:
    """Tables to keep while their partners pass: such as have their partners in common."""
    able = [slot for slot in left if slot not in last]
    stay = [max(able, key=lambda slot: (len(meets[slot] & last), len(meets[slot])))]
    partners = set(meets[stay[0]])

    def passes(slot: Slot) -> tuple[int, int]:
        passing = (partners | meets[slot]) - {*stay, slot}
        return len(passing), -len(partners & meets[slot])

    while len(stay) < min(count, len(able)):
        stay.append(min((slot for slot in able if slot not in stay), key=passes))
        partners |= meets[stay[-1]]
    return stay


def by_index(needs: Needs, capacity: int) -> tuple[Needs, int]:
    """The same with all tables of one partition index taken for one, and how many of them fit."""
    indexes: Needs = {bucket: frozenset(Slot("", at) for at in bucket) for bucket in needs}
    tables = tables_of(needs)
    together = max(Counter(slot.partition for slot in tables).values(), default=1)
    return indexes, max(2, capacity // together)


@np.errstate(invalid="ignore")  # products of 0 and 1: a BLAS that reads past a row's end may say so
def greedy(needs: Needs, capacity: int, rng: np.random.Generator) -> list[State]:
    """Always the swap that makes the most new buckets possible; among equals, one that gives up
    the table, and takes in the one, with the fewest buckets to come."""
    tables = _shuffled(tables_of(needs), rng)
    sets = sorted({tuple(sorted(map(tables.index, need))) for need in needs.values()})
    member = np.zeros((len(sets), len(tables)), np.float32)
    for row, places in enumerate(sets):
        member[row, list(places)] = 1
    inside = np.zeros(len(tables), bool)
    states: list[State] = []
    while True:
        missing = member @ ~inside
        member = member[missing > 0]
        if not len(member):
            return states or [frozenset()]
        enters, leaves = _best_swap(member, missing[missing > 0], inside)
        if inside.sum() >= capacity:
            inside[leaves] = False
        inside[enters] = True
        states.append(frozenset(tables[at] for at in np.flatnonzero(inside)))


def _best_swap(
    member: NDArray[np.float32], missing: NDArray[np.float32], inside: NDArray[np.bool_]
) -> tuple[int, int]:
    """(enters, leaves). member: [buckets to come, tables]; missing: how many each lacks."""
    near = member[missing == missing.min()]  # what the fewest swaps away make possible
    degree = member.sum(0)
    there, absent = near * inside, near * ~inside
    # gain[a, b]: of the nearest buckets that lack a, those that b need not make room for.
    gain = absent.sum(0)[:, None] - absent.T @ there
    score = gain * (4.0 * degree.max() + 4) - degree[:, None] - 2.0 * degree[None, :]
    score[inside] = score[:, ~inside] = -np.inf
    if not inside.any():
        return int(np.argmax(absent.sum(0))), 0
    enters, leaves = divmod(int(np.argmax(score)), len(inside))
    return enters, leaves


def _shuffled(tables: Sequence[Slot], rng: np.random.Generator) -> list[Slot]:
    return [tables[at] for at in rng.permutation(len(tables))]
