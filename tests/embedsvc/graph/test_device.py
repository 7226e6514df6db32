"""On the CPU the step of a GPU does what the exact step does, bit for bit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedsvc.config import NegativesConfig, TrainConfig
from embedsvc.graph import rounding
from embedsvc.graph.batches import Group
from embedsvc.graph.comparators import COMPARATORS
from embedsvc.graph.device import Copies, DeviceBatches, device_of, distinct
from embedsvc.graph.losses import LOSSES, REGULARIZERS
from embedsvc.graph.model import CPU, GraphModel, RelationParameters
from embedsvc.graph.operators import OPERATORS
from embedsvc.graph.optimizers import OPTIMIZERS
from embedsvc.graph.step import ExactBatches
from partitions.edges import Edges
from partitions.errors import ConfigError
from partitions.precision import DTYPES, nearest
from partitions.schema import Slot
from partitions.tables import Table

USER, ITEM = Slot("user", 0), Slot("item", 0)
SIZES = {USER: 30, ITEM: 40}
DIM, NUM_RELATIONS = 6, 3
ENDS = [(USER, ITEM), (ITEM, ITEM), (USER, ITEM)]


def a_model(**settings: Any) -> GraphModel:
    names = settings.pop("operators", ("complex_diagonal",) * NUM_RELATIONS)
    operators = {name: OPERATORS.build(name) for name in sorted(set(names))}
    reciprocal = settings.pop("reciprocal", False)
    model = GraphModel(
        DIM,
        operators,
        names,
        COMPARATORS.build(settings.pop("comparator", "dot")),
        LOSSES.build(settings.pop("loss", "softmax")),
        REGULARIZERS.build(settings.pop("regularizer", {"name": "n3", "weight": 0.05})),
        reciprocal,
        RelationParameters.initial(operators, NUM_RELATIONS, DIM, reciprocal),
        **settings,
    )
    generator = torch.Generator().manual_seed(7)
    for values in model.parameters.values.values():
        values.normal_(generator=generator)
    return model


def some_edges(num_edges: int = 230) -> Edges:
    rng = np.random.default_rng(5)
    rel = rng.integers(0, NUM_RELATIONS, num_edges).astype(np.uint8)
    sizes = np.array([[SIZES[slot] for slot in ends] for ends in ENDS])[rel]
    lhs, rhs = rng.integers(0, sizes.T).astype(np.uint32)
    return Edges(lhs, rel, rhs, rng.uniform(0.5, 2, num_edges).astype(np.float32))


def some_tables(optimizer: str, precision: str) -> dict[Slot, Table]:
    rng = np.random.default_rng(6)
    chosen, dtype = OPTIMIZERS.build(optimizer), DTYPES[precision]
    return {
        slot: Table(
            nearest(rng.standard_normal((rows, DIM)).astype(np.float32), dtype),
            np.zeros((rows, *chosen.state_shape(DIM)), np.float32),
            np.zeros(chosen.num_shared(DIM), np.float32),
        )
        for slot, rows in SIZES.items()
    }


def trained(
    model: GraphModel,
    device: torch.device | None,
    negatives: NegativesConfig,
    optimizer: str = "rowwise_adagrad",
    precision: str = "float32",
) -> tuple[int, float, dict[Slot, Table], dict[str, np.ndarray]]:
    """Of two passes: edges, loss, tables, operator parameters. device: None for the exact step."""
    groups = [Group(*ends, name) for ends, name in zip(ENDS, model.operator_of, strict=True)]
    tables: dict[Slot, Any] = some_tables(optimizer, precision)
    sizes = 0.1, 0.05, 20, 5, negatives, OPTIMIZERS.build(optimizer)
    if device is None:
        step: Any = ExactBatches(model, *sizes)
    else:
        step, copies = DeviceBatches(model, *sizes, device), Copies(device)
        tables = {slot: copies.place(table) for slot, table in tables.items()}
    count, loss = 0, 0.0
    for seed in (1, 2):
        for more, cost in step(tables, some_edges(), groups, [seed], lambda n: 1 - n / 1000):
            count, loss = count + more, loss + cost
    if device is not None:
        tables = {slot: copies.fetch(table) for slot, table in tables.items()}
    return count, loss, tables, model.parameters.arrays()


PLAIN = NegativesConfig(uniform=4)
CASES: list[tuple[dict[str, Any], NegativesConfig]] = [
    *(({"operators": (name,) * 3, "reciprocal": False}, PLAIN) for name in OPERATORS),
    *(({"operators": (name,) * 3, "reciprocal": True}, PLAIN) for name in OPERATORS),
    ({"operators": ("rotate", "affine", "identity"), "reciprocal": True}, PLAIN),
    *(({"comparator": name}, PLAIN) for name in COMPARATORS),
    *(({"loss": name, "comparator": "l2"}, PLAIN) for name in LOSSES),
    *(({"regularizer": name}, PLAIN) for name in REGULARIZERS),
    ({"dropout": 0.3, "relation_dropout": 0.2, "reciprocal": True}, PLAIN),
    ({"relation_weights": np.array([1, 0, 2], np.float32)}, PLAIN),
    ({"loss": "sampled_softmax"}, NegativesConfig(uniform=3, degree=4, alpha=0.75)),
    ({}, NegativesConfig(in_batch=False, uniform=4)),
    ({"reciprocal": True}, NegativesConfig(all=True)),
    ({}, NegativesConfig(all=True)),
]


def assert_same(found: Any, wanted: Any) -> None:
    assert found[0] == wanted[0] == 2 * len(some_edges())
    assert found[1] == pytest.approx(wanted[1], rel=1e-6)
    for slot, table in wanted[2].items():
        for part in ("vectors", "state", "shared"):
            assert np.array_equal(getattr(found[2][slot], part), getattr(table, part)), part
    for name, array in wanted[3].items():
        assert np.array_equal(found[3][name], array), name


@pytest.mark.parametrize(("settings", "negatives"), CASES, ids=str)
def test_the_device_step_equals_the_exact_one_bit_for_bit(
    settings: dict[str, Any], negatives: NegativesConfig
) -> None:
    wanted = trained(a_model(**settings), None, negatives)
    assert_same(trained(a_model(**settings), CPU, negatives), wanted)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_so_it_does_with_every_optimizer_and_in_16_bits(optimizer: str, precision: str) -> None:
    wanted = trained(a_model(), None, PLAIN, optimizer, precision)
    assert_same(trained(a_model(), CPU, PLAIN, optimizer, precision), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize(("settings", "negatives"), CASES, ids=str)
def test_a_gpu_learns_what_the_exact_step_learns(
    settings: dict[str, Any], negatives: NegativesConfig
) -> None:
    """But for the order of sums; and for what dropout draws, which is the device's own."""
    _, loss, tables, parameters = trained(a_model(**settings), torch.device("cuda", 0), negatives)
    _, wanted_loss, wanted, wanted_parameters = trained(a_model(**settings), None, negatives)
    if "dropout" in settings:
        assert loss == pytest.approx(wanted_loss, rel=0.1)
        return
    assert loss == pytest.approx(wanted_loss, rel=1e-4)
    for slot, table in wanted.items():
        np.testing.assert_allclose(tables[slot].vectors, table.vectors, rtol=1e-2, atol=1e-3)
    for name, array in wanted_parameters.items():
        np.testing.assert_allclose(parameters[name], array, rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_tables_come_back_from_a_gpu_as_they_went(precision: str) -> None:
    copies = Copies(torch.device("cuda", 0))
    for table in some_tables("adam", precision).values():
        back = copies.fetch(copies.place(table))
        for part in ("vectors", "state", "shared"):
            np.testing.assert_array_equal(getattr(back, part), getattr(table, part))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_distinct_rows_are_found_and_padded_by_the_spare_one(rows: list[int]) -> None:
    found, places = distinct(torch.tensor(rows), 10)
    once = sorted(set(rows))
    assert found.tolist() == once + [10] * (min(len(rows), 10) - len(once))
    assert found[places].tolist() == rows


def test_rounding_on_a_device_draws_the_same_bits() -> None:
    rng = np.random.default_rng(2)
    values = (rng.standard_normal((50, 9)) * 10.0 ** rng.integers(-40, 38, (50, 9))).astype("f4")
    values[0, :6] = [np.inf, -np.inf, np.nan, 0.0, -0.0, 1.0]
    rows = rng.integers(0, 1 << 31, 50)
    for key in (0, 5, (1 << 64) - 1, int(rng.integers(1 << 63)) * 2 + 1):
        wanted = rounding.stochastic(values, DTYPES["bfloat16"], np.uint64(key), rows)
        tensor = rounding.stochastic_bfloat16(torch.from_numpy(values), key, torch.from_numpy(rows))
        assert np.array_equal(tensor.view(torch.int16).numpy().view(np.uint16), wanted)


def test_the_spare_row_stays_zero_and_belongs_to_nobody() -> None:
    copies = Copies(CPU)
    table = some_tables("rowwise_adagrad", "float32")[ITEM]
    placed = copies.place(replace(table, vectors=table.vectors.copy()))
    assert placed.num_rows == SIZES[ITEM] and placed.dim == DIM
    model = a_model(operators=("identity",) * 3)
    step = DeviceBatches(model, 0.1, 0.1, 20, 5, PLAIN, OPTIMIZERS.build("rowwise_adagrad"), CPU)
    edges = Edges(*(np.zeros(7, np.uint32), np.ones(7, np.uint8), np.arange(7, dtype=np.uint32)))
    list(step({ITEM: placed}, edges, [Group(ITEM, ITEM, "identity")] * 3, [1]))
    assert not placed.vectors[-1].any() and not placed.state[-1].any()
    back = copies.fetch(placed)
    assert len(back.vectors) == len(back.state) == SIZES[ITEM]
    assert placed.largest_state() == back.largest_state() > 0
    assert placed.largest_number() == back.largest_number()


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "features", "sentence"),
    [
        ({"step": "exact"}, None, "step = exact runs on the CPU only. Set train.step=auto"),
        ({"precision": "float16"}, None, "device = cuda does not cover train.precision = float16"),
        ({}, "graph.entities.e.features", "device = cuda does not cover graph.entities.e.features"),
    ],
)
def test_what_a_gpu_does_not_cover_is_said(
    settings: dict[str, Any], features: str | None, sentence: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        device_of(TrainConfig.model_validate({"device": "cuda"} | settings), features)
    assert sentence in str(refused.value) and str(refused.value).endswith(".")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_said_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"CUDA.*or set train\.device=cpu\.$"):
        device_of(TrainConfig(device="cuda"), None)


@pytest.mark.parametrize("step", ["auto", "fast", "exact"])
def test_the_cpu_s_own_steps_need_no_device(step: Any) -> None:
    assert device_of(TrainConfig(step=step), "features are theirs to judge") is None


def test_a_gpu_has_larger_batches_unless_one_says_otherwise() -> None:
    assert TrainConfig().batch_size == 1000
    assert TrainConfig(device="cuda").batch_size == 10_000
    assert TrainConfig(device="cuda", batch_size=500).batch_size == 500
