"""Leave-last-out: of each lhs, which edge came last (test) and which before it (valid).

Later means a later time, and among equal times a later place in the input. An lhs with fewer than
three edges keeps them all for training. Edges of an input with a split of its own count for nothing
here: their number is -1. Memory: 40 bytes an entity of the lhs types.
"""

from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from partitions.config import HoldoutConfig
from partitions.imported import Imported
from partitions.schema import SPLITS, Bucket
from partitions.spool import READ_ROWS

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
    def __init__(self, holdout: HoldoutConfig, imported: Imported) -> None:
        relations = imported.relations
        self._lhs_type = np.array([imported.relation_config(name).lhs for name in relations])
        chosen = [holdout.relations is None or name in holdout.relations for name in relations]
        self._chosen = np.array(chosen)
        self._found: dict[str, list[NDArray[np.int64]]] = {}
        for name in dict.fromkeys(self._lhs_type.tolist()):
            for num_rows in imported.dictionaries[name].num_rows:
                found = np.full((num_rows, 5), -1, np.int64)
                found[:, [_TIME, _TIME_BEFORE]] = np.iinfo(np.int64).min
                found[:, _COUNT] = 0
                self._found.setdefault(name, []).append(found)
        for bucket in imported.spool.buckets():
            for rows in imported.spool.read("train", bucket, READ_ROWS):
                for found, at in self._by_type(rows, bucket):
                    _note(found, rows["lhs"][at], rows["time"][at], rows["number"][at])

    def _by_type(
        self, rows: NDArray[Any], bucket: Bucket
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(what was found of an lhs type's partition, the rows of that type)."""
        for name, parts in self._found.items():
            found = parts[bucket.lhs if len(parts) > 1 else 0]
            chosen = (self._lhs_type == name) & self._chosen
            yield found, np.flatnonzero(chosen[rows["rel"]] & (rows["number"] >= 0))

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
