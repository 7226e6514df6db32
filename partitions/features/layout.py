"""What rows become: slots of ids (one a row, or a bag of them) and dense columns.

layout.slots   declared features that have ids, in their order; then the crosses
single[:, s]   ids of a slot with one id a row
bags[b]        (values, offsets): the ids of row r are values[offsets[r] : offsets[r + 1]]
dense[:, d]    numbers, named by layout.dense
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bag = tuple[NDArray[np.int32], NDArray[np.int64]]  # values [m], offsets [rows + 1]


@dataclass(frozen=True)
class Slot:
    """A feature of ids 0 .. size - 1. column: of Encoded.single, or its number among the bags."""

    name: str
    size: int
    bag: bool
    column: int


@dataclass(frozen=True)
class Layout:
    slots: tuple[Slot, ...]
    dense: tuple[str, ...]
    crosses: frozenset[str]  # names of the slots that are crosses

    def dense_of(self, features: Collection[str] | None) -> list[str]:
        """The dense columns of these features, of all where None: `age`, `age:missing`, `taste:0`
        are of age and taste."""
        return [name for name in self.dense if features is None or name.split(":")[0] in features]

    @property
    def num_single(self) -> int:
        return sum(not slot.bag for slot in self.slots)

    @property
    def num_bags(self) -> int:
        return sum(slot.bag for slot in self.slots)


@dataclass(frozen=True)
class Encoded:
    single: NDArray[np.int32]
    bags: tuple[Bag, ...]
    dense: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.single)

    def take(self, rows: NDArray[np.int64]) -> "Encoded":
        bags = tuple(_bag_of(bag, rows) for bag in self.bags)
        return Encoded(self.single[rows], bags, self.dense[rows])

    def slice(self, first: int, last: int) -> "Encoded":
        """Rows first .. last - 1: views, but for the bags' offsets, which begin at 0 again."""
        first, last, _ = slice(first, last).indices(len(self))
        last = max(first, last)
        bags = []
        for values, offsets in self.bags:
            cut = offsets[first : last + 1]
            bags.append((values[cut[0] : cut[-1]], cut - cut[0] if cut[0] else cut))
        return Encoded(self.single[first:last], tuple(bags), self.dense[first:last])


def _bag_of(bag: Bag, rows: NDArray[np.int64]) -> Bag:
    values, offsets = bag
    first = offsets[rows]
    counts = offsets[rows + 1] - first
    ends = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(counts, out=ends[1:])
    return values[np.repeat(first - ends[:-1], counts) + np.arange(ends[-1])], ends


def joined(parts: Sequence[Encoded]) -> Encoded:
    """Rows of several, end to end; at least one."""
    if len(parts) == 1:
        return parts[0]
    bags = []
    for pieces in zip(*(part.bags for part in parts), strict=True):
        counts = [np.diff(offsets) for _, offsets in pieces]
        offsets = np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]))
        bags.append((np.concatenate([values for values, _ in pieces]), offsets))
    return Encoded(
        np.concatenate([part.single for part in parts]),
        tuple(bags),
        np.concatenate([part.dense for part in parts]),
    )
