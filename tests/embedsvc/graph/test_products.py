"""Products of bfloat16: nearest rounding, any shape, either factor turned."""

from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from embedsvc.graph import products
from partitions import precision
from partitions.precision import DTYPES

BF16 = DTYPES["bfloat16"]
pytestmark = pytest.mark.skipif(not products.fast_bfloat16(), reason="no AMX here")


def product(a: np.ndarray, turn_a: bool, b: np.ndarray, turn_b: bool) -> np.ndarray:
    rows, inner = a.shape[::-1] if turn_a else a.shape
    columns = b.shape[0 if turn_b else 1]
    room = products.new_room(rows, inner, columns)
    for memory in room:
        memory.view(np.uint32)[:] = 0xFFFFFFFF  # NaN, which would spread
    margin = 16 * (columns + 1)
    memory = np.full(rows * columns + 2 * margin, np.nan, np.float32)
    out = memory[margin : margin + rows * columns].reshape(rows, columns)
    products.multiply(a, turn_a, b, turn_b, room, out)
    assert np.isnan(memory[:margin]).all() and np.isnan(memory[margin + out.size :]).all()
    return out


def rounded(x: np.ndarray) -> np.ndarray:
    return precision.widen(precision.nearest(x, BF16))


@pytest.mark.parametrize("turn", [False, True])
@given(
    x=arrays(
        np.float32, (37, 1), elements=st.floats(width=32, allow_nan=False, allow_subnormal=False)
    )
)
def test_factors_are_rounded_to_the_nearest(x: np.ndarray, turn: bool) -> None:
    """What is a number only once it is rounded up is 0 as other subnormal ones."""
    one = np.ones((1, 1), np.float32)
    found = product(np.ascontiguousarray(x.T) if turn else x, turn, one, False)
    assert np.array_equal(found, rounded(x))
    assert np.array_equal(product(one, False, x, True), rounded(x).T)


def test_rounding_keeps_ties_even_and_what_is_no_number() -> None:
    one = np.ones((1, 1), np.float32)
    ties = np.array([[0x3F808000], [0x3F818000], [0xBF808000]], np.uint32).view(np.float32)
    found = product(ties, False, one, False).view(np.uint32) >> 16
    assert found.ravel().tolist() == [0x3F80, 0x3F82, 0xBF80]
    odd = np.array([[np.inf], [-np.inf], [np.nan], [np.finfo(np.float32).max]], np.float32)
    kept = product(odd, False, one, False).ravel()
    assert kept[0] == kept[3] == np.inf and kept[1] == -np.inf and np.isnan(kept[2])


def test_subnormal_numbers_are_0() -> None:
    x = np.full((1, 1), 1e-40, np.float32)
    assert product(x, False, np.full((1, 1), 1e30, np.float32), False) == 0


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
    assert_exact(rows, columns, inner, turn_a, turn_b, seed)


@pytest.mark.parametrize("turn_a", [False, True])
@pytest.mark.parametrize("turn_b", [False, True])
@pytest.mark.parametrize("shape", [(511, 33, 100), (512, 200, 64), (513, 31, 65), (50, 100, 513)])
def test_larger_products_too(shape: tuple[int, int, int], turn_a: bool, turn_b: bool) -> None:
    assert_exact(*shape, turn_a, turn_b, 0)


def test_threads_multiply_side_by_side() -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(assert_exact, 70, 70, 70, False, True, i) for i in range(64)]:
            done.result()


def assert_exact(
    rows: int, columns: int, inner: int, turn_a: bool, turn_b: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(inner, rows) if turn_a else (rows, inner)).astype(np.float32)
    b = rng.normal(size=(columns, inner) if turn_b else (inner, columns)).astype(np.float32)
    wide_a, wide_b = (rounded(x).astype(np.float64) for x in (a, b))
    wanted = (wide_a.T if turn_a else wide_a) @ (wide_b.T if turn_b else wide_b)
    np.testing.assert_allclose(
        product(a, turn_a, b, turn_b), wanted, atol=1e-5 * max(1, inner / 70)
    )
