"""Asking for memory before it is needed: reading here and there waits some 100 ns for each line."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_intrinsic: Any = intrinsic


@_intrinsic
def ask_for(typing, array, at, count):  # type: ignore[no-untyped-def]
    """The cache lines of `count` elements of a contiguous array, from number `at` on."""

    def emit(context, builder, signature, values):  # type: ignore[no-untyped-def]
        whole = context.make_array(array)(context, builder, values[0])
        size = context.get_abi_sizeof(context.get_data_type(array.dtype))
        number, byte = ir.IntType(32), ir.IntType(8)
        first = builder.bitcast(builder.gep(whole.data, [values[1]]), byte.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [first.type, number, number, number])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        zero, line = ir.IntType(64)(0), ir.IntType(64)(64)
        length = builder.mul(values[2], zero.type(size))
        with cgutils.for_range_slice(builder, zero, length, line) as (i, _):
            read, keep, data = number(0), number(3), number(1)
            builder.call(ask, [builder.gep(first, [i]), read, keep, data])
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), emit
