"""Kernels of RowEmbedding: weighted sums of rows, and updates of rows by their summed gradients.

Letters: B batch, D dimension, L places of a history, U distinct ids, n places in all (B L).
"""

import numpy as np

from embedsvc.compiled import LOOSE_SUMS, jit
from embedsvc.graph.kernels import find
from embedsvc.outputs.kernels import update_row
from embedsvc.prefetch import fetch_line

_AHEAD = 8  # rows to fetch before their turn

_jit = jit(**LOOSE_SUMS)


@_jit
def pool(values, first, last, ids, weight, out):  # type: ignore[no-untyped-def]
    """out[b] = sum over l of weight[b, l] values[ids[b, l]], for b from first to last - 1.

    values: float32 [E, D]; ids: int64 [B, L], below 0: nothing is there; weight: float32 [B, L].
    """
    num_places = ids.shape[1]
    flat = ids.reshape(-1)
    for b in range(first, last):
        for d in range(out.shape[1]):
            out[b, d] = 0
        for place in range(b * num_places, (b + 1) * num_places):
            if place + _AHEAD < last * num_places and flat[place + _AHEAD] >= 0:
                _fetch(values, flat[place + _AHEAD])
            if flat[place] >= 0:
                row, share = values[flat[place]], weight[b, place - b * num_places]
                for d in range(row.size):
                    out[b, d] += share * row[d]


@_jit
def number_distinct(ids, slots, distinct, number):  # type: ignore[no-untyped-def]
    """number: int32 [n], written: that of each id among the distinct ones; -1 where ids < 0.

    slots: int32, a power of two above n, written; distinct: int64 [n], written. Returns how many.
    """
    slots[:] = -1
    count = 0
    for place in range(ids.size):
        number[place] = -1
        if ids[place] >= 0:
            slot = find(distinct, ids[place], slots)
            if slots[slot] < 0:
                distinct[count] = ids[place]
                slots[slot] = count
                count += 1
            number[place] = slots[slot]
    return count


@_jit
def list_places(number, starts, places):  # type: ignore[no-untyped-def]
    """places: int64 [n], written: those of each number, in order, from starts on. starts: [U + 1],
    0 before, written."""
    for place in range(number.size):
        if number[place] >= 0:
            starts[number[place] + 1] += 1
    for u in range(1, starts.size):
        starts[u] += starts[u - 1]
    at = starts[:-1].copy()
    for place in range(number.size):
        u = number[place]
        if u >= 0:
            places[at[u]] = place
            at[u] += 1


@_jit
def learn(  # type: ignore[no-untyped-def]
    table, update, first, last, distinct, starts, places, num_places, weight, grad, work
):
    """Update rows distinct[first:last] by the sum over their places of weight[place] grad[b].

    A place belongs to row b = place // num_places of grad: [B, D]. weight: [n]; work: [D].
    """
    nothing = np.empty(0, np.float32)
    for u in range(first, last):
        if u + _AHEAD < last:
            _fetch(table.values, distinct[u + _AHEAD])
        work[:] = 0
        for place in places[starts[u] : starts[u + 1]]:
            line, share = grad[place // num_places], weight[place]
            for d in range(work.size):
                work[d] += share * line[d]
        update_row(table, update, distinct[u], work, nothing)


@_jit
def _fetch(values, row):  # type: ignore[no-untyped-def]
    """Ask for a row's cache lines, and go on."""
    dim = values.shape[1]
    for d in range(0, dim, 16):
        fetch_line(values, row * dim + d)  # type: ignore[call-arg]
