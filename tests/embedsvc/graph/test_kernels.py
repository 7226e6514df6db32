"""The kernel does what the exact step does: loss, vectors, states and parameters of a chunk."""

from dataclasses import replace
from itertools import product
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given

from embedsvc.config import NegativesConfig
from embedsvc.graph import fast, kernels, products, rounding
from embedsvc.graph.batches import Batch, Group
from embedsvc.graph.comparators import COMPARATORS
from embedsvc.graph.fast import FastStep, Run
from embedsvc.graph.losses import LOSSES, REGULARIZERS
from embedsvc.graph.model import GraphModel, RelationParameters
from embedsvc.graph.operators import OPERATORS
from embedsvc.graph.step import ExactBatches, ExactStep
from partitions import precision
from partitions.edges import Edges
from partitions.precision import DTYPES
from partitions.schema import Slot
from partitions.tables import Table

LR, RELATION_LR = 0.1, 0.03
KEY = np.uint64(77)
COVERED_LOSSES = [name for name in LOSSES if type(LOSSES.build(name)) in fast._LOSSES]
LEFT, RIGHT = Slot("e", 0), Slot("e", 1)
products_needed = pytest.mark.skipif(not products.fast_bfloat16(), reason="no AMX here")


def build(
    operator: str,
    comparator: Any,
    loss: Any,
    reciprocal: bool,
    *,
    dim: int = 6,
    regularizer: Any = None,
    num_relations: int = 3,
) -> GraphModel:
    operators = {operator: OPERATORS.build(operator)}
    model = GraphModel(
        dim,
        operators,
        (operator,) * num_relations,
        COMPARATORS.build(comparator),
        LOSSES.build(loss),
        REGULARIZERS.build(regularizer) if regularizer else None,
        reciprocal,
        RelationParameters.initial(operators, num_relations, dim, reciprocal),
    )
    generator = torch.Generator().manual_seed(3)
    for name, values in model.parameters.values.items():
        values.add_(0.3 * torch.randn(values.shape, generator=generator))
        model.parameters.state[name].uniform_(0.5, 2.0, generator=generator)
    return model


def tables_of(slots: set[Slot], num_rows: int, dim: int, scale: float = 1.0) -> dict[Slot, Table]:
    """Every second row untouched so far."""
    rng = np.random.default_rng(4)
    return {
        slot: Table(
            (scale * rng.standard_normal((num_rows, dim))).astype(np.float32),
            np.where(np.arange(num_rows) % 2, rng.uniform(0.5, 1, num_rows), 0).astype(np.float32),
        )
        for slot in sorted(slots)
    }


def one_chunk(num_edges: int, num_rows: int, *, one_relation: bool, seed: int = 5) -> Edges:
    rng = np.random.default_rng([seed, num_edges])
    rel = np.full(num_edges, 1) if one_relation else rng.integers(0, 3, num_edges)
    return Edges(
        rng.integers(0, num_rows, num_edges).astype(np.uint32),
        rel.astype(np.uint8),
        rng.integers(0, num_rows, num_edges).astype(np.uint32),
        rng.uniform(0.2, 2, num_edges).astype(np.float32),
    )


