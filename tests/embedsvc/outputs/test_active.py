"""The estimator: unbiased, and the full softmax where all classes are active."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedsvc.outputs.active import Chooser, Correction, estimate
from embedsvc.outputs.sampling import SAMPLERS, key_of

C = 60


def chooser(
    samples: int, sampler: str = "log_uniform", correction: Correction = "log_q"
) -> Chooser:
    order = np.random.default_rng(1).permutation(C)
    return Chooser(
        SAMPLERS.build(sampler),
        order,
        np.arange(C, 0, -1.0),
        5,
        samples,
        correction,
    )


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("samples", [4, 40])
def test_z_is_estimated_without_bias(sampler: str, samples: int) -> None:
    scores = np.random.default_rng(0).standard_normal((3, C)) * 2
    chosen = chooser(samples, sampler)
    targets, retrieved = np.array([[7, -1], [7, 3], [59, 0]]), np.array([3, 11, 12])
    draws = []
    for step in range(1000):
        active = chosen.choose(targets, retrieved, key_of(0, step))
        draws.append(np.exp(scores[:, active.ids] - active.shift).sum(1))
    exact = np.exp(scores).sum(1)
    error = np.std(draws, axis=0) / np.sqrt(1000)
    assert (abs(np.mean(draws, axis=0) - exact) < 3 * error).all()
    # Jensen's gap is about what the module says; r - 1, whose mean is 0, takes the noise out.
    if samples == 40:
        ratio = np.array(draws) / exact
        gap = (ratio - 1 - np.log(ratio)).mean(0)
        assert gap == pytest.approx(ratio.var(0) / 2, rel=0.3)


def test_certain_classes_are_not_corrected_and_none_is_twice() -> None:
    chosen = chooser(200)
    targets = np.array([[7, -1], [7, 3]])
    active = chosen.choose(targets, np.array([3, 11]), key_of(0, 0))
    assert len(set(active.ids.tolist())) == len(active.ids)
    certain = {*chosen.head.tolist(), 7, 3, 11}
    assert set(active.ids[active.shift == 0].tolist()) == certain
    assert (active.shift[active.shift != 0] < 0).all()
    assert active.ids[active.at[[0, 1, 1], [0, 0, 1]]].tolist() == [7, 7, 3]
    assert active.at[0, 1] == -1


@given(
    st.lists(st.lists(st.integers(-1, C - 1), min_size=2, max_size=2), min_size=1, max_size=40),
    st.sets(st.integers(0, C - 1)),
    st.integers(0, 50),
    st.integers(0, 100),
)
def test_what_is_active_follows_from_what_is_asked(
    targets: list[list[int]], retrieved: set[int], samples: int, step: int
) -> None:
    chosen, key = chooser(samples), key_of(0, step)
    active = chosen.choose(np.array(targets), np.array(sorted(retrieved), np.int64), key)
    drawn = set(chosen._order[chosen._sampler.draw(samples, key)[0]].tolist())
    labels = {label for row in targets for label in row if label >= 0}
    certain = {*chosen.head.tolist(), *labels, *retrieved}
    assert sorted(active.ids.tolist()) == sorted(certain | drawn)
    shifts = dict(zip(active.ids.tolist(), active.shift.tolist(), strict=True))
    chance = chosen._sampler.chances()
    for rank, c in enumerate(chosen._order.tolist()):
        if c in certain:
            assert shifts[c] == 0
        elif c in drawn:
            assert shifts[c] == pytest.approx(np.log(1 - (1 - chance[rank]) ** samples), rel=1e-4)
    for row, places in zip(targets, active.at.tolist(), strict=True):
        assert [active.ids[at] if at >= 0 else -1 for at in places] == row


def test_many_draws_make_all_classes_certain() -> None:
    active = chooser(100_000).choose(np.array([[7]]), np.empty(0, np.int64), key_of(0, 0))
    assert len(active.ids) == C
    assert active.shift == pytest.approx(0, abs=1e-6)


def test_uncorrected_scores_stay_as_they_are() -> None:
    args = np.array([[7]]), np.array([9]), key_of(0, 0)
    plain, corrected = chooser(20, correction="none").choose(*args), chooser(20).choose(*args)
    assert (plain.ids == corrected.ids).all()
    assert (plain.shift == 0).all() and (corrected.shift != 0).any()


def test_estimate_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    hidden, weight = rng.standard_normal((3, 4)), rng.standard_normal((6, 4))
    bias, shift = rng.standard_normal(6), np.array([0, 0, 0, -1.5, -0.1, -3])
    at = np.array([[0, 1], [2, -1], [-1, -1]])
    expected = []
    for x, places in zip(hidden, at, strict=True):
        corrected = [weight[a] @ x + bias[a] - shift[a] for a in range(6)]
        log_z = np.log(sum(np.exp(z) for z in corrected))
        labels = [corrected[a] - log_z for a in places if a >= 0]
        expected.append(sum(labels) / len(labels) if labels else 0)
    found = estimate(*(torch.from_numpy(x) for x in (hidden, weight, bias, shift, at)))
    assert found.tolist() == pytest.approx(expected)


def test_gradients_of_the_corrected_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in ((3, 4), (6, 4), (6,))
    )
    shift = -torch.rand(6, dtype=torch.float64, generator=generator)
    at = torch.tensor([[0, 1], [2, -1], [-1, -1]])
    assert torch.autograd.gradcheck(
        lambda *args: estimate(*args, shift, at), (hidden, weight, bias)
    )
