"""Kernels that score rows for groups of queries, and keep the best of each.

Queries that visit one cell are multiplied with its rows at once. Where the processor multiplies
tiles of bfloat16 (graph/products.py), 16 queries cost what one does, and a row read from memory
costs more than its products: 256 B in a copy that lies in the order of cells, as tiles; 512 B all
over the weights, asked for some rows ahead. Elsewhere rows are float32 and the product is BLAS's.

A heap keeps what a query has found, its lowest at the root. Most rows are below that of every query
of a group, so that a row costs one comparison of 16 numbers.

Letters: C classes, D dimension, K cells, N found, P probes, Q queries, T tiles across a row.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from embedsvc.compiled import jit
from embedsvc.graph.products import (
    left_tiles,
    multiply_tiles,
    new_tiles,
    pack_left,
    pack_line,
    pack_right,
    right_tiles,
)
from embedsvc.outputs.retrievers.lists import Space
from embedsvc.prefetch import ask_for
from partitions.hashing import GOLDEN

_intrinsic: Any = intrinsic
_AHEAD = 8  # rows asked for before they are needed
_GATHERED = 64  # rows at a time: 16 KB in bfloat16
_BLOCK = 128  # rows of a copy, or centers: their scores for a group are 128 KB
GROUP = 256  # queries


class Centers(NamedTuple):
    """score = <center, query> + offset + <extra of the center, extra of the query>"""

    tiles: Any  # uint32 [(K + 15) / 16, T, 256], a left factor; or none
    plain: Any  # float32 [K, D], or none
    offset: Any  # float32 [K]
    extra: Any  # float32 [2, K]


class Source(NamedTuple):
    """Rows and biases less their means: a copy in the order of the lists, or the weights."""

    space: Space
    centered: Any  # cell_kernels.View
    tiled: bool
    copied: bool
    tiles: Any  # uint32 [.., T, 256], 16 places of the lists in each; or none
    plain: Any  # float32 [places, D], or none
    offset: Any  # float32 [places]


class Group(NamedTuple):
    """Queries as a right factor, and memory to multiply them with rows."""

    tiled: bool
    right: Any  # uint32 [T, .., 256]
    turned: Any  # float32 [D, n]
    sums: Any


def _jit(function):  # type: ignore[no-untyped-def]
    return jit(function, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")


@_jit
def choose(queries, extra, centers, best, which):  # type: ignore[no-untyped-def]
    """The centers of the highest scores, in any order. extra: [Q, 2]; best, which: heaps [Q, P]."""
    num_centers = centers.offset.size
    ids = np.arange(num_centers).astype(np.int32)
    offset = np.zeros(_BLOCK, np.float32)
    for first in range(0, queries.shape[0], GROUP):
        last = min(first + GROUP, queries.shape[0])
        group = _grouped(queries[first:last], centers.tiles.size > 0)
        members = np.arange(first, last).astype(np.int32)
        lowest = np.full(_width(members.size), np.inf, np.float32)
        lowest[: members.size] = -np.inf
        whole = np.empty((_BLOCK, lowest.size), np.float32)
        extra_of_group = extra[first:last].T.copy()  # side by side, for the loop over queries
        for begin in range(0, num_centers, _BLOCK):
            scores = whole[: min(_BLOCK, num_centers - begin)]
            _score_centers(begin, centers, group, extra_of_group, scores)
            block = ids[begin : begin + len(scores)]
            _offer(scores, offset, block, lowest, members, best, which)


@_jit
def _score_centers(begin, centers, group, extra, scores):  # type: ignore[no-untyped-def]
    count = scores.shape[0]
    if group.tiled:
        tiles = centers.tiles[begin // 16 : (begin + count + 15) // 16]
        multiply_tiles(tiles, group.right, group.sums, scores)
    else:
        np.dot(centers.plain[begin : begin + count], group.turned, scores)
    for i in range(count):
        row, c = scores[i], begin + i
        more, one, two = centers.offset[c], centers.extra[0, c], centers.extra[1, c]
        for j in range(extra.shape[1]):
            row[j] += more + one * extra[0, j] + two * extra[1, j]


@_jit
def _width(count):  # type: ignore[no-untyped-def]
    """Columns of scores for so many queries: whole lines; what is left of the last is nothing."""
    return (count + 15) // 16 * 16


@_jit
def _grouped(queries, tiled):  # type: ignore[no-untyped-def]
    count, dim = _width(queries.shape[0]), queries.shape[1]
    sums = new_tiles(4).view(np.float32)
    if tiled:
        memory = new_tiles((dim + 31) // 32 * ((count + 15) // 16))
        right = right_tiles(memory, dim, count)
        pack_right(queries, True, right)
        return Group(True, right, np.empty((0, 0), np.float32), sums)
    none = np.empty((0, 0, 256), np.uint32)
    turned = np.zeros((dim, count), np.float32)
    turned[:, : queries.shape[0]] = queries.T
    return Group(False, none, turned, sums)


@_jit
def group_by_cell(probe, num_cells, grouped):  # type: ignore[no-untyped-def]
    """Queries by cell, into grouped; returns where each cell's end. All are in the last."""
    size = np.zeros(num_cells + 1, np.int64)
    for q in range(probe.shape[0]):
        for p in range(probe.shape[1]):
            if probe[q, p] >= 0:
                size[probe[q, p]] += 1
    size[num_cells] = probe.shape[0]
    ends = np.cumsum(size)
    place = ends - size
    for q in range(probe.shape[0]):
        for p in range(probe.shape[1]):
            cell = probe[q, p]
            if cell >= 0:
                grouped[place[cell]] = q
                place[cell] += 1
        grouped[place[num_cells]] = q
        place[num_cells] += 1
    return ends


