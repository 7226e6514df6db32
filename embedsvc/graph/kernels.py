"""The fast CPU step's kernel: whole chunks of edges, gradients written out, no autograd.

Everything a chunk needs stays in a core's cache: its rows are gathered, scored by BLAS, and updated
before they leave. The positive scores and both sides' in-batch negatives are one product: with X
the moved lhs and Y the rhs of C edges, and V, Z the U negatives of either side (V moved as well),

    inner = Y X^T [C, C],  Z X^T [U, C]  predict rhs, an edge a column;
    inner again            V Y^T [U, C]  predict lhs, an edge a row of `inner`, a column of V Y^T.

That is 6 D (C + 2 U) operations an edge instead of 12 D (C + U). With reciprocal parameters the two
sides ask different queries, and share nothing. Blocks hold candidates in rows, so that the sums
over candidates run along contiguous columns, and every product is of a form in which OpenBLAS is
fast on blocks this small (queries are first transposed, since rows times rows is its slow one).

Scalars choose operator, comparator and loss, so that all models share one compiled kernel.

Letters: C edges, U uniform negatives a side, M = C + U, D dimension, P operator parameters,
N candidates of a block.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from embedsvc.compiled import LOOSE_SUMS, jit
from embedsvc.graph.products import multiply, new_room
from embedsvc.graph.rounding import key_of
from embedsvc.prefetch import fetch_line as _fetch_line
from partitions.hashing import GOLDEN, mix

IDENTITY, DIAGONAL, TRANSLATION, COMPLEX_DIAGONAL = range(4)
DOT, COS = range(2)
SOFTMAX, LOGISTIC, RANKING = range(3)

Floats = NDArray[np.float32]


class Kind(NamedTuple):
    """What is computed; codes from above."""

    operator: int
    reciprocal: bool
    comparator: int
    scale: float  # of the cosine
    loss: int
    margin: float  # of the ranking loss
    n3: float  # weight of the regularizer; 0: none
    in_batch: bool
    num_uniform: int
    halves: bool  # products of bfloat16, their sums float32
    lr: float
    relation_lr: float


class Rows(NamedTuple):
    """Values and their AdaGrad state: float32 [E, D] and [E]; of operators [R, P] and [R, P].

    Values of a table may be bfloat16: uint16, the upper half of a float32's bits.
    """

    values: Any
    state: Any


# A masked score: finite, so that no sum meets inf - inf; far below any score of use.
_MASKED = np.float32(-1e30)
_EPSILON = np.float32(1e-10)
_GOLDEN = np.uint64(GOLDEN)

_jit = jit(**LOOSE_SUMS)


@_jit
def train_chunks(  # type: ignore[no-untyped-def]
    kind, key, first_chunk, starts, lhs, rel, rhs, weight, left, right, same, forward, reverse
):
    """Train on consecutive chunks, an update each; returns their loss, summed over edges.

    starts: int64 [chunks + 1], each chunk's place in lhs, rel, rhs: uint32 and weight: float32.
    left, right: Rows of the two tables, mutated; the same one where `same`.
    forward, reverse: Rows of the operator's parameters, mutated.
    key, first_chunk: the random negatives are a function of the key and the chunk's number.
    """
    most = 0
    for chunk in range(starts.size - 1):
        most = max(most, starts[chunk + 1] - starts[chunk])
    space = _workspace(kind, most, left.values.shape[1], forward.values.shape[1])
    # Of this chunk and of the next one, whose rows are fetched ahead.
    ids = np.empty((2, 2, most + kind.num_uniform), np.uint32)
    total = 0.0
    rounding_keys = np.empty(2, np.uint64)
    for chunk in range(starts.size - 1):
        for side in range(2):
            rounding_keys[side] = key_of(key, first_chunk + chunk, side)
        begin, end = starts[chunk], starts[chunk + 1]
        count = end - begin + kind.num_uniform
        now, ahead, coming = ids[chunk % 2], ids[(chunk + 1) % 2], 0
        if chunk == 0:
            _fill_ids(key, first_chunk, lhs[begin:end], rhs[begin:end], left, right, now[:, :count])
        if chunk + 2 < starts.size:
            last = starts[chunk + 2]
            coming = last - end + kind.num_uniform
            number = first_chunk + chunk + 1
            _fill_ids(key, number, lhs[end:last], rhs[end:last], left, right, ahead[:, :coming])
        total += _train_chunk(
            kind,
            now[0, :count],
            now[1, :count],
            ahead[0, :coming],
            ahead[1, :coming],
            rel[begin:end],
            weight[begin:end],
            left,
            right,
            same,
            forward,
            reverse,
            space,
            rounding_keys,
        )
    return total


@_jit
def _fill_ids(key, chunk, lhs, rhs, left, right, ids):  # type: ignore[no-untyped-def]
    """ids: [2, M], lhs and rhs: the edges' own entities first, then the uniform negatives."""
    ids[0, : lhs.size] = lhs
    ids[1, : rhs.size] = rhs
    draw(key, chunk, 0, left.state.size, ids[0, lhs.size :])
    draw(key, chunk, 1, right.state.size, ids[1, rhs.size :])


