"""Metrics equal what their docstrings say, number by number."""

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from embedsvc.evaluation import metrics

RANKS = arrays(np.int64, st.integers(1, 30), elements=st.integers(1, 10**6))


@given(RANKS)
def test_metrics_of_ranks_equal_plain_loops(ranks: np.ndarray) -> None:
    n = len(ranks)
    reciprocal, total, within = 0.0, 0, 0
    for rank in ranks.tolist():
        reciprocal += 1 / rank
        total += rank
        within += rank <= 10
    assert metrics.mean_reciprocal_rank(ranks) == pytest.approx(reciprocal / n, rel=1e-12)
    assert metrics.mean_rank(ranks) == pytest.approx(total / n, rel=1e-12)
    assert metrics.hits_at(10, ranks) == pytest.approx(within / n, rel=1e-12)


def test_metrics_of_ranks_by_hand() -> None:
    ranks = np.array([1, 2, 4, 4])
    assert metrics.mean_reciprocal_rank(ranks) == 0.5
    assert metrics.mean_rank(ranks) == 2.75
    assert [metrics.hits_at(k, ranks) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.5, 1]


def test_metrics_of_no_ranks_are_not_a_number() -> None:
    none = np.empty(0, np.int64)
    assert math.isnan(metrics.mean_reciprocal_rank(none))
    assert math.isnan(metrics.mean_rank(none))
    assert math.isnan(metrics.hits_at(3, none))


@given(st.data())
def test_metrics_of_lists_equal_plain_loops(data: Any) -> None:
    num_lists, k = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 8))
    hits = data.draw(arrays(np.bool_, (num_lists, k)))
    extra = data.draw(arrays(np.int64, num_lists, elements=st.integers(0, 12)))
    relevant = np.maximum(hits.sum(axis=1) + extra, 1)
    recall, ndcg = metrics.recall_at(hits, relevant), metrics.ndcg_at(hits, relevant)
    for row in range(num_lists):
        found = sum(1 for hit in hits[row] if hit)
        gain = sum(1 / math.log2(place + 2) for place in range(k) if hits[row, place])
        ideal = sum(1 / math.log2(place + 2) for place in range(min(k, relevant[row])))
        assert recall[row] == pytest.approx(found / relevant[row], rel=1e-12)
        assert ndcg[row] == pytest.approx(gain / ideal, rel=1e-12)


def test_metrics_of_lists_by_hand() -> None:
    hits = np.array([[True, False, True], [False, False, False], [True, True, True]])
    relevant = np.array([4, 1, 3])
    assert metrics.recall_at(hits, relevant).tolist() == [0.5, 0, 1]
    ideal = 1 + 1 / math.log2(3) + 0.5
    assert metrics.ndcg_at(hits, relevant) == pytest.approx([1.5 / ideal, 0, 1])


def test_metrics_of_no_lists_are_empty() -> None:
    hits, relevant = np.empty((0, 5), bool), np.empty(0, np.int64)
    assert metrics.recall_at(hits, relevant).shape == (0,)
    assert metrics.ndcg_at(hits, relevant).shape == (0,)
