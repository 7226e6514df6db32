"""Rounding to 16 bits is right on average, exact where it can be, and the same at every run."""

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from embedsvc.graph import kernels, rounding
from partitions import precision
from partitions.precision import DTYPES

SHORT = ["bfloat16", "float16"]
KEY = np.uint64(99)
# Finite numbers, all sizes and both signs, whose neighbours are finite in either format too.
NUMBERS = st.floats(-60_000, 60_000, width=32)


def rounded(values: Any, name: str, key: Any = KEY, rows: Any = None) -> np.ndarray:
    values = np.asarray(values, np.float32)
    rows = np.arange(len(values)) if rows is None else rows
    return precision.widen(rounding.stochastic(values, DTYPES[name], key, rows))


def neighbours(value: float, name: str) -> tuple[float, float]:
    """The kept numbers on either side, by the definition of the format: steps of 2^k."""
    digits, smallest = (8, -126) if name == "bfloat16" else (11, -14)
    exponent = max(math.frexp(value)[1] - 1 if value else smallest, smallest)
    step = 2.0 ** (exponent - digits + 1)
    return math.floor(value / step) * step, math.ceil(value / step) * step


@pytest.mark.parametrize("name", SHORT)
@given(value=NUMBERS)
def test_a_number_goes_to_one_of_its_neighbours(name: str, value: float) -> None:
    found = set(rounded(np.full((8, 8), value), name).ravel().tolist())
    assert found <= set(neighbours(value, name))


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("value", [1.001, -1.001, 0.3, -300.3, 1e-7, 3e-5, 1 + 2**-12])
def test_the_mean_of_many_roundings_is_the_number(name: str, value: float) -> None:
    """Within 5 sigma: each is low or high, with a chance of `share` for high."""
    count = 200_000
    found = rounded(np.full((count // 100, 100), value, np.float32), name).astype(np.float64)
    exact = float(np.float32(value))
    low, high = neighbours(exact, name)
    share = (exact - low) / (high - low)
    sigma = (high - low) * math.sqrt(share * (1 - share) / count)
    assert found.mean() == pytest.approx(exact, abs=5 * sigma, rel=1e-12)


@pytest.mark.parametrize("name", SHORT)
def test_small_steps_add_up_as_nearest_rounding_never_lets_them(name: str) -> None:
    """2000 steps of 1e-4 from 1: 1.2 on average, of 100 numbers; each rounding adds a variance of
    at most (1/4) step^2. Nearest rounding stays at 1."""
    step = 2.0**-7 if name == "bfloat16" else 2.0**-10
    kept = precision.nearest(np.ones((1, 100), np.float32), DTYPES[name])
    still = kept.copy()
    for number in range(2000):
        key = rounding.key_of(KEY, number, 0)
        wanted = precision.widen(kept) + np.float32(1e-4)
        kept = rounding.stochastic(wanted, DTYPES[name], key, np.arange(1))
        still = precision.nearest(precision.widen(still) + np.float32(1e-4), DTYPES[name])
    sigma = step / 2 * math.sqrt(2000 / 100)
    assert precision.widen(kept).mean() == pytest.approx(1.2, abs=5 * sigma)
    assert (precision.widen(still) == 1).all()


@pytest.mark.parametrize("name", SHORT)
def test_what_can_be_kept_exactly_stays(name: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[name]).reshape(-1, 64)
    values = precision.widen(every)
    again = rounding.stochastic(values, DTYPES[name], KEY, np.arange(len(values)))
    numbers = ~np.isnan(values)
    assert (again.view(np.uint16)[numbers] == every.view(np.uint16)[numbers]).all()
    assert np.isnan(precision.widen(again)[~numbers]).all()


def test_what_is_drawn_depends_on_bucket_batch_side_row_and_column() -> None:
    keys = {
        (bucket, number, side): rounding.key_of(np.uint64(bucket), number, side)
        for bucket in range(5)
        for number in range(50)
        for side in range(2)
    }
    assert len({int(key) for key in keys.values()}) == 500
    bits = np.stack([rounding.draws(key, np.arange(20), 30) for key in keys.values()])
    assert len(np.unique(bits)) > 0.999 * bits.size  # of 2^32, by chance 35 of 300,000 are equal
    assert np.array_equal(bits[0], rounding.draws(keys[0, 0, 0], np.arange(20), 30))
    alone = rounding.draws(keys[0, 0, 0], np.array([7]), 30)
    assert np.array_equal(bits[0][7:8], alone), "whatever else is in the batch"


def test_the_bits_drawn_are_even() -> None:
    """Each of the 32 bits, 5 sigma of 400,000; and next columns and next rows are independent."""
    bits = rounding.draws(KEY, np.arange(4000), 100)
    ones = (bits[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    assert np.abs(ones.mean((0, 1)) - 0.5).max() < 5 * 0.5 / math.sqrt(bits.size)
    unit = bits / 2**32 - 0.5
    for one, other in ((unit[:, 1:], unit[:, :-1]), (unit[1:], unit[:-1])):
        correlation = (one * other).mean() * 12
        assert abs(correlation) < 5 / math.sqrt(one.size)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=70), st.integers(0, 99))
def test_the_kernel_rounds_the_same_bits(numbers: list[float], row: int) -> None:
    values = np.array([numbers], np.float32)
    wanted = rounding.stochastic(values, DTYPES["bfloat16"], KEY, np.array([row]))
    found = np.empty(len(numbers), np.uint16)
    start = rounding._starts(KEY, np.array([row]))[0]
    kernels.round_row(values[0].view(np.uint32), start, found)
    assert (found == wanted[0]).all()


def test_float16_ends_at_its_largest_number() -> None:
    found = rounded([[65504, 65519, 1e6, -1e6, np.inf, -np.inf]], "float16")
    assert found.tolist() == [[65504, 65504, 65504, -65504, np.inf, -np.inf]]
    assert rounded([[np.inf, -np.inf]], "bfloat16").tolist() == [[np.inf, -np.inf]]
    assert np.isnan(rounded([[np.nan, -np.nan]], "bfloat16")).all()
