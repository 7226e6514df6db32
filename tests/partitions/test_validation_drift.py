"""partitions.gate.drift: formulas against plain loops, noise thresholds against simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from partitions.gate import drift

counts = st.lists(st.integers(0, 50), min_size=1, max_size=20)


def zipf(k: int) -> NDArray[np.float64]:
    p = 1 / np.arange(1, k + 1)
    return np.asarray(p / p.sum())


SHARES = {
    "even of 2": np.full(2, 0.5),
    "even of 64": np.full(64, 1 / 64),
    "zipf of 30": zipf(30),
    "zipf of 1024": zipf(1024),
    "one rare of 2": np.array([0.999, 0.001]),
}
SIZES = [(200, 200), (2_000, 2_000), (300, 20_000), (20_000, 20_000)]
CASES = [(name, n, m) for name in SHARES for n, m in SIZES]


def draws(p: NDArray[np.float64], n: int, m: int, times: int) -> list[tuple[NDArray, NDArray]]:
    rng = np.random.default_rng([len(p), n, m])
    return [(rng.multinomial(n, p) / n, rng.multinomial(m, p) / m) for _ in range(times)]


@given(counts, counts)
def test_distances_equal_plain_loops(a: list[int], b: list[int]) -> None:
    size = max(len(a), len(b))
    a, b = a + [0] * (size - len(a)) + [1], b + [0] * (size - len(b)) + [1]
    p, q = [x / sum(a) for x in a], [x / sum(b) for x in b]
    largest = max(abs(x - y) for x, y in zip(p, q, strict=True))
    bits = 0.0
    for x, y in zip(p, q, strict=True):
        mid = (x + y) / 2
        bits += (x * math.log2(x / mid) if x else 0) / 2 + (y * math.log2(y / mid) if y else 0) / 2
    assert drift.l_infinity(np.array(p), np.array(q)) == pytest.approx(largest)
    assert drift.jensen_shannon(np.array(p), np.array(q)) == pytest.approx(bits, abs=1e-12)


def test_jensen_shannon_goes_from_0_to_1() -> None:
    assert drift.jensen_shannon(np.array([0.3, 0.7]), np.array([0.3, 0.7])) == 0
    assert drift.jensen_shannon(np.array([1.0, 0]), np.array([0, 1.0])) == 1


@pytest.mark.parametrize(("name", "n", "m"), CASES)
def test_expected_l_infinity_is_that_of_simulated_batches(name: str, n: int, m: int) -> None:
    p = SHARES[name]
    mean = np.mean([drift.l_infinity(a, b) for a, b in draws(p, n, m, 300)])
    expected = drift.expected_l_infinity(p, n, m)
    # The formula is for equal shares; where one is larger than the others it is too careful.
    assert mean < 1.25 * expected
    assert expected < 5 * mean


# The approximation wants some rows in each bin; where there are few, the noise below covers it.
FULL = [(name, n, m) for name, n, m in CASES if SHARES[name].min() * min(n, m) >= 5]


@pytest.mark.parametrize(("name", "n", "m"), FULL)
def test_expected_jensen_shannon_is_that_of_simulated_batches(name: str, n: int, m: int) -> None:
    p = SHARES[name]
    mean = np.mean([drift.jensen_shannon(a, b) for a, b in draws(p, n, m, 500)])
    assert mean == pytest.approx(drift.expected_jensen_shannon(len(p), n, m), rel=0.2)


@pytest.mark.parametrize(("name", "n", "m"), CASES)
def test_no_drift_stays_below_the_noise(name: str, n: int, m: int) -> None:
    p = SHARES[name]
    for a, b in draws(p, n, m, 1000):
        both = (a * n + b * m) / (n + m)
        assert drift.l_infinity(a, b) <= drift.l_infinity_noise(both, n, m)
        bins = int(((a + b) > 0).sum())
        assert drift.jensen_shannon(a, b) <= drift.jensen_shannon_noise(bins, n, m)
        assert abs(a[0] - b[0]) <= drift.share_noise(float(both[0]), n, m)


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_noise_is_at_least_three_times_the_expected(n: int, m: int) -> None:
    for p in SHARES.values():
        assert drift.l_infinity_noise(p, n, m) >= min(1, 3 * drift.expected_l_infinity(p, n, m))
        expected = drift.expected_jensen_shannon(len(p), n, m)
        assert drift.jensen_shannon_noise(len(p), n, m) >= min(1, 3 * expected)


def test_noise_shrinks_as_batches_grow() -> None:
    p = zipf(30)
    sizes = [100, 10_000, 1_000_000]
    for noise in (
        [drift.l_infinity_noise(p, n, n) for n in sizes],
        [drift.jensen_shannon_noise(30, n, n) for n in sizes],
        [drift.share_noise(0.2, n, n) for n in sizes],
    ):
        assert noise[0] > noise[1] > noise[2] > 0
        assert noise[2] < 0.01


def test_an_empty_batch_alarms_nobody() -> None:
    assert drift.l_infinity_noise(zipf(3), 0, 10) == 1
    assert drift.jensen_shannon_noise(3, 10, 0) == 1
    assert drift.share_noise(0.5, 0, 0) == 1


# --- batches of different size --------------------------------------------------------------------


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.floats(0.01, 1))
def test_thinning_equals_binomial_sums(degrees: list[int], keep: float) -> None:
    bins = [0.0] * drift.NUM_DEGREE_BINS
    distinct = 0.0
    for degree in degrees:
        for kept in range(1, degree + 1):
            p = math.comb(degree, kept) * keep**kept * (1 - keep) ** (degree - kept)
            bins[int(math.log2(kept))] += p
            distinct += p
    found = drift.degree_histogram(np.array(degrees), keep)
    assert found == pytest.approx(np.array(bins), abs=1e-9)
    if keep < 1:
        assert drift.thinned_distinct(np.array(degrees), keep) == pytest.approx(distinct)
        rows = keep * sum(degrees)
        share = drift.duplicate_share(np.array(degrees), keep)
        assert share == pytest.approx(max(0, 1 - distinct / rows), abs=1e-9)


def test_thinning_a_large_batch_gives_the_figures_of_a_small_one() -> None:
    rng = np.random.default_rng(3)
    p = zipf(5000)
    large, small = rng.multinomial(400_000, p), rng.multinomial(50_000, p)
    large, small = large[large > 0], small[small > 0]
    thinned = drift.degree_histogram(large, 1 / 8)
    plain = drift.degree_histogram(small)
    assert thinned.sum() == pytest.approx(len(small), rel=0.02)
    assert drift.thinned_distinct(large, 1 / 8) == pytest.approx(len(small), rel=0.02)
    divergence = drift.jensen_shannon(thinned / thinned.sum(), plain / plain.sum())
    assert divergence < 0.002
    unthinned = drift.degree_histogram(large)
    assert drift.jensen_shannon(unthinned / unthinned.sum(), plain / plain.sum()) > 0.1


def test_duplicate_error_is_that_of_samples_of_the_rows() -> None:
    rng = np.random.default_rng(4)
    times = rng.choice([1, 1, 1, 2, 10], 100_000)
    truth = drift.duplicate_share(times)
    samples = [rng.choice(times, 2000, replace=False) for _ in range(200)]
    errors = [drift.duplicate_share(sample) - truth for sample in samples]
    assert np.std(errors) == pytest.approx(drift.duplicate_error(samples[0]), rel=0.2)
    assert drift.duplicate_share(np.full(100, 10)) == pytest.approx(0.9)
    assert drift.duplicate_share(np.ones(100, np.int64)) == 0
