"""The best items of each user among all, exactly, with items left out; block by block of users.

Memory is a block's scores, 64 MiB or one user's: 409 users of 41,000 items. Equal scores: the lower
item first, so that lists do not change from run to run.
"""

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from embedsvc.compiled import jit
from embedsvc.ranking.recommenders import Fitted, Floats, Ids
from embedsvc.ranking.recommenders.products import over_rows

_BLOCK_BYTES = 2**26
_STRIDE = 64  # scores whose highest is compared before each of them is


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
    scores = np.ascontiguousarray(scores, np.float32)
    items = np.full((len(scores), k), -1, np.int64)
    work = np.arange(len(scores) + 1) * scores.shape[1]
    over_rows(work, _best, scores, left_out.indptr, left_out.indices, items)
    return items


@jit(fastmath={"nsz", "nnan"}, error_model="numpy")
def _highest(scores, first, last):  # type: ignore[no-untyped-def]
    """In its own function, as only here NaN may be ignored."""
    high = scores[first]
    for at in range(first + 1, last):
        high = max(high, scores[at])
    return high


@jit(error_model="numpy")
def _best(first, last, scores, indptr, indices, items):  # type: ignore[no-untyped-def]
    num_items, k = scores.shape[1], items.shape[1]
    if k == 0:
        return
    held = np.empty(k, np.float32)
    for row in range(first, last):
        for at in range(indptr[row], indptr[row + 1]):
            scores[row, indices[at]] = -np.inf
        found, worst = 0, np.float32(-np.inf)
        for start in range(0, num_items, _STRIDE):
            end = min(start + _STRIDE, num_items)
            if _highest(scores[row], start, end) <= worst:
                continue
            for item in range(start, end):
                score = scores[row, item]
                if score > worst:
                    place = min(found, k - 1)
                    while place > 0 and held[place - 1] < score:
                        held[place], items[row, place] = held[place - 1], items[row, place - 1]
                        place -= 1
                    held[place], items[row, place] = score, item
                    found = min(found + 1, k)
                    if found == k:
                        worst = held[k - 1]
