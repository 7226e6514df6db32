"""Products of sparse matrices with dense ones, and with each other, on all threads.

SciPy's own run on one thread and, for a dense right factor, read it column by column.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp

from embedsvc.compiled import LOOSE_SUMS, jit
from embedsvc.graph.fast import num_cores
from embedsvc.ranking.recommenders import Floats, Ids

_jit = jit(**LOOSE_SUMS)


def times(matrix: sp.csr_matrix, dense: Floats) -> Floats:
    """float32 [rows, D] = matrix @ dense."""
    out = np.empty((matrix.shape[0], dense.shape[1]), np.float32)
    dense = np.ascontiguousarray(dense, np.float32)
    values = matrix.data.astype(np.float32, copy=False)
    over_rows(matrix.indptr, _times, matrix.indptr, matrix.indices, values, dense, out)
    return out


def times_sparse(left: sp.csr_matrix, right: sp.csr_matrix, out: Floats) -> None:
    """out: float32, left @ right is added to it. Work is by the entries of `right` that are hit."""
    right_parts = right.indptr, right.indices, right.data.astype(np.float32, copy=False)
    values = left.data.astype(np.float32, copy=False)
    over_rows(left.indptr, _times_sparse, left.indptr, left.indices, values, *right_parts, out)


def over_rows(work: Ids, kernel: Callable[..., Any], *arguments: Any) -> None:
    """kernel(first, last, *arguments) for all rows, in pieces of about equal work, on threads.

    work: [rows + 1], what is done before each row, such as a CSR matrix's indptr.
    """
    rows = len(work) - 1
    costs = np.asarray(work, np.int64) + 4 * np.arange(rows + 1)  # a row alone costs something
    pieces = min(rows, 8 * num_cores())
    bounds = np.searchsorted(costs, np.linspace(0, costs[-1], pieces + 1)[1:-1])
    ends = np.unique(np.concatenate([[0], bounds, [rows]]))
    if num_cores() == 1 or len(ends) <= 2 or costs[-1] < 10_000:
        kernel(0, rows, *arguments)
        return
    jobs = [
        _pool(os.getpid()).submit(kernel, first, last, *arguments) for first, last in pairwise(ends)
    ]
    for job in jobs:
        job.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """process: a forked one needs threads of its own."""
    return ThreadPoolExecutor(num_cores(), "products")


@_jit
def _times(first, last, indptr, indices, values, dense, out):  # type: ignore[no-untyped-def]
    for row in range(first, last):
        out[row] = 0
        for at in range(indptr[row], indptr[row + 1]):
            weight, other = values[at], indices[at]
            for d in range(out.shape[1]):
                out[row, d] += weight * dense[other, d]


@_jit
def _times_sparse(first, last, indptr, indices, values, ends, others, weights, out):  # type: ignore[no-untyped-def]
    for row in range(first, last):
        for at in range(indptr[row], indptr[row + 1]):
            middle = indices[at]
            for place in range(ends[middle], ends[middle + 1]):
                out[row, others[place]] += values[at] * weights[place]
