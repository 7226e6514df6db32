"""Stochastic rounding of updated vectors to 16 bits (Gupta et al. 2015).

Of the two numbers on either side the nearer one is the likelier, so that the mean of many
roundings is the number itself: steps too small to reach the next number still add up. A number
that can be kept exactly stays. What is drawn is a function of a key, the row and the column, and
so the same at every run; kernels.py draws the same bits.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedsvc.compiled import jit
from partitions import precision
from partitions.hashing import GOLDEN, mix

_GOLDEN = np.uint64(GOLDEN)
_INFINITE = np.uint32(0x7F800000)  # the exponent of infinity and of NaN


@jit
def key_of(key, number, side):  # type: ignore[no-untyped-def]
    """Of an update: of a bucket's key, the number of the chunk or batch, and 0: lhs, 1: rhs.

    uint64. Not of the stream that negatives are drawn from.
    """
    return mix(mix(np.uint64(key) ^ _GOLDEN) + _GOLDEN * np.uint64(2 * number + side + 1))


@jit
def _starts(key, rows):  # type: ignore[no-untyped-def]
    out = np.empty(rows.size, np.uint32)
    for i in range(rows.size):
        out[i] = np.uint32(mix(key + _GOLDEN * np.uint64(rows[i])))
    return out


def draws(key: Any, rows: NDArray[np.int64], dim: int) -> NDArray[np.uint32]:
    """Random bits, [n, dim]: an integer hash (Wellons' lowbias32) of row and column."""
    steps = np.arange(dim, dtype=np.uint32) * np.uint32(0x9E3779B9)
    x = _starts(np.uint64(key), rows)[:, None] + steps
    x ^= x >> 16
    x *= np.uint32(0x7FEB352D)
    x ^= x >> 15
    x *= np.uint32(0x846CA68B)
    return np.asarray(x ^ (x >> 16))


def stochastic(
    values: NDArray[np.float32], dtype: np.dtype[Any], key: Any, rows: NDArray[np.int64]
) -> NDArray[Any]:
    """values: [n, D], of distinct `rows`, rounded to `dtype`. Infinity stays, NaN stays not finite.

    What is larger than the largest float16, 65504, becomes that.
    """
    bits = draws(key, rows, values.shape[1])
    if dtype == np.uint16:
        # A random number below the last kept bit, added, carries as often as it should.
        old = values.view(np.uint32)
        finite = (old & _INFINITE) != _INFINITE
        return ((old + (bits >> 16) * finite) >> 16).astype(np.uint16)
    largest = np.float32(np.finfo(dtype).max)
    values = np.where(np.isfinite(values), np.clip(values, -largest, largest), values)
    found = precision.nearest(values, dtype)
    back = found.astype(np.float32)
    with np.errstate(over="ignore"):
        below = np.where(back > values, np.nextafter(found, -np.inf, dtype=dtype), found)
        above = np.where(back < values, np.nextafter(found, np.inf, dtype=dtype), found)
    low = below.astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):  # where it can be kept exactly
        share = (values - low) / (above.astype(np.float32) - low)
    return np.where((bits >> 8) * np.float32(2**-24) < share, above, below)


# --- the same on any device -----------------------------------------------------------------------


def stochastic_bfloat16(values: Tensor, key: int, rows: Tensor) -> Tensor:
    """float32 [n, D], of distinct `rows`, rounded to bfloat16: the same bits as `stochastic`.

    torch has no arithmetic of unsigned numbers: int64 does, cut to 32 bits after each product.
    """
    low = 0xFFFFFFFF
    old = values.view(torch.int32).long() & low
    finite = old & int(_INFINITE) != int(_INFINITE)
    steps = torch.arange(values.shape[1], device=values.device) * 0x9E3779B9
    x = (_mix(rows * _signed(GOLDEN) + _signed(key)).unsqueeze(-1) + steps) & low
    x ^= x >> 16
    x = x * 0x7FEB352D & low
    x ^= x >> 15
    x = x * 0x846CA68B & low
    x ^= x >> 16
    carried = (old + (x >> 16) * finite) >> 16
    return carried.to(torch.int16).view(torch.bfloat16)


def _mix(x: Tensor) -> Tensor:
    """partitions.hashing.mix over the bits of int64, whose products wrap as those of uint64."""
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """To the right, zeros from the left."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x
