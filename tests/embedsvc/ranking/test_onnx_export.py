"""The exported graph against the torch model, on made-up rows of every shape of model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedsvc.ranking import onnx_export
from embedsvc.ranking.calibration import Calibration, fit
from embedsvc.ranking.onnx_export import export
from embedsvc.ranking.slots import Ftrl
from embedsvc.ranking.wide_deep import Deep, Wide, WideDeep
from partitions.errors import ConfigError, DataError
from partitions.features import Encoded, Layout, Slot
from partitions.ranker_files import fed

SLOTS = (
    Slot("user", 30, False, 0),
    Slot("tags", 7, True, 0),
    Slot("item", 20, False, 1),
    Slot("seen", 20, True, 1),
    Slot("both", 40, False, 2),
)
LAYOUT = Layout(SLOTS, ("age", "age.missing", "taste.0"), frozenset({"both"}))
EVERY = frozenset(slot.name for slot in SLOTS)
WIDE = Wide(EVERY, LAYOUT.dense, Ftrl(0.3, 1.0, 0.05, 0.1))
DIMS = {"user": 4, "tags": 4, "item": 6, "seen": 3}
DEEP = Deep(DIMS, LAYOUT.dense, (8, 5), dropout=0.1, lr=0.1, row_lr=0.3, init_scale=0.3)
SIDES = frozenset({"user", "tags", "age"}), frozenset({"item", "seen", "taste"})
MODELS: dict[str, tuple[Wide | None, Deep | None]] = {
    "joint": (WIDE, DEEP),
    "wide": (WIDE, None),
    "deep": (None, DEEP),
    "towers": (WIDE, Deep(DIMS, LAYOUT.dense, (8, 5), towers=SIDES)),
    "shallow": (WIDE, Deep({"seen": 3, "user": 4}, ("taste.0",), ())),
    "picked": (
        Wide(frozenset({"both", "tags"}), ("age.missing",), Ftrl(0.3, l1=0.5)),
        Deep({"item": 5}, (), (6,)),
    ),
}


def batch_of(seed: int, rows: int = 32) -> Encoded:
    rng = np.random.default_rng(seed)
    sizes = [slot.size for slot in SLOTS if not slot.bag]
    single = np.stack([rng.integers(0, size, rows) for size in sizes], 1).astype(np.int32)
    bags = []
    for slot in SLOTS:
        if slot.bag:
            ends = np.concatenate([[0], np.cumsum(rng.integers(0, 4, rows))]).astype(np.int64)
            bags.append((rng.integers(0, slot.size, ends[-1]).astype(np.int32), ends))
    return Encoded(single, tuple(bags), rng.normal(size=(rows, 3)).astype(np.float32))


def trained(name: str, tasks: int = 1, positive_weight: Sequence[float] | None = None) -> WideDeep:
    wide, deep = MODELS[name]
    model = WideDeep(LAYOUT, wide, deep, num_tasks=tasks, positive_weight=positive_weight, seed=3)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)  # of dropout
    for step in range(60):
        labels = rng.integers(0, 2, (32, tasks)).astype(np.float32)
        model.learn(batch_of(step), labels, np.ones(32, np.float32))
    return model.eval()


def said(graph: onnx.ModelProto, rows: Encoded) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    logit, probability = session.run(["logit", "probability"], fed(rows))
    return logit, probability


def truth(
    model: WideDeep, rows: Encoded, calibration: Sequence[Calibration]
) -> tuple[np.ndarray, np.ndarray]:
    logit = model(rows).numpy().astype(np.float64) - np.log(model.positive_weight.astype(float))
    tasks = [task(z) for task, z in zip(calibration, logit.T, strict=True)]
    return logit, np.stack(tasks, 1)


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("tasks", [1, 3])
def test_a_thousand_rows_agree(name: str, tasks: int) -> None:
    model = trained(name, tasks, [1.0, 4.0, 0.5][:tasks])
    rows = batch_of(999, 1000)
    calibration = [Calibration(), Calibration("platt", 0.7, -0.4), Calibration()][:tasks]
    graph = export(model, calibration)
    onnx.checker.check_model(graph, full_check=True)
    for found, right in zip(said(graph, rows), truth(model, rows, calibration), strict=True):
        assert np.abs(found - right).max() < 1e-5
    assert np.ptp(said(graph, rows)[1]) > 0.05, "the model says the same of all"


def test_each_task_has_its_own_calibration() -> None:
    model, rows = trained("joint", 3), batch_of(5, 1000)
    logit, _ = truth(model, rows, [Calibration()] * 3)
    label = (np.random.default_rng(1).random(1000) < 0.5 + 0.3 * np.tanh(logit[:, 1])).astype(float)
    fitted = [fit(kind, logit[:, 1], label, np.ones(1000)) for kind in ("isotonic", "platt")]
    for calibration in ([*fitted, Calibration()], [fitted[0]] * 3, [Calibration(), *fitted]):
        found = said(export(model, calibration), rows)[1]
        assert np.abs(found - truth(model, rows, calibration)[1]).max() < 1e-5


def test_isotonic_of_few_distinct_rows_agrees() -> None:
    """Rows of equal logits, whose labels come in any order, and some that differ by rounding."""
    model, few = trained("joint"), batch_of(5, 6)
    rows = few.take(np.random.default_rng(2).integers(0, 6, 600))
    logit, _ = truth(model, rows, [Calibration()])
    shaken = logit[:, 0] * (1 + 1e-7 * np.random.default_rng(3).integers(-1, 2, 600))
    label = (np.random.default_rng(1).random(600) < 0.5 + 0.3 * np.tanh(shaken)).astype(float)
    for z in (logit[:, 0], shaken):
        fitted = fit("isotonic", z, label, np.ones(600))
        assert 1 < len(fitted.at) <= 6
        found = said(export(model, [fitted]), rows)[1]
        assert np.abs(found - truth(model, rows, [fitted])[1]).max() < 1e-5


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_isotonic_lines_equal_interpolation(data: st.DataObject) -> None:
    """Also beyond the outer knots, where knots fall together, and where there is but one."""
    number = st.floats(-3, 3, width=32)
    at = sorted(data.draw(st.lists(number, min_size=1, max_size=8)))
    share = st.floats(0, 1)
    rising = sorted(data.draw(st.lists(share, min_size=len(at), max_size=len(at))))
    asked = np.array([-9.0, 9.0, *data.draw(st.lists(number, max_size=8))])
    # Between knots of next to no distance, float32 logits say nothing.
    asked = asked[[all(z == k or abs(z - k) > 1e-4 for k in at) for z in asked]]
    task = Calibration("isotonic", at=tuple(at), probability=tuple(rising))
    graph = onnx_export._Graph()
    made = onnx_export._calibrated(graph, graph.columns("dense", [2], 3), [task])
    for name in ("logit", "probability"):
        graph.node("Identity", made, named=name)
    layout = Layout((), LAYOUT.dense, frozenset())
    model = WideDeep(layout, Wide(frozenset(), LAYOUT.dense), None)
    dense = np.zeros((len(asked), 3), np.float32)
    dense[:, 2] = asked
    rows = Encoded(np.empty((len(asked), 0), np.int32), (), dense)
    right = np.interp(asked, at, rising)
    close = [at.count(z) > 1 for z in asked]  # a jump: either end is right
    found = said(graph.finish(model), rows)[1][:, 0]
    assert np.abs(found - right)[~np.array(close, bool)].max(initial=0) < 1e-6


@pytest.mark.parametrize("name", list(MODELS))
def test_no_rows_and_empty_bags_are_rows_too(name: str) -> None:
    model = trained(name)
    rows = batch_of(7, 5)
    empty = np.empty(0, np.int32), np.zeros(6, np.int64)
    rows = Encoded(rows.single, (empty, empty), rows.dense)
    graph = export(model, [Calibration()])
    assert np.abs(said(graph, rows)[1] - truth(model, rows, [Calibration()])[1]).max() < 1e-5
    assert said(graph, rows.slice(0, 0))[1].shape == (0, 1)


def test_weights_that_l1_holds_at_zero_are_zero_in_the_file() -> None:
    model = trained("picked")
    graph = export(model, [Calibration()])
    [table] = [
        found
        for found in map(onnx.numpy_helper.to_array, graph.graph.initializer)
        if found.shape == (40, 1)  # `both` is the wide part's only slot of one id a row
    ]
    right = model.wide.ftrl.weights(model.slots.tables[4].wide)
    assert np.array_equal(table, right)
    assert 0 < (table == 0).sum() < 40


def test_a_model_of_nothing_is_refused() -> None:
    model = WideDeep(LAYOUT, Wide(frozenset(), ()), None)
    with pytest.raises(ConfigError, match="nothing to export"):
        export(model, [Calibration()])


def test_tables_above_what_a_file_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="fewer buckets"):
        export(trained("joint"), [Calibration()])


def test_the_file_is_the_same_each_time(tmp_path: Path) -> None:
    model: Any = trained("joint")
    first, second = (export(model, [Calibration()]).SerializeToString() for _ in range(2))
    assert first == second
