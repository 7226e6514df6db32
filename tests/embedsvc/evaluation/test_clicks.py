"""Metrics of clicks against plain loops over pairs and rows, ties and weights included."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedsvc.evaluation import clicks, rankers
from embedsvc.evaluation.clicks import Clicks
from embedsvc.ranking import calibration

ROW = st.tuples(
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),  # few, so that there are ties
    st.integers(0, 1),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.integers(0, 3),
)


def of(rows: list[tuple[float, int, float, int]]) -> Clicks:
    columns = [np.array(column, np.float64) for column in zip(*rows, strict=True)]
    return Clicks(columns[0], columns[1], columns[2], columns[3].astype(np.int64))


def pairs(rows: list[tuple[float, int, float, int]]) -> float:
    won = total = 0.0
    for (s, y, w, _), (t, z, v, _) in product(rows, rows):
        if y == 1 and z == 0:
            total += w * v
            won += w * v * (1.0 if s > t else 0.5 if s == t else 0.0)
    return won / total if total else float("nan")


@settings(max_examples=200, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=25))
def test_auc_counts_pairs_and_gauc_those_of_one_user(
    rows: list[tuple[float, int, float, int]],
) -> None:
    one = of(rows)
    assert clicks.auc(one.probability, one.label, one.weight) == pytest.approx(
        pairs(rows), nan_ok=True
    )
    total = weight = users = 0.0
    for user in range(4):
        own = [row for row in rows if row[3] == user]
        if not math.isnan(found := pairs(own)):
            total, weight, users = total + found * len(own), weight + len(own), users + 1
    found, count = clicks.gauc(one)
    assert count == users
    assert found == pytest.approx(total / weight if users else float("nan"), nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=25))
def test_log_loss_and_calibration_are_weighted_means(
    rows: list[tuple[float, int, float, int]],
) -> None:
    said = clicks.report(of(rows))
    total = sum(row[2] for row in rows)
    loss = 0.0
    for p, y, w, _ in rows:
        p = min(max(p, 1e-7), 1 - 1e-7)
        loss -= w * (math.log(p) if y else math.log(1 - p))
    assert said.log_loss == pytest.approx(loss / total)
    ones = sum(w * y for _, y, w, _ in rows)
    if ones:
        assert said.calibration == pytest.approx(sum(w * p for p, _, w, _ in rows) / ones)


def test_calibration_error_is_nothing_where_bins_say_what_happens() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    label = (rng.random(len(p)) < p).astype(np.float64)
    one = np.ones(len(p))
    assert clicks.ece(Clicks(p, label, one)) < 0.006
    assert clicks.ece(Clicks(np.clip(p + 0.1, 0, 1), label, one)) == pytest.approx(0.095, abs=0.01)


@settings(max_examples=200, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=25), st.integers(1, 6), st.randoms())
def test_a_calibration_curve_holds_all_weight_and_is_nothing_to_the_order_of_rows(
    rows: list[tuple[float, int, float, int]], bins: int, random: Any
) -> None:
    curve = clicks.calibration_curve(of(rows), bins)
    weight = sum(w for _, _, w, _ in rows)
    assert curve.weight.sum() == pytest.approx(weight)
    assert curve.weight @ curve.label == pytest.approx(sum(w * y for _, y, w, _ in rows))
    assert curve.weight @ curve.probability == pytest.approx(sum(w * p for p, _, w, _ in rows))
    assert (np.diff(curve.probability) > 0).all() and len(curve.weight) <= bins
    gap = np.abs(curve.probability - curve.label) @ curve.weight / weight
    assert clicks.ece(of(rows), bins) == pytest.approx(gap)
    mixed = list(rows)
    random.shuffle(mixed)
    again = clicks.calibration_curve(of(mixed), bins)
    np.testing.assert_allclose(again.probability, curve.probability)
    np.testing.assert_allclose(again.label, curve.label)


@settings(max_examples=100, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=25), st.integers(1, 6))
def test_bins_of_a_calibration_curve_equal_a_plain_loop(
    rows: list[tuple[float, int, float, int]], bins: int
) -> None:
    total = sum(w for _, _, w, _ in rows)
    below, right = 0.0, {}
    for p in sorted({p for p, _, _, _ in rows}):
        same = [(y, w) for q, y, w, _ in rows if q == p]
        weight = sum(w for _, w in same)
        middle = (below + weight / 2) / total * bins
        below += weight
        one = right.setdefault(min(int(middle), bins - 1), [0.0, 0.0, 0.0])
        one[0] += weight
        one[1] += weight * p
        one[2] += sum(w * y for y, w in same)
    curve = clicks.calibration_curve(of(rows), bins)
    np.testing.assert_allclose(curve.weight, [w for w, _, _ in right.values()])
    np.testing.assert_allclose(curve.probability, [p / w for w, p, _ in right.values()])
    np.testing.assert_allclose(curve.label, [y / w for w, _, y in right.values()])


def test_one_probability_for_all_is_right_if_it_is_the_share() -> None:
    """However rows are ordered: those of one probability are one bin."""
    label = np.arange(100) < 30
    one = Clicks(np.full(100, 0.3), label.astype(np.float64), np.ones(100))
    assert clicks.ece(one) == pytest.approx(0)
    assert clicks.calibration_curve(one).weight.tolist() == [100]


def test_no_rows_have_no_numbers() -> None:
    none = np.empty(0)
    said = clicks.report(Clicks(none, none, none, none.astype(np.int64)))
    assert said.rows == 0 and math.isnan(said.auc) and said.gauc is None
    assert math.isnan(clicks.ece(Clicks(none, none, none)))


def test_rows_that_count_nothing_have_no_numbers() -> None:
    user = np.arange(2)
    one = Clicks(np.array([0.1, 0.2]), np.array([0.0, 1.0]), np.zeros(2), user)
    said = clicks.report(one)
    assert (said.rows, said.positives, said.gauc) == (2, 1, None)
    assert all(map(math.isnan, (said.auc, said.log_loss, said.calibration, said.ece)))
    found = rankers._of_task(one)
    assert math.isnan(found["log_loss_of_share"]) and "auc_low" not in found


@settings(max_examples=30, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=25))
def test_intervals_count_weights_as_the_auc_does(
    rows: list[tuple[float, int, float, int]],
) -> None:
    one = of(rows)
    (own,), _ = clicks.paired_auc([one.probability], one.label, one.user, 20, weight=one.weight)
    assert own.value == pytest.approx(pairs(rows), nan_ok=True)
    assert math.isnan(own.low) or own.low <= own.high


def test_intervals_of_weighted_rows_hold_their_auc() -> None:
    """Rows that are told apart count 50 times as much as those that are not."""
    rng = np.random.default_rng(0)
    p = rng.random(4000)
    label = (rng.random(4000) < np.where(np.arange(4000) < 2000, p, 0.5)).astype(np.float64)
    weight = np.where(np.arange(4000) < 2000, 50.0, 1.0)
    said = rankers._of_task(Clicks(p, label, weight))
    assert said["auc_low"] < said["auc"] < said["auc_high"]
    assert said["auc_high"] - said["auc_low"] < 0.1


def test_scores_that_are_no_numbers_have_no_order() -> None:
    label = np.array([0.0, 1.0, 1.0])
    assert math.isnan(clicks.auc(np.full(3, np.nan), label))
    assert math.isnan(clicks.auc(np.array([0.2, np.nan, 0.9]), label))


def test_intervals_hold_the_truth_and_know_equal_from_better() -> None:
    rng = np.random.default_rng(1)
    user = rng.integers(0, 300, 6000)
    taste = rng.normal(size=300)[user]
    label = (rng.random(6000) < 1 / (1 + np.exp(-taste))).astype(np.float64)
    good, noise = taste + rng.normal(size=6000), rng.normal(size=6000)
    (own, _, _), (same, worse) = clicks.paired_auc([good, good, noise], label, user)
    assert own.low < own.value < own.high
    assert own.value == pytest.approx(clicks.auc(good, label))
    assert same.low == same.value == same.high == 0
    assert worse.low > 0


@settings(max_examples=25, deadline=None)
@given(
    a=st.floats(0.3, 3),
    b=st.floats(-2, 2),
    seed=st.integers(0, 50),
    kind=st.sampled_from(["platt", "isotonic"]),
)
def test_calibration_finds_what_made_the_labels(a: float, b: float, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=20_000)
    truth = calibration.sigmoid(a * z + b)
    label = (rng.random(len(z)) < truth).astype(np.float64)
    label[::7] = np.nan
    found = calibration.fit(kind, z, label, np.ones(len(z)))  # type: ignore[arg-type]
    said = found(z)
    assert np.abs(said - truth).mean() < 0.03
    assert (np.diff(said[np.argsort(z)]) >= 0).all()
    assert calibration.Calibration.from_json(found.as_json()) == found
    if kind == "platt":
        assert found.a == pytest.approx(a, abs=0.25)


def test_labels_that_are_all_alike_leave_probabilities_as_they_are() -> None:
    z = np.array([-1.0, 0.0, 2.0])
    found = calibration.fit("isotonic", z, np.ones(3), np.ones(3))
    np.testing.assert_allclose(found(z), 1 / (1 + np.exp(-z)))


def negative_log_likelihood(a: float, b: float, z: np.ndarray, label: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0, a * z + b) - label * (a * z + b)))


@settings(max_examples=40, deadline=None)
@given(
    scale=st.sampled_from([0.01, 1.0, 3.0, 10.0, 40.0]),
    shift=st.sampled_from([-20.0, 0.0, 5.0]),
    seed=st.integers(0, 50),
)
def test_platt_mends_logits_that_are_far_too_sure(scale: float, shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=3000)
    label = (rng.random(3000) < calibration.sigmoid(truth)).astype(np.float64)
    z = scale * truth + shift
    found = calibration.fit("platt", z, label, np.full(3000, 0.01))
    assert found.kind == "platt"
    assert found.a * scale == pytest.approx(1, abs=0.2)
    least = negative_log_likelihood(found.a, found.b, z, label)
    for a, b in product((0.98, 1.0, 1.02), (-0.02, 0.0, 0.02)):  # no neighbour is better
        moved = found.a * a, found.b + b - found.a * (a - 1) * shift
        assert negative_log_likelihood(*moved, z, label) > least - 1e-5


def test_platt_of_rows_that_logits_part_is_bounded() -> None:
    z, label = np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0, 1.0])
    found = calibration.fit("platt", z, label, np.ones(4))
    assert 0 < found.a < 10 and abs(found.b) < 1e-6
    assert 0.5 < found(z)[2] < found(z)[3] < 1


def test_platt_of_equal_logits_says_the_share() -> None:
    label = np.array([0.0, 0.0, 0.0, 1.0] * 100)
    found = calibration.fit("platt", np.full(400, 7.0), label, np.ones(400))
    assert found(np.array([7.0]))[0] == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("z", "label", "why"),
    [
        ([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 0.0, 0.0], "higher logits have fewer ones"),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0], "all alike"),
        ([1.0, 2.0, np.inf, 4.0], [0.0, 1.0, 1.0, 0.0], "not finite"),
    ],
)
def test_what_platt_cannot_mend_stays_as_it_is(
    z: list[float], label: list[float], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = calibration.fit("platt", np.array(z), np.array(label), np.ones(4), "label click")
    assert found == calibration.Calibration()
    assert "calibration of label click stays none" in caplog.text and why in caplog.text


FEW = st.sampled_from([-30.0, -1.0, -1.0 + 1e-12, 0.0, 0.1, 0.1 + 1e-9, 2.0, 2.0000002])


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(FEW, st.integers(0, 1), st.sampled_from([0.5, 1, 300])), min_size=2),
    seed=st.integers(0, 9),
)
def test_isotonic_of_few_logits_is_the_largest_mean_of_the_least(
    rows: list[tuple[float, int, float]], seed: int
) -> None:
    """Of groups of logits that are alike, g[i] = max over j <= i of min over k >= i of the mean
    label of groups j to k: each is a step."""
    z, label, weight = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    found = calibration.fit("isotonic", z, label, weight)
    if found.kind == "none":
        assert label.min() == label.max()
        return
    assert (np.diff(np.float32(found.at)) > 0).all()
    assert (np.diff(found.probability) > 0).all()
    _, group = np.unique(np.round(z, 5), return_inverse=True)
    total, ones = np.bincount(group, weight), np.bincount(group, weight * label)
    num = range(len(total))
    right = [
        max(
            min(ones[j : k + 1].sum() / total[j : k + 1].sum() for k in num[i:])
            for j in num[: i + 1]
        )
        for i in num
    ]
    distinct = [p for at, p in enumerate(right) if at == 0 or p > right[at - 1] + 1e-12]
    assert found.probability == pytest.approx(distinct)
    mixed = np.random.default_rng(seed).permutation(len(z))
    again = calibration.fit("isotonic", z[mixed], label[mixed], weight[mixed])
    np.testing.assert_allclose(again(z), found(z), atol=1e-9)


def test_isotonic_says_the_share_of_each_of_few_logits() -> None:
    z = np.repeat([-1.0, 1.0], 200)
    label = np.concatenate([np.arange(200) < 40, np.arange(200) < 160]).astype(np.float64)
    found = calibration.fit("isotonic", z, label, np.ones(400))
    np.testing.assert_allclose(found(np.array([-1.0, 1.0])), [0.2, 0.8])
