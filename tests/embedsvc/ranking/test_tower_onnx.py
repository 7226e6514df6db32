"""The graph of a tower gives the vectors that the tower gives, on histories of every form."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from embedsvc.ranking import tower_onnx
from embedsvc.ranking.tower_onnx import export_tower
from embedsvc.ranking.towers import POOLINGS, HistoryTower
from partitions.errors import DataError

ITEMS, DIM, NEWEST = 30, 6, 7
LEARNT = np.arange(ITEMS) % 5 != 3

EACH = pytest.mark.parametrize("pooling", list(POOLINGS))


def a_tower(pooling: str, hidden: int = 0) -> HistoryTower:
    """Of which every parameter does something."""
    tower = HistoryTower(ITEMS, DIM, pooling=pooling, max_history=NEWEST, hidden=hidden, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tower.dense_parameters():
            parameter.normal_(generator=generator)
    return tower.eval()


def exported(tower: HistoryTower, newest: int | None = NEWEST) -> onnx.ModelProto:
    return export_tower(tower, tower.table.weight.detach().numpy()[LEARNT], LEARNT, newest)


def said(graph: onnx.ModelProto, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    x, query = session.run(["x", "query"], {"history": history})
    return x, query


def histories(width: int, num: int = 200) -> np.ndarray:
    """Padding on the left, on the right, in between, and nothing else; items nobody learnt."""
    rng = np.random.default_rng(width)
    found = rng.integers(0, ITEMS, (num, width))
    for row, kind in zip(found, np.arange(num) % 5, strict=True):
        size = rng.integers(width + 1)
        if kind < 2:
            row[: width - size] = -1
        elif kind == 2:
            row[size:] = -1
        elif kind == 3:
            row[rng.random(width) < 0.5] = -1
    found[0] = -1
    return found


@EACH
@pytest.mark.parametrize("hidden", [0, 4])
@pytest.mark.parametrize("width", [1, NEWEST, 12])
def test_onnxruntime_agrees_with_torch(pooling: str, hidden: int, width: int) -> None:
    tower, history = a_tower(pooling, hidden), histories(width)
    graph = exported(tower)
    onnx.checker.check_model(graph, full_check=True)
    seen = history[:, -NEWEST:]
    seen = np.where((seen >= 0) & LEARNT[seen], seen, -1)
    with torch.no_grad():
        wanted = tower(torch.from_numpy(seen)).numpy()
    x, query = said(graph, history)
    np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-5)
    assert np.array_equal(query, np.column_stack([x, np.ones(len(x), np.float32)]))
    assert np.abs(wanted[1:] - wanted[0]).max(axis=1).mean() > 0.1  # histories make a difference


@EACH
def test_nobody_and_histories_of_nothing_are_asked_too(pooling: str) -> None:
    tower = a_tower(pooling)
    graph = exported(tower)
    assert said(graph, np.empty((0, 3), np.int64))[1].shape == (0, DIM + 1)
    x, _ = said(graph, np.full((3, 4), -1))
    np.testing.assert_allclose(x, tower.bias.detach().numpy()[None].repeat(3, 0), atol=1e-6)


def test_without_a_bound_a_mean_is_of_all() -> None:
    tower, history = a_tower("mean"), np.array([[0, 1, 2] * 5])
    rows = tower.table.weight.detach().numpy()
    x, _ = said(exported(tower, None), history)
    np.testing.assert_allclose(x[0], rows[:3].mean(0) + tower.bias.detach().numpy(), atol=1e-5)


def test_rows_beyond_what_a_file_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tower_onnx, "MAX_BYTES", 100)
    with pytest.raises(DataError, match="rows take 868 bytes; an ONNX file holds 100"):
        exported(a_tower("mean"))


@EACH
@pytest.mark.parametrize("hidden", [0, 4])
def test_features_of_who_asks_are_one_more_input(pooling: str, hidden: int) -> None:
    tower = HistoryTower(
        ITEMS, DIM, pooling=pooling, max_history=NEWEST, hidden=hidden, feature_rows=5
    )
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(len(parameter)))
    history = histories(NEWEST)
    features = np.random.default_rng(0).integers(-1, 5, (len(history), 2))
    seen = np.where((history >= 0) & LEARNT[history], history, -1)
    tower.eval()
    with torch.no_grad():
        wanted = tower(torch.from_numpy(seen), torch.from_numpy(features)).numpy()
        without = tower(torch.from_numpy(seen)).numpy()
    session = onnxruntime.InferenceSession(exported(tower).SerializeToString())
    [x] = session.run(["x"], {"history": history, "features": features})
    np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=2e-5)
    nothing = (features < 0).all(1)
    np.testing.assert_array_equal(wanted[nothing], without[nothing])
    assert np.abs(wanted - without)[~nothing].max(1).min() > 0.01
