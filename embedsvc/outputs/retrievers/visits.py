"""What queries find in cells whose rows are being trained: gathered, multiplied, looked through.

A cell's rows lie all over the weights, so reading them is what a visit costs: 512 B a row of 128
numbers, at the speed of memory, if they are asked for some rows ahead. So a cell is read once for
all queries that visit it. Where the processor multiplies tiles of bfloat16, rows are rounded on
their way from memory to a tile, and 16 queries cost what one does.

Letters: D dimension, K cells, Q queries, N answers a query, T threads.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from embedsvc.compiled import jit
from embedsvc.graph.products import (
    fast_bfloat16,
    left_tiles,
    multiply_tiles,
    new_tiles,
    pack_line,
    pack_right,
    right_tiles,
)
from embedsvc.outputs.retrievers.cell_kernels import replace_root
from embedsvc.outputs.retrievers.lists import Space
from embedsvc.outputs.sparse import in_threads
from partitions.hashing import GOLDEN

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

_intrinsic: Any = intrinsic
_BLOCK = 64  # rows gathered at a time: 16 KB in bfloat16
_AHEAD = 8  # rows asked for before they are needed


def best_in_cells(
    weight_CD: Floats,
    bias_C: Floats,
    space: Space,
    queries_QD: Floats,
    grouped: NDArray[np.int32],
    ends_K: Ids,
    num_best: int,
    threads: int,
    most_rows: int,
    seed: int,
) -> Ids:
    """int64 [Q, N]: of each query the best of its cells, in any order; padded with -1.

    Queries grouped[ends_K[c - 1] : ends_K[c]] visit cell c, and look at `most_rows` of its rows,
    from a place on that the seed decides. Equal for equal arguments, bit for bit.
    """
    num_queries = len(queries_QD)
    rows_K = np.minimum(space.size[: len(ends_K)], most_rows) * (np.diff(ends_K, prepend=0) > 0)
    cells = np.flatnonzero(rows_K)
    ends = np.cumsum(rows_K[cells])
    threads = max(1, min(threads, len(cells)))
    shares = np.searchsorted(
        ends, np.arange(threads + 1) * (ends[-1] if len(ends) else 0) / threads
    )
    shares[-1] = len(cells)
    best_TQN = np.full((threads, num_queries, num_best), -np.inf, np.float32)
    which_TQN = np.full((threads, num_queries, num_best), -1, np.int64)

    def work(thread: int, first: int, last: int) -> None:
        _visit(
            *(cells[first:last], grouped, ends_K, space, weight_CD, bias_C, queries_QD),
            *(most_rows, np.uint64(seed), fast_bfloat16(), best_TQN[thread], which_TQN[thread]),
        )

    in_threads(work, list(pairwise(shares.tolist())))
    for best, which in zip(best_TQN[1:], which_TQN[1:], strict=True):
        _merge(best, which, best_TQN[0], which_TQN[0])
    return np.asarray(which_TQN[0])


@jit(fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
def _visit(  # type: ignore[no-untyped-def]
    cells, grouped, ends, space, weight, bias, queries, most_rows, seed, tiled, best, which
):
    dim = weight.shape[1]
    left = left_tiles(new_tiles(_BLOCK // 16 * ((dim + 31) // 32)), _BLOCK, dim)
    sums = new_tiles(4).view(np.float32)
    for cell in cells:
        group = grouped[ends[cell - 1] if cell else 0 : ends[cell]]
        asked = np.empty((group.size, dim), np.float32)
        lowest = np.empty(group.size, np.float32)
        for j in range(group.size):
            asked[j] = queries[group[j]]
            lowest[j] = best[group[j], 0]
        tiles = (dim + 31) // 32 * ((group.size + 15) // 16)
        right = right_tiles(new_tiles(tiles), dim, group.size)
        if tiled:
            pack_right(asked, True, right)
        size, start = space.size[cell], space.start[cell]
        first = _place(seed, cell) % size if size > most_rows else 0
        remain = min(size, most_rows)
        while remain:
            run = min(remain, size - first)
            ids = space.ids[start + first : start + first + run]
            for begin in range(0, run, _BLOCK):
                block = ids[begin : begin + _BLOCK]
                scores = np.empty((block.size, group.size), np.float32)
                if tiled:
                    _gather(ids, begin, block.size, weight, left)
                    multiply_tiles(left, right, sums, scores)
                else:
                    _multiply(ids, begin, weight, asked, scores)
                _offer(scores, bias, block, lowest, group, best, which)
            remain -= run
            first = 0


@jit
def _place(seed, cell):  # type: ignore[no-untyped-def]
    return np.int64((seed ^ np.uint64(cell)) * GOLDEN >> np.uint64(33))


@jit
def _gather(ids, begin, count, weight, left):  # type: ignore[no-untyped-def]
    """Rows as tiles of a left factor."""
    dim = weight.shape[1]
    for i in range(count):
        _ask_for(weight, ids[min(begin + i + _AHEAD, ids.size - 1)] * dim)
        for t in range(left.shape[1]):
            at, num = ids[begin + i] * dim + 32 * t, dim - 32 * t
            pack_line(weight, at, num, at + 16, num - 16, False, left[i // 16, t], i % 16 * 16)


@jit(fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
def _multiply(ids, begin, weight, queries, scores):  # type: ignore[no-untyped-def]
    dim = weight.shape[1]
    for i in range(scores.shape[0]):
        _ask_for(weight, ids[min(begin + i + _AHEAD, ids.size - 1)] * dim)
        row = weight[ids[begin + i]]
        for j in range(queries.shape[0]):
            total = np.float32(0)
            for d in range(dim):
                total += row[d] * queries[j, d]
            scores[i, j] = total


@jit
def _offer(scores, bias, ids, lowest, group, best, which):  # type: ignore[no-untyped-def]
    """lowest: of what each query of the group has found; written."""
    for i in range(ids.size):
        row = scores[i]
        more = bias[ids[i]]
        hits = np.int32(0)
        for j in range(row.size):
            hits = np.int32(hits + np.int32(row[j] + more > lowest[j]))
        if hits:
            for j in range(row.size):
                score = row[j] + more
                if score > lowest[j]:
                    q = group[j]
                    replace_root(best[q], which[q], score, ids[i])
                    lowest[j] = best[q, 0]


@jit
def _merge(more, more_which, best, which):  # type: ignore[no-untyped-def]
    for q in range(best.shape[0]):
        for i in range(best.shape[1]):
            if more[q, i] > best[q, 0]:
                replace_root(best[q], which[q], more[q, i], more_which[q, i])


@_intrinsic
def _ask_for(typing, array, at):  # type: ignore[no-untyped-def]
    """The cache lines of a row of a contiguous array that begins with its element `at`."""

    def emit(context, builder, signature, values):  # type: ignore[no-untyped-def]
        whole = context.make_array(array)(context, builder, values[0])
        columns = builder.extract_value(whole.shape, 1)
        size = context.get_abi_sizeof(context.get_data_type(array.dtype))
        number, byte = ir.IntType(32), ir.IntType(8)
        first = builder.bitcast(builder.gep(whole.data, [values[1]]), byte.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [first.type, number, number, number])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        length = builder.mul(columns, columns.type(size))
        with cgutils.for_range_slice(builder, columns.type(0), length, columns.type(64)) as (i, _):
            read, keep, data = number(0), number(3), number(1)
            builder.call(ask, [builder.gep(first, [i]), read, keep, data])
        return context.get_dummy_value()

    return types.void(array, types.int64), emit