@_jit
def draw(key, chunk, side, num_rows, out):  # type: ignore[no-untyped-def]
    """The chunk's uniform negatives of a side (0: lhs, 1: rhs): uint32, each below num_rows."""
    state = mix(np.uint64(key) + _GOLDEN * np.uint64(2 * chunk + side + 1))
    for slot in range(out.size):
        state += _GOLDEN
        out[slot] = np.uint32(mix(state) % np.uint64(num_rows))


class _Space(NamedTuple):
    """Memory of one worker, reused by its chunks."""

    vectors: Any  # float32 [11, M, D]
    across: Any  # float32 [D * C], queries transposed
    blocks: Any  # float32 [3, M * C]
    per_edge: Any  # float32 [10, C]
    lengths: Any  # float32 [4, M]
    params: Any  # float32 [4, C, P]: of distinct relations, and their gradients
    places: Any  # int32 [6, M]
    slots: Any  # int32 [3, a power of two]
    room: Any  # products.Room, of nothing where products are of float32


@_jit
def _workspace(kind, most, dim, num_params):  # type: ignore[no-untyped-def]
    rows = most + kind.num_uniform
    num_slots = 4
    while num_slots < 2 * rows:
        num_slots *= 2
    return _Space(
        np.empty((11, rows, dim), np.float32),
        np.empty(dim * most, np.float32),
        np.empty((3, rows * most), np.float32),
        np.empty((10, most), np.float32),
        np.empty((4, rows), np.float32),
        np.empty((4, most, num_params), np.float32),
        np.empty((6, rows), np.int32),
        np.empty((3, num_slots), np.int32),
        new_room(rows, most, dim) if kind.halves else new_room(0, 0, 0),
    )


