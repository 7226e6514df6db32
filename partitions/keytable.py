"""A hash table of 128-bit fingerprints -> places: how an import finds a key in one cache miss.

The first half of a fingerprint is the key's hash (hashing.py), the second an independent hash with
a seed drawn anew by every process. Keys are told apart by both, never by their text: comparing text
would cost two more cache misses a key, and with n keys two of them share a fingerprint with
probability n^2 / 2^129 (1e-21 for a billion). Somebody who forges equal first halves, which is
easy, can't know the seed of the second.

A slot is 24 bytes (two hashes, place + 1); tables double at 3/4 full: 32 to 64 bytes an entity.
"""

import secrets

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from partitions.hashing import FNV_OFFSET, FNV_PRIME, mix

_STEP = np.uint64(0x9FB21C651E98DF25)
_EMPTY = np.uint64(0)
_SEED = np.uint64(secrets.randbits(64))
UNKNOWN = -1


def text_buffers(keys: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(bytes, int64 [n + 1] offsets) of a string array without nulls, copied at most once."""
    wide = keys if pa.types.is_large_string(keys.type) else keys.cast(pa.large_string())
    _, offsets, data = wide.buffers()
    text = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    if not len(wide):
        return text, np.zeros(1, np.int64)
    return text, np.frombuffer(offsets, np.int64)[wide.offset : wide.offset + len(wide) + 1]


@numba.njit(nogil=True, cache=True)
def fingerprint(data, offsets, seed, out):  # type: ignore[no-untyped-def]
    """out: uint64 [n, 2]"""
    for row in range(out.shape[0]):
        first, second = FNV_OFFSET, seed
        for at in range(offsets[row], offsets[row + 1]):
            byte = np.uint64(data[at])
            first = (first ^ byte) * FNV_PRIME
            second = (second + byte + np.uint64(1)) * _STEP
            second ^= second >> np.uint64(29)
        out[row, 0] = mix(first)
        out[row, 1] = mix(second ^ np.uint64(offsets[row + 1] - offsets[row]))


@numba.njit(nogil=True, cache=True)
def _find(table, prints, out):  # type: ignore[no-untyped-def]
    mask = np.uint64(table.shape[0] - 1)
    missing = 0
    for row in range(out.size):
        first, second = prints[row, 0], prints[row, 1]
        at = first & mask
        while table[at, 2] != 0 and (table[at, 0] != first or table[at, 1] != second):
            at = (at + np.uint64(1)) & mask
        out[row] = np.int64(table[at, 2]) - 1  # an empty slot holds 0: UNKNOWN
        missing += out[row] < 0
    return missing


@numba.njit(nogil=True, cache=True)
def _insert(table, prints, out, new_rows, counts):  # type: ignore[no-untyped-def]
    """Give each key that is still missing a place, in the order of rows. Returns how many."""
    mask = np.uint64(table.shape[0] - 1)
    num_partitions = np.uint64(counts.size)
    num_new = 0
    for row in range(out.size):
        if out[row] >= 0:
            continue
        first, second = prints[row, 0], prints[row, 1]
        at = first & mask
        while table[at, 2] != 0 and (table[at, 0] != first or table[at, 1] != second):
            at = (at + np.uint64(1)) & mask
        if table[at, 2] == 0:
            partition = np.int64(first % num_partitions)
            table[at, 0], table[at, 1] = first, second
            table[at, 2] = np.uint64(((partition << 32) | counts[partition]) + 1)
            counts[partition] += 1
            new_rows[num_new] = row
            num_new += 1
        out[row] = np.int64(table[at, 2]) - 1
    return num_new


@numba.njit(nogil=True, cache=True)
def _move(old, new):  # type: ignore[no-untyped-def]
    mask = np.uint64(new.shape[0] - 1)
    for row in range(old.shape[0]):
        if old[row, 2] != 0:
            at = old[row, 0] & mask
            while new[at, 2] != 0:
                at = (at + np.uint64(1)) & mask
            new[at] = old[row]


class KeyTable:
    """fingerprint -> partition << 32 | offset, for one entity type."""

    def __init__(self, num_partitions: int) -> None:
        self.counts = np.zeros(num_partitions, np.int64)  # rows of each partition
        self._slots = np.zeros((1 << 10, 3), np.uint64)

    def __len__(self) -> int:
        return int(self.counts.sum())

    @staticmethod
    def fingerprints(keys: pa.Array) -> NDArray[np.uint64]:
        """uint64 [n, 2]; releases the GIL."""
        data, offsets = text_buffers(keys)
        out = np.empty((len(keys), 2), np.uint64)
        fingerprint(data, offsets, _SEED, out)
        return out

    def find(self, prints: NDArray[np.uint64], out: NDArray[np.int64]) -> int:
        """Fill out: int64 [n] with places, UNKNOWN where there is none; returns how many of those.

        Releases the GIL; several threads may search at once while nobody inserts.
        """
        return int(_find(self._slots, prints, out))

    def insert(
        self, prints: NDArray[np.uint64], places: NDArray[np.int64], num_missing: int
    ) -> NDArray[np.int64]:
        """Fill what is UNKNOWN in `places`; returns int64 rows of keys seen for the first time."""
        while (len(self) + num_missing) * 4 > len(self._slots) * 3:
            bigger = np.zeros((len(self._slots) * 2, 3), np.uint64)
            _move(self._slots, bigger)
            self._slots = bigger
        new_rows = np.empty(num_missing, np.int64)
        num_new = _insert(self._slots, prints, places, new_rows, self.counts)
        return new_rows[:num_new]
