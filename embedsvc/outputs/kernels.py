"""Kernels of the softmax layers: scores, exponentials, gradients and updates of a slice of classes.

Every thread owns a slice of the classes, so that no two write to one row, and sums of threads are
added in a fixed order: with the same number of threads a run repeats bit for bit. A slice goes
through in tiles that stay in a core's cache between the products and the update of their rows.

Blocks hold classes in rows and the batch in columns: what is added to a class's scores is the same
along a row, and sums over classes run along contiguous columns.

halves: products are of factors rounded to bfloat16 (graph/products.py), their sums of float32.

Letters: A active classes, B batch, C classes, D dimension, T labels of a row, n rows of a tile.
"""

from typing import Any, NamedTuple

import numpy as np

from embedsvc.compiled import LOOSE_SUMS, jit
from embedsvc.graph.kernels import exp, find
from embedsvc.graph.products import multiply, new_room
from embedsvc.prefetch import fetch_line

SGD, ROWWISE_ADAGRAD, ADAM_LITE = range(3)

TILE = 512  # classes: with B = D = 128, rows, scores and gradients take 3 * 256 KiB
_AHEAD = 8  # rows to fetch before their turn
_GONE = np.float32(1e30)  # taken from the scores of removed classes: their exponential is 0

_jit = jit(**LOOSE_SUMS)


class Table(NamedTuple):
    """The classes' rows: what is trained."""

    values: Any  # float32 [C, D]
    bias: Any  # float32 [C], or [0]: none
    state: Any  # float32 [C, 0, 1 or 2], of the optimizer
    removed: Any  # uint8 [C], or [0]: none is


class Update(NamedTuple):
    """How a row learns; optimizer: a code from above."""

    optimizer: int
    lr: float
    beta2: float


# --- the active set -------------------------------------------------------------------------------


@_jit
def collect(  # type: ignore[no-untyped-def]
    head, head_slots, targets, retrieved, sampled, chance, draws, slots, active, shift, at
):
    """The distinct classes of a step: head, targets, retrieved ones, then samples.

    head_slots: int32, what `fill_slots` made of the head; slots: as many, written.
    targets: int64 [B, T], -1 where there is none; at: their places among the active, written.
    sampled, chance: the draws, and the chance of each to be what one draw gives; draws: how many.
    active: int64 and shift: float32, written: the classes, and the logarithm of the chance that a
    class is among the samples (0: it is certain to be active).
    Returns how many are active.
    """
    slots[:] = head_slots
    active[: head.size] = head
    count = head.size
    for b in range(targets.shape[0]):
        for t in range(targets.shape[1]):
            at[b, t] = -1
            if targets[b, t] >= 0:
                slot = find(active, targets[b, t], slots)
                if slots[slot] < 0:
                    active[count] = targets[b, t]
                    slots[slot] = count
                    count += 1
                at[b, t] = slots[slot]
    for wanted in retrieved:
        slot = find(active, wanted, slots)
        if slots[slot] < 0:
            active[count] = wanted
            slots[slot] = count
            count += 1
    shift[:count] = 0
    for i in range(sampled.size):
        slot = find(active, sampled[i], slots)
        if slots[slot] < 0:
            active[count] = sampled[i]
            slots[slot] = count
            shift[count] = np.log(-np.expm1(draws * np.log1p(-chance[i])))
            count += 1
    return count


@_jit
def fill_slots(ids, slots):  # type: ignore[no-untyped-def]
    """slots: int32, written: a hash table of the ids' numbers."""
    slots[:] = -1
    for i in range(ids.size):
        slots[find(ids, ids[i], slots)] = i


# --- some classes ---------------------------------------------------------------------------------


