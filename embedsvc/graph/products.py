"""Matrix products of bfloat16 with float32 sums, by the tiles of AMX, for compiled code.

A core with AMX has eight registers that hold a tile each: 16 rows of 64 bytes. One instruction adds
the product of two tiles of bfloat16 to a tile of 16 x 16 float32 in 16 cycles: 1024 operations a
cycle, sixteen times those of float32. Libraries come near that with large matrices only; those of a
chunk have some hundred rows and columns, and most of the time goes to packing. Here factors are
rounded and packed in one go, from float32 to tiles, and multiplied from a core's cache.

A row of a tile of the left factor a holds 32 numbers of one row; a row of a tile of the right
factor b holds 16 pairs, each of one column and two rows:

    tile (i, t) of a, row r:  a[16 i + r, 32 t], a[16 i + r, 32 t + 1], ...
    tile (t, j) of b, row p:  b[32 t + 2 p, 16 j], b[32 t + 2 p + 1, 16 j],
                              b[32 t + 2 p, 16 j + 1], b[32 t + 2 p + 1, 16 j + 1], ...

Seen as 16 x 16 pairs of 4 bytes, either is the other one's transpose: a tile packed in rows, then
turned over, is a right tile of the transposed matrix; one packed in pairs, then turned, a left one.
Tiles lie one by one, uint32 [rows of tiles, columns of tiles, 256], 1 KB each. What fills up the
inner dimension is 0; what fills up the others is anything, since no sum that is kept sees it.
"""

import ctypes
import platform
import sys
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from embedsvc.compiled import jit

_FEATURES = ("+amx-tile", "+amx-bf16", "+avx512bf16")


@cache
def fast_bfloat16() -> bool:
    """Whether this processor has such products, and Linux lets this process use them.

    The rest of this module compiles anywhere, and works only there.
    """
    return _has_tiles() and _permitted()


@cache
def _has_tiles() -> bool:
    """Of what numba compiles for, which its cache is keyed by."""
    return set(_FEATURES) <= set(cpu_target.target_context.codegen().magic_tuple()[2].split(","))