@_jit
def _train_chunk(  # type: ignore[no-untyped-def]
    kind,
    lhs_ids,
    rhs_ids,
    next_lhs_ids,
    next_rhs_ids,
    rel,
    weight,
    left,
    right,
    same,
    forward,
    reverse,
    space,
    rounding_keys,
):
    """ids: [M], as of _fill_ids; the next chunk's are of rows to fetch ahead."""
    size, total_ids = rel.size, lhs_ids.size
    first = 0 if kind.in_batch else size  # of the candidates
    shared = not kind.reciprocal
    plain = kind.comparator == DOT

    lhs_owner, rhs_owner = space.places[0, :total_ids], space.places[1, :total_ids]
    _find_owners(lhs_ids, space.slots[0], lhs_owner)
    _find_owners(rhs_ids, space.slots[1], rhs_owner)
    lhs_MD, rhs_MD = space.vectors[0, :total_ids], space.vectors[1, :total_ids]
    _gather(left.values, lhs_ids, lhs_MD)
    _gather(right.values, rhs_ids, rhs_MD)

    # The chunk's distinct relations, and each edge's place among them.
    place = space.places[2, :size]
    num_relations = _find_relations(rel, space.slots[2], space.places[3], place)
    relations = space.places[3, :num_relations]
    params, back_params = space.params[0, :num_relations], space.params[1, :num_relations]
    grad_params, grad_back = space.params[2, :num_relations], space.params[3, :num_relations]
    _gather(forward.values, relations, params)
    _gather(reverse.values, relations, back_params)
    grad_params[:] = 0
    grad_back[:] = 0

    # What is compared: queries, candidates; for cosines of length 1.
    num_moved = total_ids if shared else size
    moved, grad_moved = space.vectors[2, :num_moved], space.vectors[3, :num_moved]
    grad_lhs, grad_rhs = space.vectors[4, :total_ids], space.vectors[5, :total_ids]
    lhs_unit, rhs_unit = lhs_MD, rhs_MD
    if shared and plain and kind.operator == IDENTITY:
        moved, grad_moved = lhs_MD, grad_lhs
    else:
        _move(kind.operator, lhs_MD, params, place, moved)
    back, grad_back_CD = rhs_MD[:size], grad_rhs[:size]
    if not shared:
        back, grad_back_CD = space.vectors[6, :size], space.vectors[7, :size]
        _move(kind.operator, rhs_MD, back_params, place, back)
    if not plain:
        _normalise(moved, moved, space.lengths[0])
        rhs_unit = space.vectors[8, :total_ids]
        _normalise(rhs_MD, rhs_unit, space.lengths[1])
        if shared:
            back = rhs_unit[:size]
        else:
            lhs_unit = space.vectors[9, :total_ids]
            _normalise(lhs_MD, lhs_unit, space.lengths[2])
            _normalise(back, back, space.lengths[3])

    # Scores.
    query = moved[:size]
    rhs_cand = rhs_unit[first:]
    lhs_cand = moved[size:] if shared else lhs_unit[first:]
    rhs_block = _block(space.blocks[0], rhs_cand.shape[0], size)
    lhs_block = _block(space.blocks[1], lhs_cand.shape[0], size)
    _scores(kind, rhs_cand, query, space, rhs_block)
    _scores(kind, lhs_cand, back, space, lhs_block)
    rhs_pos, lhs_pos = space.per_edge[0, :size], space.per_edge[1, :size]
    _pairs(query, rhs_unit, rhs_pos)
    if shared:
        lhs_pos[:] = rhs_pos
    else:
        _pairs(back, lhs_unit, lhs_pos)
    if not plain:
        scale = np.float32(kind.scale)
        for block in (rhs_block, lhs_block):
            _multiply(block, scale)
        for e in range(size):
            rhs_pos[e] *= scale
            lhs_pos[e] *= scale
    # To predict lhs, the shared block is read across; it has its own masks, hence a copy.
    inner = _block(space.blocks[2], size if shared and kind.in_batch else 0, size)
    _copy(rhs_block, inner)

    # Losses; afterwards the blocks hold the loss's slope in each score.
    _mask(rhs_owner, size, first, space.places[4], space.places[5], rhs_block)
    if shared:
        _mask(lhs_owner, size, size, space.places[4], space.places[5], lhs_block)
        _mask_inner(lhs_owner, inner, space.places[4], space.places[5])
    else:
        _mask(lhs_owner, size, first, space.places[4], space.places[5], lhs_block)
    rhs_slope, lhs_slope = space.per_edge[2, :size], space.per_edge[3, :size]
    work = space.per_edge[4:]
    none = inner[:0]
    loss = _slopes(kind.loss, kind.margin, rhs_pos, rhs_block, none, weight, rhs_slope, work)
    loss += _slopes(kind.loss, kind.margin, lhs_pos, lhs_block, inner, weight, lhs_slope, work)
    _add(rhs_block[: inner.shape[0]], inner)
    if shared:
        for e in range(size):
            rhs_slope[e] += lhs_slope[e]
    if not plain:
        for block in (rhs_block, lhs_block):
            _multiply(block, scale)
        for e in range(size):
            rhs_slope[e] *= scale
            lhs_slope[e] *= scale

    # Gradients of queries and candidates.
    extra = space.vectors[10, :size]
    if kind.in_batch:
        _put_diagonal(rhs_slope, rhs_block)
    _scores_back(kind, rhs_block, rhs_cand, query, space, grad_rhs[first:], grad_moved[:size])
    if not kind.in_batch:
        grad_rhs[:size] = 0
        _add_pairs(rhs_slope, query, rhs_unit, grad_moved, grad_rhs)
    if shared:
        _scores_back(kind, lhs_block, lhs_cand, back, space, grad_moved[size:], extra)
        _add(grad_rhs[:size], extra)
    else:
        if kind.in_batch:
            _put_diagonal(lhs_slope, lhs_block)
        _scores_back(kind, lhs_block, lhs_cand, back, space, grad_lhs[first:], grad_back_CD)
        if not kind.in_batch:
            grad_lhs[:size] = 0
            _add_pairs(lhs_slope, back, lhs_unit, grad_back_CD, grad_lhs)

    # ... of rows and parameters.
    if not plain:
        _normalise_back(moved, space.lengths[0], grad_moved)
        _normalise_back(rhs_unit, space.lengths[1], grad_rhs)
        if not shared:
            _normalise_back(lhs_unit, space.lengths[2], grad_lhs)
            _normalise_back(back, space.lengths[3], grad_back_CD)
    if not shared:
        _move_back(kind.operator, lhs_MD, params, place, grad_moved, grad_lhs, grad_params)
        _move_back(kind.operator, rhs_MD, back_params, place, grad_back_CD, grad_rhs, grad_back)
    elif not (plain and kind.operator == IDENTITY):
        grad_lhs[:] = 0
        _move_back(kind.operator, lhs_MD, params, place, grad_moved, grad_lhs, grad_params)
    if kind.n3 > 0:
        loss += _regularize(kind.n3, lhs_MD[:size], weight, grad_lhs)
        loss += _regularize(kind.n3, rhs_MD[:size], weight, grad_rhs)
        weight_of = space.per_edge[4, :num_relations]
        weight_of[:] = 0
        for e in range(size):
            weight_of[place[e]] += weight[e]
        loss += _regularize(kind.n3, params, weight_of, grad_params)
        if not shared:
            loss += _regularize(kind.n3, back_params, weight_of, grad_back)

    # Updates: a row that occurs several times gets the sum of its gradients at once.
    _merge(lhs_owner, grad_lhs)
    _merge(rhs_owner, grad_rhs)
    if same:
        _merge_tables(lhs_ids, rhs_ids, space.slots[0], rhs_owner, grad_lhs, grad_rhs)
    lr = np.float32(kind.lr)
    _update_rows(left, lhs_ids, lhs_owner, grad_lhs, lr, next_lhs_ids, rounding_keys[0])
    _update_rows(right, rhs_ids, rhs_owner, grad_rhs, lr, next_rhs_ids, rounding_keys[1])
    relation_lr = np.float32(kind.relation_lr)
    _update_parameters(forward, relations, grad_params, relation_lr)
    if not shared:
        _update_parameters(reverse, relations, grad_back, relation_lr)
    return loss


