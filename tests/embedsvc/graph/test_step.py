"""One update equals a plain loop; rows without a gradient keep every bit."""

from collections.abc import Callable
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from embedsvc.graph.batches import Batch, Group
from embedsvc.graph.comparators import COMPARATORS
from embedsvc.graph.losses import LOSSES
from embedsvc.graph.model import GraphModel, RelationParameters
from embedsvc.graph.operators import OPERATORS
from embedsvc.graph.step import ExactStep
from partitions.schema import Slot
from partitions.tables import Table

DIM, NUM_RELATIONS = 4, 3
LR, RELATION_LR = 0.1, 0.03
LEFT, RIGHT = Slot("e", 0), Slot("e", 1)


# With alpha = 0 the weights of negatives are constants, so that differences of values see them so.
LOSS_SPECS = {"self_adversarial": {"name": "self_adversarial", "alpha": 0.0}}


def build(operator: str, comparator: str, loss: str, reciprocal: bool) -> GraphModel:
    operators = {operator: OPERATORS.build(operator)}
    model = GraphModel(
        DIM,
        operators,
        (operator,) * NUM_RELATIONS,
        COMPARATORS.build(comparator),
        LOSSES.build(LOSS_SPECS.get(loss, loss)),
        None,
        reciprocal,
        RelationParameters.initial(operators, NUM_RELATIONS, DIM, reciprocal),
    )
    generator = torch.Generator().manual_seed(7)
    for name, values in model.parameters.values.items():
        values.normal_(generator=generator)
        model.parameters.state[name].uniform_(0.5, 2.0, generator=generator)
    return model


def a_batch(operator: str, lhs: Slot, rhs: Slot) -> Batch:
    """Entity 1 occurs on both sides, twice on one, and as a negative; relation 2 nowhere."""
    return Batch(
        Group(lhs, rhs, operator),
        lhs_KC=np.array([[1, 2, 1], [3, 0, 3]]),
        rel_KC=np.array([[0, 0, 0], [1, 1, 1]]),
        rhs_KC=np.array([[2, 1, 3], [1, 4, 1]]),
        real_KC=np.array([[True, True, True], [True, True, False]]),
        weight_KC=np.array([[1.0, 0.5, 2.0], [1.0, 1.0, 0.0]], np.float32),
        neg_lhs_KU=np.array([[1, 4], [2, 2]]),
        neg_rhs_KU=np.array([[0, 1], [4, 0]]),
    )


def tables_of(slots: set[Slot], num_rows: int = 7) -> dict[Slot, Table]:
    rng = np.random.default_rng(4)
    return {
        slot: Table(
            rng.standard_normal((num_rows, DIM)).astype(np.float32),
            np.where(np.arange(num_rows) % 2, rng.random(num_rows), 0).astype(np.float32),
        )
        for slot in sorted(slots)
    }


def loop_loss(
    plain: SimpleNamespace,
    model: GraphModel,
    batch: Batch,
    kind: tuple[str, str, str],
    values: dict[Any, np.ndarray],
) -> float:
    """The batch's loss with negatives in_batch, one score at a time, from float64 tables."""
    operator, comparator, loss = kind
    move, score, cost = (
        plain.operators[operator],
        plain.comparators[comparator],
        plain.losses[loss],
    )
    if loss == "self_adversarial":
        cost = partial(cost, alpha=0.0)
    left, right = values[batch.group.lhs].tolist(), values[batch.group.rhs].tolist()
    forward = values[operator].tolist()
    backward = values[f"{operator}.reverse"].tolist() if model.reciprocal else None
    total = 0.0
    for k, c in zip(*np.nonzero(batch.real_KC), strict=True):
        lhs, rel, rhs = (int(p[k, c]) for p in (batch.lhs_KC, batch.rel_KC, batch.rhs_KC))
        wrong_rhs = [*batch.neg_rhs_KU[k].tolist(), *batch.rhs_KC[k][batch.real_KC[k]].tolist()]
        wrong_lhs = [*batch.neg_lhs_KU[k].tolist(), *batch.lhs_KC[k][batch.real_KC[k]].tolist()]
        moved = move(left[lhs], forward[rel])
        pos = score(moved, right[rhs])
        edge = cost(pos, [score(moved, right[e]) for e in wrong_rhs if e != rhs])
        if backward is not None:
            back = move(right[rhs], backward[rel])
            neg = [score(back, left[e]) for e in wrong_lhs if e != lhs]
            edge += cost(score(back, left[lhs]), neg)
        else:
            neg = [score(move(left[e], forward[rel]), right[rhs]) for e in wrong_lhs if e != lhs]
            edge += cost(pos, neg)
        total += edge * float(batch.weight_KC[k, c])
    return total


