"""The fused step against autograd and the graph's optimizers, over some classes and over all."""

from typing import Any

import numpy as np
import pytest
import torch

from embedsvc.graph import optimizers
from embedsvc.graph.products import fast_bfloat16
from embedsvc.outputs.active import estimate
from embedsvc.outputs.fused import FullStep
from embedsvc.outputs.kernels import Table
from embedsvc.outputs.sparse import ROW_OPTIMIZERS, Active, SparseStep, Workspace
from partitions.errors import ConfigError

C, D, B = 3000, 12, 7
TWINS = {
    "sgd": optimizers.Sgd(),
    "rowwise_adagrad": optimizers.RowwiseAdagrad(),
    "adam_lite": optimizers.Adam(beta1=0),
}


def table(optimizer: str, bias: bool, removed: bool = False) -> Table:
    rng = np.random.default_rng(0)
    width = ROW_OPTIMIZERS.build(optimizer).state_width
    return Table(
        rng.standard_normal((C, D)).astype(np.float32),
        rng.standard_normal(C if bias else 0).astype(np.float32),
        np.zeros((C, width), np.float32),
        (rng.random(C) < 0.1).astype(np.uint8) if removed else np.empty(0, np.uint8),
    )


def updated(rows: Table, ids: Any, grad: Any, grad_bias: Any, optimizer: str, state: Any) -> Any:
    """Rows by the graph's optimizer, their bias as one more column."""
    twin, bias = TWINS[optimizer], len(rows.bias) > 0
    grads = torch.cat([grad, grad_bias[:, None]], 1) if bias else grad
    if optimizer == "adam_lite" and state.dim() == 1:
        state = torch.zeros(len(ids), grads.shape[1] + 2)
    step = twin.step(grads, state, torch.empty(0), 0.1)
    values = torch.from_numpy(rows.values[ids])
    return values - step[:, :D], torch.from_numpy(rows.bias[ids]) - step[:, D] if bias else None


@pytest.mark.parametrize("optimizer", list(ROW_OPTIMIZERS))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_some_classes_learn_as_autograd_says(optimizer: str, bias: bool, threads: int) -> None:
    rng = np.random.default_rng(1)
    rows = table(optimizer, bias)
    ids = rng.permutation(C)[:1100]
    shift = -rng.random(1100).astype(np.float32)
    at = np.array([[0, 1], [2, -1], [-1, -1], [2, 2], [1099, 700], [0, -1], [-1, 600]])
    shift[at[at >= 0]] = 0
    state, space = torch.zeros(len(ids)), Workspace()
    if optimizer == "adam_lite":
        state = torch.zeros(len(ids), D + bias + 2)
    before = rows.values.copy()
    for _ in range(3):
        hidden = rng.standard_normal((B, D)).astype(np.float32)
        weight_B = rng.random(B).astype(np.float32)
        leaves = [torch.from_numpy(hidden), torch.from_numpy(rows.values[ids])]
        leaves += [torch.from_numpy(rows.bias[ids])] if bias else []
        leaves = [leaf.double().requires_grad_() for leaf in leaves]
        log_prob = estimate(
            leaves[0],
            leaves[1],
            leaves[2] if bias else None,
            torch.from_numpy(shift),
            torch.from_numpy(at),
        )
        (-log_prob @ torch.from_numpy(weight_B).double()).backward()
        grads = [leaf.grad.float() for leaf in leaves if leaf.grad is not None]
        expected = updated(rows, ids, grads[1], grads[2] if bias else None, optimizer, state)

        update = ROW_OPTIMIZERS.build(optimizer).update(0.1)
        step = SparseStep.begin(rows, update, False, hidden, Active(ids, shift, at), space, threads)
        grad = step.finish(weight_B, True)
        assert step.log_prob == pytest.approx(log_prob.detach().numpy(), abs=1e-5)
        assert grad == pytest.approx(grads[0].numpy(), abs=1e-5)
        # A first AdaGrad update is the gradient over its own length: tiny ones are rounding.
        seen = (leaves[1].grad.square().mean(1) > 1e-8).numpy()  # type: ignore[union-attr]
        assert rows.values[ids[seen]] == pytest.approx(expected[0].numpy()[seen], abs=2e-4)
        if bias:
            assert rows.bias[ids[seen]] == pytest.approx(expected[1].numpy()[seen], abs=2e-4)
    others = np.setdiff1d(np.arange(C), ids)
    assert (rows.values[others] == before[others]).all()
    assert (rows.state[others] == 0).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("optimizer", list(ROW_OPTIMIZERS))
