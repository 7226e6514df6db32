"""Matrix products of bfloat16 with float32 sums, for compiled code: half the bytes, more a cycle.

Processors with AMX multiply bfloat16 several times as fast as float32. MKL, which torch's builds
for x86-64 bring along, has such products under a plain C name; compiled code calls it by that name,
so kernels that use it can be cached.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import torch
from numba import types

_NAME = "cblas_gemm_bf16bf16f32"
_ROWS, _PLAIN, _TURNED = 101, 111, 112  # CblasRowMajor, CblasNoTrans, CblasTrans
_FEATURES = ("amx-bf16",)  # processors without it multiply float32 as fast


@cache
def fast_bfloat16() -> bool:
    """Whether this processor and this torch multiply bfloat16 faster than float32."""
    features = llvmlite.binding.get_host_cpu_features()
    return available() and all(features.get(name) for name in _FEATURES)


@cache
def available() -> bool:
    """Whether this torch has such products at all, fast or not.

    Makes their name known to compiled code; where nothing bears it, it gets a stand-in that is not
    to be called, since kernels that could call it would not load without.
    """
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = getattr(ctypes.CDLL(str(path)), _NAME)
    except (OSError, AttributeError):
        function = None
    address = ctypes.cast(function or ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p).value
    llvmlite.binding.add_symbol(_NAME, address)
    return function is not None


available()
_int, _float = types.int32, types.float32
_halves, _floats = types.CPointer(types.uint16), types.CPointer(types.float32)
_gemm: Any = types.ExternalFunction(
    _NAME,
    types.void(
        *(_int, _int, _int, _int, _int, _int),  # order, turn a, turn b, rows, columns, inner
        *(_float, _halves, _int, _halves, _int),  # factor, a, its row length, b, its row length
        *(_float, _floats, _int),  # what is kept of out, out, its row length
    ),
)


@numba.njit(nogil=True, cache=True)
def multiply(a, turn_a, b, turn_b, out):  # type: ignore[no-untyped-def]
    """out [m, n] = a b; a, b: bfloat16 in uint16, contiguous, transposed first where `turn_`.

    float32 out is contiguous too, and overwritten. Only where available().
    """
    inner = a.shape[0] if turn_a else a.shape[1]
    if out.size == 0:
        return
    if inner == 0:
        out[:] = 0
        return
    _gemm(
        _ROWS,
        _TURNED if turn_a else _PLAIN,
        _TURNED if turn_b else _PLAIN,
        out.shape[0],
        out.shape[1],
        inner,
        np.float32(1),
        a.ctypes,
        a.shape[1],
        b.ctypes,
        b.shape[1],
        np.float32(0),
        out.ctypes,
        out.shape[1],
    )


@numba.njit(nogil=True, cache=True)
def halve(x, out):  # type: ignore[no-untyped-def]
    """The nearest bfloat16 (ties to even) of each number of x: float32, contiguous -> uint16.

    NaN and infinity stay so; what is nearer to infinity than to the largest number becomes it.
    """
    bits = x.reshape(x.size).view(np.uint32)
    flat = out.reshape(out.size)
    for i in range(bits.size):
        carry = np.uint32(0x7FFF) + ((bits[i] >> np.uint32(16)) & np.uint32(1))
        special = (bits[i] & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        flat[i] = np.uint16((bits[i] + (np.uint32(0) if special else carry)) >> np.uint32(16))