@_jit
def score_active(  # type: ignore[no-untyped-def]
    table, halves, first, last, active, shift, turned, at, rows, block, label, top, total
):
    """Scores of active[first:last], and their exponentials.

    turned: [D, B], the hidden vectors; at: [B, T], places of the targets.
    Written: rows: [A, D]; block: [A, B], exp(score - top); label: [B, T], the targets' scores, of
    those in the slice; top: [B], highest scores; total: [B], sums of the exponentials.
    """
    room = _room(halves, turned)
    for begin in range(first, last, TILE):
        end = min(begin + TILE, last)
        for i in range(begin, end):
            if i + _AHEAD < last:
                _fetch(table, active[i + _AHEAD])
            row = table.values[active[i]]
            for d in range(row.size):
                rows[i, d] = row[d]
        _product(rows[begin:end], turned, room, block[begin:end])
        for i in range(begin, end):
            add = -shift[i]
            if table.bias.size:
                add += table.bias[active[i]]
            line = block[i]
            if i == first:
                for b in range(top.size):
                    line[b] += add
                    top[b] = line[b]
            else:
                for b in range(top.size):
                    line[b] += add
                    top[b] = max(top[b], line[b])
    for b in range(at.shape[0]):
        for t in range(at.shape[1]):
            if first <= at[b, t] < last:
                label[b, t] = block[at[b, t], b]
    total[:] = 0
    for i in range(first, last):
        line = block[i]
        for b in range(top.size):
            line[b] = exp(line[b] - top[b])
            total[b] += line[b]


@_jit
def update_active(  # type: ignore[no-untyped-def]
    table,
    update,
    halves,
    first,
    last,
    active,
    hidden,
    at,
    scale,
    share,
    rows,
    block,
    work,
    grad_hidden,
):
    """Gradients of active[first:last], and the update of their rows.

    block: as score_active left it, mutated; scale: [B] makes it slopes, less share: [B] at each
    target. work: [>= TILE + B, D]. grad_hidden: [B, D], written; [0, D]: not wanted.
    """
    for i in range(first, last):
        line = block[i]
        for b in range(scale.size):
            line[b] *= scale[b]
    for b in range(at.shape[0]):
        for t in range(at.shape[1]):
            if first <= at[b, t] < last:
                block[at[b, t], b] -= share[b]
    grad_hidden[:] = 0
    extra = work[TILE : TILE + hidden.shape[0]]
    room = _room(halves, hidden)
    for begin in range(first, last, TILE):
        end = min(begin + TILE, last)
        if grad_hidden.shape[0]:
            _turned_product(block[begin:end], rows[begin:end], room, extra)
            _add(grad_hidden, extra)
        grad = work[: end - begin]
        _product(block[begin:end], hidden, room, grad)
        for i in range(begin, end):
            if i + _AHEAD < last:
                _fetch(table, active[i + _AHEAD])
            update_row(table, update, active[i], grad[i - begin], block[i])


@_jit
def _room(halves, hidden):  # type: ignore[no-untyped-def]
    """For products of a tile of classes; of nothing where they are of float32."""
    return new_room(TILE, hidden.shape[0], hidden.shape[1]) if halves else new_room(0, 0, 0)


@_jit
def _product(a, b, room, out):  # type: ignore[no-untyped-def]
    if room.left.size:
        multiply(a, False, b, False, room, out)
    else:
        np.dot(a, b, out)


@_jit
def _turned_product(a, b, room, out):  # type: ignore[no-untyped-def]
    """out = a.T b"""
    if room.left.size:
        multiply(a, True, b, False, room, out)
    else:
        np.dot(a.T, b, out)


@_jit
def _fetch(table, row):  # type: ignore[no-untyped-def]
    """Ask for a row's cache lines, and go on."""
    dim = table.values.shape[1]
    for d in range(0, dim, 16):
        fetch_line(table.values, row * dim + d)  # type: ignore[call-arg]
    if table.bias.size:
        fetch_line(table.bias, row)  # type: ignore[call-arg]
    if table.state.size:
        fetch_line(table.state, row * table.state.shape[1])  # type: ignore[call-arg]


@_jit
def _add(out, other):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        for d in range(out.shape[1]):
            out[i, d] += other[i, d]


