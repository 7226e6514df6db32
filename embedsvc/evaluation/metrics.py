"""Metrics: pure functions of lists and what lists show. Each says its denominator.

Of lists: float64 [lists], empty of no lists. k is the number of places, at least 1.

    hits          bool [lists, k]   is the item at each place relevant; an empty place, as where k
                                    is larger than the catalogue, is no hit, and still one of k
    num_relevant  int64 [lists]     n, all relevant items of the list, shown or not, at least 1

Of catalogues: one number for all lists together, NaN where nothing is shown.

    ids           int64 [lists, k]  the item at each place, -1 where there is none
    popularity    int64 [items]     training events of each item of the catalogue
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Hits = NDArray[np.bool_]
Floats = NDArray[np.float64]


def recall_at(hits: Hits, num_relevant: Ids) -> Floats:
    """hits / n, LightGCN's convention. Below 1 for the best list where n > k.

    capped_recall_at divides by another number: the two are not comparable.
    """
    return np.asarray(hits.sum(axis=1) / num_relevant)


def capped_recall_at(hits: Hits, num_relevant: Ids) -> Floats:
    """hits / min(k, n), Mult-VAE's convention: 1 for the best list. Never below recall_at."""
    return np.asarray(hits.sum(axis=1) / np.minimum(num_relevant, hits.shape[1]))


def precision_at(hits: Hits, num_relevant: Ids) -> Floats:
    """hits / k: empty places count. Below 1 for the best list where n < k."""
    return np.asarray(hits.sum(axis=1) / hits.shape[1])


def hit_rate_at(hits: Hits, num_relevant: Ids) -> Floats:
    """1 for a list with any hit, else 0."""
    return np.asarray(hits.any(axis=1), np.float64)


def mrr_at(hits: Hits, num_relevant: Ids) -> Floats:
    """1 / place of the first hit, places from 1; 0 without a hit among k."""
    return np.asarray(hits.any(axis=1) / (hits.argmax(axis=1) + 1.0))


def map_at(hits: Hits, num_relevant: Ids) -> Floats:
    """Sum over hits of the precision down to each one's place / min(k, n): 1 for the best list.

    trec_eval and ranx divide by n, which is the same where n <= k.
    """
    k = hits.shape[1]
    precision = np.cumsum(hits, axis=1) / np.arange(1, k + 1)
    return np.asarray((precision * hits).sum(axis=1) / np.minimum(num_relevant, k))


def ndcg_at(hits: Hits, num_relevant: Ids) -> Floats:
    """Sum over hits of 1 / log2(place + 1) / the same of the ideal list, min(k, n) hits on top."""
    discount = 1.0 / np.log2(np.arange(2, hits.shape[1] + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    return np.asarray(hits @ discount / ideal[np.minimum(num_relevant, hits.shape[1])])


LIST_METRICS: Mapping[str, Callable[[Hits, Ids], Floats]] = {
    "recall": recall_at,
    "capped_recall": capped_recall_at,
    "ndcg": ndcg_at,
    "map": map_at,
    "hit_rate": hit_rate_at,
    "mrr": mrr_at,
    "precision": precision_at,
}


def coverage_at(ids: Ids, num_items: int) -> float:
    """Items shown at least once / items of the catalogue; 0 where nothing is shown."""
    return float(np.mean(_times_shown(ids, num_items) > 0)) if num_items else float("nan")


def gini(ids: Ids, num_items: int) -> float:
    """Gini coefficient of how often each item of the catalogue is shown, never shown ones too.

    sum over i of (2 i - items - 1) times[i] / (items * sum of times), times ascending, i from 1: 0
    where all are shown alike, 1 - 1 / items where one has every place.
    """
    times = np.sort(_times_shown(ids, num_items)).astype(np.float64)
    shown = times.sum()
    if not shown:
        return float("nan")
    return float((2 * np.arange(1, num_items + 1) - num_items - 1) @ times / (num_items * shown))


def novelty_at(ids: Ids, popularity: Ids) -> float:
    """Mean over shown places of -log2 of the item's share of training events, in bits.

    share = (events + 1) / (all events + items): an item without events is as novel as an event can
    make it, and not infinitely so. A uniform catalogue gives log2(items).
    """
    times = _times_shown(ids, len(popularity))
    if not times.any():
        return float("nan")
    share = (popularity + 1.0) / (popularity.sum() + len(popularity))
    return float(-np.log2(share) @ times / times.sum())


def popularity_lift(ids: Ids, popularity: Ids) -> float:
    """(shown - had) / had: how much more popular what is shown is than what people had.

    shown: mean over shown places of the item's training events; had: the same over training events,
    sum of events squared / sum of events. 0: as popular; 1: twice as popular; -1: nothing shown has
    events. NaN without training events. Abdollahpouri et al. 2020 average over each user's events
    first, so that theirs weighs a user where this weighs an event.
    """
    times = _times_shown(ids, len(popularity))
    if not times.any() or not popularity.any():
        return float("nan")
    events = popularity.astype(np.float64)
    had = float(events @ events / events.sum())
    return float(events @ times / times.sum()) / had - 1


def _times_shown(ids: Ids, num_items: int) -> Ids:
    """int64 [items]: at how many places each item stands."""
    times = np.bincount(ids[ids >= 0], minlength=num_items)
    assert len(times) == num_items, "an id outside the catalogue"
    return times