def slope(loss: Callable[[], float], values: dict[Any, np.ndarray]) -> dict[Any, np.ndarray]:
    """The gradient by central differences, number by number: no autograd."""
    found = {}
    for name, table in values.items():
        found[name] = np.zeros_like(table)
        for at in np.ndindex(table.shape):
            kept, h = table[at], 1e-5
            table[at] = kept + h
            above = loss()
            table[at] = kept - h
            found[name][at] = (above - loss()) / (2 * h)
            table[at] = kept
    return found


KINDS = [
    *product(list(OPERATORS), ["dot"], ["softmax"], [False, True]),
    *product(["translation"], ["cos", "l2"], list(LOSSES), [False, True]),
    # Not every loss: where a sigmoid is saturated, differences of values have no digits left.
    *product(["translation"], ["squared_l2"], ["softmax"], [False, True]),
]


@pytest.mark.parametrize("rhs_slot", [LEFT, RIGHT], ids=["one_table", "two_tables"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k)))
def test_a_step_equals_a_plain_loop(
    kind: tuple[str, str, str, bool], rhs_slot: Slot, plain: SimpleNamespace
) -> None:
    model = build(*kind)
    batch = a_batch(kind[0], LEFT, rhs_slot)
    tables = tables_of({LEFT, rhs_slot})
    parameters = model.parameters
    values = {slot: table.vectors.astype(np.float64) for slot, table in tables.items()}
    values |= {name: p.double().numpy().copy() for name, p in parameters.values.items()}
    state = {slot: table.state.astype(np.float64) for slot, table in tables.items()}
    state |= {name: s.double().numpy().copy() for name, s in parameters.state.items()}

    def loss() -> float:
        return loop_loss(plain, model, batch, kind[:3], values)

    before, gradient = loss(), slope(loss, values)
    for name, table in values.items():
        for row in range(len(table)):
            g = gradient[name][row]
            if isinstance(name, Slot):  # one accumulator a row
                state[name][row] += np.mean(g**2)
                if state[name][row] > 0:
                    table[row] -= LR * g / (np.sqrt(state[name][row]) + 1e-10)
            else:  # one accumulator a number
                state[name][row] += g**2
                table[row] -= RELATION_LR * g / (np.sqrt(state[name][row]) + 1e-10)

    found = ExactStep(model, LR, RELATION_LR, in_batch=True)(tables, batch)

    assert found == pytest.approx(before, rel=1e-5)
    for slot, table in tables.items():
        np.testing.assert_allclose(table.vectors, values[slot], rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(table.state, state[slot], rtol=2e-4, atol=2e-5)
    for name in parameters.values:
        np.testing.assert_allclose(parameters.values[name], values[name], rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(parameters.state[name], state[name], rtol=2e-4, atol=2e-5)


def test_rows_and_relations_outside_the_batch_keep_every_bit() -> None:
    model = build("diagonal", "dot", "softmax", True)
    tables = tables_of({LEFT, RIGHT})
    before = {slot: (t.vectors.copy(), t.state.copy()) for slot, t in tables.items()}
    old = {name: array.copy() for name, array in model.parameters.arrays().items()}
    ExactStep(model, LR, RELATION_LR, in_batch=True)(tables, a_batch("diagonal", LEFT, RIGHT))
    for slot, inside in ((LEFT, [0, 1, 2, 3, 4]), (RIGHT, [0, 1, 2, 3, 4])):
        outside = [5, 6]
        vectors, state = before[slot]
        assert np.array_equal(tables[slot].vectors[outside], vectors[outside])
        assert np.array_equal(tables[slot].state[outside], state[outside])
        assert (tables[slot].vectors[inside] != vectors[inside]).any(axis=1).all()
        assert (tables[slot].state[inside] > state[inside]).all()
    for name, array in model.parameters.arrays().items():
        assert np.array_equal(array[2], old[name][2])
        assert (array[:2] != old[name][:2]).any()


def test_a_row_without_gradient_keeps_every_bit_and_is_not_marked_as_touched() -> None:
    """Every margin is met, so the ranking loss has no slope anywhere."""
    model = build("identity", "dot", "ranking", False)
    vectors = np.zeros((5, DIM), np.float32)
    vectors[:, 3] = -0.0  # a sign that a careless update would wash out
    vectors[[0, 1], 0] = 9
    table = Table(vectors.copy(), np.zeros(5, np.float32))
    batch = Batch(
        Group(LEFT, LEFT, "identity"),
        lhs_KC=np.array([[0]]),
        rel_KC=np.array([[0]]),
        rhs_KC=np.array([[1]]),
        real_KC=np.array([[True]]),
        weight_KC=np.ones((1, 1), np.float32),
        neg_lhs_KU=np.array([[2, 3]]),
        neg_rhs_KU=np.array([[3, 4]]),
    )
    assert ExactStep(model, LR, LR, in_batch=False)({LEFT: table}, batch) == 0
    assert table.vectors.tobytes() == vectors.tobytes()
    assert (table.state == 0).all()
