"""Leave-last-out: of each lhs, which edge came last (test) and which before it (valid).

Later means a later time, and among equal times a later place in the input. An lhs with fewer than
three edges keeps them all for training. Memory: 40 bytes an entity of the lhs types.
"""

from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from partitions.candidates import Candidates
from partitions.schema import SPLITS, Bucket

_TIME, _NUMBER, _TIME_BEFORE, _NUMBER_BEFORE, _COUNT = range(5)
_ENOUGH = 3


@numba.njit(nogil=True, cache=True)
def _note(found, lhs, time, number):  # type: ignore[no-untyped-def]
    for row in range(lhs.size):
        at, t, n = lhs[row], time[row], number[row]
        found[at, 4] += 1
        if t > found[at, 0] or (t == found[at, 0] and n > found[at, 1]):
            found[at, 2], found[at, 3] = found[at, 0], found[at, 1]
            found[at, 0], found[at, 1] = t, n
        elif t > found[at, 2] or (t == found[at, 2] and n > found[at, 3]):
            found[at, 2], found[at, 3] = t, n


class LastEdges:
    def __init__(self, candidates: Candidates) -> None:
        self._candidates = candidates
        self._found: dict[str, list[NDArray[np.int64]]] = {}
        for name, parts in candidates.entities().items():
            for num_rows in parts:
                found = np.full((num_rows, 5), -1, np.int64)
                found[:, [_TIME, _TIME_BEFORE]] = np.iinfo(np.int64).min
                found[:, _COUNT] = 0
                self._found.setdefault(name, []).append(found)
        for rows, bucket in candidates.read():
            for found, at in self._by_type(rows, bucket):
                _note(found, rows["lhs"][at], rows["time"][at], rows["number"][at])

    def _by_type(
        self, rows: NDArray[Any], bucket: Bucket
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(what was found of an lhs type's partition, the rows of that type)."""
        for name, part, at in self._candidates.by_lhs(rows, bucket):
            yield self._found[name][part], at

    def split_of(self, rows: NDArray[Any], bucket: Bucket) -> NDArray[np.int8]:
        """int8 [rows] places in SPLITS."""
        split = np.zeros(len(rows), np.int8)
        for found, at in self._by_type(rows, bucket):
            of_lhs = found[rows["lhs"][at]]
            enough = of_lhs[:, _COUNT] >= _ENOUGH
            number = rows["number"][at]
            split[at[enough & (number == of_lhs[:, _NUMBER])]] = SPLITS.index("test")
            split[at[enough & (number == of_lhs[:, _NUMBER_BEFORE])]] = SPLITS.index("valid")
        return split
