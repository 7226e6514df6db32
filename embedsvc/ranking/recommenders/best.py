"""The best items of each user among all, exactly, with items left out; block by block of users.

Memory is a block's scores, 64 MiB or one user's: 409 users of 41,000 items. Equal scores: the lower
item first, so that lists do not change from run to run.
"""

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from embedsvc.evaluation.topk import Best
from embedsvc.ranking.recommenders import Fitted, Floats, Ids

_BLOCK_BYTES = 2**26


def top_items(
    fitted: Fitted, who: Ids | sp.csr_matrix, k: int, seen: sp.csr_matrix | None = None
) -> Ids:
    """int64 [B, k], best first; -1 where a user has less than k items left.

    who: ids of users that `fitted` knows, or histories of anybody.
    seen: [B, I], what is left out beside each one's history; with none, the history alone.
    """
    lists = [items for _, items in blocks(fitted, who, k, seen)]
    return np.concatenate(lists) if lists else np.empty((0, k), np.int64)


def blocks(
    fitted: Fitted, who: Ids | sp.csr_matrix, k: int, seen: sp.csr_matrix | None = None
) -> Iterator[tuple[slice, Ids]]:
    """`top_items` of one block of users after the other, with their places."""
    num_users = who.shape[0]
    size = max(1, _BLOCK_BYTES // (4 * max(1, fitted.matrix.shape[1])))
    for first in range(0, num_users, size):
        place = slice(first, min(first + size, num_users))
        if isinstance(who, np.ndarray):
            scores, known = fitted.scores(who[place]), fitted.matrix[who[place]]
        else:
            known = who[place]
            scores = fitted.scores_of(known)
        left_out = known if seen is None else (known + seen[place]).tocsr()
        yield place, best_of(scores, left_out, k)


def best_of(scores: Floats, left_out: sp.csr_matrix, k: int) -> Ids:
    """int64 [B, k], best first, then -1. scores: [B, I], -inf is written where items are left out;
    NaN is never among the best."""
    best = Best(len(scores), k)
    best.add(np.ascontiguousarray(scores, np.float32), left_out.sorted_indices())
    return best.ids
