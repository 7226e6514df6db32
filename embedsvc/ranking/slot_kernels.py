"""Kernels of slots.py: what the ids of one feature add to a batch, and what they learn from it.

A row of zeros was never trained. In training it stands for small numbers that its place decides,
which are written when it learns, by a gradient that is not 0; in use it is what it is, nothing.

Letters: B batch, D numbers of an embedding, E ids of the slot, T tasks, U ids of the batch.
"""

import numpy as np

from embedsvc.compiled import LOOSE_SUMS, jit
from embedsvc.graph.kernels import find
from embedsvc.outputs.kernels import update_row
from embedsvc.prefetch import fetch_line
from partitions.hashing import GOLDEN, mix

_AHEAD = 12  # rows to fetch before their turn

_jit = jit(**LOOSE_SUMS)
_inline = jit(inline="always", **LOOSE_SUMS)


@_inline
def weight_of(z, n, ftrl):  # type: ignore[no-untyped-def]
    """The weight that FTRL-proximal keeps as (z, n): McMahan et al. 2013, algorithm 1."""
    if abs(z) <= ftrl.l1:
        return np.float32(0)
    slack = z - ftrl.l1 if z > 0 else z + ftrl.l1
    return np.float32(-slack / ((ftrl.beta + np.sqrt(n)) / ftrl.alpha + ftrl.l2))


@_inline
def learn_weight(wide, grad, ftrl):  # type: ignore[no-untyped-def]
    """wide: [2], z and n of one coordinate, mutated by its gradient; the same algorithm."""
    before = wide[1]
    after = before + grad * grad
    step = (np.sqrt(after) - np.sqrt(before)) / ftrl.alpha
    wide[0] += grad - step * weight_of(wide[0], before, ftrl)
    wide[1] = after


@_inline
def _first(noise, row, d):  # type: ignore[no-untyped-def]
    """Evenly from -scale to scale. noise: (seed, scale)."""
    bits = mix(noise[0] ^ mix(np.uint64(row) * np.uint64(GOLDEN) + np.uint64(d)))
    even = np.float32(bits >> np.uint64(40)) * np.float32(2.0**-23) - np.float32(1)
    return noise[1] * even


@_jit
def look_up(  # type: ignore[no-untyped-def]
    ids, column, offsets, values, noise, wide, ftrl, at, out, logit
):
    """What one slot says of B rows.

    ids: int32 [n, columns], of which `column` is the slot's; row b has those from offsets[b] to
    before offsets[b + 1]. values: float32 [E, D], their mean is written to out[b, at : at + D];
    wide: float32 [E, T, 2], the weights are summed into logit: [B, T], written. D or T may be 0.
    noise: (uint64 seed, float32 scale) of rows that were never trained.
    """
    dim, tasks, end = values.shape[1], wide.shape[1], offsets[-1]
    for b in range(offsets.size - 1):
        first, last = offsets[b], offsets[b + 1]
        mean = out[b, at : at + dim]
        mean[:] = 0
        logit[b] = 0
        for place in range(first, last):
            if place + _AHEAD < end:
                _fetch(values, wide, ids[place + _AHEAD, column])
            row = ids[place, column]
            if dim and values[row, 0] == 0 and noise[1] > 0:
                for d in range(dim):
                    mean[d] += _first(noise, row, d)
            elif dim:
                line = values[row]
                for d in range(dim):
                    mean[d] += line[d]
            for t in range(tasks):
                logit[b, t] += weight_of(wide[row, t, 0], wide[row, t, 1], ftrl)
        if last > first + 1:
            share = np.float32(1) / np.float32(last - first)
            for d in range(dim):
                mean[d] *= share


@_inline
def _teaches(values, row, grad):  # type: ignore[no-untyped-def]
    """False of a row that never learnt, where the gradient is 0 (of examples of weight 0): it stays
    0, as in the checkpoint, which has no row that never learnt."""
    squares = np.float32(0)
    for d in range(grad.size):
        squares += grad[d] * grad[d]
    return squares != 0 or values[row, 0] != 0