@_jit
def list_visits(ends, size, first, last):  # type: ignore[no-untyped-def]
    """int64 [n, 3]: cells from `first` to before `last` that are visited and not empty, with the
    places of GROUP of their queries at most."""
    visits = np.empty((ends[-1] // GROUP + ends.size, 3), np.int64)
    count = 0
    for cell in range(first, last):
        begin = ends[cell - 1] if cell else 0
        if size[cell]:
            for at in range(begin, ends[cell], GROUP):
                visits[count, 0], visits[count, 1] = cell, at
                visits[count, 2] = min(at + GROUP, ends[cell])
                count += 1
    return visits[:count]


@_jit
def visit(  # type: ignore[no-untyped-def]
    visits, grouped, source, queries, most_rows, seed, known, best, which
):
    """The best of the cells of `visits`, which list_visits made, into the heaps [Q, N].

    Of each cell `most_rows` are looked at, from a place on that the seed decides. known: [Q], of
    what is not higher nothing need be kept.
    """
    dim = queries.shape[1]
    memory = new_tiles(_GATHERED // 16 * ((dim + 31) // 32))
    gathered = np.empty((_GATHERED, dim), np.float32), np.empty(_GATHERED, np.float32)
    scores = np.empty((0, 0), np.float32)
    asked = queries[:0].copy()
    group = _grouped(asked, source.tiled)
    for i in range(visits.shape[0]):
        cell = visits[i, 0]
        members = grouped[visits[i, 1] : visits[i, 2]]
        lowest = np.full(_width(members.size), np.inf, np.float32)
        for j in range(members.size):
            lowest[j] = max(best[members[j], 0], known[members[j]])
        same = asked.shape[0] == members.size == queries.shape[0]  # all queries, as before
        if not same:
            asked = np.empty((members.size, dim), np.float32)
            for j in range(members.size):
                asked[j] = queries[members[j]]
            group = _grouped(asked, source.tiled)
            scores = np.empty((_BLOCK + 32, lowest.size), np.float32)
        size, start = np.int64(source.space.size[cell]), source.space.start[cell]
        first = _place(seed, cell) % size if size > most_rows else 0
        remain = min(size, most_rows)
        while remain:
            run = min(remain, size - first)
            begin = start + first
            ids = source.space.ids[begin : begin + run]
            if source.copied:
                for at in range(0, run, _BLOCK):
                    block = ids[at : at + _BLOCK]
                    found = _score_copied(begin + at, block.size, source, group, scores)
                    offset = source.offset[begin + at : begin + at + block.size]
                    _offer(found, offset, block, lowest, members, best, which)
            else:
                for at in range(0, run, _GATHERED):
                    block = ids[at : at + _GATHERED]
                    found = scores[: block.size]
                    _gather(ids, at, block.size, source, gathered)
                    _score_gathered(gathered[0][: block.size], memory, group, found)
                    _offer(found, gathered[1], block, lowest, members, best, which)
            remain -= run
            first = 0


@_jit
def _place(seed, cell):  # type: ignore[no-untyped-def]
    return np.int64((seed ^ np.uint64(cell)) * GOLDEN >> np.uint64(33))


@_jit
def _score_copied(begin, count, source, group, scores):  # type: ignore[no-untyped-def]
    if group.tiled:  # of whole tiles, with the neighbours' rows
        first, last = begin // 16, (begin + count + 15) // 16
        multiply_tiles(
            source.tiles[first:last], group.right, group.sums, scores[: 16 * (last - first)]
        )
        return scores[begin - 16 * first : begin - 16 * first + count]
    found = scores[:count]
    np.dot(source.plain[begin : begin + count], group.turned, found)
    return found


@_jit
def _score_gathered(rows, memory, group, scores):  # type: ignore[no-untyped-def]
    if group.tiled:
        left = left_tiles(memory, rows.shape[0], rows.shape[1])
        pack_left(rows, False, left)
        multiply_tiles(left, group.right, group.sums, scores)
    else:
        np.dot(rows, group.turned, scores)


@_jit
def _gather(ids, begin, count, source, gathered):  # type: ignore[no-untyped-def]
    rows, offset = gathered
    dim = rows.shape[1]
    for i in range(count):
        ask_for(
            source.centered.weight, np.int64(ids[min(begin + i + _AHEAD, ids.size - 1)]) * dim, dim
        )
        c = ids[begin + i]
        row, out = source.centered.weight[c], rows[i]
        for d in range(dim):
            out[d] = row[d] - source.centered.mean[d]
        offset[i] = source.centered.bias[c] - source.centered.mean_bias


@_jit
def copy_list(number, source):  # type: ignore[no-untyped-def]
    """Bring a list's part of the copy up to date."""
    start, dim = source.space.start[number], source.centered.mean.size
    size = source.space.size[number]
    ids = source.space.ids[start : start + size]
    gathered = np.empty((_GATHERED, dim), np.float32), np.empty(_GATHERED, np.float32)
    for begin in range(0, size, _GATHERED):
        count = min(_GATHERED, size - begin)
        _gather(ids, begin, count, source, gathered)
        for i in range(count):
            place = start + begin + i
            source.offset[place] = gathered[1][i]
            if source.tiles.size:
                put_row(gathered[0], i * dim, dim, place, source.tiles)
            else:
                source.plain[place] = gathered[0][i]


def rows_for_products(num_rows: int, dim: int, tiled: bool) -> tuple[Any, Any]:
    """(tiles, plain), one of them of no size: memory for a left factor."""
    if not tiled:
        return np.empty((0, 0, 256), np.uint32), np.empty((num_rows, dim), np.float32)
    shape = (num_rows + 15) // 16, (dim + 31) // 32, 256
    size = int(np.prod(shape))
    memory = np.empty(size + 16, np.uint32)  # numpy's: it asks for large pages
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + size].reshape(shape), np.empty((0, dim), np.float32)


@_jit
def put_row(rows, at, dim, place, tiles):  # type: ignore[no-untyped-def]
    """The `dim` numbers of contiguous rows from rows' number `at` on, as row `place` of tiles."""
    for t in range(tiles.shape[1]):
        low, num = at + 32 * t, dim - 32 * t
        tile = tiles[place // 16, t]
        pack_line(rows, low, num, low + 16, num - 16, False, tile, place % 16 * 16)


@_jit
def _offer(scores, offset, ids, lowest, members, best, which):  # type: ignore[no-untyped-def]
    """lowest: what is not above it needn't be kept, of each member; written."""
    width = lowest.size
    for i in range(ids.size):
        more = offset[i]
        for first in range(0, width, 16):
            hits = _above(scores, i * width + first, more, lowest, first)
            while hits:
                lane = _lowest_bit(hits)
                hits &= hits - 1
                j = first + lane
                if j < members.size:
                    q = members[j]
                    _replace_root(best[q], which[q], scores[i, j] + more, ids[i])
                    lowest[j] = max(lowest[j], best[q, 0])


@_jit
def merge(more, more_which, best, which):  # type: ignore[no-untyped-def]
    """Heaps of the same queries."""
    for q in range(best.shape[0]):
        for i in range(best.shape[1]):
            if more[q, i] > best[q, 0]:
                _replace_root(best[q], which[q], more[q, i], more_which[q, i])


@_jit
def _replace_root(best, which, score, number):  # type: ignore[no-untyped-def]
    at, size = 0, best.size
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and best[child + 1] < best[child]:
            child += 1
        if best[child] >= score:
            break
        best[at], which[at] = best[child], which[child]
        at = child
    best[at], which[at] = score, number


@_intrinsic
def _above(typing, x, at, more, lowest, to):  # type: ignore[no-untyped-def]
    """Bits of those of the 16 numbers from x[at] on, contiguous, which with `more` added are above
    those from lowest[to] on."""

    def emit(context, builder, signature, values):  # type: ignore[no-untyped-def]
        line, number = ir.VectorType(ir.FloatType(), 16), ir.IntType(32)

        def load(kind: Any, array: Any, place: Any) -> Any:
            data = context.make_array(kind)(context, builder, array).data
            first = builder.bitcast(builder.gep(data, [place]), line.as_pointer())
            return builder.load(first, align=4)

        none = ir.Constant(line, ir.Undefined)
        added = builder.insert_element(none, values[2], number(0))
        lanes = ir.Constant(ir.VectorType(number, 16), [0] * 16)
        added = builder.shuffle_vector(added, none, lanes)
        sums = builder.fadd(load(x, values[0], values[1]), added)
        above = builder.fcmp_ordered(">", sums, load(lowest, values[3], values[4]))
        return builder.zext(builder.bitcast(above, ir.IntType(16)), ir.IntType(64))

    return types.int64(x, types.int64, types.float32, lowest, types.int64), emit


@_intrinsic
def _lowest_bit(typing, bits):  # type: ignore[no-untyped-def]
    def emit(context, builder, signature, values):  # type: ignore[no-untyped-def]
        return builder.cttz(values[0], ir.IntType(1)(1))

    return types.int64(types.int64), emit
