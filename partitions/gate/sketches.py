"""Bounded summaries of a stream whose state depends on what was seen, never on order or cuts.

So two halves merged equal the whole, bit for bit, and statistics can be gathered by any number of
workers. The trick for everything with many distinct values is the same: keep those with the
smallest hashes, and count them exactly. A value among the smallest at the end was among them all
along, so no count is ever partial; and two batches keep the same values, so they can be compared
key by key.

Errors: up to `size` distinct values all is exact. Beyond, the kept values are a uniform sample of
the distinct ones, and their number is known to a standard error of 1/sqrt(size - 2), which is 2.2 %
for 2048. Numba: this module never loads in serving.
"""

import base64
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from partitions.hashing import GOLDEN, hash_keys, mix

NUM_BUCKETS = 1024  # of hashes, for shares of single values: 8 kB a column
BINS_PER_OCTAVE = 32  # of numbers: a bin is 2.2 % wide
_BIN_ZERO = 40_000  # above 32 x 1074, so that every finite float has a bin
_TOP = float(2**64)


@numba.njit(nogil=True, cache=True)
def fold(h, part):  # type: ignore[no-untyped-def]
    """Mix the hashes of one more column into h, uint64 [rows], in place."""
    for row in range(h.size):
        h[row] = mix(h[row] * np.uint64(GOLDEN) + part[row])


@numba.njit(nogil=True, cache=True)
def mix_all(bits):  # type: ignore[no-untyped-def]
    out = np.empty_like(bits)
    for row in range(bits.size):
        out[row] = mix(bits[row])
    return out


