"""The written-out step of the layers against autograd and torch's optimizers."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from embedsvc.ranking.layers import Layers
from embedsvc.ranking.wide_deep import Body, _loss

OPTIMIZERS = {"adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam}


def body_of(width: int, hidden: list[int], tasks: int) -> Body:
    body = Body(width, hidden, 0.0, tasks, torch.Generator().manual_seed(3))
    with torch.no_grad():
        for parameter in body.parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.linspace(-0.3, 0.4, len(parameter)))
    return body


def batch_of(seed: int, rows: int, width: int, tasks: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, width)).astype(np.float32)
    logit = rng.normal(size=(rows, tasks)).astype(np.float32)
    label = rng.integers(0, 2, (rows, tasks)).astype(np.float32)
    label[rng.random((rows, tasks)) < 0.1] = np.nan
    return inputs, logit, label, (rng.random(rows) + 0.5).astype(np.float32)


def by_autograd(body: nn.Module, batch: Any, positive: np.ndarray) -> tuple[float, Any, Any]:
    inputs, logit, label, weight = batch
    leaf = torch.from_numpy(inputs.copy()).requires_grad_()
    deep = body(leaf)
    loss, slope = _loss(torch.from_numpy(logit) + deep.detach(), label, weight, positive)
    body.zero_grad()
    deep.backward(slope / len(inputs))
    assert leaf.grad is not None
    return loss, slope.numpy(), leaf.grad.numpy()


def near(found: np.ndarray, wanted: np.ndarray) -> None:
    """Equal to 2e-6 of the largest."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max(initial=1e-9))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [1, 511, 1300])
@pytest.mark.parametrize("hidden, tasks", [([7], 1), ([12, 5], 2), ([6, 9, 4], 1)])
def test_gradients_and_the_loss_are_autograds(
    hidden: list[int], tasks: int, rows: int, threads: int
) -> None:
    body, batch = body_of(10, hidden, tasks), batch_of(rows, rows, 10, tasks)
    positive = np.array([3.0, 0.5][:tasks], np.float32)
    loss, slope, to_inputs = by_autograd(body, batch, positive)
    layers = Layers([10, *hidden, tasks], torch.optim.Adagrad(body.parameters()), threads)
    said, own = layers.slope(*batch, positive)
    assert said == pytest.approx(loss, rel=1e-6)
    near(own, slope)
    near(batch[0], to_inputs)
    at = 0
    for parameter in body.parameters():
        assert parameter.grad is not None
        grad = layers._grads[:, at : at + parameter.numel()].sum(0)
        near(grad.reshape(parameter.shape), parameter.grad.numpy())
        at += parameter.numel()
    assert at == layers._grads.shape[1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_those_of_torchs_optimizers(name: str) -> None:
    bodies = [body_of(10, [12, 5], 1) for _ in range(2)]
    ours, theirs = (OPTIMIZERS[name](body.parameters(), lr=0.03) for body in bodies)
    layers, positive = Layers([10, 12, 5, 1], ours, 2), np.ones(1, np.float32)
    for step in range(5):
        batch = batch_of(step, 200, 10, 1)
        by_autograd(bodies[1], batch, positive)
        theirs.step()
        layers.slope(*batch, positive)
        layers.update()
    for mine, its in zip(*(body.parameters() for body in bodies), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)
        for key, value in theirs.state[its].items():
            torch.testing.assert_close(ours.state[mine][key], value, rtol=1e-4, atol=1e-7)


def test_one_number_of_threads_ends_in_the_same_bits() -> None:
    found = []
    for _ in range(2):
        body = body_of(10, [12, 5], 1)
        layers = Layers([10, 12, 5, 1], torch.optim.Adam(body.parameters(), lr=0.03), 2)
        for step in range(3):
            layers.slope(*batch_of(step, 1500, 10, 1), np.ones(1, np.float32))
            layers.update()
        found.append([p.detach().numpy().tobytes() for p in body.parameters()])
    assert found[0] == found[1]


def test_a_batch_of_nothing_known_has_no_slope() -> None:
    body = body_of(10, [12, 5], 1)
    layers = Layers([10, 12, 5, 1], torch.optim.Adagrad(body.parameters()), 2)
    inputs, logit, label, weight = batch_of(0, 200, 10, 1)
    loss, slope = layers.slope(
        inputs, logit, np.full_like(label, np.nan), weight, np.ones(1, np.float32)
    )
    assert loss == 0
    assert not (slope.any() or inputs.any() or layers._grads.any())
