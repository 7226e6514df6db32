"""Each optimizer equals a plain loop; rows without a gradient stand still, others are marked."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from embedsvc.config import ModelConfig, TrainConfig
from embedsvc.graph.optimizers import OPTIMIZERS, form_of

NUM_ROWS, DIM, LR = 20, 5, 0.05

# Of one batch: (w, kept, gradients {row: [D]}) -> None. w: rows of numbers, mutated;
# kept: whatever the loop wants to keep, empty at first.
Loop = Callable[[list[list[float]], dict[Any, Any], dict[int, list[float]]], None]


def rowwise_adagrad(w: list[list[float]], kept: dict[Any, Any], grads: Any) -> None:
    for r, g in grads.items():
        kept[r] = kept.get(r, 0.0) + sum(x * x for x in g) / DIM
        for d in range(DIM):
            w[r][d] -= LR * g[d] / (kept[r] ** 0.5 + 1e-10) if kept[r] else 0.0


def adagrad(w: list[list[float]], kept: dict[Any, Any], grads: Any) -> None:
    for r, g in grads.items():
        for d in range(DIM):
            kept[r, d] = kept.get((r, d), 0.0) + g[d] ** 2
            w[r][d] -= LR * g[d] / (kept[r, d] ** 0.5 + 1e-10) if kept[r, d] else 0.0


def sgd(w: list[list[float]], kept: dict[Any, Any], grads: Any) -> None:
    for r, g in grads.items():
        for d in range(DIM):
            w[r][d] -= LR * g[d]


def adam(w: list[list[float]], kept: dict[Any, Any], grads: Any) -> None:
    for r, g in grads.items():
        if any(g):
            m, v, t = kept.get(r, ([0.0] * DIM, 0.0, 0))
            t += 1
            m = [0.9 * a + 0.1 * b for a, b in zip(m, g, strict=True)]
            v = 0.999 * v + 0.001 * sum(x * x for x in g) / DIM
            kept[r] = m, v, t
            for d in range(DIM):
                w[r][d] -= LR * (m[d] / (1 - 0.9**t)) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-8)


def sm3(w: list[list[float]], kept: dict[Any, Any], grads: Any) -> None:
    """The dense SM3-II of the paper: all rows at every step, those outside with gradient 0."""
    mu = kept or {("r", r): 0.0 for r in range(NUM_ROWS)} | {("c", d): 0.0 for d in range(DIM)}
    nu = {}
    for r in range(NUM_ROWS):
        for d in range(DIM):
            g = grads[r][d] if r in grads else 0.0
            nu[r, d] = min(mu["r", r], mu["c", d]) + g * g
            w[r][d] -= LR * g / nu[r, d] ** 0.5 if nu[r, d] else 0.0
    for r in range(NUM_ROWS):
        kept["r", r] = max(nu[r, d] for d in range(DIM))
    for d in range(DIM):
        kept["c", d] = max(nu[r, d] for r in range(NUM_ROWS))


LOOPS: dict[str, Loop] = {
    "rowwise_adagrad": rowwise_adagrad,
    "adagrad": adagrad,
    "sgd": sgd,
    "adam": adam,
    "sm3": sm3,
}


def started(name: str, dtype: torch.dtype = torch.float64) -> tuple[Any, Any, Any]:
    optimizer = OPTIMIZERS.build(name)
    state = torch.zeros(NUM_ROWS, *optimizer.state_shape(DIM), dtype=dtype)
    return optimizer, state, torch.zeros(optimizer.num_shared(DIM), dtype=dtype)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_many_steps_equal_a_plain_loop(name: str) -> None:
    rng = np.random.default_rng(6)
    vectors = torch.from_numpy(rng.standard_normal((NUM_ROWS, DIM)))
    loop, kept = vectors.tolist(), dict[Any, Any]()
    optimizer, state, shared = started(name)
    for _ in range(60):
        rows = rng.choice(NUM_ROWS - 1, 6, replace=False)  # the last one never
        grad = rng.standard_normal((6, DIM)) * [5, 1, 1, 0.1, 0.01]  # columns differ in scale
        grad *= rng.random((6, 1)) < 0.7
        LOOPS[name](loop, kept, {int(r): g.tolist() for r, g in zip(rows, grad, strict=True)})
        own = state[rows]
        vectors[rows] -= optimizer.step(torch.from_numpy(grad), own, shared, LR)
        state[rows] = own
    np.testing.assert_allclose(vectors, loop, rtol=1e-10)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-30])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_gradient_of_nothing_leaves_no_mark(name: str, value: float) -> None:
    """1e-30: too small to square, as float32."""
    optimizer, state, shared = started(name, torch.float32)
    step = optimizer.step(torch.full((NUM_ROWS, DIM), value), state, shared, 0.1)
    assert not state.any() and not shared.any()
    assert (step == 0).all()


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_one_number_with_a_gradient_marks_its_row_for_good(name: str) -> None:
    optimizer, state, shared = started(name, torch.float32)
    grad = torch.zeros(NUM_ROWS, DIM)
    grad[2, 3] = 1e-3
    moved = optimizer.step(grad, state, shared, 0.1)
    touched = [r == 2 for r in range(NUM_ROWS)]
    assert (moved != 0).any(-1).tolist() == touched
    for _ in range(3):
        assert state.reshape(NUM_ROWS, -1).any(-1).tolist() == touched
        before = state.clone()
        step = optimizer.step(torch.zeros(NUM_ROWS, DIM), state, shared, 0.1)
        assert (step == 0).all() and torch.equal(state, before)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_gradient_that_is_not_finite_shows(name: str) -> None:
    optimizer, state, shared = started(name, torch.float32)
    grad = torch.full((NUM_ROWS, DIM), torch.nan)
    assert optimizer.step(grad, state, shared, 0.1).isnan().all()


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_step_of_no_rows(name: str) -> None:
    optimizer, state, shared = started(name, torch.float32)
    assert optimizer.step(torch.zeros(0, DIM), state[:0], shared, 0.1).shape == (0, DIM)


def test_the_form_of_a_table_says_its_optimizer_and_its_bytes() -> None:
    found = {}
    for name in OPTIMIZERS:
        form = form_of(ModelConfig(dim=10), TrainConfig(optimizer=name))
        assert form.optimizer == name
        found[name] = (form.row_bytes(10), form.num_shared)
    assert found == {
        "rowwise_adagrad": (44, 0),
        "adagrad": (80, 0),
        "sgd": (44, 0),
        "adam": (88, 0),
        "sm3": (44, 10),
    }
