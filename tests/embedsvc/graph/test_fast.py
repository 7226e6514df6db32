"""The fast step over a bucket: every edge once; the same negatives with any number of threads."""

import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from embedsvc.config import ModelConfig, TrainConfig
from embedsvc.graph import fast, kernels
from embedsvc.graph.batches import Group
from embedsvc.graph.comparators import COMPARATORS
from embedsvc.graph.fast import FastStep, chunk_runs, uncovered
from embedsvc.graph.losses import LOSSES, REGULARIZERS
from embedsvc.graph.model import GraphModel, RelationParameters
from embedsvc.graph.operators import OPERATORS
from embedsvc.graph.optimizers import OPTIMIZERS
from partitions.edges import Edges
from partitions.schema import Slot
from partitions.tables import Table

USER, ITEM, TAG = Slot("user", 1), Slot("item", 0), Slot("tag", 0)
NUM_ROWS = {USER: 50, ITEM: 30, TAG: 7}
# Relations 0 and 2 can share a chunk, the others can't.
GROUPS = [
    Group(USER, ITEM, "diagonal"),
    Group(USER, ITEM, "identity"),
    Group(USER, ITEM, "diagonal"),
    Group(ITEM, TAG, "diagonal"),
]
KEY = np.uint64(12)


def random_edges(num_edges: int, groups: list[Group] = GROUPS) -> Edges:
    rng = np.random.default_rng(num_edges)
    rel = rng.integers(0, len(groups), num_edges).astype(np.uint8)
    rows = np.array([[NUM_ROWS[g.lhs], NUM_ROWS[g.rhs]] for g in groups])[rel].reshape(-1, 2)
    return Edges(
        rng.integers(0, rows[:, 0]).astype(np.uint32),
        rel,
        rng.integers(0, rows[:, 1]).astype(np.uint32),
        rng.random(num_edges).astype(np.float32),
    )


@given(
    num_edges=st.integers(0, 300),
    chunk_size=st.integers(1, 70),
    by_relation=st.booleans(),
    one_group=st.booleans(),
    run_edges=st.sampled_from([1, 40, 1000]),
)
def test_every_edge_is_in_one_chunk_of_its_own_kind(
    num_edges: int, chunk_size: int, by_relation: bool, one_group: bool, run_edges: int
) -> None:
    groups = GROUPS[:1] if one_group else GROUPS
    edges = random_edges(num_edges, groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "_LEAST_RUN_EDGES", run_edges)
        runs = list(chunk_runs(edges, groups, chunk_size, KEY, by_relation=by_relation))
    seen = np.concatenate([run.rows for run in runs] or [np.zeros(0)])
    assert sorted(seen.tolist()) == list(range(num_edges))
    lengths: dict[Any, list[int]] = {}
    next_chunk = 0
    for run in runs:
        assert run.first_chunk == next_chunk
        next_chunk += len(run.starts) - 1
        assert run.starts[0] == 0 and run.starts[-1] == len(run.rows) > 0
        for begin, end in zip(run.starts[:-1], run.starts[1:], strict=True):
            rel = edges.rel[run.rows[begin:end]]
            assert {groups[r] for r in rel} == {run.group}
            assert not by_relation or len(set(rel.tolist())) == 1
            lengths.setdefault(int(rel[0]) if by_relation else run.group, []).append(end - begin)
    for sizes in lengths.values():  # whole chunks, but for one
        assert min(sizes) > 0 and sum(size != chunk_size for size in sizes) <= 1
        assert max(sizes) <= chunk_size


def test_the_order_is_shuffled_by_its_key_alone() -> None:
    edges = random_edges(200)
    orders = [
        [run.rows.tolist() for run in chunk_runs(edges, GROUPS, 10, key, by_relation=False)]
        for key in (KEY, KEY, np.uint64(13))
    ]
    assert orders[0] == orders[1] != orders[2]


def test_a_shuffle_reaches_every_order_alike() -> None:
    """The 24 orders of 4 edges; 5 sigma of 24,000 shuffles."""
    order = np.empty(4, np.uint32)
    counts: Counter[tuple[int, ...]] = Counter()
    for key in np.random.default_rng(1).integers(0, 1 << 63, 24_000):
        fast._shuffle(np.uint64(key), order)
        counts[tuple(order.tolist())] += 1
    assert len(counts) == 24
    assert max(abs(count - 1000) for count in counts.values()) < 5 * 1000**0.5


# --- threads -------------------------------------------------------------------------------------


