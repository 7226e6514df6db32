"""Kernels of the learned partition (partition.py): rows into cells, and queries through them.

Letters: C classes, D dimension, E = D + 2, K cells, Q queries, P probes, n rows.
"""

import numpy as np

from embedsvc.compiled import jit
from embedsvc.outputs.retrievers.products import round_rows

_BLOCK = 64  # scores looked at together


def _jit(function):  # type: ignore[no-untyped-def]
    return jit(function, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")


@_jit
def augment(weight, bias, ids, mean, mean_bias, length, rows):  # type: ignore[no-untyped-def]
    dim = weight.shape[1]
    for i in range(ids.size):
        row, out = weight[ids[i]], rows[i]
        for d in range(dim):
            out[d] = row[d] - mean[d]
        squares = np.float32(0)
        for d in range(dim):  # apart: a loop that both stores and sums goes one by one
            squares += out[d] * out[d]
        value = bias[ids[i]] - mean_bias
        rows[i, dim] = value
        squares += value * value
        rows[i, dim + 1] = np.sqrt(max(length * length - squares, np.float32(0)))


@_jit
def centered(weight, bias, ids, mean, mean_bias, rows, offset):  # type: ignore[no-untyped-def]
    for i in range(ids.size):
        for d in range(mean.size):
            rows[i, d] = weight[ids[i], d] - mean[d]
        offset[i] = bias[ids[i]] - mean_bias


@_jit
def add_to(sums, cell, rows):  # type: ignore[no-untyped-def]
    for i in range(cell.size):
        for d in range(sums.shape[1]):
            sums[cell[i], d] += rows[i, d]


@_jit
def nearest(scores, rows, ends, half, out):  # type: ignore[no-untyped-def]
    """scores: of the first D coordinates, mutated; ends: float32 [2, K], the centers' others."""
    dim = rows.shape[1] - 2
    for i in range(scores.shape[0]):
        a, b = rows[i, dim], rows[i, dim + 1]
        row = scores[i]
        for c in range(row.size):
            row[c] += a * ends[0, c] + b * ends[1, c] - half[c]
        best, which = np.float32(-np.inf), 0
        for begin in range(0, row.size, _BLOCK):
            block = row[begin : begin + _BLOCK]
            if _any_above(block, best):
                for c in range(block.size):
                    if block[c] > best:
                        best, which = block[c], begin + c
        out[i] = which


@_jit
def _any_above(block, lowest):  # type: ignore[no-untyped-def]
    """Most blocks hold nothing of interest: this looks at 16 numbers at a time."""
    hits = np.int32(0)
    for j in range(block.size):
        hits = np.int32(hits + np.int32(block[j] > lowest))
    return hits > 0


@_jit
def relocate(  # type: ignore[no-untyped-def]
    weight,
    bias,
    ids,
    mean,
    mean_bias,
    length,
    near,
    size,
    center,
    variance,
    half,
    rounded,
    cell,
    new,
):
    """new: written: of each id the nearest of the cells near its own; the same if it is in none."""
    rows = np.empty((1, center.shape[1]), np.float32)
    row = rows[0]
    for i in range(ids.size):
        own = cell[ids[i]]
        new[i] = own
        if own < 0 or own >= near.shape[0]:
            continue
        augment(weight, bias, ids[i : i + 1], mean, mean_bias, length, rows)
        best, which = np.float32(-np.inf), own
        for n in range(near.shape[1]):
            c = near[own, n]
            other = center[c]
            score = -half[c]
            for d in range(row.size):
                score += row[d] * other[d]
            if score > best:
                best, which = score, c
        new[i] = which
        follow(rows, new[i : i + 1], size, center, variance, half, rounded)


@_jit
def follow(rows, cell, size, center, variance, half, rounded):  # type: ignore[no-untyped-def]
    """Each row seen moves its cell's mean and variance by one part in the cell's size.

    rounded: [K, D], what products use of the means.
    """
    width = center.shape[1]
    plain = np.empty((1, width - 2), np.float32)
    for i in range(cell.size):
        c = cell[i]
        own, row = center[c], rows[i]
        rate = np.float32(1) / np.float32(max(size[c], 1))
        squares, distance = np.float32(0), np.float32(0)
        last = row[width - 1] - own[width - 1]
        for d in range(width):
            distance += (row[d] - own[d]) * (row[d] - own[d])
        for d in range(width):
            own[d] += rate * (row[d] - own[d])
        for d in range(width):
            squares += own[d] * own[d]
        half[c] = squares / 2
        inside = max(distance - last * last, np.float32(0)) / np.float32(width - 2)
        variance[c] += rate * (inside - variance[c])
        for d in range(width - 2):
            plain[0, d] = own[d]
        if rounded.itemsize == 2:
            round_rows(plain, rounded[c : c + 1])
        else:
            rounded[c] = plain[0]


@_jit
def add_reach(queries, reach, scores):  # type: ignore[no-untyped-def]
    for q in range(queries.shape[0]):
        squares = np.float32(0)
        for d in range(queries.shape[1]):
            squares += queries[q, d] * queries[q, d]
        length = np.sqrt(squares)
        for c in range(reach.shape[1]):
            scores[q, c] += reach[0, c] + length * reach[1, c]


@_jit
def replace_root(best, which, score, number):  # type: ignore[no-untyped-def]
    """best is a heap, its lowest at the root."""
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


@_jit
def keep(scores, offset, ids, queries, best, which):  # type: ignore[no-untyped-def]
    """Offer score + offset of each id to its query's heap; scores are mutated."""
    for i in range(scores.shape[0]):
        q = queries[i]
        row = scores[i]
        for j in range(row.size):
            row[j] += offset[j]
        for begin in range(0, row.size, _BLOCK):
            block = row[begin : begin + _BLOCK]
            if _any_above(block, best[q, 0]):
                for j in range(block.size):
                    if block[j] > best[q, 0]:
                        replace_root(best[q], which[q], block[j], ids[begin + j])


@_jit
def choose(scores, probe):  # type: ignore[no-untyped-def]
    """The cells of the highest scores, in any order."""
    best = np.empty(probe.shape[1], np.float32)
    for q in range(scores.shape[0]):
        best[:] = -np.inf
        for begin in range(0, scores.shape[1], _BLOCK):
            block = scores[q, begin : begin + _BLOCK]
            if _any_above(block, best[0]):
                for c in range(block.size):
                    if block[c] > best[0]:
                        replace_root(best, probe[q], block[c], begin + c)


@_jit
def scan_cells(  # type: ignore[no-untyped-def]
    query, center, reach, probes, rows, offset, ids, start, size, best, which
):
    """For one query, rows and centers of bfloat16: the best of its cells and of the pinned."""
    num_cells = center.shape[0]
    scores = np.empty((1, num_cells), np.float32)
    _scan(center, query[0], scores[0])
    add_reach(query, reach, scores)
    cells = np.full((1, probes + 1), num_cells, np.int64)
    choose(scores, cells[:, :probes])
    none = np.zeros(1, np.int64)
    for i in range(probes + 1):
        begin = start[cells[0, i]]
        end = begin + size[cells[0, i]]
        found = np.empty((1, end - begin), np.float32)
        _scan(rows[begin:end], query[0], found[0])
        keep(found, offset[begin:end], ids[begin:end], none, best, which)


@_jit
def _scan(rows, query, out):  # type: ignore[no-untyped-def]
    """out = rows query, rows of bfloat16."""
    dim = query.size
    bits = np.empty(dim, np.uint32)
    wide = bits.view(np.float32)
    for i in range(rows.shape[0]):
        for d in range(dim):
            bits[d] = np.uint32(rows[i, d]) << np.uint32(16)
        total = np.float32(0)
        for d in range(dim):
            total += wide[d] * query[d]
        out[i] = total


@_jit
def group(probe, num_cells, grouped):  # type: ignore[no-untyped-def]
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
def finish(best, which, spare, queries, weight, bias, ids, scores):  # type: ignore[no-untyped-def]
    """Score the `spare` best candidates exactly, and put the best of them first."""
    for q in range(best.shape[0]):
        order = np.argsort(-best[q])[:spare]
        exact = np.empty(order.size, np.float32)
        for i in range(order.size):
            c = which[q, order[i]]
            if c < 0:
                exact[i] = -np.inf
                continue
            total = np.float32(0)
            for d in range(queries.shape[1]):
                total += queries[q, d] * weight[c, d]
            exact[i] = total + bias[c]
        ranked = np.argsort(-exact)
        for i in range(min(ids.shape[1], ranked.size)):
            if which[q, order[ranked[i]]] >= 0:
                ids[q, i] = which[q, order[ranked[i]]]
                scores[q, i] = exact[ranked[i]]
