"""The 64-bit fingerprint of a value: what hashed features and crosses take their ids from.

    mix(x)       splitmix64's finaliser (Steele, Lea and Flood 2014), a bijection of uint64
    integer v    mix(v ^ key(-1)): no two integers share one
    text         mix(length ^ sum over k of mix(word[k] ^ key(k))), in uint64; word[k] is the k-th
                 8 bytes of its UTF-8 as a little-endian number, zeros past the end, and there are
                 length // 8 + 1 of them
    key(k)       mix(seed + (k + 2) * GOLDEN)
    several      h = key(-2); for each part: h = mix(h * GOLDEN + part)

It is part of the saved features' format (saved.py), with its seed. A sum over words has no order of
evaluation, so numpy takes all words of all texts at once: serving has no compiler.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

NAME = "splitmix64-words"
GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_KEYS = 64  # words that have their key ready: 512 bytes of text

Prints = NDArray[np.uint64]
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(GOLDEN)
# _TAILS[n]: the n lowest bytes of a word.
_TAILS = np.array([(1 << (8 * n)) - 1 for n in range(9)], np.uint64)


def mix(x: Prints) -> Prints:
    """In place."""
    shifted = x >> _30
    x ^= shifted
    x *= _FIRST
    np.right_shift(x, _27, shifted)
    x ^= shifted
    x *= _SECOND
    np.right_shift(x, _31, shifted)
    x ^= shifted
    return x


@dataclass(frozen=True)
class Fingerprints:
    seed: int

    def keys(self, first: int, count: int) -> Prints:
        """key(first), key(first + 1), ..."""
        start = np.full(count, (self.seed + (first + 2) * GOLDEN) & _MASK, np.uint64)
        return mix(start + np.arange(count, dtype=np.uint64) * np.uint64(GOLDEN))

    @cached_property
    def _ready(self) -> Prints:
        return self.keys(-2, _KEYS + 2)

    @cached_property
    def missing(self) -> np.uint64:
        """Of no value: a feature's value has it by chance only."""
        return self.keys(-3, 1)[0]

    def of(self, values: pa.Array) -> Prints:
        """Of int64 or large_string; what a null gets means nothing."""
        if values.type == pa.int64():
            return self.of_integers(integers(values))
        return self.of_texts(values)

    def of_integers(self, values: NDArray[np.int64]) -> Prints:
        return mix(values.view(np.uint64) ^ self._ready[1])

    def of_texts(self, texts: pa.Array) -> Prints:
        starts, data = text_buffers(texts)
        if not len(texts):
            return np.empty(0, np.uint64)
        lengths = starts[1:] - starts[:-1]
        words = _words(data)
        if int(lengths.max()) < 8:
            sums = mix((words[starts[:-1]] & _TAILS[lengths]) ^ self._ready[2])
        else:
            sums = self._sums(words, starts, lengths)
        return mix(sums ^ lengths.view(np.uint64))

    def _sums(self, words: Prints, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Prints:
        """Over the words of each text."""
        counts = (lengths >> 3) + 1
        ends = np.cumsum(counts)
        firsts = ends - counts
        owner = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(ends[-1]) - firsts[owner]
        inside = number << 3
        found = words[starts[owner] + inside]
        found &= _TAILS[np.minimum(lengths[owner] - inside, 8)]
        most = int(counts.max())
        keys = self._ready[2:] if most <= _KEYS else self.keys(0, most)
        found ^= keys[number]
        return np.add.reduceat(mix(found), firsts)

    def start(self, rows: int) -> Prints:
        """What `combine` begins with."""
        return np.full(rows, self._ready[0])

    @staticmethod
    def combine(so_far: Prints, part: Prints) -> Prints:
        """In place."""
        so_far *= _STEP
        so_far += part
        return mix(so_far)


def integers(column: pa.Array) -> NDArray[np.int64]:
    """The values of an int64 array as they lie there, whatever stands at its nulls."""
    if not len(column):
        return np.empty(0, np.int64)
    return np.frombuffer(column.buffers()[1], np.int64, len(column), column.offset * 8)


def text_buffers(texts: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """(starts [n + 1], bytes) of a large_string array; the bytes begin at 0 and have 8 more."""
    _, offsets, data = texts.buffers()
    if not len(texts) or offsets is None:
        return np.zeros(len(texts) + 1, np.int64), np.zeros(8, np.uint8)
    starts = np.frombuffer(offsets, np.int64, len(texts) + 1, texts.offset * 8)
    first, last = int(starts[0]), int(starts[-1])
    padded = np.zeros(last - first + 8, np.uint8)
    if last > first:
        padded[:-8] = np.frombuffer(data, np.uint8, last - first, first)
    return (starts - first if first else starts), padded


def _words(data: NDArray[np.uint8]) -> Prints:
    """The 8 bytes from each place on, as one number."""
    return np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))