def unmix(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The inverse of hashing.mix."""
    x = np.asarray(hashes, np.uint64).copy()
    with np.errstate(over="ignore"):
        x ^= (x >> np.uint64(31)) ^ (x >> np.uint64(62))
        x *= np.uint64(0x319642B2D24D8EC3)
        x ^= (x >> np.uint64(27)) ^ (x >> np.uint64(54))
        x *= np.uint64(0x96DE1B173F119089)
        x ^= (x >> np.uint64(30)) ^ (x >> np.uint64(60))
    return x


@numba.njit(nogil=True, cache=True)
def _count(hashes, times, first, keys, counts, used, most, limit):  # type: ignore[no-untyped-def]
    """Add hashes[first:] <= limit to an open-addressing table; an empty slot has count 0.

    times: how often each occurs; empty means once. Returns (next row, used): the next row is not
    the end where the table holds `most` keys and must grow or be cut first.
    """
    mask = np.uint64(keys.size - 1)
    for row in range(first, hashes.size):
        h = hashes[row]
        if h > limit:
            continue
        slot = (h ^ (h >> np.uint64(32))) & mask
        while counts[slot] != 0 and keys[slot] != h:
            slot = (slot + np.uint64(1)) & mask
        if counts[slot] == 0:
            if used >= most:
                return row, used
            keys[slot] = h
            used += 1
        counts[slot] += times[row] if times.size else 1
    return hashes.size, used


_ONCE = np.empty(0, np.int64)


class KeySample:
    """The `size` smallest hashes seen, each with its exact count."""

    def __init__(self, size: int = 2048) -> None:
        self.size = size
        self._keys, self._counts = np.zeros(64, np.uint64), np.zeros(64, np.int64)
        self._used = 0
        self._limit = np.uint64(2**64 - 1)  # larger hashes can't be among the smallest any more
        self._cut = False

    def add(self, hashes: NDArray[np.uint64], times: NDArray[np.int64] = _ONCE) -> None:
        at = 0
        while True:
            most = min(len(self._keys) // 2, 2 * self.size)
            at, self._used = _count(
                hashes, times, at, self._keys, self._counts, self._used, most, self._limit
            )
            if at == len(hashes):
                return
            self._make_room()

    def merge(self, other: "KeySample") -> None:
        hashes, counts = other._sorted()
        self.add(hashes, counts)
        if not other.exact:  # what it left out, this sample leaves out as well
            self._limit, self._cut = min(self._limit, hashes[-1]), True

    def shrink(self, size: int) -> None:
        """Keep as if `size` had been this from the start; a larger one changes nothing."""
        if size >= self.size:
            return
        hashes, counts = self._sorted()
        if len(hashes) > size:
            self._limit, self._cut = hashes[size - 1], True
        self.size, self._used = size, 0
        self._keys, self._counts = np.zeros(64, np.uint64), np.zeros(64, np.int64)
        self.add(hashes[:size], counts[:size])

    def _sorted(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        filled = np.flatnonzero(self._counts)
        filled = filled[np.argsort(self._keys[filled])]
        filled = filled[self._keys[filled] <= self._limit][: self.size]
        return self._keys[filled], self._counts[filled]

    def _make_room(self) -> None:
        num_slots = len(self._keys)
        if self._used >= 2 * self.size:
            hashes, counts = self._sorted()
            self._limit, self._cut = hashes[-1], True
        else:
            filled = np.flatnonzero(self._counts)
            hashes, counts = self._keys[filled], self._counts[filled]
            num_slots *= 2
        self._keys, self._counts = np.zeros(num_slots, np.uint64), np.zeros(num_slots, np.int64)
        self._used = 0
        _, self._used = _count(
            hashes, counts, 0, self._keys, self._counts, 0, num_slots, np.uint64(2**64 - 1)
        )

    @property
    def exact(self) -> bool:
        """Whether every distinct value is kept."""
        return not self._cut and self._used <= self.size

    @property
    def kept(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """(hashes, counts), ascending: all values where exact, else those below the largest kept
        hash, of which there are `fraction` among all distinct ones."""
        hashes, counts = self._sorted()
        return (hashes, counts) if self.exact else (hashes[:-1], counts[:-1])

    @property
    def fraction(self) -> float:
        return 1.0 if self.exact else (float(self._sorted()[0][-1]) + 1) / _TOP

    @property
    def distinct(self) -> float:
        """How many distinct values were seen; an estimate where not exact."""
        return len(self.kept[0]) / self.fraction

    def as_json(self) -> dict[str, Any]:
        hashes, counts = self._sorted()
        return {
            "size": self.size,
            "exact": self.exact,
            "hashes": base64.b64encode(hashes.astype("<u8").tobytes()).decode(),
            "counts": base64.b64encode(counts.astype("<i8").tobytes()).decode(),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "KeySample":
        sample = KeySample(value["size"])
        hashes = np.frombuffer(base64.b64decode(value["hashes"]), "<u8").astype(np.uint64)
        sample.add(hashes, np.frombuffer(base64.b64decode(value["counts"]), "<i8").astype(np.int64))
        if not value["exact"]:
            sample._limit, sample._cut = hashes[-1], True
        return sample


class CategoryCounts:
    """How often each value of a column with few values occurs.

    Exact up to `size` distinct values; beyond, exact for those with the smallest hashes.
    `buckets` counts every value by its hash, so that shares can be compared in either case.
    """

    def __init__(self, size: int = 4096) -> None:
        self.size = size
        self.counts: dict[str, int] = {}
        self.buckets = np.zeros(NUM_BUCKETS, np.int64)
        self._limit = 2**64 - 1
        self.exact = True

    def add(self, values: pa.Array, counts: NDArray[np.int64]) -> None:
        """values: text without nulls, each once, and how often it occurs."""
        some = np.flatnonzero(counts)
        if len(some) < len(counts):
            values, counts = values.take(pa.array(some)), counts[some]
        hashes = hash_keys(values)
        np.add.at(self.buckets, bucket_of(hashes), counts)
        self._keep(values, counts, hashes)

    def _keep(self, values: pa.Array, counts: Any, hashes: NDArray[np.uint64]) -> None:
        near = np.flatnonzero(hashes <= np.uint64(self._limit))
        names = values.take(pa.array(near)).to_pylist()
        for name, count in zip(names, np.asarray(counts)[near].tolist(), strict=True):
            self.counts[name] = self.counts.get(name, 0) + count
        if len(self.counts) > self.size:
            all_names = pa.array(list(self.counts), pa.large_string())
            order = np.argsort(hashes := hash_keys(all_names))[: self.size]
            kept = all_names.take(pa.array(order)).to_pylist()
            self.counts = {name: self.counts[name] for name in kept}
            self._limit, self.exact = int(hashes[order[-1]]), False

    def merge(self, other: "CategoryCounts") -> None:
        names = pa.array(list(other.counts), pa.large_string())
        if not other.exact:
            self._limit, self.exact = min(self._limit, other._limit), False
            mine = pa.array(list(self.counts), pa.large_string())
            inside = hash_keys(mine) <= np.uint64(self._limit)
            kept = mine.filter(pa.array(inside)).to_pylist()
            self.counts = {name: self.counts[name] for name in kept}
        self._keep(names, list(other.counts.values()), hash_keys(names))
        self.buckets += other.buckets

    @property
    def total(self) -> int:
        return int(self.buckets.sum())

    def as_json(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "exact": self.exact,
            "limit": self._limit,
            "counts": dict(sorted(self.counts.items())),
            "buckets": packed(self.buckets),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "CategoryCounts":
        made = CategoryCounts(value["size"])
        made.counts, made.exact = dict(value["counts"]), value["exact"]
        made._limit, made.buckets = value["limit"], unpacked(value["buckets"])
        return made


def bucket_of(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (hashes >> np.uint64(54)).astype(np.int64)


def bins_of(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The logarithmic bin of each finite number: 0 for 0, rising with the number."""
    size = np.abs(values)
    with np.errstate(divide="ignore"):
        octave = np.log2(size)
    octave[size == 0] = 0
    up = np.floor(octave * BINS_PER_OCTAVE).astype(np.int64) + _BIN_ZERO
    return np.where(size == 0, 0, np.where(values > 0, up, -up))


def log2_of(at: int) -> float:
    """Of the middle of a bin of positive numbers."""
    return (at - _BIN_ZERO + 0.5) / BINS_PER_OCTAVE


def count_bins(into: Counter[int], bins: NDArray[np.int64]) -> None:
    if not len(bins):
        return
    low, high = int(bins.min()), int(bins.max())
    if high - low < 1 << 20:  # which spares a sort
        counts = np.bincount(bins - low)
        at = np.flatnonzero(counts)
        into.update(dict(zip((at + low).tolist(), counts[at].tolist(), strict=True)))
    else:
        distinct, counts = np.unique(bins, return_counts=True)
        into.update(dict(zip(distinct.tolist(), counts.tolist(), strict=True)))


def packed(counts: NDArray[np.int64]) -> str:
    """Counts as text for JSON, numbers with blanks between: one line, and still readable."""
    return " ".join(map(str, counts.tolist()))


def unpacked(text: str) -> NDArray[np.int64]:
    return np.array(text.split(), np.int64)


def sparse(counts: Mapping[int, int]) -> dict[str, int]:
    return {str(key): counts[key] for key in sorted(counts)}


def dense(counts: Iterable[tuple[str, int]]) -> Counter[int]:
    return Counter({int(key): count for key, count in counts})