# --- equal ids ------------------------------------------------------------------------------------


@_jit
def find(ids, wanted, slots):  # type: ignore[no-untyped-def]
    """The slot that holds the number of an id equal to `wanted`, or the free one (-1) for it."""
    last = slots.size - 1
    at = np.int64((np.uint64(wanted) * _GOLDEN) >> np.uint64(40)) & last
    while slots[at] >= 0 and ids[slots[at]] != wanted:
        at = (at + 1) & last
    return at


@_jit
def _find_owners(ids, slots, owner):  # type: ignore[no-untyped-def]
    """owner[i]: the first j with ids[j] == ids[i]. slots is left holding the owners."""
    slots[:] = -1
    for i in range(ids.size):
        at = find(ids, ids[i], slots)
        if slots[at] < 0:
            slots[at] = i
        owner[i] = slots[at]


@_jit
def _find_relations(rel, slots, relations, place):  # type: ignore[no-untyped-def]
    """Fills distinct relations, and each edge's place among them. Returns how many there are."""
    _find_owners(rel, slots, place)
    count = 0
    for i in range(rel.size):
        if place[i] == i:
            relations[count] = rel[i]
            place[i] = count
            count += 1
        else:
            place[i] = place[place[i]]
    return count


@_jit
def _chain(owner, size, heads, follows):  # type: ignore[no-untyped-def]
    """Lists of the edges with the same entity: heads[owner], then follows[edge], ended by -1."""
    for e in range(size):
        heads[e] = -1
    for e in range(size - 1, -1, -1):
        follows[e] = heads[owner[e]]
        heads[owner[e]] = e


@_jit
def _mask(owner, size, first, heads, follows, block):  # type: ignore[no-untyped-def]
    """Mask each candidate that is an edge's own entity. block [N, C]: its rows are ids[first:]."""
    _chain(owner, size, heads, follows)
    for candidate in range(first, owner.size):
        if owner[candidate] < size:
            e = heads[owner[candidate]]
            while e >= 0:
                block[candidate - first, e] = _MASKED
                e = follows[e]


@_jit
def _mask_inner(owner, inner, heads, follows):  # type: ignore[no-untyped-def]
    """The same where edges are rows, candidates columns; heads and follows as _mask left them."""
    for candidate in range(inner.shape[0]):
        e = heads[owner[candidate]]
        while e >= 0:
            inner[e, candidate] = _MASKED
            e = follows[e]


@_jit
def _merge(owner, grad):  # type: ignore[no-untyped-def]
    for i in range(owner.size):
        if owner[i] != i:
            _add(grad[owner[i] : owner[i] + 1], grad[i : i + 1])


@_jit
def _merge_tables(lhs_ids, rhs_ids, lhs_slots, rhs_owner, grad_lhs, grad_rhs):  # type: ignore[no-untyped-def]
    """Rows of a table that serves both sides: what both hold is updated as the lhs's."""
    for i in range(rhs_ids.size):
        if rhs_owner[i] == i:
            found = lhs_slots[find(lhs_ids, rhs_ids[i], lhs_slots)]
            if found >= 0:
                _add(grad_lhs[found : found + 1], grad_rhs[i : i + 1])
                rhs_owner[i] = -1


# --- rows -----------------------------------------------------------------------------------------


def _gather(table: Any, ids: Any, out: Any) -> Any:
    """Rows as float32."""


