"""Metrics: pure functions of ranks and lists. Each docstring states its denominator."""

import numpy as np
from numpy.typing import NDArray


def mean_reciprocal_rank(ranks: NDArray[np.int64]) -> float:
    """Mean of 1 / rank over all ranks, each counted from 1. NaN for none."""
    return float(np.mean(1.0 / ranks)) if len(ranks) else float("nan")


def mean_rank(ranks: NDArray[np.int64]) -> float:
    """Mean over all ranks. NaN for none."""
    return float(np.mean(ranks)) if len(ranks) else float("nan")


def hits_at(k: int, ranks: NDArray[np.int64]) -> float:
    """Share of all ranks that are at most k. NaN for none."""
    return float(np.mean(ranks <= k)) if len(ranks) else float("nan")


def recall_at(hits: NDArray[np.bool_], num_relevant: NDArray[np.int64]) -> NDArray[np.float64]:
    """Per list: relevant items among its k over all relevant items (LightGCN's convention).

    hits: bool [lists, k], whether the item at each place is relevant; num_relevant: int64 [lists],
    at least 1. The other convention divides by min(k, relevant): not comparable.
    """
    return np.asarray(hits.sum(axis=1) / num_relevant)


def ndcg_at(hits: NDArray[np.bool_], num_relevant: NDArray[np.int64]) -> NDArray[np.float64]:
    """Per list: binary gain, log2 discount; the ideal list has min(k, relevant) hits on top."""
    discount = 1.0 / np.log2(np.arange(2, hits.shape[1] + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    return np.asarray(hits @ discount / ideal[np.minimum(num_relevant, hits.shape[1])])