def test_all_classes_learn_as_some_do_that_are_all(optimizer: str, threads: int) -> None:
    rng = np.random.default_rng(1)
    some, every = table(optimizer, True), table(optimizer, True)
    update = ROW_OPTIMIZERS.build(optimizer).update(0.1)
    targets = rng.integers(0, C, (B, 2))
    targets[2] = targets[3, 1] = -1
    active = Active(np.arange(C), np.zeros(C, np.float32), targets)
    for _ in range(3):
        hidden = rng.standard_normal((B, D)).astype(np.float32) * 3
        weight = rng.random(B).astype(np.float32)
        one = SparseStep.begin(some, update, False, hidden, active, Workspace(), threads)
        two = FullStep.begin(every, update, False, hidden, targets, Workspace(), threads)
        assert one.log_prob == pytest.approx(two.log_prob, abs=1e-5)
        assert one.log_prob[2] == two.log_prob[2] == 0
        found, expected = two.finish(weight, True), one.finish(weight, True)
        assert found == pytest.approx(expected, abs=1e-4)
    if optimizer != "adam_lite":  # its steps have the same length however small the gradient
        assert every.values == pytest.approx(some.values, abs=1e-3)
        assert every.bias == pytest.approx(some.bias, abs=1e-3)


def test_removed_classes_have_no_part_in_the_full_step() -> None:
    rows = table("sgd", True, removed=True)
    before = rows.values.copy()
    live = np.flatnonzero(rows.removed == 0)
    hidden = np.random.default_rng(1).standard_normal((B, D)).astype(np.float32)
    targets = live[:B, None]
    update = ROW_OPTIMIZERS.build("sgd").update(0.1)
    step = FullStep.begin(rows, update, False, hidden, targets, Workspace(), 2)
    scores = hidden @ rows.values[live].T + rows.bias[live]
    exact = scores[range(B), range(B)] - np.log(np.exp(scores).sum(1))
    assert step.log_prob == pytest.approx(exact, abs=1e-4)
    step.finish(np.ones(B, np.float32), True)
    assert (rows.values[rows.removed == 1] == before[rows.removed == 1]).all()


def test_large_scores_stay_finite() -> None:
    rows = table("sgd", False)
    rows.values[:] *= 1e3
    hidden = np.full((2, D), 10, np.float32)
    update = ROW_OPTIMIZERS.build("sgd").update(0.0)
    active = Active(np.arange(C), np.zeros(C, np.float32), np.array([[0], [1]]))
    one = SparseStep.begin(rows, update, False, hidden, active, Workspace(), 2)
    two = FullStep.begin(rows, update, False, hidden, active.at, Workspace(), 2)
    exact = torch.from_numpy(hidden.astype(float) @ rows.values.astype(float).T).log_softmax(1)
    for step in (one, two):
        assert step.log_prob == pytest.approx(exact[range(2), range(2)].numpy(), rel=1e-5)
        assert np.isfinite(step.finish(np.ones(2, np.float32), True)).all()  # type: ignore[arg-type]


def test_memory_follows_the_active_set() -> None:
    sizes = []
    for num_classes in (2000, 200_000):
        values = np.zeros((num_classes, D), np.float32)
        none = np.empty(0, np.float32)
        rows = Table(values, none, values[:, :0], np.empty(0, np.uint8))
        space = Workspace()
        active = Active(np.arange(500), np.zeros(500, np.float32), np.zeros((B, 1), np.int64))
        update = ROW_OPTIMIZERS.build("sgd").update(0.1)
        step = SparseStep.begin(rows, update, False, np.ones((B, D), np.float32), active, space, 2)
        step.finish(np.ones(B, np.float32), True)
        sizes.append(space.num_bytes)
    assert sizes[0] == sizes[1]


def test_a_beta_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="beta2 is 1"):
        ROW_OPTIMIZERS.build({"name": "adam_lite", "beta2": 1})


@pytest.mark.skipif(not fast_bfloat16(), reason="this processor has no tiles of bfloat16")
@pytest.mark.parametrize("size", [5, C])
def test_products_of_bfloat16_are_near_those_of_float32(size: int) -> None:
    """Factors keep 8 bits, so sums are off by less than a hundredth of what they add up."""
    rng = np.random.default_rng(3)
    update = ROW_OPTIMIZERS.build("sgd").update(0.1)
    ids = rng.permutation(C)[:size]
    shift = rng.random(size).astype(np.float32)
    hidden = rng.standard_normal((B, D)).astype(np.float32)
    weight_B = rng.random(B).astype(np.float32)
    some = Active(ids, shift, rng.integers(0, size, (B, 1)))
    every = rng.integers(0, C, (B, 1))
    for begin, goal in ((SparseStep.begin, some), (FullStep.begin, every)):
        found = []
        for halves in (False, True):
            rows = table("sgd", True)
            step = begin(rows, update, halves, hidden, goal, Workspace(), 2)  # type: ignore[arg-type, operator]
            found.append((step.log_prob, step.finish(weight_B, True), rows.values))
        assert (found[0][0] != found[1][0]).any()
        for exact, near in zip(*found, strict=True):
            assert np.abs(near - exact).max() < 0.01 * np.abs(exact).max()