@jit(inline="always", **LOOSE_SUMS)
def update_row(table, update, row, grad, slopes):  # type: ignore[no-untyped-def]
    """One row by its gradient; its bias, whose gradient is the slopes' sum, counts as a column.

    The formulas are those of graph/optimizers.py; adam_lite is its adam with beta1 = 0. A row
    without a gradient stands still.
    """
    squares = np.float32(0)
    for d in range(grad.size):
        squares += grad[d] * grad[d]
    grad_bias = np.float32(0)
    if table.bias.size:
        for b in range(slopes.size):
            grad_bias += slopes[b]
        squares += grad_bias * grad_bias
    if squares == 0:
        return
    mean = squares / np.float32(grad.size + (1 if table.bias.size else 0))
    step = np.float32(update.lr)
    if update.optimizer == ROWWISE_ADAGRAD:
        table.state[row, 0] += mean
        step /= np.sqrt(table.state[row, 0]) + np.float32(1e-10)
    elif update.optimizer == ADAM_LITE:
        beta = np.float32(update.beta2)
        table.state[row, 0] += (np.float32(1) - beta) * (mean - table.state[row, 0])
        table.state[row, 1] += 1
        seen = 1.0 - update.beta2 ** np.float64(table.state[row, 1])
        step /= np.sqrt(table.state[row, 0] / np.float32(seen)) + np.float32(1e-8)
    values = table.values[row]
    for d in range(grad.size):
        values[d] -= step * grad[d]
    if table.bias.size:
        table.bias[row] -= step * grad_bias


# --- all classes ----------------------------------------------------------------------------------


@_jit
def _score_tile(table, begin, end, turned, room, block):  # type: ignore[no-untyped-def]
    """block: [n, B], written: the scores of classes begin .. end - 1."""
    _product(table.values[begin:end], turned, room, block)
    for i in range(end - begin):
        add = np.float32(0)
        if table.bias.size:
            add += table.bias[begin + i]
        if table.removed.size and table.removed[begin + i]:
            add -= _GONE
        for b in range(block.shape[1]):
            block[i, b] += add


@_jit
def score_all(  # type: ignore[no-untyped-def]
    table, halves, first, last, turned, targets, work, label, top, total
):
    """What `score_active` does, for all classes first .. last - 1, which keeps no scores.

    targets: int64 [B, T], classes; work: [>= TILE, B].
    """
    raised = np.empty_like(top)
    room = _room(halves, turned)
    top[:] = -_GONE
    total[:] = 0
    for begin in range(first, last, TILE):
        end = min(begin + TILE, last)
        block = work[: end - begin]
        _score_tile(table, begin, end, turned, room, block)
        for b in range(targets.shape[0]):
            for t in range(targets.shape[1]):
                if begin <= targets[b, t] < end:
                    label[b, t] = block[targets[b, t] - begin, b]
        raised[:] = top
        for i in range(end - begin):
            for b in range(top.size):
                raised[b] = max(raised[b], block[i, b])
        for b in range(top.size):
            total[b] *= exp(top[b] - raised[b])
            top[b] = raised[b]
        for i in range(end - begin):
            for b in range(top.size):
                total[b] += exp(block[i, b] - top[b])


@_jit
def update_all(  # type: ignore[no-untyped-def]
    table,
    update,
    halves,
    first,
    last,
    hidden,
    turned,
    targets,
    log_total,
    scale,
    share,
    work,
    more,
    grads,
):
    """What `update_active` does, for all classes first .. last - 1; scores are computed again.

    log_total: [B], logarithms of the partition function. work: [>= TILE, B]; more: [>= TILE, D];
    grads: [2, B, D], written: the gradient of the hidden vectors, and memory to work in; [2, 0, D]:
    not wanted.
    """
    grad_hidden, extra = grads[0], grads[1]
    room = _room(halves, hidden)
    grad_hidden[:] = 0
    for begin in range(first, last, TILE):
        end = min(begin + TILE, last)
        block = work[: end - begin]
        _score_tile(table, begin, end, turned, room, block)
        for i in range(end - begin):
            for b in range(scale.size):
                block[i, b] = exp(block[i, b] - log_total[b]) * scale[b]
        for b in range(targets.shape[0]):
            for t in range(targets.shape[1]):
                if begin <= targets[b, t] < end:
                    block[targets[b, t] - begin, b] -= share[b]
        if grad_hidden.shape[0]:
            _turned_product(block, table.values[begin:end], room, extra)
            _add(grad_hidden, extra)
        grad = more[: end - begin]
        _product(block, hidden, room, grad)
        for i in range(end - begin):
            update_row(table, update, begin + i, grad[i], block[i])
