"""A request for memory ahead of its use, for compiled code that reads rows all over a table."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


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