def a_step(threads: int, lr: float = 0.1, relation_weights: Any = None) -> FastStep:
    operators = {name: OPERATORS.build(name) for name in ("diagonal", "identity")}
    model = GraphModel(
        8,
        operators,
        tuple(group.operator for group in GROUPS),
        COMPARATORS.build("dot"),
        LOSSES.build("softmax"),
        None,
        True,
        RelationParameters.initial(operators, len(GROUPS), 8, True),
        relation_weights,
    )
    return FastStep(model, lr, lr, 10, True, 5, threads)


def trained(threads: int, lr: float = 0.1) -> tuple[list[tuple[int, float]], dict[Any, bytes]]:
    step = a_step(threads, lr)
    rng = np.random.default_rng(2)
    tables = {
        slot: Table(rng.standard_normal((rows, 8)).astype(np.float32), np.zeros(rows, np.float32))
        for slot, rows in NUM_ROWS.items()
    }
    pieces = list(step(tables, random_edges(5000), GROUPS, [1, 2, 3]))
    found: dict[Any, bytes] = {}
    for slot, table in tables.items():
        found[slot] = table.vectors.tobytes() + table.state.tobytes()
    found |= {name: a.tobytes() for name, a in step.model.parameters.arrays().items()}
    return pieces, found


def test_one_thread_gives_the_same_bits_again() -> None:
    first, second = trained(1), trained(1)
    assert first == second
    assert sum(num_edges for num_edges, _ in first[0]) == 5000


def test_threads_share_the_edges_and_learn_alike() -> None:
    """Which of two updates of a row comes first differs, and little else."""
    [alone, _], [together, _] = trained(1), trained(3)
    assert [n for n, _ in together] == [n for n, _ in alone]
    loss = [sum(loss for _, loss in pieces) for pieces in (alone, together)]
    assert loss[1] == pytest.approx(loss[0], rel=0.02)


def test_the_number_of_threads_changes_no_edge_s_place_and_no_negative(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without learning, a run's loss depends on its chunks and negatives alone."""
    alone, together = trained(1, lr=1e-30)[0], trained(4, lr=1e-30)[0]
    assert alone == together
    monkeypatch.setattr(
        fast.kernels, "train_chunks", lambda kind, key, *rest: _train(kind, key + KEY, *rest)
    )
    assert trained(1, lr=1e-30)[0] != alone, "other negatives would have shown"


_train = kernels.train_chunks


def test_a_broken_off_bucket_leaves_no_thread_at_work() -> None:
    step = a_step(2)
    tables = {slot: Table(*_ones(rows)) for slot, rows in NUM_ROWS.items()}
    pieces = step(tables, random_edges(50_000), GROUPS, [1])
    next(pieces)
    assert any(thread.name.startswith("hogwild") for thread in threading.enumerate())
    pieces.close()
    assert not any(thread.name.startswith("hogwild") for thread in threading.enumerate())


def _ones(rows: int) -> tuple[Any, Any]:
    return np.full((rows, 8), 0.1, np.float32), np.zeros(rows, np.float32)


# --- what it covers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, None),
        ({"comparator": {"name": "cos", "scale": 10.0}, "regularizer": "n3"}, None),
        ({"operators": {"r": "complex_diagonal"}, "loss": "ranking"}, None),
        ({"relation_weights": {"r": 2.0}}, None),
        ({"comparator": "l2"}, "model.comparator = l2"),
        ({"comparator": "squared_l2"}, "model.comparator = squared_l2"),
        ({"operator": "affine"}, "model.operator = affine"),
        ({"operators": {"r": "rotate"}}, "model.operator = rotate"),
        ({"loss": "sampled_softmax"}, "model.loss = sampled_softmax"),
        ({"regularizer": "l2"}, "model.regularizer = l2"),
        ({"dropout": 0.1}, "model.dropout"),
        ({"relation_dropout": 0.1}, "model.relation_dropout"),
    ],
)
def test_what_is_not_covered_is_said(settings: dict[str, Any], found: str | None) -> None:
    assert uncovered(ModelConfig.model_validate(settings), TrainConfig()) == found


def test_an_operator_that_no_relation_uses_is_not_held_against_the_fast_step() -> None:
    model = ModelConfig(operator="rotate", operators={"r": "diagonal", "s": "identity"})
    assert uncovered(model, TrainConfig(), ["r", "s"]) is None
    assert uncovered(model, TrainConfig(), ["r", "s", "t"]) == "model.operator = rotate"
    every = TrainConfig.model_validate({"negatives": {"all": True}})
    assert uncovered(model, every, ["s"]) is None
    assert (
        uncovered(model, every, ["r", "s"]) == "train.negatives.all with model.reciprocal = false"
    )


