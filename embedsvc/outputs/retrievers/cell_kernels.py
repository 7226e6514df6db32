"""Kernels of the cells of a partition (cells.py): means, which follow rows.

Letters: C classes, D dimension, E = D + 2, K cells, n rows.
"""

from typing import Any, NamedTuple

import numpy as np

from embedsvc.compiled import jit
from embedsvc.outputs.retrievers.visits import put_row


class View(NamedTuple):
    """Weights and biases less their means; length: m, of which longer rows lack nothing."""

    weight: Any  # float32 [C, D]
    bias: Any  # float32 [C]
    mean: Any  # float32 [D]
    mean_bias: Any  # float32
    length: Any  # float32


class Means(NamedTuple):
    """Of cells: means, mean squared distances from them per coordinate (the last one left out),
    half their squared lengths, and the first D coordinates as products want them."""

    center: Any  # float32 [K, E]
    variance: Any  # float32 [K]
    half: Any  # float32 [K]
    tiles: Any  # uint32 [.., T, 256], as in visits.Centers; or none
    plain: Any  # float32 [K, D], or none


def _jit(function):  # type: ignore[no-untyped-def]
    return jit(function, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")


@_jit
def augment(view, ids, rows):  # type: ignore[no-untyped-def]
    dim = view.mean.size
    for i in range(ids.size):
        row, out = view.weight[ids[i]], rows[i]
        for d in range(dim):
            out[d] = row[d] - view.mean[d]
        squares = np.float32(0)
        for d in range(dim):  # apart: a loop that both stores and sums goes one by one
            squares += out[d] * out[d]
        value = view.bias[ids[i]] - view.mean_bias
        rows[i, dim] = value
        squares += value * value
        rows[i, dim + 1] = np.sqrt(max(view.length * view.length - squares, np.float32(0)))


@_jit
def add_to(sums, cell, rows):  # type: ignore[no-untyped-def]
    for i in range(cell.size):
        for d in range(sums.shape[1]):
            sums[cell[i], d] += rows[i, d]


@_jit
def follow(rows, cell, size, means):  # type: ignore[no-untyped-def]
    """Each row seen moves its cell's mean and variance by one part in the cell's size."""
    width = means.center.shape[1]
    for i in range(cell.size):
        c = cell[i]
        own, row = means.center[c], rows[i]
        rate = np.float32(1) / np.float32(max(size[c], 1))
        distance = np.float32(0)
        last = row[width - 1] - own[width - 1]
        for d in range(width):
            distance += (row[d] - own[d]) * (row[d] - own[d])
        for d in range(width):
            own[d] += rate * (row[d] - own[d])
        inside = max(distance - last * last, np.float32(0)) / np.float32(width - 2)
        means.variance[c] += rate * (inside - means.variance[c])
        derive(c, c + 1, means)


@_jit
def derive(first, last, means):  # type: ignore[no-untyped-def]
    """What products need, of the centers of cells from `first` to before `last`."""
    width = means.center.shape[1]
    for c in range(first, last):
        own, squares = means.center[c], np.float32(0)
        for d in range(width):
            squares += own[d] * own[d]
        means.half[c] = squares / 2
        if means.tiles.size:
            put_row(means.center, c * width, width - 2, c, means.tiles)
        else:
            means.plain[c] = own[: width - 2]
