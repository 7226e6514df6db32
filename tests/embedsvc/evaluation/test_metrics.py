"""Metrics equal what their docstrings say, number by number."""

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from embedsvc.evaluation import metrics


@st.composite
def lists(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """hits [lists, k] and how many items are relevant, from as many as are hit on."""
    num_lists, k = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    hits = draw(arrays(np.bool_, (num_lists, k)))
    extra = draw(arrays(np.int64, num_lists, elements=st.integers(0, 12)))
    return hits, np.maximum(hits.sum(axis=1) + extra, 1)


def plain(hits: list[bool], n: int) -> dict[str, float]:
    k, found, first = len(hits), 0, 0.0
    gain = precision = ideal = 0.0
    for place, hit in enumerate(hits, 1):
        if hit:
            found += 1
            first = first or 1 / place
            gain += 1 / math.log2(place + 1)
            precision += found / place
        if place <= n:
            ideal += 1 / math.log2(place + 1)
    return {
        "recall": found / n,
        "capped_recall": found / min(k, n),
        "ndcg": gain / ideal,
        "map": precision / min(k, n),
        "hit_rate": float(found > 0),
        "mrr": first,
        "precision": found / k,
    }


@given(lists())
def test_metrics_of_lists_equal_plain_loops(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    hits, relevant = drawn
    found = {name: of(hits, relevant) for name, of in metrics.LIST_METRICS.items()}
    for row in range(len(hits)):
        right = plain(hits[row].tolist(), int(relevant[row]))
        assert {name: of[row] for name, of in found.items()} == pytest.approx(right, rel=1e-12)


@given(lists())
def test_the_best_list_has_1_unless_places_or_items_are_too_few(
    drawn: tuple[np.ndarray, np.ndarray],
) -> None:
    hits, relevant = drawn
    k = hits.shape[1]
    best = np.arange(k) < relevant[:, None]
    for name, of in metrics.LIST_METRICS.items():
        most = {"recall": np.minimum(k / relevant, 1), "precision": np.minimum(relevant / k, 1)}
        assert of(best, relevant) == pytest.approx(most.get(name, np.ones(len(hits))), rel=1e-12)
        assert (of(hits, relevant) <= of(best, relevant) + 1e-12).all()


def test_metrics_of_lists_by_hand() -> None:
    hits = np.array([[True, False, True], [False, False, False], [True, True, True]])
    relevant = np.array([4, 1, 3])
    assert metrics.recall_at(hits, relevant).tolist() == [0.5, 0, 1]
    assert metrics.capped_recall_at(hits, relevant) == pytest.approx([2 / 3, 0, 1])
    assert metrics.precision_at(hits, relevant) == pytest.approx([2 / 3, 0, 1])
    assert metrics.map_at(hits, relevant) == pytest.approx([(1 + 2 / 3) / 3, 0, 1])
    assert metrics.hit_rate_at(hits, relevant).tolist() == [1, 0, 1]
    assert metrics.mrr_at(hits[:, 1:], relevant).tolist() == [0.5, 0, 1]
    ideal = 1 + 1 / math.log2(3) + 0.5
    assert metrics.ndcg_at(hits, relevant) == pytest.approx([1.5 / ideal, 0, 1])


def test_places_that_a_small_catalogue_leaves_empty_count_for_precision_alone() -> None:
    """Five places, three items, of which two are relevant and stand on top."""
    short, relevant = np.array([[True, True, False]]), np.array([2])
    long = np.array([[True, True, False, False, False]])
    for name, of in metrics.LIST_METRICS.items():
        right = 0.4 if name == "precision" else of(short, relevant)[0]
        assert of(long, relevant)[0] == pytest.approx(right)


def test_metrics_of_no_lists_are_empty() -> None:
    hits, relevant = np.empty((0, 5), bool), np.empty(0, np.int64)
    for of in metrics.LIST_METRICS.values():
        found = of(hits, relevant)
        assert found.shape == (0,) and found.dtype == np.float64


@given(
    arrays(np.int64, st.tuples(st.integers(0, 6), st.integers(1, 5)), elements=st.integers(-1, 7)),
    arrays(np.int64, 8, elements=st.integers(0, 1000)),
)
def test_metrics_of_catalogues_equal_plain_loops(ids: np.ndarray, popularity: np.ndarray) -> None:
    shown = [item for row in ids.tolist() for item in row if item >= 0]
    times = [shown.count(item) for item in range(8)]
    assert metrics.coverage_at(ids, 8) == pytest.approx(len(set(shown)) / 8)
    events = popularity.tolist()
    novelty = gini = lift = math.nan
    if shown:
        bits = [-math.log2((events[item] + 1) / (sum(events) + 8)) for item in shown]
        novelty = sum(bits) / len(shown)
        # Half of the mean distance of two items' times, over their mean.
        gaps = sum(abs(a - b) for a in times for b in times)
        gini = gaps / (2 * 8 * sum(times))
        if any(events):
            had = sum(count * count for count in events) / sum(events)
            lift = sum(events[item] for item in shown) / len(shown) / had - 1
    assert metrics.novelty_at(ids, popularity) == pytest.approx(novelty, rel=1e-12, nan_ok=True)
    assert metrics.gini(ids, 8) == pytest.approx(gini, rel=1e-12, abs=1e-12, nan_ok=True)
    assert metrics.popularity_lift(ids, popularity) == pytest.approx(
        lift, rel=1e-12, abs=1e-12, nan_ok=True
    )


def test_metrics_of_catalogues_by_hand() -> None:
    popularity = np.array([6, 2, 0, 0])
    same = np.array([[0], [0], [0]])
    each = np.array([[0, 1], [2, 3], [-1, -1]])
    assert metrics.coverage_at(same, 4) == 0.25 and metrics.coverage_at(each, 4) == 1
    assert metrics.gini(same, 4) == 0.75 and metrics.gini(each, 4) == 0
    assert metrics.novelty_at(same, popularity) == pytest.approx(-math.log2(7 / 12))
    assert metrics.novelty_at(each, np.array([5, 5, 5, 5])) == pytest.approx(2)
    assert metrics.popularity_lift(same, popularity) == pytest.approx(6 / 5 - 1)
    assert metrics.popularity_lift(np.array([[2, 3]]), popularity) == -1


def test_what_people_had_shown_again_has_no_lift() -> None:
    popularity = np.array([5, 3, 1, 0])
    again = np.repeat(np.arange(4), popularity)[:, None]
    assert metrics.popularity_lift(again, popularity) == pytest.approx(0)


def test_catalogues_of_which_nothing_is_shown_have_no_numbers() -> None:
    popularity = np.array([1, 2])
    for ids in (np.empty((0, 3), np.int64), np.full((2, 3), -1)):
        assert metrics.coverage_at(ids, 2) == 0
        assert math.isnan(metrics.gini(ids, 2))
        assert math.isnan(metrics.novelty_at(ids, popularity))
        assert math.isnan(metrics.popularity_lift(ids, popularity))
    assert math.isnan(metrics.popularity_lift(np.array([[0]]), np.zeros(2, np.int64)))
    assert math.isnan(metrics.coverage_at(np.empty((0, 3), np.int64), 0))
