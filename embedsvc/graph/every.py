"""The kernel of 1-vs-all training: each edge against every entity of the table, tile by tile.

A chunk's scores of N entities would be N C float32, written, read and written again. Here a tile of
the table is scored, and its exponentials, sums and share of the queries' gradients are taken while
it is in a core's cache; they are rescaled when a higher score turns up (Milakov and Gimelshein
2018). What is kept of a tile are exponentials relative to the highest score so far. Once the sums
are known, a second pass forms the gradient of each tile's rows, of both sides where one table
serves both, and updates them before it goes on to the next.

Softmax of dot products, of queries that are moved: candidates stand still. What is kept is float32,
or where products are of bfloat16, tiles of that, packed for them; the kernel is compiled for
either. Letters as in kernels.py, and T
rows of a tile.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from embedsvc.compiled import LOOSE_SUMS
from embedsvc.graph.kernels import (
    _EPSILON,
    _MASKED,
    _add,
    _add_pairs,
    _block,
    _find_relations,
    _gather,
    _jit,
    _move,
    _move_back,
    _pairs,
    _raise,
    _regularize,
    _subtract,
    _update_parameters,
    exp,
)
from embedsvc.graph.products import (
    left_tiles,
    multiply,
    multiply_tiles,
    new_room,
    new_tiles,
    pack_left,
    pack_right,
    right_tiles,
    room_bytes,
)
from embedsvc.graph.rounding import key_of

TILE_ROWS = 512  # rows and scores of 200 edges: some 1 MB


class Kept(NamedTuple):
    """Exponentials of a chunk: float32, or uint32 that hold tiles of bfloat16. Made by room_for."""

    of_rhs: NDArray[Any]  # of rows of the right table by edges, of predicting rhs
    of_lhs: NDArray[Any]  # of rows of the left table by edges, of predicting lhs


def room_for(left_rows: int, right_rows: int, most_edges: int, halves: bool) -> Kept:
    if halves:
        return Kept(*(new_tiles(_tiles(rows, most_edges)) for rows in (right_rows, left_rows)))
    return Kept(*(np.empty(rows * most_edges, np.float32) for rows in (right_rows, left_rows)))


def _tiles(rows: int, inner: int) -> int:
    return -(-rows // 16) * -(-inner // 32)


def bytes_of(left_rows: int, right_rows: int, most_edges: int, dim: int, halves: bool) -> int:
    """What train_chunks works in, room_for's included."""
    tiles = -(-left_rows // TILE_ROWS) + -(-right_rows // TILE_ROWS)
    floats = tiles * most_edges + TILE_ROWS * (3 * dim + most_edges) + 16 * most_edges * dim
    if not halves:
        return 4 * ((left_rows + right_rows) * most_edges + floats)
    kept = 1024 * (_tiles(left_rows, most_edges) + _tiles(right_rows, most_edges))
    return kept + 4 * floats + room_bytes(TILE_ROWS, most_edges, dim)


class _Side(NamedTuple):
    """Of predicting rhs from the moved lhs, or the other way round."""

    ids: Any  # uint32 [C], the entities to predict
    query: Any  # float32 [C, D]
    grad_query: Any  # float32 [C, D], of the mere exponentials; later of the loss
    kept: Any  # float32 [N, C]; or uint32 [N and some rows to fill tiles, C / 2 and some], of tiles
    shifts: Any  # float32 [tiles, C], what was taken off a tile's scores
    pos: Any  # float32 [C]
    top: Any  # float32 [C], the highest score so far
    total: Any  # float32 [C], sum over negatives of exp(score - top)
    share: Any  # float32 [C], an edge's weight over its whole sum
    slope: Any  # float32 [C], of pos


class _Tile(NamedTuple):
    ids: Any  # int64 [T]
    vectors: Any  # float32 [T, D]
    grad: Any  # float32 [T, D]
    scores: Any  # float32 [T * C]
    product: Any  # float32 [max(T, C) * D]
    scaled: Any  # float32 [C, D]
    ready: Any  # queries as _score wants them, float32 or uint32
    room: Any  # products.Room, of nothing where products are of float32


@_jit
def train_chunks(  # type: ignore[no-untyped-def]
    kind, key, first_chunk, starts, lhs, rel, rhs, weight, left, right, same, forward, reverse, kept
):
    """As kernels.train_chunks. kept: Kept for the longest chunk; its dtype says what products are
    of."""
    total = 0.0
    for chunk in range(starts.size - 1):
        begin, end = starts[chunk], starts[chunk + 1]
        total += _train_chunk(
            kind,
            key_of(key, first_chunk + chunk, 0),
            key_of(key, first_chunk + chunk, 1),
            lhs[begin:end],
            rel[begin:end],
            rhs[begin:end],
            weight[begin:end],
            left,
            right,
            same,
            forward,
            reverse,
            kept,
        )
    return total


@_jit
def _train_chunk(  # type: ignore[no-untyped-def]
    kind,
    left_key,
    right_key,
    lhs,
    rel,
    rhs,
    weight,
    left,
    right,
    same,
    forward,
    reverse,
    kept,
):
    size, dim = rel.size, left.values.shape[1]
    tile = _new_tile(kept.of_rhs, size, dim)
    lhs_CD, rhs_CD = np.empty((size, dim), np.float32), np.empty((size, dim), np.float32)
    _gather(left.values, lhs, lhs_CD)
    _gather(right.values, rhs, rhs_CD)

    place, relations = np.empty(size, np.int32), np.empty(size, np.int32)
    slots = 4
    while slots < 2 * size:
        slots *= 2
    count = _find_relations(rel, np.empty(slots, np.int32), relations, place)
    relations = relations[:count]
    num_params = forward.values.shape[1]
    params = np.empty((count, num_params), np.float32)
    back_params = np.empty((count, num_params), np.float32)
    _gather(forward.values, relations, params)
    _gather(reverse.values, relations, back_params)

    to_rhs = _new_side(rhs, kept.of_rhs, right.state.size, dim)
    to_lhs = _new_side(lhs, kept.of_lhs, left.state.size, dim)
    _move(kind.operator, lhs_CD, params, place, to_rhs.query)
    _move(kind.operator, rhs_CD, back_params, place, to_lhs.query)
    loss = _score_all(right, to_rhs, rhs_CD, weight, tile)
    loss += _score_all(left, to_lhs, lhs_CD, weight, tile)

    grad_lhs, grad_rhs = np.zeros((size, dim), np.float32), np.zeros((size, dim), np.float32)
    grad_params, grad_back = np.zeros_like(params), np.zeros_like(back_params)
    _add_pairs(to_rhs.slope, to_rhs.query, rhs_CD, to_rhs.grad_query, grad_rhs)
    _add_pairs(to_lhs.slope, to_lhs.query, lhs_CD, to_lhs.grad_query, grad_lhs)
    _move_back(kind.operator, lhs_CD, params, place, to_rhs.grad_query, grad_lhs, grad_params)
    _move_back(kind.operator, rhs_CD, back_params, place, to_lhs.grad_query, grad_rhs, grad_back)
    if kind.n3 > 0:
        loss += _regularize(kind.n3, lhs_CD, weight, grad_lhs)
        loss += _regularize(kind.n3, rhs_CD, weight, grad_rhs)
        weight_of = np.zeros(count, np.float32)
        for e in range(size):
            weight_of[place[e]] += weight[e]
        loss += _regularize(kind.n3, params, weight_of, grad_params)
        if kind.reciprocal:
            loss += _regularize(kind.n3, back_params, weight_of, grad_back)

    _update_all(kind, left, left_key, to_lhs, lhs, grad_lhs, same, to_rhs, rhs, grad_rhs, tile)
    if not same:
        _update_all(
            kind, right, right_key, to_rhs, rhs, grad_rhs, False, to_lhs, lhs, grad_lhs, tile
        )
    _update_parameters(forward, relations, grad_params, np.float32(kind.relation_lr))
    if kind.reciprocal:
        _update_parameters(reverse, relations, grad_back, np.float32(kind.relation_lr))
    return loss


@_jit
def _new_tile(kept, size, dim):  # type: ignore[no-untyped-def]
    return _Tile(
        np.empty(TILE_ROWS, np.int64),
        np.empty((TILE_ROWS, dim), np.float32),
        np.empty((TILE_ROWS, dim), np.float32),
        np.empty(TILE_ROWS * size, np.float32),
        np.empty(max(TILE_ROWS, size) * dim, np.float32),
        np.empty((size, dim), np.float32),
        _new_ready(kept, size, dim),
        _new_room(kept, size, dim),
    )


@_jit
def _new_side(ids, kept, num_rows, dim):  # type: ignore[no-untyped-def]
    size = ids.size
    tiles = (num_rows + TILE_ROWS - 1) // TILE_ROWS
    per_edge = np.zeros((5, size), np.float32)
    return _Side(
        ids,
        np.empty((size, dim), np.float32),
        np.zeros((size, dim), np.float32),
        _kept_block(kept, num_rows, size),
        np.empty((tiles, size), np.float32),
        per_edge[0],
        per_edge[1],
        per_edge[2],
        per_edge[3],
        per_edge[4],
    )


# --- first pass: scores and sums -----------------------------------------------------------------


@_jit
def _score_all(table, side, own, weight, tile):  # type: ignore[no-untyped-def]
    """Fills all of the side but its query; returns the edges' weighted loss. own: [C, D]"""
    size, dim = side.query.shape
    _pairs(side.query, own, side.pos)
    side.top[:] = side.pos
    _make_ready(side.query, tile.ready)
    before = np.empty(size, np.float32)
    for number in range(side.shifts.shape[0]):
        first = number * TILE_ROWS
        rows = min(TILE_ROWS, table.state.size - first)
        vectors = _read_tile(table, first, rows, tile)
        scores = _block(tile.scores, rows, size)
        _score(vectors, tile.ready, tile.room, scores)
        for e in range(size):
            if first <= side.ids[e] < first + rows:
                scores[side.ids[e] - first, e] = _MASKED
        before[:] = side.top
        _raise(scores, side.top)
        side.shifts[number] = side.top
        for i in range(rows):
            for e in range(size):
                scores[i, e] = exp(scores[i, e] - side.top[e])
        for e in range(size):
            before[e] = exp(before[e] - side.top[e])
            side.total[e] *= before[e]
        for i in range(rows):
            for e in range(size):
                side.total[e] += scores[i, e]
        kept = side.kept[first : first + TILE_ROWS]
        _keep(scores, kept)
        product = _block(tile.product, size, dim)
        _to_queries(kept, scores, vectors, tile.room, product)
        for e in range(size):
            for d in range(dim):
                side.grad_query[e, d] = side.grad_query[e, d] * before[e] + product[e, d]
    loss = 0.0
    for e in range(size):
        own_part, others = exp(side.pos[e] - side.top[e]), side.total[e]
        loss += weight[e] * (math.log(own_part + others) + side.top[e] - side.pos[e])
        side.share[e] = weight[e] / (own_part + others)
        side.slope[e] = -others * side.share[e]
        for d in range(dim):
            side.grad_query[e, d] *= side.share[e]
    return loss


@_jit
def _read_tile(table, first, rows, tile):  # type: ignore[no-untyped-def]
    for i in range(rows):
        tile.ids[i] = first + i
    _gather(table.values, tile.ids[:rows], tile.vectors)
    return tile.vectors[:rows]


# --- second pass: rows ---------------------------------------------------------------------------


@_jit
def _update_all(  # type: ignore[no-untyped-def]
    kind, table, key, side, ids, grad, both, other, other_ids, other_grad, tile
):
    """Row-wise AdaGrad on a table that `side` predicts, and `other` too where `both`.

    ids, grad: [C] and [C, D], further gradients of single rows.
    """
    lr = np.float32(kind.lr)
    dim = grad.shape[1]
    wide = np.empty(dim, np.float32)
    for number in range(side.shifts.shape[0]):
        first = number * TILE_ROWS
        rows = min(TILE_ROWS, table.state.size - first)
        sums = tile.grad[:rows]
        _to_rows(side, number, rows, tile, sums)
        _add_rows(first, rows, ids, grad, sums)
        if both:
            product = _block(tile.product, rows, dim)
            _to_rows(other, number, rows, tile, product)
            _add(sums, product)
            _add_rows(first, rows, other_ids, other_grad, sums)
        for i in range(rows):
            square = np.float32(0)
            for d in range(dim):
                square += sums[i, d] * sums[i, d]
            row = first + i
            accumulated = table.state[row] + square / np.float32(dim)
            table.state[row] = accumulated
            if not accumulated <= 0:  # NaN too
                step = lr / (np.sqrt(accumulated) + _EPSILON)
                _subtract(table.values[row], step, sums[i], key, row, wide)


@_jit
def _to_rows(side, number, rows, tile, out):  # type: ignore[no-untyped-def]
    """The gradient of a tile's rows from their softmax: its scale goes into the queries."""
    size, dim = side.query.shape
    for e in range(size):
        scale = side.share[e] * exp(side.shifts[number, e] - side.top[e])
        for d in range(dim):
            tile.scaled[e, d] = side.query[e, d] * scale
    first = number * TILE_ROWS
    _times_queries(side.kept[first : first + TILE_ROWS], tile.scaled, tile.room, out)


@_jit
def _add_rows(first, rows, ids, grad, sums):  # type: ignore[no-untyped-def]
    for e in range(ids.size):
        if first <= ids[e] < first + rows:
            _add(sums[ids[e] - first : ids[e] - first + 1], grad[e : e + 1])


# --- products, as what is kept --------------------------------------------------------------------


def _new_ready(kept: Any, size: Any, dim: Any) -> Any:
    """Memory for what _make_ready makes."""


@overload(_new_ready, jit_options=LOOSE_SUMS)
def _choose_new_ready(kept, size, dim):  # type: ignore[no-untyped-def]
    def floats(kept, size, dim):  # type: ignore[no-untyped-def]
        return np.empty(size * dim, np.float32)

    def halves(kept, size, dim):  # type: ignore[no-untyped-def]
        return new_tiles(((dim + 31) // 32) * ((size + 15) // 16))

    return floats if kept.dtype == types.float32 else halves


def _new_room(kept: Any, size: Any, dim: Any) -> Any:
    """products.Room."""


@overload(_new_room, jit_options=LOOSE_SUMS)
def _choose_new_room(kept, size, dim):  # type: ignore[no-untyped-def]
    sizes = 0 if kept.dtype == types.float32 else 1
    return lambda kept, size, dim: new_room(sizes * TILE_ROWS, sizes * size, sizes * dim)


def _kept_block(kept: Any, num_rows: Any, size: Any) -> Any:
    """As _Side has it: of tiles, whole rows of them can be cut out by rows of the table."""


@overload(_kept_block, jit_options=LOOSE_SUMS)
def _choose_kept_block(kept, num_rows, size):  # type: ignore[no-untyped-def]
    def floats(kept, num_rows, size):  # type: ignore[no-untyped-def]
        return _block(kept, num_rows, size)

    def halves(kept, num_rows, size):  # type: ignore[no-untyped-def]
        return _block(kept, (num_rows + 15) // 16 * 16, (size + 31) // 32 * 16)

    return floats if kept.dtype == types.float32 else halves


def _make_ready(query: Any, ready: Any) -> Any:
    """Queries as _score wants them."""


@overload(_make_ready, jit_options=LOOSE_SUMS)
def _choose_make_ready(query, ready):  # type: ignore[no-untyped-def]
    def floats(query, ready):  # type: ignore[no-untyped-def]
        turned = ready.reshape(query.shape[1], query.shape[0])
        for d in range(query.shape[1]):
            for e in range(query.shape[0]):
                turned[d, e] = query[e, d]

    def halves(query, ready):  # type: ignore[no-untyped-def]
        pack_right(query, True, right_tiles(ready, query.shape[1], query.shape[0]))

    return floats if ready.dtype == types.float32 else halves


def _score(vectors: Any, ready: Any, room: Any, scores: Any) -> Any:
    """scores [T, C]."""


@overload(_score, jit_options=LOOSE_SUMS)
def _choose_score(vectors, ready, room, scores):  # type: ignore[no-untyped-def]
    def floats(vectors, ready, room, scores):  # type: ignore[no-untyped-def]
        np.dot(vectors, ready.reshape(vectors.shape[1], scores.shape[1]), scores)

    def halves(vectors, ready, room, scores):  # type: ignore[no-untyped-def]
        left = left_tiles(room.left, vectors.shape[0], vectors.shape[1])
        pack_left(vectors, False, left)
        right = right_tiles(ready, vectors.shape[1], scores.shape[1])
        multiply_tiles(left, right, room.sums, scores)

    return floats if ready.dtype == types.float32 else halves


def _keep(scores: Any, kept: Any) -> Any:
    """Copies; to tiles where they are kept."""


@overload(_keep, jit_options=LOOSE_SUMS)
def _choose_keep(scores, kept):  # type: ignore[no-untyped-def]
    def floats(scores, kept):  # type: ignore[no-untyped-def]
        kept[:] = scores

    def halves(scores, kept):  # type: ignore[no-untyped-def]
        memory = kept.reshape(kept.size)
        pack_left(scores, False, left_tiles(memory, scores.shape[0], scores.shape[1]))

    return floats if kept.dtype == types.float32 else halves


def _to_queries(kept: Any, scores: Any, vectors: Any, room: Any, out: Any) -> Any:
    """out [C, D] = scores transposed times vectors."""


@overload(_to_queries, jit_options=LOOSE_SUMS)
def _choose_to_queries(kept, scores, vectors, room, out):  # type: ignore[no-untyped-def]
    def floats(kept, scores, vectors, room, out):  # type: ignore[no-untyped-def]
        np.dot(scores.T, vectors, out)

    def halves(kept, scores, vectors, room, out):  # type: ignore[no-untyped-def]
        multiply(scores, True, vectors, False, room, out)

    return floats if kept.dtype == types.float32 else halves


def _times_queries(kept: Any, scaled: Any, room: Any, out: Any) -> Any:
    """out [T, D] = what is kept of a tile, times scaled queries."""


@overload(_times_queries, jit_options=LOOSE_SUMS)
def _choose_times_queries(kept, scaled, room, out):  # type: ignore[no-untyped-def]
    def floats(kept, scaled, room, out):  # type: ignore[no-untyped-def]
        np.dot(kept, scaled, out)

    def halves(kept, scaled, room, out):  # type: ignore[no-untyped-def]
        left = left_tiles(kept.reshape(kept.size), out.shape[0], scaled.shape[0])
        right = right_tiles(room.right, scaled.shape[0], scaled.shape[1])
        pack_right(scaled, False, right)
        multiply_tiles(left, right, room.sums, out)

    return floats if kept.dtype == types.float32 else halves
