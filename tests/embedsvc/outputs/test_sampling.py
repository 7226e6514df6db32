"""Samplers against their own chances, and chances against plain formulas."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedsvc.outputs.sampling import SAMPLERS, key_of, log_presence
from partitions.errors import ConfigError


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("first", [0, 3])
def test_draws_follow_the_chances(name: str, first: int) -> None:
    sampler = SAMPLERS.build(name)
    sampler.fit(np.array([50, 20, 9, 5, 4, 3, 2, 1, 1, 0.5]), first)
    chances = sampler.chances()
    assert chances.sum() == pytest.approx(1)
    assert (chances[:first] == 0).all() and (chances[first:] > 0).all()
    ranks, drawn = sampler.draw(100_000, key_of(7, 0))
    assert (drawn == chances[ranks]).all() or np.allclose(drawn, chances[ranks], rtol=1e-12)
    counts = np.bincount(ranks, minlength=10)
    error = np.sqrt(100_000 * chances * (1 - chances))
    assert (abs(counts - 100_000 * chances) <= 4 * error).all()


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_draws_are_a_function_of_seed_and_step(name: str) -> None:
    sampler = SAMPLERS.build(name)
    sampler.fit(np.arange(1000, 0, -1.0), 10)
    one, again, next_step = (sampler.draw(50, key_of(1, s))[0].tolist() for s in (4, 4, 5))
    assert one == again != next_step
    assert one != sampler.draw(50, key_of(2, 4))[0].tolist()


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_head_of_all_classes_leaves_none_to_draw(name: str) -> None:
    sampler = SAMPLERS.build(name)
    sampler.fit(np.ones(4), 4)
    assert [len(x) for x in sampler.draw(10, key_of(0, 0))] == [0, 0]


def test_log_uniform_is_zipfs_law_in_ten_million_classes() -> None:
    sampler = SAMPLERS.build("log_uniform")
    sampler.fit(np.ones(10_000_000), 0)
    ranks, chances = sampler.draw(1000, key_of(0, 0))
    for rank, chance in zip(ranks.tolist(), chances.tolist(), strict=True):
        exact = math.log1p(1 / (rank + 1)) / math.log(10_000_001)
        assert chance == pytest.approx(exact, rel=1e-12)


def test_unigram_raises_frequencies_to_alpha() -> None:
    sampler = SAMPLERS.build({"name": "unigram", "alpha": 0.5})
    sampler.fit(np.array([100.0, 16, 9, 4]), 1)
    assert sampler.chances() == pytest.approx([0, 4 / 9, 3 / 9, 2 / 9])
    uniform = SAMPLERS.build({"name": "unigram", "alpha": 0})
    uniform.fit(np.array([100.0, 16, 9, 4]), 0)
    assert uniform.chances() == pytest.approx([0.25] * 4)
    with pytest.raises(ConfigError, match=r"alpha is -1"):
        SAMPLERS.build({"name": "unigram", "alpha": -1})


@given(st.floats(1e-300, 1, exclude_max=True), st.integers(1, 5000))
def test_presence_is_right_for_any_chance(chance: float, num: int) -> None:
    if chance > 1e-3:
        exact = math.log(1 - (1 - Fraction(chance)) ** min(num, 60))
        assert log_presence(np.array([chance]), min(num, 60))[0] == pytest.approx(exact, abs=1e-12)
    if chance < 1e-12:
        expected = math.log(chance) + math.log(num)
        assert log_presence(np.array([chance]), num)[0] == pytest.approx(expected, abs=1e-8)


def test_a_sure_draw_is_present() -> None:
    assert log_presence(np.array([1.0]), 3).tolist() == [0]
