"""How keys are spelt: which characters, how long, what they all start with.

Kept as bits and lengths, so that a million keys cost two passes over their bytes. Numba: this
module never loads in serving.
"""

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from partitions.hashing import FNV_OFFSET, FNV_PRIME, mix

# What the characters of a key can be, each a bit.
TRAITS = (
    "digits",
    "lower",
    "upper",
    "space",
    "dash",
    "underscore",
    "dot",
    "slash",
    "colon",
    "punctuation",
    "non-ascii",
    "broken",  # control characters, U+FFFD, and UTF-8 that was taken for Latin-1 on its way
)
BROKEN = np.uint16(1 << TRAITS.index("broken"))


def _byte_traits() -> NDArray[np.uint16]:
    """uint16 [256]: the trait of each byte."""
    table = np.full(256, 1 << TRAITS.index("punctuation"), np.uint16)
    table[:32] = table[127] = BROKEN
    table[128:] = 1 << TRAITS.index("non-ascii")
    for first, last, name in [("0", "9", "digits"), ("a", "z", "lower"), ("A", "Z", "upper")]:
        table[ord(first) : ord(last) + 1] = 1 << TRAITS.index(name)
    single = {" ": "space", "-": "dash", "_": "underscore", ".": "dot", "/": "slash", ":": "colon"}
    for byte, name in single.items():
        table[ord(byte)] = 1 << TRAITS.index(name)
    return table


_BYTE_TRAITS = _byte_traits()


@numba.njit(nogil=True, cache=True)
def _broken_at(data, at, end):  # type: ignore[no-untyped-def]
    """Whether a sequence that only a wrong decoding leaves starts at this byte, which is >= 128."""
    left = end - at
    if left >= 3 and data[at] == 0xEF and data[at + 1] == 0xBF and data[at + 2] == 0xBD:
        return True  # U+FFFD
    if left >= 2 and data[at] == 0xC2 and data[at + 1] < 0xA0:
        return True  # a C1 control character
    if left >= 3 and data[at] == 0xC3 and data[at + 2] >= 0xC2:
        return data[at + 1] == 0x82 or data[at + 1] == 0x83  # "Ã©": two bytes taken for two letters
    if left >= 4 and data[at] == 0xC3 and data[at + 1] == 0xA2:
        return data[at + 2] == 0xE2 and data[at + 3] == 0x82  # "â€": a quote or dash of Windows
    return False


@numba.njit(nogil=True, cache=True)
def _scan(data, starts, byte_traits, hashes, traits):  # type: ignore[no-untyped-def]
    broken = byte_traits[0]
    for row in range(traits.size):
        mask, h = np.uint16(0), FNV_OFFSET
        end = starts[row + 1]
        for at in range(starts[row], end):
            byte = data[at]
            h = (h ^ np.uint64(byte)) * FNV_PRIME
            mask |= byte_traits[byte]
            if byte >= 128 and _broken_at(data, at, end):
                mask |= broken
        hashes[row], traits[row] = mix(h), mask


def scan(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    traits: NDArray[np.uint16],
) -> None:
    """Fill in the hash (hashing.hash_keys) and TRAITS of each slice starts[row]..starts[row + 1].

    Both in one pass, for the price of the hash: its multiplications wait for each other.
    """
    _scan(data, starts, _BYTE_TRAITS, hashes, traits)


def traits_of(text: pa.Array) -> NDArray[np.uint16]:
    """uint16 [rows]: the TRAITS of words, for few of them."""
    data = [word.encode() for word in text.to_pylist()]
    starts = np.cumsum([0, *map(len, data)], dtype=np.int64)
    hashes, traits = np.empty(len(data), np.uint64), np.empty(len(data), np.uint16)
    scan(np.frombuffer(b"".join(data), np.uint8), starts, hashes, traits)
    return traits


@numba.njit(nogil=True, cache=True)
def shares_prefix(data, starts, rows, prefix, out):  # type: ignore[no-untyped-def]
    """out bool [rows]: whether the key starts with `prefix`. Returns the longest length of it that
    all of them share."""
    shared = prefix.size
    for i in range(rows.size):
        start, end = starts[rows[i]], starts[rows[i] + 1]
        length = 0
        while (
            length < prefix.size and start + length < end and data[start + length] == prefix[length]
        ):
            length += 1
        out[i] = length == prefix.size
        shared = min(shared, length)
    return shared
