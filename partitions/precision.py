"""How the numbers of a table are kept: float32, or half of it.

numpy has no bfloat16: its bits, the upper half of a float32's, are uint16 here. No other array of
uint16 is kept anywhere.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(np.uint16),
    "float16": np.dtype(np.float16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_NAN = 0x7FC0  # of bfloat16


def name_of(dtype: np.dtype[Any]) -> str:
    """KeyError for any other dtype."""
    return _NAMES[dtype]


def widen(values: NDArray[Any]) -> NDArray[np.float32]:
    """As float32, exactly; float32 itself is not copied."""
    if values.dtype != np.uint16:
        return values.astype(np.float32, copy=False)
    bits = values.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def nearest(values: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The nearest number of `dtype`, of two the even one; float32 itself is not copied."""
    if dtype != np.uint16:
        with np.errstate(over="ignore"):  # becomes infinity, which shows
            return values.astype(dtype, copy=False)
    bits = np.ascontiguousarray(values).view(np.uint32)
    half = 0x7FFF + ((bits >> 16) & 1)
    kept = ((bits + half) >> 16).astype(np.uint16)
    kept[np.isnan(values)] = _NAN
    return kept


def largest(values: NDArray[Any]) -> float:
    """The largest absolute number; NaN where there is one, 0 of nothing."""
    if values.dtype == np.float32:  # without an array beside it
        return float(np.max([values.max(initial=0), -values.min(initial=0)]))
    per_block = max(1, (1 << 20) // max(values[:1].nbytes, 1))
    blocks = (values[at : at + per_block] for at in range(0, len(values), per_block))
    return float(np.max([0.0, *(np.abs(widen(block)).max(initial=0) for block in blocks)]))
