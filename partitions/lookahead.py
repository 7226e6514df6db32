"""Which table to give up, knowing the buckets to come (Belady 1966). Pure: no tables, no files.

The table whose next use lies farthest ahead leaves first; no policy reads fewer tables. What the
plan does not know any more leaves before that, the least recently used of it first.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from partitions.schema import Slot

_NEVER = 1 << 62


@dataclass(frozen=True)
class Swap:
    """One table to bring in, for the visit `at`, and the one that makes room, if one has to."""

    at: int
    enters: Slot
    leaves: Slot | None


class Lookahead:
    """A sequence of visits, each a set of tables, and how far one has come in it."""

    def __init__(self, coming: Iterable[Collection[Slot]] = ()) -> None:
        self._coming: Sequence[frozenset[Slot]] = [frozenset(needed) for needed in coming]
        self._uses: dict[Slot, list[int]] = {}
        for at, needed in enumerate(self._coming):
            for slot in needed:
                self._uses.setdefault(slot, []).append(at)
        self.at = 0  # the next visit

    def __len__(self) -> int:
        """Visits still to come."""
        return len(self._coming) - self.at

    def expects(self, needed: Collection[Slot]) -> bool:
        return self.at < len(self._coming) and self._coming[self.at] == frozenset(needed)

    def next_use(self, slot: Slot, since: int) -> int:
        """The first visit from `since` on that needs the table."""
        uses = self._uses.get(slot, [])
        found = bisect_left(uses, since)
        return uses[found] if found < len(uses) else _NEVER

    def farthest(self, held: Iterable[Slot], since: int) -> Slot:
        """Of tables in the order of their last use, the one to give up at the visit `since`."""
        return max(held, key=lambda slot: self.next_use(slot, since))

    def swaps(self, held: Iterable[Slot], capacity: int) -> Iterator[Swap]:
        """What comes in and goes out from here on, where `held` are in memory now."""
        inside = dict.fromkeys(held)
        # From one visit that lacks a table to the next: there may be thousands between them.
        absent = [
            (self.next_use(slot, self.at), slot) for slot in self._uses.keys() - inside.keys()
        ]
        heapify(absent)
        while absent and absent[0][0] < _NEVER:
            at, enters = heappop(absent)
            leaves = None
            if len(inside) >= capacity:
                needed = self._coming[at]
                leaves = self.farthest((s for s in inside if s not in needed), at)
                del inside[leaves]
                heappush(absent, (self.next_use(leaves, at), leaves))
            inside[enters] = None
            yield Swap(at, enters, leaves)


def num_swaps(visits: Iterable[Collection[Slot]], capacity: int) -> int:
    """Tables that take another's place over a sequence of visits; the first fill is free."""
    return sum(swap.leaves is not None for swap in Lookahead(visits).swaps((), capacity))
