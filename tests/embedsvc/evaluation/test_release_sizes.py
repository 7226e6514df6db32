"""Sizes of releases against printed figures, which are rounded where ours are rounded up."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from embedsvc.evaluation.release_sizes import (
    bennett_size,
    bennett_tolerance,
    hoeffding_size,
    hoeffding_tolerance,
    upper_share,
)
from partitions.errors import ConfigError

EPS = st.floats(1e-4, 0.5)
DELTA = st.floats(1e-9, 0.5)
SHARE = st.floats(0.001, 1)
STEPS = st.integers(1, 64)
ADAPTIVITY = st.sampled_from(["none", "full"])


def printed(size: int) -> set[int]:
    """What a figure may be that is printed to the nearest user of the size before rounding up."""
    return {size, size - 1}


@pytest.mark.parametrize(
    ("p", "hidden", "shown"),
    [
        (0.02, 6_498, 15_147),
        (0.05, 14_971, 34_896),
        (0.1, 29_047, 67_705),
        (0.2, 57_179, 133_277),
    ],
)
def test_sizes_by_the_share_of_changed_lists(p: float, hidden: int, shown: int) -> None:
    """n - o > 0.02 +- 0.01 at 0.9999 for 32 releases, half of delta paying for d <= p."""
    assert hidden in printed(bennett_size(0.01, 1e-4, p, 32, "none", c=4))
    assert shown in printed(bennett_size(0.01, 1e-4, p, 32, "full", c=4))


def test_sizes_without_a_known_share() -> None:
    assert 253_522 in printed(hoeffding_size(0.01, 1e-4, 32, "none", width=2))
    assert 627_821 in printed(hoeffding_size(0.01, 1e-4, 32, "full", width=2))


def test_sizes_of_the_unlabelled_check_of_the_share() -> None:
    assert 66_846 in printed(hoeffding_size(0.01, 1e-4, 32, "none", c=2))
    assert 160_421 in printed(hoeffding_size(0.01, 1e-4, 32, "full", c=2))


@pytest.mark.parametrize(("eps", "size"), [(0.01, 15_700), (0.005, 61_812), (0.002, 382_570)])
def test_sizes_of_a_single_comparison(eps: float, size: int) -> None:
    assert size in printed(bennett_size(eps, 1e-3, 0.1))


def test_sizes_are_rounded_up() -> None:
    assert bennett_size(0.01, 1e-4, 0.1, 32, c=4) == 29_048  # of 29,047.30
    assert hoeffding_size(0.5, 0.5) == math.ceil(math.log(2) / 0.5) == 2


@given(EPS, DELTA, SHARE, STEPS, ADAPTIVITY, st.floats(1.01, 2))
def test_stricter_promises_take_more_users(
    eps: float, delta: float, p: float, steps: int, adaptivity: Any, times: float
) -> None:
    def bennett(eps: float, delta: float, p: float, steps: int) -> int:
        return bennett_size(eps, delta, p, steps, adaptivity)

    def hoeffding(eps: float, delta: float, steps: int) -> int:
        return hoeffding_size(eps, delta, steps, adaptivity)

    size = bennett(eps, delta, p, steps)
    assert bennett(eps / times, delta, p, steps) >= size
    assert bennett(eps, delta / times, p, steps) >= size
    assert bennett(eps, delta, p / times, steps) <= size
    assert bennett(eps, delta, p, steps + 1) >= size
    size = hoeffding(eps, delta, steps)
    assert hoeffding(eps / times, delta, steps) >= size
    assert hoeffding(eps, delta / times, steps) >= size
    assert hoeffding(eps, delta, steps + 1) >= size
    assert hoeffding_size(eps, delta, steps, "full") >= hoeffding_size(eps, delta, steps, "none")


@given(EPS, DELTA, SHARE, STEPS, ADAPTIVITY)
def test_users_enough_for_a_tolerance_support_it(
    eps: float, delta: float, p: float, steps: int, adaptivity: Any
) -> None:
    size = bennett_size(eps, delta, p, steps, adaptivity)
    assert bennett_tolerance(size, delta, p, steps, adaptivity) <= eps * (1 + 1e-12)
    size = hoeffding_size(eps, delta, steps, adaptivity, c=2, width=2)
    assert hoeffding_tolerance(size, delta, steps, adaptivity, 2, 2) <= eps * (1 + 1e-12)


@given(st.integers(1, 10**9), DELTA, SHARE, STEPS, ADAPTIVITY)
def test_a_tolerance_is_the_least_that_its_users_support(
    n: int, delta: float, p: float, steps: int, adaptivity: Any
) -> None:
    found = bennett_tolerance(n, delta, p, steps, adaptivity)
    assert found == 2 or bennett_size(found, delta, p, steps, adaptivity) <= n
    assert bennett_size(found * (1 - 1e-6), delta, p, steps, adaptivity) > n * (1 - 1e-9)
    found = hoeffding_tolerance(n, delta, steps, adaptivity)
    doubt = (math.log(steps) if adaptivity == "none" else steps * math.log(2)) - math.log(delta)
    assert found == pytest.approx(min(1, math.sqrt(doubt / (2 * n))), rel=1e-12)


@given(st.floats(1e-9, 1e-4), DELTA)
def test_tiny_tolerances_lose_no_digits(eps: float, delta: float) -> None:
    """Where p is 1, h(u) is u^2 / 2 - u^3 / 6 to the first orders."""
    right = math.log(2 / delta) / (eps**2 / 2 - eps**3 / 6)
    assert bennett_size(eps, delta, 1.0) == pytest.approx(right, rel=1e-8, abs=1)


def test_the_series_meets_the_formula() -> None:
    below, above = (bennett_size(1e-4 * by, 1e-3, 1.0) for by in (1 - 1e-9, 1 + 1e-9))
    assert below == pytest.approx(above, rel=1e-8)


def test_the_upper_share_is_hoeffdings_bound() -> None:
    assert upper_share(0.1, 66_846, 1e-4) == pytest.approx(
        0.1 + math.sqrt(math.log(1e4) / (2 * 66_846))
    )
    assert upper_share(0.99, 10, 1e-4) == 1


@given(st.floats(0, 1), st.integers(1, 10**6), DELTA, st.floats(0.5, 0.99))
def test_the_upper_share_falls_with_users_and_doubt(
    d_hat: float, n: int, delta: float, less: float
) -> None:
    bound = upper_share(d_hat, n, delta)
    assert d_hat <= bound <= 1
    assert upper_share(d_hat, n + 1, delta) <= bound
    assert upper_share(d_hat, n, delta * less) >= bound
    assert upper_share(d_hat * less, n, delta) <= bound


def test_means_of_so_many_users_err_no_more_often_than_promised() -> None:
    """The worst of differences: -1 or 1 of a share p of users, the rest 0; and of hits, a coin."""
    rng = np.random.default_rng(0)
    eps, delta, p, trials = 0.05, 0.2, 0.3, 20_000
    n = bennett_size(eps, delta, p)
    changed = rng.binomial(n, p, trials)
    for better in (0.5, 0.8):  # of the changed
        mean = (2 * rng.binomial(changed, better) - changed) / n
        wrong = np.abs(mean - p * (2 * better - 1)) > eps
        assert wrong.mean() <= delta
        few = rng.binomial(n // 8, p, trials)  # with far fewer it is broken
        mean = (2 * rng.binomial(few, better) - few) / (n // 8)
        assert (np.abs(mean - p * (2 * better - 1)) > eps).mean() > delta
    n = hoeffding_size(eps, delta)
    assert (rng.binomial(n, 0.5, trials) / n > 0.5 + eps).mean() <= delta
    assert (rng.binomial(n // 8, 0.5, trials) / (n // 8) > 0.5 + eps).mean() > delta


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), st.integers(1, 300), st.sampled_from([0.5, 0.1, 0.01]))
def test_the_upper_share_is_below_the_truth_no_more_often_than_promised(
    truth: float, n: int, delta: float
) -> None:
    """Exactly: the chance of each number of changed lists is binomial."""
    wrong = [k for k in range(n + 1) if upper_share(k / n, n, delta) < truth]
    assert binom.pmf(wrong, n, truth).sum() <= delta


@pytest.mark.parametrize("eps", [0, -0.01, 1e-10, 2.1, math.nan])
def test_a_tolerance_of_nothing_is_refused(eps: float) -> None:
    with pytest.raises(ConfigError, match="no tolerance"):
        hoeffding_size(eps, 0.1)
    with pytest.raises(ConfigError, match="no tolerance"):
        bennett_size(eps, 0.1, 0.1)


@pytest.mark.parametrize("delta", [0, 1, -1, 2, math.nan])
def test_a_chance_outside_0_and_1_is_refused(delta: float) -> None:
    for ask in (
        lambda: hoeffding_size(0.1, delta),
        lambda: bennett_size(0.1, delta, 0.1),
        lambda: hoeffding_tolerance(10, delta),
        lambda: bennett_tolerance(10, delta, 0.1),
        lambda: upper_share(0.1, 10, delta),
    ):
        with pytest.raises(ConfigError, match="no chance of a mistake"):
            ask()


@pytest.mark.parametrize("p", [0, -0.1, 1.1, math.nan])
def test_a_share_outside_0_and_1_is_refused(p: float) -> None:
    with pytest.raises(ConfigError, match="no share"):
        bennett_size(0.1, 0.1, p)
    with pytest.raises(ConfigError, match="no share"):
        bennett_tolerance(10, 0.1, p)


def test_what_else_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one release"):
        hoeffding_size(0.1, 0.1, steps=0)
    with pytest.raises(ConfigError, match="c = 0"):
        bennett_size(0.1, 0.1, 0.1, c=0)
    with pytest.raises(ConfigError, match="width = 3"):
        hoeffding_size(0.1, 0.1, width=3)
    with pytest.raises(ConfigError, match="is not known"):
        hoeffding_size(0.1, 0.1, adaptivity="some")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="0 users"):
        hoeffding_tolerance(0, 0.1)
    with pytest.raises(ConfigError, match="not between 0 and 1"):
        upper_share(1.5, 10, 0.1)