@overload(_gather, jit_options=LOOSE_SUMS)
def _choose_gather(table, ids, out):  # type: ignore[no-untyped-def]
    def floats(table, ids, out):  # type: ignore[no-untyped-def]
        for i in range(ids.size):
            row = table[ids[i]]
            for d in range(row.size):
                out[i, d] = row[d]

    def halves(table, ids, out):  # type: ignore[no-untyped-def]
        for i in range(ids.size):
            _widen(table[ids[i]], out[i].view(np.uint32))

    return floats if table.dtype == types.float32 else halves


@_jit
def _widen(row, bits):  # type: ignore[no-untyped-def]
    """bits: of float32, written."""
    for d in range(row.size):
        bits[d] = np.uint32(row[d]) << np.uint32(16)


def _per_line(values: Any) -> Any:
    """Numbers in a cache line of 64 bytes; known when the kernel is compiled."""


@overload(_per_line, jit_options=LOOSE_SUMS)
def _choose_per_line(values):  # type: ignore[no-untyped-def]
    count = 64 // (values.dtype.bitwidth // 8)
    return lambda values: count


@_jit
def _fetch(table, row):  # type: ignore[no-untyped-def]
    """Ask for a row's cache lines, and go on."""
    dim = table.values.shape[1]
    for d in range(0, dim, _per_line(table.values)):
        _fetch_line(table.values, row * dim + d)  # type: ignore[call-arg]
    _fetch_line(table.state, row)  # type: ignore[call-arg]


@_jit
def _update_rows(table, ids, owner, grad, lr, next_ids, key):  # type: ignore[no-untyped-def]
    """Row-wise AdaGrad, as optimizers.py has it; meanwhile the next chunk's rows come in."""
    wide = np.empty(grad.shape[1], np.float32)
    for i in range(ids.size):
        if i < next_ids.size:
            _fetch(table, np.int64(next_ids[i]))
        if owner[i] == i:
            total = np.float32(0)
            for d in range(grad.shape[1]):
                total += grad[i, d] * grad[i, d]
            accumulated = table.state[ids[i]] + total / np.float32(grad.shape[1])
            table.state[ids[i]] = accumulated
            if not accumulated <= 0:  # NaN too
                step = lr / (np.sqrt(accumulated) + _EPSILON)
                _subtract(table.values[ids[i]], step, grad[i], key, ids[i], wide)


def _subtract(row: Any, step: Any, grad: Any, key: Any, row_id: Any, wide: Any) -> Any:
    """row -= step * grad; rounded as rounding.py does. wide: float32 [D], to work in."""


@overload(_subtract, jit_options=LOOSE_SUMS)
def _choose_subtract(row, step, grad, key, row_id, wide):  # type: ignore[no-untyped-def]
    def floats(row, step, grad, key, row_id, wide):  # type: ignore[no-untyped-def]
        for d in range(grad.size):
            row[d] -= step * grad[d]

    def halves(row, step, grad, key, row_id, wide):  # type: ignore[no-untyped-def]
        _widen(row, wide.view(np.uint32))
        for d in range(grad.size):
            wide[d] -= step * grad[d]
        round_row(wide.view(np.uint32), np.uint32(mix(key + _GOLDEN * np.uint64(row_id))), row)

    return floats if row.dtype == types.float32 else halves


@_jit
def round_row(bits, start, out):  # type: ignore[no-untyped-def]
    """Float32's bits to bfloat16's, stochastically; start: uint32, of the row's random bits."""
    for d in range(bits.size):
        x = np.uint32(start + np.uint32(d) * np.uint32(0x9E3779B9))
        x ^= x >> np.uint32(16)
        x = np.uint32(x * np.uint32(0x7FEB352D))
        x ^= x >> np.uint32(15)
        x = np.uint32(x * np.uint32(0x846CA68B))
        x ^= x >> np.uint32(16)
        # Infinity and NaN stay not finite.
        finite = (bits[d] & np.uint32(0x7F800000)) != np.uint32(0x7F800000)
        carry = x >> np.uint32(16) if finite else np.uint32(0)
        out[d] = np.uint16(np.uint32(bits[d] + carry) >> np.uint32(16))


@_jit
def _update_parameters(table, relations, grad, lr):  # type: ignore[no-untyped-def]
    for i in range(relations.size):
        values, state = table.values[relations[i]], table.state[relations[i]]
        for p in range(grad.shape[1]):
            state[p] += grad[i, p] * grad[i, p]
            values[p] -= lr * grad[i, p] / (np.sqrt(state[p]) + _EPSILON)


