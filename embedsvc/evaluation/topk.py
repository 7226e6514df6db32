"""The best k of each query among candidates that come in tiles; exact, in bounded memory.

Equal scores: the lower id first, where tiles come in the order of ids. NaN and -inf are never among
the best.

Letters: B queries of a block, K places, N candidates of a tile.
"""

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from embedsvc.compiled import jit
from embedsvc.graph.fast import num_cores
from embedsvc.outputs.sparse import in_threads, slices

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

_STRIDE = 64  # scores of which is asked whether any is good enough, before each of them is


class Best:
    """What is best so far. ids: int64 [B, K], best first, -1 in empty places, whose score is -inf;
    scores: float32 [B, K]."""

    def __init__(self, num_queries: int, k: int) -> None:
        self.ids = np.full((num_queries, k), -1, np.int64)
        self.scores = np.full((num_queries, k), -np.inf, np.float32)

    def add(
        self, scores: Floats, left_out: sp.csr_matrix, first_query: int = 0, first_id: int = 0
    ) -> None:
        """scores: float32 [n, N], C-contiguous, of queries first_query and on with candidates
        first_id and on; -inf is written where candidates are left out. left_out: [B, all], the
        ids of each query ascending."""
        if not self.ids.shape[1]:
            return
        last = first_query + len(scores)
        ids, best = self.ids[first_query:last], self.scores[first_query:last]
        starts, items = left_out.indptr[first_query : last + 1], left_out.indices

        def part(_: int, first: int, end: int) -> None:
            _merge(first, end, first_id, scores, starts, items, best, ids)

        in_threads(part, slices(len(scores), num_cores()))


@jit(error_model="numpy")
def _any_above(scores, first, last, worst):  # type: ignore[no-untyped-def]
    """A sum of comparisons, which the compiler makes vectors of; false for NaN."""
    above = np.int32(0)
    for at in range(first, last):
        above += np.int32(scores[at] > worst)
    return above > 0


@jit(error_model="numpy")
def _first_not_below(items, first, last, wanted):  # type: ignore[no-untyped-def]
    while first < last:
        middle = (first + last) // 2
        if items[middle] < wanted:
            first = middle + 1
        else:
            last = middle
    return first


@jit(error_model="numpy")
def _merge(first, last, first_id, scores, starts, items, best, ids):  # type: ignore[no-untyped-def]
    num, k = scores.shape[1], ids.shape[1]
    for row in range(first, last):
        at = _first_not_below(items, starts[row], starts[row + 1], first_id)
        while at < starts[row + 1] and items[at] < first_id + num:
            scores[row, items[at] - first_id] = -np.inf
            at += 1
        worst = best[row, k - 1]
        for start in range(0, num, _STRIDE):
            end = min(start + _STRIDE, num)
            if not _any_above(scores[row], start, end, worst):
                continue
            for candidate in range(start, end):
                score = scores[row, candidate]
                if score > worst:
                    place = k - 1
                    while place > 0 and best[row, place - 1] < score:
                        best[row, place] = best[row, place - 1]
                        ids[row, place] = ids[row, place - 1]
                        place -= 1
                    best[row, place], ids[row, place] = score, first_id + candidate
                    worst = best[row, k - 1]
