"""The spool: raw edges of every (split, bucket) on disk while an import reads its input.

One append-only file per (split, bucket), of rows {lhs u4, rhs u4, rel u4} and, where the import
has them, {weight f4}, {time i8, seconds}, {number i8, the row's place in the whole input}. Rows are
held in memory up to HELD_ROWS and appended together.
"""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from partitions.schema import SPLITS, Bucket

HELD_ROWS = 1 << 22

_ALWAYS = [("lhs", "<u4"), ("rhs", "<u4"), ("rel", "<u4")]
_OPTIONAL = {"weight": "<f4", "time": "<i8", "number": "<i8"}

Place = tuple[int, int, int]  # split, lhs partition, rhs partition


@numba.njit(nogil=True, cache=True)
def _bucket_codes(lhs, rhs, split, lhs_binds, rhs_binds, num_partitions, codes):  # type: ignore[no-untyped-def]
    """codes[row] = (split * P + i) * P + j; a side that does not bind follows the other."""
    for row in range(codes.size):
        i, j = lhs[row] >> 32, rhs[row] >> 32
        if not lhs_binds:
            i = j
        elif not rhs_binds:
            j = i
        codes[row] = (np.int64(split[row]) * num_partitions + i) * num_partitions + j


@numba.njit(nogil=True, cache=True)
def _group(codes, counts, order):  # type: ignore[no-untyped-def]
    """A stable counting sort: order[k] = row; counts becomes where each code's rows end."""
    for row in range(codes.size):
        counts[codes[row]] += 1
    total = 0
    for code in range(counts.size):
        total, counts[code] = total + counts[code], total
    for row in range(codes.size):
        order[counts[codes[row]]] = row
        counts[codes[row]] += 1


class Spool:
    def __init__(self, folder: Path, num_partitions: int, optional: list[str]) -> None:
        self.folder, self.num_partitions = folder, num_partitions
        self.optional = optional
        self.dtype = np.dtype(_ALWAYS + [(name, _OPTIONAL[name]) for name in optional])
        self.num_rows: Counter[Place] = Counter()
        self._held: dict[int, list[NDArray[Any]]] = {}
        self._num_held = 0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def is_full(self) -> bool:
        return self._num_held >= HELD_ROWS

    def add(
        self,
        rows: NDArray[Any],
        lhs: NDArray[np.int64],
        rhs: NDArray[np.int64],
        split: NDArray[np.int8],
        lhs_binds: bool,
        rhs_binds: bool,
    ) -> None:
        """rows: of self.dtype, whose lhs and rhs are filled here; lhs, rhs: int64 places."""
        parts = self.num_partitions
        codes = np.empty(len(rows), np.int64)
        _bucket_codes(lhs, rhs, split, lhs_binds, rhs_binds, parts, codes)
        ends, order = np.zeros(len(SPLITS) * parts * parts, np.int64), np.empty_like(codes)
        _group(codes, ends, order)
        rows["lhs"], rows["rhs"] = lhs & 0xFFFFFFFF, rhs & 0xFFFFFFFF
        grouped = rows[order]
        start = 0
        for code in np.flatnonzero(np.diff(ends, prepend=0)).tolist():
            self._held.setdefault(code, []).append(grouped[start : ends[code]])
            start = ends[code]
        self._num_held += len(rows)

    def flush(self) -> None:
        for code, pieces in self._held.items():
            place = self._place(code)
            with self._path(place).open("ab") as file:
                for piece in pieces:
                    file.write(piece.view(np.uint8).data)  # tofile would hide why a disk refuses
                    self.num_rows[place] += len(piece)
        self._held, self._num_held = {}, 0

    def sync(self) -> None:
        """Make what was flushed survive a power cut."""
        for place in self.num_rows:
            with self._path(place).open("rb") as file:
                os.fsync(file.fileno())

    def restore(self, num_rows: Mapping[Place, int]) -> None:
        """Cut every file back to what a journal says it held."""
        for path in self.folder.iterdir():
            place: Any = tuple(map(int, path.name.split("-")))
            os.truncate(path, num_rows.get(place, 0) * self.dtype.itemsize)
        self.num_rows = Counter(num_rows)

    def buckets(self) -> list[Bucket]:
        return sorted({Bucket(i, j) for (_, i, j), rows in self.num_rows.items() if rows})

    def read(self, split: str, bucket: Bucket) -> NDArray[Any]:
        path = self._path((SPLITS.index(split), *bucket))
        return np.fromfile(path, self.dtype) if path.exists() else np.empty(0, self.dtype)

    def _place(self, code: int) -> Place:
        rest, j = divmod(code, self.num_partitions)
        split, i = divmod(rest, self.num_partitions)
        return split, i, j

    def _path(self, place: Place) -> Path:
        return self.folder / "-".join(map(str, place))
