"""Key -> id in 12 bytes a key (a dict takes some 170): sorted hashes, and beside them the ids.
Another 4 bytes keep the alphabetical order, for hints about unknown keys.
"""

import bisect
import difflib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_CHUNK = 10_000  # keys hashed at a time; between two chunks other threads answer
_AROUND = 4  # keys on each side of an unknown one that may be meant


class KeyTable:
    """The keys of an entity type, each once; row = id."""

    def __init__(self, keys: pa.ChunkedArray) -> None:
        self._keys = keys.cast(pa.large_string()).combine_chunks()
        hashes = np.empty(len(self._keys), np.int64)
        for at in range(0, len(hashes), _CHUNK):
            hashes[at : at + _CHUNK] = _hash(self._keys.slice(at, _CHUNK).to_pylist())
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._ids = order.astype(np.uint32)
        _, repeats = np.unique(self._hashes, return_counts=True)
        self._most_equal = int(repeats.max(initial=1))
        self._sorted = pc.array_sort_indices(self._keys).to_numpy().astype(np.uint32)

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """int64 [len(keys)]; -1 where a key is unknown."""
        found = np.full(len(keys), -1, np.int64)
        if not len(self) or not keys:
            return found
        hashes = _hash(keys)
        start = np.searchsorted(self._hashes, hashes)
        for step in range(self._most_equal):
            at = np.minimum(start + step, len(self) - 1)
            ids = self._ids[at].astype(np.int64)
            same = [held == key for held, key in zip(self.texts(ids), keys, strict=True)]
            found[same] = ids[same]
        return found

    def texts(self, ids: NDArray[np.int64]) -> list[str]:
        return self._keys.take(pa.array(ids)).to_pylist()

    def near(self, key: str) -> str | None:
        """A known key that looks much like an unknown one, among its neighbours by alphabet."""
        at = bisect.bisect_left(self._sorted, key, key=lambda id: self._keys[int(id)].as_py())
        around = self._sorted[max(at - _AROUND, 0) : at + _AROUND].astype(np.int64)
        return next(iter(difflib.get_close_matches(key, self.texts(around), n=1)), None)


def _hash(keys: Sequence[str]) -> NDArray[np.int64]:
    """Python's own: fast, and the same within a process and those forked from it."""
    return np.fromiter(map(hash, keys), np.int64, len(keys))