def both_steps(
    model: GraphModel,
    edges: Edges,
    tables: dict[Slot, Table],
    rhs_slot: Slot,
    *,
    in_batch: bool,
    num_uniform: int = 0,
    padding: int = 0,
    versus_all: bool = False,
    halves: bool = False,
) -> tuple[tuple[float, dict[Any, np.ndarray]], tuple[float, dict[Any, np.ndarray]]]:
    """(loss, everything after the update) of the exact step, and of the fast one."""
    [operator] = model.operators
    group = Group(LEFT, rhs_slot, operator)
    num_rows = len(tables[LEFT].state)
    drawn = [np.empty(num_uniform, np.uint32) for _ in range(2)]
    for side in (0, 1):
        kernels.draw(KEY, 9, side, num_rows, drawn[side])
    if versus_all:
        drawn = [np.arange(num_rows)] * 2

    def padded(column: np.ndarray, value: Any) -> np.ndarray:
        return np.concatenate([column, np.full(padding, value, column.dtype)])[None]

    batch = Batch(
        group,
        lhs_KC=padded(edges.lhs, edges.lhs[0]).astype(np.int64),
        rel_KC=padded(edges.rel, edges.rel[0]).astype(np.int64),
        rhs_KC=padded(edges.rhs, edges.rhs[0]).astype(np.int64),
        real_KC=padded(np.ones(len(edges), np.bool_), False),
        weight_KC=padded(edges.weight, 0),
        neg_lhs_KU=drawn[0].astype(np.int64)[None],
        neg_rhs_KU=drawn[1].astype(np.int64)[None],
    )
    before = {slot: (t.vectors.copy(), t.state.copy()) for slot, t in tables.items()}
    parameters = {name: array.copy() for name, array in model.parameters.arrays().items()}

    def everything() -> dict[Any, np.ndarray]:
        found: dict[Any, np.ndarray] = {}
        for slot, table in tables.items():
            found[slot, "vectors"], found[slot, "state"] = table.vectors.copy(), table.state.copy()
        return found | {name: a.copy() for name, a in model.parameters.arrays().items()}

    exact = ExactStep(model, LR, RELATION_LR, in_batch)(tables, batch), everything()
    for slot, table in tables.items():
        table.vectors[:], table.state[:] = before[slot]
    model.parameters.load(parameters)
    sizes = (len(edges), in_batch, num_uniform, 1)
    step = FastStep(model, LR, RELATION_LR, *sizes, versus_all=versus_all, halves=halves)
    run = Run(group, 9, np.array([0, len(edges)]), np.arange(len(edges), dtype=np.uint32))
    num_edges, loss = step.train_run(tables, edges, run, KEY)
    assert num_edges == len(edges)
    return exact, (loss, everything())


def assert_equal(
    exact: tuple[float, dict[Any, np.ndarray]],
    fast: tuple[float, dict[Any, np.ndarray]],
    rtol: float = 1e-3,
) -> None:
    """A first update is lr times the gradient over its own length: where sums nearly cancel, what
    rounding leaves of it is blown up. So vectors may differ by what a gradient does that is off by
    1e-6 of the largest one in the chunk."""
    assert fast[0] == pytest.approx(exact[0], rel=2e-5, abs=2e-5)
    states = {name[0]: state for name, state in exact[1].items() if name[1] == "state"}
    largest = max(float(state.max()) for state in states.values())
    for name, wanted in exact[1].items():
        allowed = 1e-4 + rtol * np.abs(wanted)
        if name[1] == "vectors":
            length = np.maximum(states[name[0]], 1e-12 * largest) ** 0.5
            allowed = allowed + LR * 1e-6 * (largest**0.5 / np.maximum(length, 1e-30))[:, None]
        found = fast[1][name]
        assert (np.abs(found - wanted) <= allowed).all(), (name, found, wanted)


CASES = list(
    product(
        list(fast._OPERATORS),
        ["dot", {"name": "cos", "scale": 3.0}],
        ["softmax", "logistic", {"name": "ranking", "margin": 0.7}],
        [False, True],
        [False, True],
    )
)


