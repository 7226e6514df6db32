"""Products of bfloat16: nearest rounding, any shape, either factor turned."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from embedsvc.graph import products
from partitions import precision
from partitions.precision import DTYPES

BF16 = DTYPES["bfloat16"]
needs_products = pytest.mark.skipif(not products.available(), reason="this torch has no such name")


def halved(x: np.ndarray) -> np.ndarray:
    out = np.empty(x.shape, np.uint16)
    products.halve(x, out)
    return out


@given(arrays(np.float32, (3, 7), elements=st.floats(width=32, allow_nan=False)))
def test_halving_goes_to_the_nearest_and_at_ties_to_the_even(x: np.ndarray) -> None:
    assert np.array_equal(halved(x), precision.nearest(x, BF16).view(np.uint16))


def test_halving_keeps_ties_even_and_what_is_no_number() -> None:
    ties = np.array([[0x3F808000, 0x3F818000, 0xBF808000]], np.uint32).view(np.float32)
    assert halved(ties).tolist() == [[0x3F80, 0x3F82, 0xBF80]]
    odd = np.array([[np.inf, -np.inf, np.nan]], np.float32)
    kept = precision.widen(halved(odd).view(BF16))
    assert kept[0, 0] == np.inf and kept[0, 1] == -np.inf and np.isnan(kept[0, 2])


@needs_products
@pytest.mark.parametrize("turn_a", [False, True])
@pytest.mark.parametrize("turn_b", [False, True])
@given(
    rows=st.integers(0, 70),
    columns=st.integers(0, 70),
    inner=st.integers(0, 70),
    seed=st.integers(0, 9),
)
def test_a_product_is_that_of_the_rounded_factors(
    turn_a: bool, turn_b: bool, rows: int, columns: int, inner: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a = halved(rng.normal(size=(inner, rows) if turn_a else (rows, inner)).astype(np.float32))
    b = halved(rng.normal(size=(columns, inner) if turn_b else (inner, columns)).astype(np.float32))
    out = np.full((rows, columns), np.nan, np.float32)
    products.multiply(a, turn_a, b, turn_b, out)
    wide_a, wide_b = (precision.widen(x.view(BF16)).astype(np.float64) for x in (a, b))
    wanted = (wide_a.T if turn_a else wide_a) @ (wide_b.T if turn_b else wide_b)
    np.testing.assert_allclose(out, wanted, atol=1e-5)
