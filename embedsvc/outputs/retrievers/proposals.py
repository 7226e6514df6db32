"""What is best of classes proposed in no order, and of those pinned: for hashes, which can't score.

Letters: C classes, D dimension, H pinned classes, K answers, L proposals, Q queries.
"""

import numpy as np

from embedsvc.compiled import jit
from embedsvc.outputs.retrievers import Floats, Ids
from embedsvc.outputs.retrievers.threads import in_parallel
from embedsvc.prefetch import ask_for


def union(ids_QN: Ids) -> Ids:
    """Ascending; -1 is none."""
    ids = np.sort(ids_QN, axis=None)
    return ids[np.flatnonzero(np.diff(ids, prepend=-1))]


def best_of(
    weight_CD: Floats,
    bias_C: Floats | None,
    pinned_H: Ids,
    proposed_QL: Ids,
    queries_QD: Floats,
    k: int,
    threads: int,
) -> tuple[Ids, Floats]:
    """int64 [Q, K] and their scores, best first; padded with -1 and -inf.

    proposed_QL: distinct in each row, none of them pinned; -1 is none.
    """
    num_queries = len(queries_QD)
    ids = np.full((num_queries, k), -1, np.int64)
    scores = np.full((num_queries, k), -np.inf, np.float32)
    bias_C = np.zeros(len(weight_CD), np.float32) if bias_C is None else bias_C
    pinned_HD = weight_CD[pinned_H]
    if not k:
        return ids, scores

    def work(part: slice) -> None:
        of_pinned = queries_QD[part] @ pinned_HD.T + bias_C[pinned_H]
        _put_pinned(pinned_H, of_pinned, ids[part], scores[part])
        rank(weight_CD, bias_C, proposed_QL[part], queries_QD[part], ids[part], scores[part])

    in_parallel(num_queries, work, threads)
    return ids, scores


@jit(fastmath={"contract", "reassoc"}, error_model="numpy")
def rank(weight, bias, proposed, queries, ids, scores):  # type: ignore[no-untyped-def]
    """The best by exact scores; ids, scores: written, best first, where they hold -1 and -inf.

    proposed: [Q, L], distinct in each row; -1 is none.
    """
    dim = queries.shape[1]
    for q in range(queries.shape[0]):
        for c in proposed[q]:
            if c >= 0:
                ask_for(weight, c * dim, dim)
        for c in proposed[q]:
            if c >= 0:
                score = bias[c]
                for d in range(dim):
                    score += weight[c, d] * queries[q, d]
                if score > scores[q, -1]:
                    _insert(score, c, scores[q], ids[q])


@jit
def _put_pinned(pinned, of_pinned, ids, scores):  # type: ignore[no-untyped-def]
    """of_pinned: [Q, H], scores; ids, scores: written."""
    for q in range(of_pinned.shape[0]):
        for i in range(pinned.size):
            if of_pinned[q, i] > scores[q, -1]:
                _insert(of_pinned[q, i], pinned[i], scores[q], ids[q])


@jit
def _insert(score, c, scores, ids):  # type: ignore[no-untyped-def]
    """Into a descending list, whose last one falls out."""
    at = scores.size - 1
    while at > 0 and scores[at - 1] < score:
        scores[at] = scores[at - 1]
        ids[at] = ids[at - 1]
        at -= 1
    scores[at] = score
    ids[at] = c
