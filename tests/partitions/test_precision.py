"""16-bit numbers: torch's own conversions are the reference."""

import numpy as np
import pytest
import torch

from partitions import precision
from partitions.precision import DTYPES

TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def every_size() -> np.ndarray:
    """Random bits: every exponent and sign, infinities and NaN too."""
    bits = np.random.default_rng(3).integers(0, 1 << 32, (1000, 50), np.uint32)
    ties = np.arange(1 << 16, dtype=np.uint32) << 16 | 0x8000
    return np.concatenate([bits.ravel(), ties, ties + 1, ties - 1]).view(np.float32)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_the_nearest_number_is_torch_s(name: str) -> None:
    values = every_size()
    found = precision.widen(precision.nearest(values, DTYPES[name]))
    wanted = torch.from_numpy(values).to(TORCH[name]).float().numpy()
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_every_16_bits_are_widened_as_torch_does(name: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    wanted = torch.from_numpy(every.copy()).view(TORCH[name]).float().numpy()
    np.testing.assert_array_equal(precision.widen(every.view(DTYPES[name])), wanted)


def test_float32_is_not_copied() -> None:
    values = np.ones((3, 2), np.float32)
    assert precision.widen(values) is values
    assert precision.nearest(values, DTYPES["float32"]) is values


@pytest.mark.parametrize("name", list(DTYPES))
def test_the_largest_number_is_found_and_what_is_not_finite(name: str) -> None:
    values = np.full((300_000, 3), 9.0, np.float32)
    values[299_999, 1] = -12.5
    assert precision.largest(precision.nearest(values, DTYPES[name])) == 12.5
    for wrong in (np.nan, np.inf, -np.inf):
        values[299_999, 1] = wrong
        assert not np.isfinite(precision.largest(precision.nearest(values, DTYPES[name])))
    assert precision.largest(np.empty((0, 3), DTYPES[name])) == 0