def _permitted() -> bool:
    """Asks Linux for the tiles' registers, on behalf of all threads of the process."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18  # ARCH_REQ_XCOMP_PERM
    return ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0


fast_bfloat16()  # compiled code does not ask


class Room(NamedTuple):
    """What multiply works in."""

    left: Any  # uint32 [256 * tiles]
    right: Any  # uint32 [256 * tiles]
    sums: Any  # float32 [1024], 2 x 2 tiles


@jit
def new_room(a, b, c):  # type: ignore[no-untyped-def]
    """For products that have these three sizes, or smaller ones, in any order."""
    a, b, c = (a + 15) // 16, (b + 15) // 16, (c + 15) // 16
    most = max(a * b, b * c, a * c)
    return Room(new_tiles(most), new_tiles(most), new_tiles(4).view(np.float32))


def room_bytes(a: int, b: int, c: int) -> int:
    a, b, c = -(-a // 16), -(-b // 16), -(-c // 16)
    return 2 * 1024 * max(a * b, b * c, a * c) + 4096


@jit
def new_tiles(count):  # type: ignore[no-untyped-def]
    """uint32 [256 * count], from the start of a cache line: tiles are read by whole lines."""
    memory = np.empty(256 * count + 16, np.uint32)
    first = (-memory.ctypes.data % 64) // 4
    return memory[first : first + 256 * count]


@jit
def left_tiles(memory, rows, inner):  # type: ignore[no-untyped-def]
    """The part of the memory that holds a left factor of this shape; see new_tiles."""
    down, across = (rows + 15) // 16, (inner + 31) // 32
    return memory[: 256 * down * across].reshape(down, across, 256)


@jit
def right_tiles(memory, inner, columns):  # type: ignore[no-untyped-def]
    down, across = (inner + 31) // 32, (columns + 15) // 16
    return memory[: 256 * down * across].reshape(down, across, 256)


@jit
def multiply(a, turn_a, b, turn_b, room, out):  # type: ignore[no-untyped-def]
    """out [m, n] = a b, transposed first where `turn_`; all float32 and contiguous, a and b rounded
    to the nearest bfloat16 (ties to even; subnormal numbers are 0)."""
    inner = a.shape[0] if turn_a else a.shape[1]
    left = left_tiles(room.left, out.shape[0], inner)
    right = right_tiles(room.right, inner, out.shape[1])
    pack_left(a, turn_a, left)
    pack_right(b, turn_b, right)
    multiply_tiles(left, right, room.sums, out)


@jit
def pack_left(x, turn, left):  # type: ignore[no-untyped-def]
    for i in range(left.shape[0]):
        for t in range(left.shape[1]):
            if turn:
                _pack_pairs(x, t, i, left[i, t])
                _turn(left[i, t])
            else:
                _pack_rows(x, i, t, left[i, t])


@jit
def pack_right(x, turn, right):  # type: ignore[no-untyped-def]
    for t in range(right.shape[0]):
        for j in range(right.shape[1]):
            if turn:
                _pack_rows(x, j, t, right[t, j])
                _turn(right[t, j])
            else:
                _pack_pairs(x, t, j, right[t, j])


@jit
def _pack_rows(x, i, t, tile):  # type: ignore[no-untyped-def]
    rows, columns = x.shape
    at, num = 16 * i * columns + 32 * t, columns - 32 * t
    for r in range(min(16, rows - 16 * i)):
        pack_line(x, at, num, at + 16, num - 16, False, tile, 16 * r)
        at += columns


@jit
def _pack_pairs(x, t, j, tile):  # type: ignore[no-untyped-def]
    rows, columns = x.shape
    at, num = 32 * t * columns + 16 * j, columns - 16 * j
    full = min(16, (rows - 32 * t) // 2)
    for p in range(full):
        pack_line(x, at, num, at + columns, num, True, tile, 16 * p)
        at += 2 * columns
    for p in range(full, 16):
        alone = num if 32 * t + 2 * p < rows else 0
        pack_line(x, at, alone, at, 0, True, tile, 16 * p)


@jit
def multiply_tiles(left, right, sums, out):  # type: ignore[no-untyped-def]
    """out = left right; sums: as in Room.

    2 x 2 tiles of the product at a time: each tile that is loaded serves twice, and each sum rests
    for the time of three others. They go through `sums`, since AMX is slow at rows that do not
    begin with a cache line, and would write beyond the last column.
    """
    rows, columns = out.shape
    _configure(_SHAPES)
    for i in range(0, left.shape[0], 2):
        for j in range(0, right.shape[1], 2):
            lower, further = i + 1 < left.shape[0], j + 1 < right.shape[1]
            _zero(0)
            _zero(1)
            _zero(2)
            _zero(3)
            for t in range(left.shape[1]):
                _load(4, left[i, t])
                _load(6, right[t, j])
                _add_product(0, 4, 6)
                if further:
                    _load(7, right[t, j + 1])
                    _add_product(1, 4, 7)
                if lower:
                    _load(5, left[i + 1, t])
                    _add_product(2, 5, 6)
                    if further:
                        _add_product(3, 5, 7)
            _store(0, sums[0:])
            _store(1, sums[16:])
            _store(2, sums[512:])
            _store(3, sums[528:])
            at, remain = 16 * (i * columns + j), columns - 16 * j
            for r in range(min(32, rows - 16 * i)):
                _copy(sums, 32 * r, remain, out, at)
                _copy(sums, 32 * r + 16, remain - 16, out, at + 16)
                at += columns
    _release()


# --- instructions ---------------------------------------------------------------------------------

# Palette 1; of each of eight tiles 64 bytes a row and 16 rows.
_SHAPES = np.zeros(64, np.uint8)
_SHAPES[0] = 1
_SHAPES[16:32:2] = 64
_SHAPES[48:56] = 16

_intrinsic: Any = intrinsic(prefer_literal=True)
_BYTE, _INT, _LONG = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_FLOATS, _PAIRS = ir.VectorType(ir.FloatType(), 16), ir.VectorType(_INT, 16)


class _BFloat(ir.Type):
    """llvmlite has none."""

    def _to_string(self) -> str:
        return "bfloat"


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """An intrinsic of LLVM."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _place(context: Any, builder: Any, kind: Any, array: Any, at: Any, of: Any = _BYTE) -> Any:
    """Pointer to a contiguous array's element number `at`."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), of.as_pointer())


def _vector(kind: Any, numbers: Any) -> Any:
    return ir.Constant(ir.VectorType(kind, len(numbers)), list(numbers))


def _first_lanes(builder: Any, count: Any) -> Any:
    """Mask of the first `count` of 16, which may be less than 0 or more than 16."""
    none = ir.Constant(_PAIRS, ir.Undefined)
    counts = builder.insert_element(none, builder.trunc(count, _INT), _INT(0))
    counts = builder.shuffle_vector(counts, none, _vector(_INT, [0] * 16))
    return builder.icmp_signed("<", _vector(_INT, range(16)), counts)


def _instruction(arguments: Any, emit: Any) -> Any:
    """(signature, code), which is empty where the processor has no such instruction."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        if _has_tiles():
            emit(context, builder, signature.args, values)
        return context.get_dummy_value()

    return types.void(*arguments), generate


def _on_tiles(name: str, *tiles: Any) -> Any:
    """An instruction on tile registers, whose numbers are known when it is compiled."""
    numbers = [_BYTE(tile.literal_value) for tile in tiles]
    return _instruction(
        tiles, lambda context, builder, *_: _call(builder, name, ir.VoidType(), *numbers)
    )


