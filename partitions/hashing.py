"""The 64-bit hash of a key: FNV-1a over its UTF-8 bytes, then the splitmix64 finaliser.

It places a key in a partition, decides its split and seeds its first vector, so it is part of the
graph format: it may never change without a new format version. FNV-1a alone has weak low bits; the
finaliser (Steele, Lea and Flood 2014) mends that. Numba: this module never loads in serving.
"""

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the step of splitmix64

FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)


@numba.njit("uint64(uint64)", cache=True, inline="always")
def mix(x):  # type: ignore[no-untyped-def]
    """splitmix64 finaliser: uint64 -> uint64, a bijection."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(nogil=True, cache=True)
def _hash_slices(data, offsets, out):  # type: ignore[no-untyped-def]
    for row in range(out.size):
        h = FNV_OFFSET
        for at in range(offsets[row], offsets[row + 1]):
            h = (h ^ np.uint64(data[at])) * FNV_PRIME
        out[row] = mix(h)


def hash_keys(keys: pa.Array) -> NDArray[np.uint64]:
    """uint64 [n] hashes of a string array without nulls."""
    keys = keys.cast(pa.large_string())
    _, offsets, data = keys.buffers()
    out = np.empty(len(keys), np.uint64)
    if len(keys):
        starts = np.frombuffer(offsets, np.int64)[keys.offset : keys.offset + len(keys) + 1]
        text = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
        _hash_slices(text, starts, out)
    return out


def hash_edges(
    seed: int, lhs: NDArray[np.uint64], rel: NDArray[np.uint64], rhs: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """uint64 [n]: one number per edge from the hashes of its three names, and a seed."""
    h = np.full(len(lhs), mix(np.uint64(seed)), np.uint64)
    for part in (lhs, rel, rhs):
        h = _mix_all(h * np.uint64(GOLDEN) + part)
    return h


@numba.vectorize(["uint64(uint64)"], cache=True)
def _mix_all(x):  # type: ignore[no-untyped-def]
    return mix(x)