@_jit
def _add(out, other):  # type: ignore[no-untyped-def]
    for i in range(other.shape[0]):
        for d in range(other.shape[1]):
            out[i, d] += other[i, d]


@_jit
def _copy(x, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        for d in range(out.shape[1]):
            out[i, d] = x[i, d]


@_jit
def _multiply(out, factor):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        for d in range(out.shape[1]):
            out[i, d] *= factor


# --- operators, comparators, regularizer ----------------------------------------------------------


@_jit
def _move(operator, x, params, place, out):  # type: ignore[no-untyped-def]
    """out[i] = operator(x[i]). place: of each edge's parameters; negatives take the first's."""
    half = x.shape[1] // 2
    for i in range(out.shape[0]):
        if operator == IDENTITY:
            for d in range(x.shape[1]):
                out[i, d] = x[i, d]
            continue
        p = params[place[i if i < place.size else 0]]
        if operator == DIAGONAL:
            for d in range(x.shape[1]):
                out[i, d] = x[i, d] * p[d]
        elif operator == TRANSLATION:
            for d in range(x.shape[1]):
                out[i, d] = x[i, d] + p[d]
        else:
            for d in range(half):
                out[i, d] = x[i, d] * p[d] - x[i, half + d] * p[half + d]
                out[i, half + d] = x[i, d] * p[half + d] + x[i, half + d] * p[d]


@_jit
def _move_back(operator, x, params, place, grad, grad_x, grad_params):  # type: ignore[no-untyped-def]
    """Adds to grad_x and grad_params what grad, the gradient of the moved x, makes of them."""
    half = x.shape[1] // 2
    for i in range(grad.shape[0]):
        if operator == IDENTITY:
            for d in range(x.shape[1]):
                grad_x[i, d] += grad[i, d]
            continue
        at = place[i if i < place.size else 0]
        p, gp = params[at], grad_params[at]
        if operator == DIAGONAL:
            for d in range(x.shape[1]):
                grad_x[i, d] += grad[i, d] * p[d]
                gp[d] += grad[i, d] * x[i, d]
        elif operator == TRANSLATION:
            for d in range(x.shape[1]):
                grad_x[i, d] += grad[i, d]
                gp[d] += grad[i, d]
        else:
            for d in range(half):
                re, im = grad[i, d], grad[i, half + d]
                grad_x[i, d] += re * p[d] + im * p[half + d]
                grad_x[i, half + d] += im * p[d] - re * p[half + d]
                gp[d] += re * x[i, d] + im * x[i, half + d]
                gp[half + d] += im * x[i, d] - re * x[i, half + d]


@_jit
def _normalise(x, out, lengths):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        total = np.float32(0)
        for d in range(x.shape[1]):
            total += x[i, d] * x[i, d]
        lengths[i] = np.sqrt(total)
        inverse = np.float32(1) / max(lengths[i], np.float32(1e-12))
        for d in range(x.shape[1]):
            out[i, d] = x[i, d] * inverse


@_jit
def _normalise_back(unit, lengths, grad):  # type: ignore[no-untyped-def]
    """grad of a unit vector -> that of the vector it was made of, in place: (g - <g, u> u) / |x|"""
    for i in range(unit.shape[0]):
        along = np.float32(0)
        if lengths[i] >= np.float32(1e-12):  # else the length is held constant
            for d in range(unit.shape[1]):
                along += grad[i, d] * unit[i, d]
        inverse = np.float32(1) / max(lengths[i], np.float32(1e-12))
        for d in range(unit.shape[1]):
            grad[i, d] = (grad[i, d] - along * unit[i, d]) * inverse


@_jit
def _regularize(n3, x, weight, grad):  # type: ignore[no-untyped-def]
    """losses.N3 of each row, times its weight: adds the gradient, returns the sum."""
    loss = 0.0
    pairs = x.shape[1] % 2 == 0
    half = x.shape[1] // 2
    for i in range(x.shape[0]):
        factor = np.float32(n3) * weight[i]
        total = np.float32(0)
        if pairs:
            for d in range(half):
                re, im = x[i, d], x[i, half + d]
                squared = re * re + im * im
                modulus = np.sqrt(squared + np.float32(1e-20))
                total += squared * modulus
                slope = factor * (np.float32(2) * modulus + squared / modulus)
                grad[i, d] += slope * re
                grad[i, half + d] += slope * im
        else:
            for d in range(x.shape[1]):
                size = abs(x[i, d])
                total += size * size * size
                grad[i, d] += factor * np.float32(3) * size * x[i, d]
        loss += factor * total
    return loss


# --- scores ---------------------------------------------------------------------------------------


@_jit
def _block(memory, num_rows, num_columns):  # type: ignore[no-untyped-def]
    return memory[: num_rows * num_columns].reshape(num_rows, num_columns)


@_jit
def _scores(kind, candidates, queries, space, block):  # type: ignore[no-untyped-def]
    """block [N, C] = candidates [N, D] times queries [C, D] transposed."""
    if not candidates.shape[0]:
        return
    if kind.halves:
        multiply(candidates, False, queries, True, space.room, block)
    else:
        turned = _block(space.across, queries.shape[1], queries.shape[0])
        for d in range(queries.shape[1]):
            for e in range(queries.shape[0]):
                turned[d, e] = queries[e, d]
        np.dot(candidates, turned, block)


@_jit
def _scores_back(kind, slopes, candidates, queries, space, grad_candidates, grad_queries):  # type: ignore[no-untyped-def]
    """Gradients of both, from the slopes of their scores."""
    if kind.halves:
        multiply(slopes, False, queries, False, space.room, grad_candidates)
        multiply(slopes, True, candidates, False, space.room, grad_queries)
    else:
        np.dot(slopes, queries, grad_candidates)
        np.dot(slopes.T, candidates, grad_queries)


@_jit
def _pairs(a, b, out):  # type: ignore[no-untyped-def]
    for e in range(out.size):
        total = np.float32(0)
        for d in range(a.shape[1]):
            total += a[e, d] * b[e, d]
        out[e] = total


@_jit
def _put_diagonal(slope, block):  # type: ignore[no-untyped-def]
    """The positives' slopes where in-batch blocks have them: what was masked there is 0."""
    for e in range(slope.size):
        block[e, e] = slope[e]


@_jit
def _add_pairs(slope, a, b, grad_a, grad_b):  # type: ignore[no-untyped-def]
    """Adds the gradients of slope[e] * <a[e], b[e]>."""
    for e in range(slope.size):
        s = slope[e]
        for d in range(a.shape[1]):
            grad_a[e, d] += s * b[e, d]
            grad_b[e, d] += s * a[e, d]


# --- losses ---------------------------------------------------------------------------------------


@_jit
def exp(x):  # type: ignore[no-untyped-def]
    """exp of a float32 by the polynomial of Cephes, which vectorises; 0 below -80."""
    x = min(x, np.float32(88.0))
    power = np.floor(max(x, np.float32(-87.0)) * np.float32(1.4426950408889634) + np.float32(0.5))
    f = x - power * np.float32(0.693359375)
    f = f + power * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * f + np.float32(1.3981999507e-3)
    y = y * f + np.float32(8.3334519073e-3)
    y = y * f + np.float32(4.1665795894e-2)
    y = y * f + np.float32(1.6666665459e-1)
    y = y * f + np.float32(5.0000001201e-1)
    y = y * f * f + f + np.float32(1.0)
    y = y * np.int32((np.int32(power) + np.int32(127)) << np.int32(23)).view(np.float32)
    return np.float32(0) if x < np.float32(-80.0) else y


@_jit
def _slopes(loss, margin, pos, block, inner, weight, slope, work):  # type: ignore[no-untyped-def]
    """The edges' weighted loss on one side, and its slopes in place of the scores.

    pos: [C]; block: [N, C], scores of an edge's negatives in its column; inner: [C, C] or [0, C],
    further ones in its row; masked where _MASKED. slope: [C], of pos. work: [6, C or more].
    """
    if loss == SOFTMAX:
        return _softmax(pos, block, inner, weight, slope, work)
    if loss == LOGISTIC:
        return _logistic(pos, block, inner, weight, slope, work)
    return _ranking(np.float32(margin), pos, block, inner, weight, slope, work)


@_jit
def _softmax(pos, block, inner, weight, slope, work):  # type: ignore[no-untyped-def]
    size = pos.size
    top, total, share = work[0, :size], work[1, :size], work[2, :size]
    top[:] = pos
    _raise(block, top)
    _raise(inner, top)
    highest, lowest = _ends(top, pos)
    if highest - lowest < np.float32(60):
        # One shift serves all edges: none's total can vanish. That spares a pass by columns.
        top[:] = highest
        total[:] = 0
        _exp_all(block, highest)
        _exp_all(inner, highest)
    else:
        top[:] = pos
        total[:] = 0
        _exp_each(block, inner, top)
    for i in range(block.shape[0]):
        for e in range(size):
            total[e] += block[i, e]
    for e in range(inner.shape[0]):
        subtotal = np.float32(0)
        for i in range(inner.shape[1]):
            subtotal += inner[e, i]
        total[e] += subtotal
    loss = 0.0
    for e in range(size):
        own = exp(pos[e] - top[e])
        others = total[e]
        loss += weight[e] * (math.log(own + others) + top[e] - pos[e])
        share[e] = weight[e] / (own + others)
        slope[e] = -others * share[e]
    _spread(share, block, inner)
    return loss


@_jit
def _raise(block, top):  # type: ignore[no-untyped-def]
    """top: at least the highest of each column."""
    for i in range(block.shape[0]):
        for e in range(top.size):
            top[e] = max(top[e], block[i, e])


@_jit
def _ends(high, low):  # type: ignore[no-untyped-def]
    highest, lowest = high[0], low[0]
    for e in range(high.size):
        highest = max(highest, high[e])
        lowest = min(lowest, low[e])
    return highest, lowest


@_jit
def _exp_all(block, shift):  # type: ignore[no-untyped-def]
    flat = block.reshape(block.size)
    for i in range(flat.size):
        flat[i] = exp(flat[i] - shift)


@_jit
def _exp_each(block, inner, top):  # type: ignore[no-untyped-def]
    """exp(score - its edge's highest), in place; top: raised to that."""
    _raise(block, top)
    for e in range(inner.shape[0]):
        for i in range(inner.shape[1]):
            top[e] = max(top[e], inner[e, i])
    for i in range(block.shape[0]):
        for e in range(top.size):
            block[i, e] = exp(block[i, e] - top[e])
    for e in range(inner.shape[0]):
        for i in range(inner.shape[1]):
            inner[e, i] = exp(inner[e, i] - top[e])


@_jit
def _logistic(pos, block, inner, weight, slope, work):  # type: ignore[no-untyped-def]
    """log(1 + e) of many negatives is the logarithm of a product, taken before it overflows."""
    size = pos.size
    linear, product, logs = work[0, :size], work[1, :size], work[2, :size]
    count, share = work[3, :size], work[4, :size]
    linear[:] = 0
    product[:] = 1
    logs[:] = 0
    count[:] = 0
    for i in range(block.shape[0]):
        for e in range(pos.size):
            x = block[i, e]
            low = exp(-abs(x))
            product[e] *= np.float32(1) + low
            linear[e] += max(x, np.float32(0))
            count[e] += np.float32(x > _MASKED)
            block[i, e] = (np.float32(1) if x >= 0 else low) / (np.float32(1) + low)
        if i % 64 == 63:
            for e in range(pos.size):
                logs[e] += math.log(product[e])
                product[e] = 1
    for e in range(pos.size):
        logs[e] += math.log(product[e])
    for e in range(inner.shape[0]):
        for i in range(inner.shape[1]):
            x = inner[e, i]
            low = exp(-abs(x))
            logs[e] += np.log1p(low)
            linear[e] += max(x, np.float32(0))
            count[e] += np.float32(x > _MASKED)
            inner[e, i] = (np.float32(1) if x >= 0 else low) / (np.float32(1) + low)
    loss = 0.0
    for e in range(pos.size):
        low = exp(-abs(pos[e]))
        negatives = max(count[e], np.float32(1))
        own = max(-pos[e], np.float32(0)) + np.log1p(low)
        loss += weight[e] * (own + (linear[e] + logs[e]) / negatives)
        slope[e] = -weight[e] * (low if pos[e] >= 0 else np.float32(1)) / (np.float32(1) + low)
        share[e] = weight[e] / negatives
    _spread(share, block, inner)
    return loss


@_jit
def _ranking(margin, pos, block, inner, weight, slope, work):  # type: ignore[no-untyped-def]
    total, count = work[0, : pos.size], work[1, : pos.size]
    total[:] = 0
    count[:] = 0
    for i in range(block.shape[0]):
        for e in range(pos.size):
            gap = margin - pos[e] + block[i, e]
            active = np.float32(not gap < 0)  # NaN too
            total[e] += max(gap, np.float32(0))
            count[e] += active
            block[i, e] = active
    for e in range(inner.shape[0]):
        for i in range(inner.shape[1]):
            gap = margin - pos[e] + inner[e, i]
            active = np.float32(not gap < 0)
            total[e] += max(gap, np.float32(0))
            count[e] += active
            inner[e, i] = active
    loss = 0.0
    for e in range(pos.size):
        loss += weight[e] * total[e]
        slope[e] = -weight[e] * count[e]
    _spread(weight, block, inner)
    return loss


@_jit
def _spread(share, block, inner):  # type: ignore[no-untyped-def]
    for i in range(block.shape[0]):
        for e in range(share.size):
            block[i, e] *= share[e]
    for e in range(inner.shape[0]):
        s = share[e]
        for i in range(inner.shape[1]):
            inner[e, i] *= s