@_intrinsic
def _configure(typing, shapes):  # type: ignore[no-untyped-def]
    def emit(context, builder, kinds, values):  # type: ignore[no-untyped-def]
        place = _place(context, builder, shapes, values[0], _LONG(0))
        _call(builder, "llvm.x86.ldtilecfg", ir.VoidType(), place)

    return _instruction((shapes,), emit)


@_intrinsic
def _release(typing):  # type: ignore[no-untyped-def]
    return _on_tiles("llvm.x86.tilerelease")


@_intrinsic
def _zero(typing, tile):  # type: ignore[no-untyped-def]
    return _on_tiles("llvm.x86.tilezero", tile)


@_intrinsic
def _add_product(typing, sums, left, right):  # type: ignore[no-untyped-def]
    return _on_tiles("llvm.x86.tdpbf16ps", sums, left, right)


@_intrinsic
def _load(typing, tile, memory):  # type: ignore[no-untyped-def]
    """From 16 lines of 64 bytes."""
    return _moved("llvm.x86.tileloadd64", tile, memory, 64)


@_intrinsic
def _store(typing, tile, memory):  # type: ignore[no-untyped-def]
    """To every other of 32 lines of 64 bytes."""
    return _moved("llvm.x86.tilestored64", tile, memory, 128)


def _moved(name: str, tile: Any, memory: Any, stride: int) -> Any:
    def emit(context, builder, kinds, values):  # type: ignore[no-untyped-def]
        place = _place(context, builder, memory, values[1], _LONG(0))
        _call(builder, name, ir.VoidType(), _BYTE(tile.literal_value), place, _LONG(stride))

    return _instruction((tile, memory), emit)


@_intrinsic
def pack_line(typing, x, low, num_low, high, num_high, pairs, tile, to):  # type: ignore[no-untyped-def]
    """A line of a tile at `to`: the first num_low (at most 16) numbers from x[low] on and the first
    num_high from x[high] on, each filled up to 16 with 0; one after the other, or in pairs."""

    def emit(context, builder, kinds, values):  # type: ignore[no-untyped-def]
        def numbers(at: Any, count: Any) -> Any:
            place = _place(context, builder, x, values[0], at, _FLOATS)
            mask, zeros = _first_lanes(builder, count), _vector(ir.FloatType(), [0.0] * 16)
            name = "llvm.masked.load.v16f32.p0"
            return _call(builder, name, _FLOATS, place, _INT(4), mask, zeros)

        halves = [numbers(values[3], values[4]), numbers(values[1], values[2])]
        name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
        line = _call(builder, name, ir.VectorType(_BFloat(), 32), *halves)
        if pairs.literal_value:
            line = builder.bitcast(line, ir.VectorType(ir.IntType(16), 32))
            order = _vector(_INT, [i // 2 + 16 * (i % 2) for i in range(32)])
            line = builder.shuffle_vector(line, line, order)
        place = _place(context, builder, tile, values[6], values[7], _PAIRS)
        builder.store(builder.bitcast(line, _PAIRS), place, align=64)

    long = types.int64
    return _instruction((x, long, long, long, long, pairs, tile, long), emit)


@_intrinsic
def _turn(typing, tile):  # type: ignore[no-untyped-def]
    """16 x 16 pairs, in place: halves of 1, 2, 4 and 8 rows change places."""

    def emit(context, builder, kinds, values):  # type: ignore[no-untyped-def]
        places = [
            _place(context, builder, tile, values[0], _LONG(16 * i), _PAIRS) for i in range(16)
        ]
        lines = [builder.load(place, align=64) for place in places]
        for step in (1, 2, 4, 8):
            upper = [k + 16 - step if k & step else k for k in range(16)]
            lower = [k + 16 if k & step else k + step for k in range(16)]
            for i in range(16):
                if not i & step:
                    pair = lines[i], lines[i + step]
                    lines[i] = builder.shuffle_vector(*pair, _vector(_INT, upper))
                    lines[i + step] = builder.shuffle_vector(*pair, _vector(_INT, lower))
        for line, place in zip(lines, places, strict=True):
            builder.store(line, place, align=64)

    return _instruction((tile,), emit)


@_intrinsic
def _copy(typing, sums, at, count, out, to):  # type: ignore[no-untyped-def]
    """The first `count` of the 16 numbers from sums[at] on."""

    def emit(context, builder, kinds, values):  # type: ignore[no-untyped-def]
        numbers = builder.load(
            _place(context, builder, sums, values[0], values[1], _FLOATS), align=64
        )
        place = _place(context, builder, out, values[3], values[4], _FLOATS)
        mask, name = _first_lanes(builder, values[2]), "llvm.masked.store.v16f32.p0"
        _call(builder, name, ir.VoidType(), numbers, place, _INT(4), mask)

    long = types.int64
    return _instruction((sums, long, long, out, long), emit)