@pytest.mark.parametrize("rhs_slot", [LEFT, RIGHT], ids=["one_table", "two_tables"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_chunk_equals_the_exact_step(case: tuple[Any, ...], rhs_slot: Slot) -> None:
    operator, comparator, loss, reciprocal, in_batch = case
    model = build(operator, comparator, loss, reciprocal, regularizer={"name": "n3"})
    edges = one_chunk(7, 12, one_relation=model.moves_candidates)
    tables = tables_of({LEFT, rhs_slot}, 12, model.dim)
    sizes = {"in_batch": in_batch, "num_uniform": 5, "padding": 2}
    assert_equal(*both_steps(model, edges, tables, rhs_slot, **sizes))


@pytest.mark.parametrize("rhs_slot", [LEFT, RIGHT], ids=["one_table", "two_tables"])
def test_a_chunk_of_bfloat16_is_that_of_float32_rounded(rhs_slot: Slot) -> None:
    """Bit for bit, but where the last digit of a float32 sum differs: then to the next number."""
    edges = one_chunk(40, 90, one_relation=True)
    group, starts = Group(LEFT, rhs_slot, "diagonal"), np.array([0, 40])
    short = tables_of({LEFT, rhs_slot}, 90, 50)
    for table in short.values():
        table.vectors = precision.nearest(table.vectors, DTYPES["bfloat16"])
    wide = {
        slot: Table(precision.widen(table.vectors), table.state.copy())
        for slot, table in short.items()
    }
    before = {slot: table.vectors.copy() for slot, table in short.items()}
    losses = []
    for tables in (short, wide):
        model = build("diagonal", "dot", "softmax", False, dim=50)
        step = FastStep(model, LR, RELATION_LR, 40, True, 10, 1)
        run = Run(group, 9, starts, np.arange(40, dtype=np.uint32))
        losses.append(step.train_run(tables, edges, run, KEY)[1])
    assert losses[0] == losses[1]
    rows = np.arange(90)
    negatives = np.empty(10, np.uint32)
    kernels.draw(KEY, 9, 0, 90, negatives)
    of_lhs = np.isin(rows, np.concatenate([edges.lhs, negatives]))
    for slot, table in short.items():
        assert (table.vectors != before[slot]).any()
        by_side = [
            rounding.stochastic(
                wide[slot].vectors, DTYPES["bfloat16"], rounding.key_of(KEY, 9, side), rows
            )
            for side in (0, 1)
        ]
        side = np.where(of_lhs, 0, 1) if rhs_slot == LEFT else np.full(90, slot == RIGHT)
        wanted = np.where(side[:, None] == 0, *by_side)
        same = table.vectors == wanted
        assert same.mean() > 0.99
        found = precision.widen(table.vectors)
        np.testing.assert_allclose(found, wide[slot].vectors, rtol=2**-7, atol=1e-30)
        np.testing.assert_allclose(table.state, wide[slot].state, rtol=1e-6)


@given(
    num_edges=st.integers(1, 40),
    num_uniform=st.integers(0, 70),
    num_rows=st.integers(1, 60),
    half_dim=st.integers(1, 20),
    odd=st.booleans(),
    operator=st.sampled_from(list(fast._OPERATORS)),
    comparator=st.sampled_from(["dot", {"name": "cos", "scale": 5.0}]),
    loss=st.sampled_from(COVERED_LOSSES),
    reciprocal=st.booleans(),
    in_batch=st.booleans(),
    regularized=st.booleans(),
    one_table=st.booleans(),
)
def test_chunks_of_any_size_equal_the_exact_step(
    num_edges: int,
    num_uniform: int,
    num_rows: int,
    half_dim: int,
    odd: bool,
    operator: str,
    comparator: Any,
    loss: str,
    reciprocal: bool,
    in_batch: bool,
    regularized: bool,
    one_table: bool,
) -> None:
    """Down to one edge, one row and no negatives; few rows are duplicates everywhere."""
    assume(in_batch or num_uniform)
    dim = 2 * half_dim + (odd and operator != "complex_diagonal")
    model = build(
        operator,
        comparator,
        loss,
        reciprocal,
        dim=dim,
        regularizer="n3" if regularized else None,
    )
    edges = one_chunk(num_edges, num_rows, one_relation=model.moves_candidates)
    rhs_slot = LEFT if one_table else RIGHT
    tables = tables_of({LEFT, rhs_slot}, num_rows, dim, scale=dim**-0.5)
    sizes = {"in_batch": in_batch, "num_uniform": num_uniform}
    assert_equal(*both_steps(model, edges, tables, rhs_slot, **sizes))


@pytest.mark.parametrize("spread", [0.1, 10.0], ids=["near", "far"])
@pytest.mark.parametrize("reciprocal", [False, True])
def test_softmax_over_scores_far_apart_equals_the_exact_step(
    reciprocal: bool, spread: float
) -> None:
    """Far apart, no shift serves all edges of a chunk: the other way round the exponentials."""
    model = build("diagonal", "dot", "softmax", reciprocal, dim=16)
    edges = one_chunk(20, 50, one_relation=model.moves_candidates)
    tables = tables_of({LEFT}, 50, 16)
    tables[LEFT].vectors[:25] *= spread
    sizes = {"in_batch": True, "num_uniform": 20}
    assert_equal(*both_steps(model, edges, tables, LEFT, **sizes))


@pytest.mark.parametrize("loss", COVERED_LOSSES)
@pytest.mark.parametrize("in_batch", [False, True])
def test_scores_of_ten_thousand_give_the_finite_loss_of_the_exact_step(
    loss: str, in_batch: bool
) -> None:
    model = build("identity", "dot", loss, False, dim=4)
    edges = one_chunk(6, 9, one_relation=False)
    tables = tables_of({LEFT}, 9, 4, scale=100.0)
    assert np.abs(tables[LEFT].vectors @ tables[LEFT].vectors.T).max() > 1e4
    exact, fast = both_steps(model, edges, tables, LEFT, in_batch=in_batch, num_uniform=4)
    assert np.isfinite(fast[0])
    assert all(np.isfinite(array).all() for array in fast[1].values())
    # A float32 of 1e4 is known to 1e-3, and so is the softmax of two such scores that nearly tie.
    assert_equal(exact, fast, rtol=5e-3)


def test_what_is_not_finite_shows_in_the_loss() -> None:
    for value in (np.nan, np.inf):
        for loss, in_batch in product(COVERED_LOSSES, [False, True]):
            model = build("identity", "dot", loss, False, dim=4)
            edges = one_chunk(6, 9, one_relation=False)
            tables = tables_of({LEFT}, 9, 4)
            tables[LEFT].vectors[:] = value
            step = FastStep(model, LR, LR, 6, in_batch, 3, 1)
            run = Run(Group(LEFT, LEFT, "identity"), 0, np.array([0, 6]), np.arange(6))
            assert not np.isfinite(step.train_run(tables, edges, run, KEY)[1]), (value, loss)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("halves", [False, pytest.param(True, marks=products_needed)])
@pytest.mark.parametrize("versus_all", [False, True])
@pytest.mark.parametrize("whole", [False, True], ids=["one_row", "all_rows"])
def test_what_is_not_finite_shows_in_the_loss_of_1_vs_all_and_of_bfloat16(
    whole: bool, versus_all: bool, halves: bool, value: float
) -> None:
    model = build("diagonal", "dot", "softmax", True, dim=4)
    edges = one_chunk(6, 9, one_relation=False)
    tables = tables_of({LEFT}, 9, 4)
    tables[LEFT].vectors[slice(None) if whole else edges.lhs[2]] = value
    step = FastStep(model, LR, LR, 6, not versus_all, 0, 1, versus_all=versus_all, halves=halves)
    run = Run(Group(LEFT, LEFT, "diagonal"), 0, np.array([0, 6]), np.arange(6))
    assert not np.isfinite(step.train_run(tables, edges, run, KEY)[1])


def test_a_row_without_gradient_keeps_every_bit_and_is_not_marked_as_touched() -> None:
    """Every margin is met, so the ranking loss has no slope anywhere."""
    model = build("identity", "dot", {"name": "ranking", "margin": 0.1}, False, dim=4)
    vectors = np.zeros((40, 4), np.float32)
    vectors[:, 3] = -0.0  # a sign that a careless update would wash out
    vectors[[0, 1], 0] = 9
    table = Table(vectors.copy(), np.zeros(40, np.float32))
    edges = Edges(*(np.array([x], np.uint32) for x in (0, 0, 1)))
    drawn = [np.empty(5, np.uint32), np.empty(5, np.uint32)]
    for side in (0, 1):
        kernels.draw(KEY, 0, side, 40, drawn[side])
    assert not {0, 1} & {*drawn[0].tolist(), *drawn[1].tolist()}
    step = FastStep(model, LR, LR, 1, False, 5, 1)
    run = Run(Group(LEFT, LEFT, "identity"), 0, np.array([0, 1]), np.arange(1))
    assert step.train_run({LEFT: table}, edges, run, KEY) == (1, 0)
    assert table.vectors.tobytes() == vectors.tobytes()
    assert (table.state == 0).all()


def test_exp_is_that_of_float64_to_single_precision() -> None:
    x = np.linspace(-79, 80, 20_001).astype(np.float32)
    found = np.array([kernels.exp(value) for value in x])
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=1e-5)
    assert [kernels.exp(np.float32(v)) for v in (-81, -1e4, -1e30)] == [0, 0, 0]


def test_negatives_are_drawn_evenly_and_apart() -> None:
    """Of 7 rows; 5 sigma of 70,000 draws. Another chunk, side or key draws anew."""
    drawn = np.empty(70_000, np.uint32)
    kernels.draw(KEY, 3, 0, 7, drawn)
    assert np.abs(np.bincount(drawn) - 10_000).max() < 5 * 10_000**0.5
    for key, chunk, side in [(KEY, 3, 1), (KEY, 4, 0), (np.uint64(78), 3, 0)]:
        other = np.empty_like(drawn)
        kernels.draw(key, chunk, side, 7, other)
        assert abs(np.mean(other == drawn) - 1 / 7) < 0.01
        again = np.empty_like(drawn)
        kernels.draw(key, chunk, side, 7, again)
        assert np.array_equal(again, other)


@products_needed
@pytest.mark.parametrize("rhs_slot", [LEFT, RIGHT], ids=["one_table", "two_tables"])
@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("in_batch", [False, True])
def test_products_of_bfloat16_are_exact_where_their_factors_are(
    reciprocal: bool, in_batch: bool, rhs_slot: Slot
) -> None:
    """Sums of small eighths, and the whole slopes of a hinge: nothing to round."""
    model = build("translation", "dot", {"name": "ranking", "margin": 0.7}, reciprocal)
    edges = one_chunk(7, 12, one_relation=model.moves_candidates)
    edges = replace(edges, weight=np.full(7, 0.5, np.float32))
    tables = tables_of({LEFT, rhs_slot}, 12, model.dim)
    for array in (*(table.vectors for table in tables.values()), *model.parameters.values.values()):
        array[:] = (8 * array).round() / 8
    sizes = {"in_batch": in_batch, "num_uniform": 5}
    assert_equal(*both_steps(model, edges, tables, rhs_slot, halves=True, **sizes))


@products_needed
@pytest.mark.parametrize(
    "case",
    [
        ("logistic", False, False),
        ("softmax", False, False),
        ("softmax", True, False),
        ("softmax", True, True),
    ],
)
@pytest.mark.parametrize("scale", [0.3, 1.0], ids=["small", "large"])
def test_products_of_bfloat16_move_rows_as_others_do(
    case: tuple[str, bool, bool], scale: float
) -> None:
    """Factors are off by 2^-9 at most, each its own way: what rows move by is off by far less than
    1 %. (A hinge is not so smooth.) Of large scores a softmax makes more, most of all where few
    candidates matter and what they move operators by cancels."""
    loss, reciprocal, versus_all = case
    model = build("complex_diagonal", "dot", loss, reciprocal, dim=40)
    edges = one_chunk(60, 700, one_relation=model.moves_candidates)
    tables = tables_of({LEFT}, 700, model.dim, scale=scale)
    for table in tables.values():
        table.state[:] = 1  # steps in proportion to gradients
    before = {(slot, "vectors"): table.vectors.copy() for slot, table in tables.items()}
    before |= {name: a.copy() for name, a in model.parameters.arrays().items()}
    sizes = {"in_batch": not versus_all, "num_uniform": 30, "versus_all": versus_all}
    exact, found = both_steps(model, edges, tables, LEFT, halves=True, **sizes)
    assert found[0] == pytest.approx(exact[0], rel=1e-3)
    for name, old in before.items():
        moved, wanted = found[1][name] - old, exact[1][name] - old
        allowed = 0.03 if scale == 1 and name[1] != "vectors" else 0.01
        assert np.linalg.norm(moved - wanted) <= allowed * np.linalg.norm(wanted), name


VERSUS_ALL = [
    (operator, reciprocal)
    for operator, reciprocal in product(fast._OPERATORS, (True, False))
    if reciprocal or operator == "identity"
]


@pytest.mark.parametrize("rhs_slot", [LEFT, RIGHT], ids=["one_table", "two_tables"])
@pytest.mark.parametrize("num_rows", [1, 5, 511, 512, 513, 1100])
@pytest.mark.parametrize("case", VERSUS_ALL, ids=lambda case: "-".join(map(str, case)))
def test_a_chunk_versus_all_equals_the_exact_step(
    case: tuple[str, bool], num_rows: int, rhs_slot: Slot
) -> None:
    operator, reciprocal = case
    model = build(operator, "dot", "softmax", reciprocal, regularizer={"name": "n3"})
    edges = one_chunk(9, num_rows, one_relation=False)
    tables = tables_of({LEFT, rhs_slot}, num_rows, model.dim)
    sizes = {"in_batch": False, "versus_all": True}
    assert_equal(*both_steps(model, edges, tables, rhs_slot, **sizes))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("num_edges", [9, 530])
@pytest.mark.parametrize("rows", [(700, 40), (40, 700)], ids=["left", "right"])
def test_1_vs_all_of_tables_of_different_size_equals_the_exact_step(
    rows: tuple[int, int], num_edges: int, dtype: str
) -> None:
    """With weights of relations; 530 edges are more than a tile has rows. Of bfloat16 either step
    draws which neighbour it rounds to."""
    model = replace(
        build("complex_diagonal", "dot", "softmax", True, regularizer={"name": "n3"}),
        relation_weights=np.array([0.5, 2.0, 0.0], np.float32),
    )
    rng = np.random.default_rng([6, num_edges])
    edges = Edges(
        rng.integers(0, rows[0], num_edges).astype(np.uint32),
        rng.integers(0, 3, num_edges).astype(np.uint8),
        rng.integers(0, rows[1], num_edges).astype(np.uint32),
        rng.uniform(0.2, 2, num_edges).astype(np.float32),
    )
    found = []
    for kind in ("exact", "fast"):
        tables = {
            slot: tables_of({slot}, size, model.dim)[slot]
            for slot, size in zip((LEFT, RIGHT), rows, strict=True)
        }
        if dtype == "bfloat16":
            tables = {
                slot: replace(table, vectors=precision.nearest(table.vectors, DTYPES[dtype]))
                for slot, table in tables.items()
            }
        parameters = RelationParameters.initial(model.operators, 3, model.dim, True)
        parameters.load({name: a.copy() for name, a in model.parameters.arrays().items()})
        mine = replace(model, parameters=parameters)
        group = [Group(LEFT, RIGHT, "complex_diagonal")] * 3
        versus_all = NegativesConfig.model_validate({"all": True})
        step: Any = ExactBatches(mine, LR, RELATION_LR, num_edges, num_edges, versus_all)
        if kind == "fast":
            step = FastStep(mine, LR, RELATION_LR, num_edges, False, 0, 1, versus_all=True)
        [(count, loss)] = step(tables, edges, group, [1, 2])
        assert count == num_edges
        content: dict[Any, np.ndarray] = {}
        for slot, table in tables.items():
            content[slot, "vectors"] = precision.widen(table.vectors)
            content[slot, "state"] = table.state
        found.append((loss, content | mine.parameters.arrays()))
    exact, found_fast = found
    if dtype == "bfloat16":
        for slot in (LEFT, RIGHT):
            a, b = (side[1].pop((slot, "vectors")) for side in (exact, found_fast))
            assert (np.abs(a - b) <= 2**-7 * np.maximum(np.abs(a), np.abs(b)) + 2e-4).all()
    assert_equal(exact, found_fast)
