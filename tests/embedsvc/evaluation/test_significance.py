"""Intervals cover, p-values err as often as they say, and both equal plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom, binomtest

from embedsvc.evaluation import significance
from embedsvc.evaluation.clicks import paired_auc
from embedsvc.evaluation.significance import (
    Interval,
    holm,
    interval,
    intervals,
    mcnemar,
    paired,
    paired_each,
)

P_VALUES = arrays(np.float64, st.integers(0, 12), elements=st.floats(0, 1))


def within(count: int, trials: int, share: float) -> bool:
    """Whether so many of the trials are likely where each has that chance: but for 1 in 10,000."""
    return bool(binom.ppf(5e-5, trials, share) <= count <= binom.ppf(1 - 5e-5, trials, share))


def test_intervals_hold_the_truth_in_95_of_100() -> None:
    """Of hits, and of values whose distribution leans, as shares of few relevant items do."""
    rng = np.random.default_rng(0)
    sets, users = 500, 400
    for truth, drawn in (
        (0.2, (rng.random((users, sets)) < 0.2).astype(np.float64)),
        (0.25, rng.beta(0.5, 1.5, (users, sets))),
    ):
        held = sum(one.low <= truth <= one.high for one in intervals(drawn, 400))
        assert within(held, sets, 0.945), held


def test_an_interval_is_as_wide_as_the_normal_one_of_many_users() -> None:
    values = np.random.default_rng(1).random(5000)
    found = interval(values, draws=4000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean(), rel=1e-12)
    assert found.low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.06 * half)


def test_an_interval_equals_a_plain_loop_over_draws() -> None:
    values = np.random.default_rng(2).random(37)
    rng = np.random.default_rng(5)
    drawn = [sum(values[rng.integers(0, 37)] for _ in range(37)) / 37 for _ in range(50)]
    found = interval(values, draws=50, seed=5)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_several_metrics_are_as_if_alone_however_small_the_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(3).random((50, 3))
    whole = intervals(values, 100)
    less = paired_each(values, values[::-1] ** 2, 100, 200)
    for column in range(3):
        alone = interval(values[:, column], 100)
        assert (alone.low, alone.high) == pytest.approx((whole[column].low, whole[column].high))
    monkeypatch.setattr(significance, "_CELLS", 130)
    for small, large in zip(intervals(values, 100), whole, strict=True):
        assert (small.low, small.high) == pytest.approx((large.low, large.high))
    # Random bits come in whole bytes, so that p-values depend on chunks, but by luck alone.
    for few, many in zip(paired_each(values, values[::-1] ** 2, 100, 200), less, strict=True):
        assert few.p == pytest.approx(many.p, abs=0.12)


def test_the_same_seed_gives_the_same_numbers_and_another_does_not() -> None:
    rng = np.random.default_rng(4)
    new, old = rng.random(100), rng.random(100)
    assert interval(new, seed=7) == interval(new, seed=7) != interval(new, seed=8)
    assert paired(new, old, seed=7) == paired(new, old, seed=7) != paired(new, old, seed=8)


def test_no_users_have_no_mean_and_few_have_no_interval() -> None:
    none = interval(np.empty(0))
    assert all(map(math.isnan, (none.value, none.low, none.high)))
    nothing = paired(np.empty(0), np.empty(0))
    assert math.isnan(nothing.difference.value) and nothing.p == 1
    one = interval(np.array([0.3]))
    assert one.value == 0.3 and math.isnan(one.low) and math.isnan(one.high)
    assert interval(np.full(10, 0.3)) == Interval(*[pytest.approx(0.3)] * 3)
    assert paired(np.array([1.0]), np.array([0.25])).p == 1
    assert [one.value for one in intervals(np.ones((4, 2)))] == [1, 1]


def test_values_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 3 units have a value that is not a number"):
        interval(np.array([0.1, np.nan, 0.3]))
    with pytest.raises(ValueError, match="2 of 2 units"):
        paired(np.array([np.nan, 0.1]), np.array([0.1, np.nan]))


def test_randomisation_of_equal_models_errs_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    sets, users = 600, 120
    taste = rng.random((users, sets))
    new = (rng.random((users, sets)) < taste).astype(np.float64)
    old = (rng.random((users, sets)) < taste).astype(np.float64)
    p = np.array([test.p for test in paired_each(new, old, 50, 999)])
    # Differences are few whole numbers, so that p is often above what it may be.
    assert (p <= 0.05).sum() <= binom.ppf(1 - 5e-5, sets, 0.05)
    smooth = paired_each(rng.normal(size=(users, sets)), rng.normal(size=(users, sets)), 50, 999)
    assert within(sum(test.p <= 0.05 for test in smooth), sets, 0.05)
    assert within(sum(test.p <= 0.5 for test in smooth), sets, 0.5)


def test_paired_finds_what_is_better_and_by_how_much() -> None:
    rng = np.random.default_rng(6)
    old = rng.random(2000)
    test = paired(old + 0.02 + 0.1 * rng.normal(size=2000), old)
    assert test.difference.low < 0.02 < test.difference.high and test.difference.low > 0
    assert test.p == 1 / 10_000
    same = paired(old, old)
    assert same == significance.PairedTest(Interval(0, 0, 0), 1)


@settings(max_examples=30, deadline=None)
@given(arrays(np.float64, st.integers(1, 8), elements=st.sampled_from([-0.5, 0, 0.1, 0.2, 1])))
def test_randomisation_comes_near_the_share_of_all_signs(less: np.ndarray) -> None:
    """Ties count: sums that are equal but for rounding are as large."""
    total = abs(sum(less))
    as_large = 0
    for signs in range(1 << len(less)):
        flipped = sum(-v if signs >> at & 1 else v for at, v in enumerate(less.tolist()))
        as_large += abs(flipped) >= total - 1e-9
    right = as_large / (1 << len(less))
    # Some four standard deviations of 9999 flips.
    found = paired(less, np.zeros(len(less)), draws=1).p
    assert abs(found - right) <= 4.5 * math.sqrt(right * (1 - right) / 9999) + 2e-4


def test_holm_by_hand() -> None:
    found = holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.6])).tolist() == [1, 1]


@given(P_VALUES)
def test_holm_equals_a_plain_loop_that_rejects_one_by_one(p_values: np.ndarray) -> None:
    adjusted = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    for alpha in (0.01, 0.05, 0.3, *adjusted.tolist()):
        if alpha >= 1:
            continue
        rejected = set()
        for step, at in enumerate(order):
            if p_values[at] * (len(p_values) - step) > alpha:
                break
            rejected.add(at)
        assert {at for at, p in enumerate(adjusted) if p <= alpha} == rejected
    assert ((adjusted >= p_values) & (adjusted <= 1)).all()


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_p_value(p: float) -> None:
    with pytest.raises(ValueError, match="not between 0 and 1"):
        holm(np.array([0.1, p]))


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 5))
def test_mcnemar_sums_what_is_no_likelier_than_what_happened(
    only_new: int, only_old: int, both: int
) -> None:
    new = np.array([1] * only_new + [0] * only_old + [1] * both + [0] * both, bool)
    old = np.array([0] * only_new + [1] * only_old + [1] * both + [0] * both, bool)
    found = mcnemar(new, old)
    n = only_new + only_old
    right = sum(math.comb(n, i) for i in range(n + 1) if abs(2 * i - n) >= abs(2 * only_new - n))
    assert (found.only_new, found.only_old) == (only_new, only_old)
    assert found.p == pytest.approx(right / 2**n, rel=1e-9)


def test_mcnemar_of_many_units_equals_scipy() -> None:
    for only_new, only_old in ((0, 0), (0, 2000), (5200, 5000), (70_000, 70_900), (3, 3)):
        new = np.repeat([True, False], [only_new, only_old])
        right = binomtest(only_new, only_new + only_old).pvalue if len(new) else 1
        assert mcnemar(new, ~new).p == pytest.approx(right, rel=1e-9)


def test_intervals_of_auc_are_the_same_kind() -> None:
    own, _ = paired_auc([np.array([0.1, 0.9])], np.array([0.0, 1.0]), np.arange(2), draws=5)
    assert isinstance(own[0], Interval)
