"""Requests for memory ahead of its use, for compiled code that reads rows all over a table.

Such a read waits some 100 ns for each cache line.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_untyped: Any = intrinsic  # a typed one misses the first argument, which calls don't give


@intrinsic
def fetch_line(typing_context, array, at):  # type: ignore[no-untyped-def]
    """llvm.prefetch of a contiguous array's element number `at`: read, into the second level."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        flag, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        fetch = builder.module.declare_intrinsic(
            "llvm.prefetch", (pointer,), ir.FunctionType(ir.VoidType(), [pointer, *[flag] * 3])
        )
        line = builder.bitcast(builder.gep(data, [arguments[1]]), pointer)
        builder.call(fetch, [line, flag(0), flag(2), flag(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@_untyped
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
