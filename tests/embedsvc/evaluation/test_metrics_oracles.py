"""Metrics equal ranx and scikit-learn to 1e-9 wherever those mean the same."""

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.calibration import calibration_curve

from embedsvc.evaluation import clicks, metrics
from embedsvc.evaluation.clicks import Clicks

FEW = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])  # so that there are ties


def near(right: Any) -> Any:
    return pytest.approx(right, rel=1e-9, abs=1e-9)


def drawn_lists(seed: int, num_lists: int, k: int, items: int) -> tuple[np.ndarray, list[set[int]]]:
    """ids [lists, k] without repeats, -1 past a list's end, and what is relevant of each."""
    rng = np.random.default_rng(seed)
    ids = np.full((num_lists, k), -1)
    relevant = []
    for row in range(num_lists):
        length = int(rng.integers(1, min(k, items) + 1))
        ids[row, :length] = rng.permutation(items)[:length]
        relevant.append(set(rng.permutation(items)[: rng.integers(1, items + 1)].tolist()))
    return ids, relevant


def as_hits(ids: np.ndarray, relevant: list[set[int]]) -> tuple[np.ndarray, np.ndarray]:
    hits = [[item in goals for item in row] for row, goals in zip(ids, relevant, strict=True)]
    return np.array(hits), np.array([len(goals) for goals in relevant])


# In a process of its own: uncompiled it takes a tenth of a second, compiled a minute and a half.
RANX = """
import json, sys, warnings
warnings.simplefilter("ignore")
from ranx import Qrels, Run, evaluate
asked = json.load(sys.stdin)
found = evaluate(Qrels(asked["goals"]), Run(asked["shown"]), asked["names"], return_mean=False)
print(json.dumps({name: values.tolist() for name, values in found.items()}))
"""


def by_ranx(ids: np.ndarray, relevant: list[set[int]], names: list[str]) -> dict[str, np.ndarray]:
    keys = [f"{row:06}" for row in range(len(ids))]  # theirs come in the order of names
    goals = [{str(item): 1 for item in goals} for goals in relevant]
    shown = [{str(i): -at for at, i in enumerate(row) if i >= 0} for row in ids.tolist()]
    asked = {
        "goals": dict(zip(keys, goals, strict=True)),
        "shown": dict(zip(keys, shown, strict=True)),
        "names": names,
    }
    done = subprocess.run(
        [sys.executable, "-c", RANX],
        input=json.dumps(asked),
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {name: np.array(values) for name, values in json.loads(done.stdout).items()}


@pytest.mark.parametrize(
    ("k", "items"),
    [
        (5, 40),
        pytest.param(1, 5, marks=pytest.mark.slow),
        pytest.param(10, 10, marks=pytest.mark.slow),
        pytest.param(20, 12, marks=pytest.mark.slow),
    ],
)
def test_metrics_of_lists_equal_ranx(k: int, items: int) -> None:
    """But for two denominators: its MAP divides by all relevant items, and it caps no recall."""
    ids, relevant = drawn_lists(k, 300, k, items)
    same = ["recall", "ndcg", "hit_rate", "mrr", "precision"]
    found = by_ranx(ids, relevant, [f"{name}@{k}" for name in [*same, "map"]])
    hits, num_relevant = as_hits(ids, relevant)
    ours = {name: of(hits, num_relevant) for name, of in metrics.LIST_METRICS.items()}
    for name in same:
        assert ours[name] == near(found[f"{name}@{k}"]), name
    capped = num_relevant / np.minimum(k, num_relevant)
    assert ours["map"] == near(found[f"map@{k}"] * capped)
    assert ours["capped_recall"] == near(found[f"recall@{k}"] * capped)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 15), st.integers(2, 20))
def test_ndcg_of_a_ranking_of_all_items_equals_scikit_learn(seed: int, k: int, items: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.zeros((3, items))
    for one in label:
        one[rng.permutation(items)[: rng.integers(1, items + 1)]] = 1
    score = np.stack([rng.permutation(items) for _ in label]).astype(np.float64)
    order = np.argsort(-score, axis=1)
    hits = np.zeros((3, k), bool)  # k may be larger than the catalogue
    hits[:, : min(k, items)] = np.take_along_axis(label, order, 1)[:, :k] > 0
    relevant = label.sum(axis=1).astype(np.int64)
    for row in range(3):
        right = theirs.ndcg_score(label[row : row + 1], score[row : row + 1], k=k)
        assert metrics.ndcg_at(hits, relevant)[row] == near(right)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 20))
def test_map_down_to_the_last_item_is_average_precision(seed: int, items: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.zeros(items)
    label[rng.permutation(items)[: rng.integers(1, items + 1)]] = 1
    score = rng.permutation(items).astype(
        np.float64
    )  # without ties, of which theirs makes one step
    hits = label[np.argsort(-score)][None] > 0
    right = theirs.average_precision_score(label, score)
    assert metrics.map_at(hits, np.array([int(label.sum())]))[0] == near(right)


@st.composite
def rows(draw: Any) -> Clicks:
    """Both labels, ties, and weights that may be 0 but of one row of each label."""
    n = draw(st.integers(2, 40))
    probability = draw(arrays(np.float64, n, elements=FEW | st.floats(0.01, 0.99)))
    label = draw(arrays(np.int64, n, elements=st.integers(0, 1))).astype(np.float64)
    weight = draw(arrays(np.float64, n, elements=st.sampled_from([0.0, 0.5, 1.0, 3.0])))
    label[:2], weight[:2] = (0, 1), 1
    return Clicks(probability, label, weight)


@settings(max_examples=200, deadline=None)
@given(rows())
def test_auc_equals_scikit_learn_with_ties_and_weights(one: Clicks) -> None:
    right = theirs.roc_auc_score(one.label, one.probability)
    assert clicks.auc(one.probability, one.label) == near(right)
    right = theirs.roc_auc_score(one.label, one.probability, sample_weight=one.weight)
    assert clicks.auc(one.probability, one.label, one.weight) == near(right)


@settings(max_examples=200, deadline=None)
@given(rows())
def test_log_loss_equals_scikit_learn(one: Clicks) -> None:
    """Theirs clips nearer to 0 and 1 than ours."""
    said = np.clip(one.probability, clicks.CLIPPED, 1 - clicks.CLIPPED)
    right = theirs.log_loss(one.label, said, sample_weight=one.weight)
    assert clicks.log_loss(one) == near(right)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 10), st.integers(1, 8), st.integers(0, 10**6))
def test_calibration_curve_equals_scikit_learn_where_bins_come_out_even(
    bins: int, each: int, seed: int
) -> None:
    """Distinct probabilities of equal weight, as many in each bin: quantiles cut as ours do."""
    rng = np.random.default_rng(seed)
    n = bins * each
    probability = rng.permutation(n) / n + rng.random(n) / (2 * n)
    label = (rng.random(n) < probability).astype(np.float64)
    label[:1] = 1
    curve = clicks.calibration_curve(Clicks(probability, label, np.ones(n)), bins)
    happened, said = calibration_curve(label, probability, n_bins=bins, strategy="quantile")
    assert curve.label == near(happened)
    assert curve.probability == near(said)
    assert curve.weight.tolist() == [each] * bins
