"""The spool: raw edges of every (split, bucket) on disk while an import reads its input.

One append-only file per (split, bucket), of rows {lhs u4, rhs u4, rel u4} and, where the import
has them, {weight f4}, {time i8, seconds}, {number i8, the row's place in the whole input}. Rows are
held in memory up to HELD_ROWS and appended together. Each file has a running crc32: pass 2 takes
its offsets as they are, so a row that a disk altered must not come back from a killed import.
"""

import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from partitions.schema import SPLITS, Bucket

HELD_ROWS = 1 << 22
READ_ROWS = 1 << 20  # of a bucket, at a time

_ALWAYS = [("lhs", "<u4"), ("rhs", "<u4"), ("rel", "<u4")]
_OPTIONAL = {"weight": "<f4", "time": "<i8", "number": "<i8"}

_CHECK_BYTES = 1 << 20

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
def _group(codes, counts, lhs, rhs, words, out):  # type: ignore[no-untyped-def]
    """Rows of uint32 words, sorted by code (a stable counting sort) into `out`, with the offsets of
    lhs and rhs for their first two; counts becomes where each code's rows end."""
    for row in range(codes.size):
        counts[codes[row]] += 1
    total = 0
    for code in range(counts.size):
        total, counts[code] = total + counts[code], total
    for row in range(codes.size):
        to = counts[codes[row]]
        counts[codes[row]] += 1
        out[to, 0], out[to, 1] = np.uint32(lhs[row]), np.uint32(rhs[row])
        for word in range(2, words.shape[1]):
            out[to, word] = words[row, word]


class Spool:
    def __init__(self, folder: Path, num_partitions: int, optional: list[str]) -> None:
        self.folder, self.num_partitions = folder, num_partitions
        self.optional = optional
        self.dtype = np.dtype(_ALWAYS + [(name, _OPTIONAL[name]) for name in optional])
        self.num_rows: Counter[Place] = Counter()
        self.checksums: Counter[Place] = Counter()  # crc32 of each file's rows
        self._unsynced: set[Place] = set()
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
        """rows: of self.dtype, whose lhs and rhs are yet to be filled; lhs, rhs: int64 places."""
        parts = self.num_partitions
        codes = np.empty(len(rows), np.int64)
        _bucket_codes(lhs, rhs, split, lhs_binds, rhs_binds, parts, codes)
        ends, grouped = np.zeros(len(SPLITS) * parts * parts, np.int64), np.empty_like(rows)
        words = (len(rows), self.dtype.itemsize // 4)
        as_words = (rows.view(np.uint32).reshape(words), grouped.view(np.uint32).reshape(words))
        _group(codes, ends, lhs, rhs, *as_words)
        start = 0
        for code in np.flatnonzero(np.diff(ends, prepend=0)).tolist():
            self._held.setdefault(code, []).append(grouped[start : ends[code]])
            start = ends[code]
        self._num_held += len(rows)

    def flush(self) -> None:
        for code, pieces in self._held.items():
            place = self._place(code)
            self._unsynced.add(place)
            with self._path(place).open("ab") as file:
                for piece in pieces:
                    data = piece.view(np.uint8).data  # tofile would hide why a disk refuses
                    file.write(data)
                    self.checksums[place] = zlib.crc32(data, self.checksums[place])
                    self.num_rows[place] += len(piece)
        self._held, self._num_held = {}, 0

    def sync(self) -> None:
        """Make what was flushed survive a power cut."""
        for place in self._unsynced:
            with self._path(place).open("rb") as file:
                os.fsync(file.fileno())
        self._unsynced.clear()

    def holds(self, num_rows: Mapping[Place, int], checksums: Mapping[Place, int]) -> bool:
        """Whether every file begins with the rows that a journal says it held. Reads them."""
        return num_rows.keys() == checksums.keys() and all(
            self._begins_with(self._path(place), rows * self.dtype.itemsize, checksums[place])
            for place, rows in num_rows.items()
        )

    @staticmethod
    def _begins_with(path: Path, num_bytes: int, checksum: int) -> bool:
        if not path.is_file():
            return False
        found = 0
        with path.open("rb") as file:
            while num_bytes and (block := file.read(min(num_bytes, _CHECK_BYTES))):
                found = zlib.crc32(block, found)
                num_bytes -= len(block)
        return not num_bytes and found == checksum

    def restore(self, num_rows: Mapping[Place, int], checksums: Mapping[Place, int]) -> None:
        """Cut every file back to what a journal says it held."""
        for path in self.folder.iterdir():
            place: Any = tuple(map(int, path.name.split("-")))
            os.truncate(path, num_rows.get(place, 0) * self.dtype.itemsize)
        self.num_rows, self.checksums = Counter(num_rows), Counter(checksums)

    def buckets(self) -> list[Bucket]:
        return sorted({Bucket(i, j) for (_, i, j), rows in self.num_rows.items() if rows})

    def num_rows_of(self, split: str, bucket: Bucket) -> int:
        return self.num_rows[(SPLITS.index(split), *bucket)]

    def read(self, split: str, bucket: Bucket, rows: int) -> Iterator[NDArray[Any]]:
        """The rows of a bucket in their order, `rows` at a time."""
        path = self._path((SPLITS.index(split), *bucket))
        for start in range(0, self.num_rows_of(split, bucket), rows):
            yield np.fromfile(path, self.dtype, rows, offset=start * self.dtype.itemsize)

    def _place(self, code: int) -> Place:
        rest, j = divmod(code, self.num_partitions)
        split, i = divmod(rest, self.num_partitions)
        return split, i, j

    def _path(self, place: Place) -> Path:
        return self.folder / "-".join(map(str, place))
