"""Vectors made of features: a step equals a plain loop."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from embedsvc.graph.bags import FeatureBags, entity_vectors, pooled
from embedsvc.graph.step import ExactStep
from partitions.bags import Bags
from partitions.schema import Slot
from tests.embedsvc.graph.test_step import (
    DIM,
    LEFT,
    LR,
    RELATION_LR,
    RIGHT,
    a_batch,
    build,
    loop_loss,
    slope,
    tables_of,
)

FEATURES = Slot("f", 0)
# A feature twice, entities without any, features that are shared and one (4) that nobody has.
BAGS = [[2, 5, 2], [5], [], [0, 1], [6, 5], [3], []]


def packed(bags: list[list[int]]) -> Bags:
    starts = np.cumsum([0, *map(len, bags)])
    return Bags(starts, np.array([f for bag in bags for f in bag], np.uint32))


def means(table: np.ndarray, bags: list[list[int]]) -> np.ndarray:
    """By a plain loop."""
    found = np.zeros((len(bags), table.shape[1]))
    for row, bag in enumerate(bags):
        for feature in bag:
            for d in range(table.shape[1]):
                found[row, d] += table[feature, d] / len(bag)
    return found


def test_pooling_is_the_mean_and_its_gradient_is_right() -> None:
    bags = packed(BAGS)
    table = torch.randn(7, DIM, dtype=torch.float64, requires_grad=True)
    features, starts = FeatureBags(FEATURES, bags).of(torch.arange(len(BAGS)))
    found = pooled(table, features, starts)
    np.testing.assert_allclose(found.detach(), means(table.detach().numpy(), BAGS), rtol=1e-12)
    assert torch.autograd.gradcheck(lambda t: pooled(t, features, starts), (table,))


def test_entity_vectors_are_the_same_in_blocks_of_any_size(monkeypatch: Any) -> None:
    table = np.random.default_rng(1).standard_normal((7, DIM)).astype(np.float32)
    whole = entity_vectors(table, packed(BAGS))
    np.testing.assert_allclose(whole, means(table, BAGS), rtol=1e-6)
    assert not whole[[2, 6]].any()
    monkeypatch.setattr("embedsvc.graph.bags._BLOCK_ROWS", 2)
    assert entity_vectors(table, packed(BAGS)).tobytes() == whole.tobytes()
    assert entity_vectors(table, packed([])).shape == (0, DIM)


@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize(
    ("lhs", "rhs", "comparator"),
    [
        (LEFT, RIGHT, "dot"),
        (RIGHT, LEFT, "dot"),
        (RIGHT, RIGHT, "dot"),
        (FEATURES, RIGHT, "dot"),
        (LEFT, RIGHT, "l2"),
        (LEFT, RIGHT, "cos"),
    ],
    ids=["rhs", "lhs", "both sides", "an edge to its own features", "l2", "cos"],
)
def test_a_step_with_bags_equals_a_plain_loop(
    lhs: Slot, rhs: Slot, comparator: str, reciprocal: bool, plain: SimpleNamespace
) -> None:
    """RIGHT's vectors are means of rows of FEATURES."""
    kind = ("translation", comparator, "softmax")
    model = build(*kind, reciprocal)
    for table in model.parameters.values.values():
        table.add_(0.5)  # entities at 0 are not where l2 has no slope
    batch = a_batch(kind[0], lhs, rhs)
    bags = [[1], [5], [0, 4, 4], *BAGS[3:]] if comparator == "cos" else BAGS  # no slope at 0
    tables = tables_of({lhs, rhs, FEATURES} - {RIGHT})
    values: dict[Any, np.ndarray] = {s: t.vectors.astype(np.float64) for s, t in tables.items()}
    values |= {n: p.double().numpy().copy() for n, p in model.parameters.values.items()}
    state = {slot: table.state.astype(np.float64) for slot, table in tables.items()}

    def loss() -> float:
        made = means(values[FEATURES], bags)
        return loop_loss(plain, model, batch, kind, values | {RIGHT: made})

    before, gradient = loss(), slope(loss, values)
    for slot in tables:
        for row, g in enumerate(gradient[slot]):
            state[slot][row] += np.mean(g**2)
            if state[slot][row] > 0:
                values[slot][row] -= LR * g / (np.sqrt(state[slot][row]) + 1e-10)

    made = {RIGHT: FeatureBags(FEATURES, packed(bags))}
    step = ExactStep(model, LR, RELATION_LR, True, bags=made)
    assert step(tables, batch) == pytest.approx(before, rel=1e-5)
    for slot, table in tables.items():
        np.testing.assert_allclose(table.vectors, values[slot], rtol=3e-4, atol=3e-5)
        np.testing.assert_allclose(table.state, state[slot], rtol=3e-4, atol=3e-5)