def test_drawing_by_degree_is_not_covered() -> None:
    train = TrainConfig.model_validate({"negatives": {"degree": 5}})
    assert uncovered(ModelConfig(), train) == "train.negatives.degree"


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"operator": "diagonal", "reciprocal": True}, None),
        ({"operator": "identity"}, None),
        ({"operator": "diagonal"}, "model.reciprocal = false"),
        ({"operators": {"r": "diagonal"}}, "model.reciprocal = false"),
        ({"comparator": "cos", "reciprocal": True}, "model.comparator = cos"),
        ({"loss": "logistic", "reciprocal": True}, "model.loss = logistic"),
    ],
)
def test_what_1_vs_all_does_not_cover_is_said(settings: dict[str, Any], found: str | None) -> None:
    train = TrainConfig.model_validate({"negatives": {"all": True}})
    reason = f"train.negatives.all with {found}" if found else None
    model = ModelConfig.model_validate({"operator": "identity"} | settings)
    assert uncovered(model, train) == reason


def test_other_optimizers_are_not_covered() -> None:
    for name in OPTIMIZERS:
        train = TrainConfig(optimizer=name)
        found = None if name == "rowwise_adagrad" else f"train.optimizer = {name}"
        assert uncovered(ModelConfig(), train) == found


def test_float16_is_not_covered() -> None:
    for name in ("float32", "bfloat16", "float16"):
        found = "train.precision = float16" if name == "float16" else None
        assert uncovered(ModelConfig(), TrainConfig(precision=name)) == found


def test_rates_and_relation_weights_multiply_step_sizes_and_edge_weights() -> None:
    edges, seen = random_edges(3000), list[int]()
    weights = np.array([1.0, 0.5, 2.0, 0.0], np.float32)
    assert edges.weight is not None
    weighed = replace(edges, weight=edges.weight * weights[edges.rel])

    def twice(num_edges: int) -> float:
        seen.append(num_edges)
        return 2.0

    found = []
    for step, used, rate in [
        (a_step(1, lr=0.1), weighed, lambda num_edges: 1.0),
        (a_step(1, lr=0.05), weighed, twice),
        (a_step(1, lr=0.1, relation_weights=weights), edges, lambda num_edges: 1.0),
    ]:
        tables = {slot: Table(*_ones(rows)) for slot, rows in NUM_ROWS.items()}
        pieces = list(step(tables, used, GROUPS, [1], rate))
        parameters = {name: a.tobytes() for name, a in step.model.parameters.arrays().items()}
        rows = {slot: table.vectors.tobytes() for slot, table in tables.items()}
        found.append((pieces, parameters, rows))
    assert found[0] == found[1] == found[2]
    assert seen == [num_edges for num_edges, _ in found[1][0]]  # asked once a piece, in their order


def test_whatever_is_registered_anew_is_not_covered_unasked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each registry, with a class that the kernel has never heard of."""
    for registry, base, settings in [
        (COMPARATORS, "dot", {"comparator": "new"}),
        (LOSSES, "softmax", {"loss": "new"}),
        (REGULARIZERS, "n3", {"regularizer": "new"}),
        (OPERATORS, "diagonal", {"operator": "new"}),
        (OPTIMIZERS, "rowwise_adagrad", {"optimizer": "new"}),
    ]:
        new = type("New", (type(registry.build(base)),), {})
        monkeypatch.setitem(registry._classes, "new", new)
        [setting] = settings
        table = "train" if setting == "optimizer" else "model"
        model = ModelConfig.model_validate(settings if table == "model" else {})
        train = TrainConfig.model_validate(settings if table == "train" else {})
        assert uncovered(model, train) == f"{table}.{setting} = new"


def test_the_last_of_those_who_overlap_puts_back_blas_threads() -> None:
    """As two layers do, each in a thread of its own, where the first to come is first to go."""
    blas = fast._scipy_openblas()
    if blas is None:
        pytest.skip("scipy has no OpenBLAS of its own")
    before = blas.scipy_openblas_get_num_threads()
    blas.scipy_openblas_set_num_threads(2)
    try:
        first, second = fast.one_blas_thread(), fast.one_blas_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert blas.scipy_openblas_get_num_threads() == 1  # the second is inside
        second.__exit__(None, None, None)
        assert blas.scipy_openblas_get_num_threads() == 2
    finally:
        blas.scipy_openblas_set_num_threads(before)
