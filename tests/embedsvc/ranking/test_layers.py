"""The written-out step of the layers against autograd and torch's optimizers."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from embedsvc.ranking.layers import Layers
from embedsvc.ranking.slots import Ftrl
from embedsvc.ranking.wide_deep import Body, Deep, Wide, WideDeep, _loss
from partitions.features import Encoded, Layout, Slot

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
    found = layers.slope(*batch, positive)
    assert found.loss == pytest.approx(loss, rel=1e-6)
    near(found.logit, slope)
    near(batch[0], to_inputs)
    at = 0
    for parameter in body.parameters():
        assert parameter.grad is not None
        grad = layers.grad[at : at + parameter.numel()]
        near(grad.reshape(parameter.shape), parameter.grad.numpy())
        at += parameter.numel()
    assert at == len(layers.grad)


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
    found = layers.slope(inputs, logit, np.full_like(label, np.nan), weight, np.ones(1, np.float32))
    assert found.loss == 0
    assert not (found.logit.any() or inputs.any() or layers.grad.any())


SLOTS = (
    Slot("user", 300, False, 0),
    Slot("kind", 4, False, 1),
    Slot("tags", 7, True, 0),
    Slot("day", 5, False, 2),
)


def rows_of(seed: int, rows: int, numbers: int) -> tuple[Encoded, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    single = np.stack([rng.integers(0, n, rows) for n in (300, 4, 5)], 1).astype(np.int32)
    ends = np.concatenate([[0], np.cumsum(rng.integers(0, 4, rows))]).astype(np.int64)
    tags = rng.integers(0, 7, ends[-1]).astype(np.int32)
    dense = rng.normal(size=(rows, numbers)).astype(np.float32)
    label = rng.integers(0, 2, (rows, 2)).astype(np.float32)
    return Encoded(single, ((tags, ends),), dense), label, rng.random(rows).astype(np.float32)


@pytest.mark.parametrize(
    "deep, wide",
    [
        (("user", "kind", "tags", "day"), ("user", "kind", "tags", "day")),
        (("user", "kind", "tags"), ("user", "tags", "day")),  # not all slots in both parts
        (("kind", "tags", "day"), ("user",)),  # nothing but few ids
    ],
)
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adam_lite", "sgd"])
def test_slots_of_few_ids_learn_what_they_would_learn_row_by_row(
    deep: tuple[str, ...], wide: tuple[str, ...], optimizer: str
) -> None:
    numbers = 2 if "user" in deep else 0
    names = tuple(f"n{at}" for at in range(numbers))
    layout = Layout(SLOTS, names, frozenset())
    models = []
    for fast in (True, False):
        model = WideDeep(
            layout,
            Wide(frozenset(wide), (), Ftrl(0.3, 1.0, 0.05, 0.1)),
            Deep(
                dict.fromkeys(deep, 4),
                names,
                (8, 5),
                row_optimizer=optimizer,
                row_lr=0.05,
                decay=0.1,
                init_scale=0.3,
            ),
            num_tasks=2,
            threads=2,
        )
        if not fast:
            model.fast = None
        models.append(model)
    for step in range(4):
        batch, label, weight = rows_of(step, 700 - 600 * (step == 3), numbers)
        few = models[0]._few(batch)
        assert few is not None
        lost = step == 3 and "user" in deep  # tags are 7 of 100 rows
        assert len(few.tables) == len(deep) - 1 - lost
        weight[: 10 * step] = 0
        said = [model.learn(batch, label, weight) for model in models]
        assert said[0] == pytest.approx(said[1], rel=1e-5)
    for mine, its in zip(*(model.slots.tables for model in models), strict=True):
        for one, other in zip(
            (mine.values, mine.state, mine.wide), (its.values, its.state, its.wide), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-5)
    for mine, its in zip(*(model.body.parameters() for model in models), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-3, atol=2e-5)