@_jit
def learn(  # type: ignore[no-untyped-def]
    ids, column, offsets, table, noise, update, decay, wide, ftrl, at, grad, slope, slots
):
    """Each distinct id of the batch learns once, from its summed gradient.

    table: outputs.kernels.Table, whose values are [E, D]; grad: float32 [B, W], of what `look_up`
    wrote; slope: float32 [B, T], of the logits; decay: added to a row's gradient, times the row,
    for each time that it stands in the batch. slots: int32, a power of two above the number of
    ids, written.
    """
    distinct, number = _number(ids, column, slots)
    count, dim, tasks = distinct.size, table.values.shape[1], wide.shape[1]
    sums = np.zeros((count, dim), np.float32)
    slopes, seen = np.zeros((count, tasks), np.float32), np.zeros(count, np.float32)
    for b in range(offsets.size - 1):
        first, last = offsets[b], offsets[b + 1]
        for place in range(first, last):
            u = number[place]
            if dim:
                share = np.float32(1) / np.float32(last - first)
                line, own = grad[b, at : at + dim], sums[u]
                for d in range(dim):
                    own[d] += share * line[d]
            for t in range(tasks):
                slopes[u, t] += slope[b, t]
            seen[u] += 1
    learn_rows(distinct, sums, slopes, seen, table, noise, update, decay, wide, ftrl)


@_jit
def learn_rows(distinct, sums, slopes, seen, table, noise, update, decay, wide, ftrl):  # type: ignore[no-untyped-def]
    """As `learn`, of distinct ids [U] by their sums: float32 [U, D], mutated, of embeddings'
    gradients; [U, T], of logits' slopes; [U], how often they stand in the batch."""
    dim, tasks, count = table.values.shape[1], wide.shape[1], distinct.size
    nothing = np.empty(0, np.float32)
    for u in range(count):
        if u + _AHEAD < count:
            _fetch(table.values, wide, distinct[u + _AHEAD])
        row = distinct[u]
        if dim and _teaches(table.values, row, sums[u]):
            if table.values[row, 0] == 0:
                for d in range(dim):
                    table.values[row, d] = _first(noise, row, d)
            if decay:
                for d in range(dim):
                    sums[u, d] += decay * seen[u] * table.values[row, d]
            update_row(table, update, row, sums[u], nothing)
        for t in range(tasks):
            learn_weight(wide[row, t], slopes[u, t], ftrl)


@_jit
def list_places(ids, column, offsets, begin, ends, places, share):  # type: ignore[no-untyped-def]
    """Add a slot's ids, from `begin` on, to the lists of rows; ends: int64 [B], of the lists,
    moved. places: int32 and share: float32, written: what each counts in its slot's mean."""
    for b in range(ends.size):
        first, last = offsets[b], offsets[b + 1]
        for place in range(first, last):
            places[ends[b]] = begin + ids[place, column]
            share[ends[b]] = np.float32(1) / np.float32(last - first)
            ends[b] += 1


@_jit
def _number(ids, column, slots):  # type: ignore[no-untyped-def]
    """The distinct ids [U] in the order of first sight, and the number of each place [n]."""
    slots[:] = -1
    distinct = np.empty(ids.shape[0], np.int64)
    number = np.empty(ids.shape[0], np.int32)
    count = 0
    for place in range(ids.shape[0]):
        wanted = np.int64(ids[place, column])
        slot = find(distinct, wanted, slots)
        if slots[slot] < 0:
            distinct[count] = wanted
            slots[slot] = count
            count += 1
        number[place] = slots[slot]
    return distinct[:count], number


@_inline
def _fetch(values, wide, row):  # type: ignore[no-untyped-def]
    """Ask for a row's cache lines, and go on."""
    dim, tasks = values.shape[1], wide.shape[1]
    for d in range(0, dim, 16):
        fetch_line(values, row * dim + d)  # type: ignore[call-arg]
    if tasks:
        fetch_line(wide, row * tasks * 2)  # type: ignore[call-arg]
