"""Vectors given by key are where training begins, whatever the partitions of either run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedsvc.config import ModelConfig, TrainConfig
from embedsvc.export import export
from embedsvc.graph.optimizers import OPTIMIZERS
from embedsvc.trained import Trained
from embedsvc.training.trainer import train
from partitions import embeddings
from partitions.embeddings import SUFFIXES
from partitions.errors import ConfigError, DataError
from partitions.graph import Graph
from partitions.precision import DTYPES, nearest, widen

MakeGraph = Callable[..., Graph]
EDGES = [(f"u{i}", "buys", f"i {i * 7 % 15}") for i in range(40)]
MODEL = {"dim": 4, "init_scale": 0.1}
# A step size of almost nothing: what training ends with is what it began with.
STILL = TrainConfig(epochs=1, lr=1e-30, threads=1, batch_size=10, chunk_size=5, buffer=4)
LEARNING = STILL.model_copy(update={"lr": 0.1})


def a_graph(make_graph: MakeGraph, partitions: int, edges: Any = EDGES) -> Graph:
    parts = {"user": partitions, "item": partitions}
    return make_graph({"train": edges}, {"buys": ("user", "item")}, parts)


def by_key(trained: Trained, entity_type: str) -> dict[str, bytes]:
    keys = trained.graph.all_keys(entity_type).to_pylist()
    vectors = trained.gather(entity_type, np.arange(len(keys))).numpy()
    return {key: vector.tobytes() for key, vector in zip(keys, vectors, strict=True)}


def write(path: Path, keys: list[str], vectors: Any, format: str = "parquet") -> Path:
    rows = np.asarray(vectors, np.float32)
    with embeddings.writing(path, format, len(keys), rows.shape[1], {}) as add:
        add(pa.array(keys, pa.large_string()), rows)
    return path


@pytest.mark.parametrize("format", list(SUFFIXES))
@pytest.mark.parametrize("partitions", [1, 3])
def test_an_exported_model_is_where_another_begins(
    format: str, partitions: int, make_graph: MakeGraph, tmp_path: Path
) -> None:
    old = a_graph(make_graph, 1)
    train(old, tmp_path / "old", ModelConfig(**MODEL), LEARNING)
    users, items = export(Trained(old, tmp_path / "old"), tmp_path / "out", format)
    # The new graph has keys that the old one lacks, and lacks some that it has.
    new = a_graph(make_graph, partitions, [*EDGES[5:], ("new", "buys", "i 0")])
    files = {"user": users, "item": items}
    train(new, tmp_path / "new", ModelConfig(**MODEL, init_from=files), STILL)
    train(new, tmp_path / "fresh", ModelConfig(**MODEL), STILL)
    for name in files:
        before = by_key(Trained(old, tmp_path / "old"), name)
        fresh = by_key(Trained(new, tmp_path / "fresh"), name)
        after = by_key(Trained(new, tmp_path / "new"), name)
        assert after == {key: before.get(key, fresh[key]) for key in fresh}
        assert after != fresh
    assert "new" in after or name == "item"


@pytest.mark.parametrize(
    "settings",
    [
        *({"optimizer": name} for name in OPTIMIZERS),
        *({"precision": name, "optimizer": "adam"} for name in ("bfloat16", "float16")),
    ],
    ids=str,
)
def test_any_optimizer_and_precision_begins_at_given_vectors(
    settings: dict[str, Any], make_graph: MakeGraph, tmp_path: Path
) -> None:
    """Whatever it keeps of a given row says that the row is stored, and changes no step."""
    graph, keys = a_graph(make_graph, 2), [f"u{i}" for i in range(20)]
    given = np.random.default_rng(1).standard_normal((20, 4)).astype(np.float32)
    model = ModelConfig(**MODEL, init_from={"user": write(tmp_path / "u", keys, given)})
    still = TrainConfig.model_validate(STILL.model_dump() | settings)
    train(graph, tmp_path / "still", model, still)
    found = by_key(Trained(graph, tmp_path / "still"), "user")
    dtype = DTYPES[still.precision]
    for key, vector in zip(keys, widen(nearest(given, dtype)), strict=True):
        assert found[key] == vector.tobytes()
    learning = still.model_copy(update={"lr": 0.01})
    train(graph, tmp_path / "learning", model, learning)
    moved = by_key(Trained(graph, tmp_path / "learning"), "user")
    after = np.stack([np.frombuffer(moved[key], np.float32) for key in keys])
    assert 0 < np.abs(after - given).max() < 1


def test_the_file_is_needed_once_and_a_resumed_run_has_the_same_bits(
    make_graph: MakeGraph, tmp_path: Path, content_of: Any
) -> None:
    graph = a_graph(make_graph, 2)
    rng = np.random.default_rng(1)
    path = write(tmp_path / "u", [f"u{i}" for i in range(20)], rng.standard_normal((20, 4)))
    model = ModelConfig(**MODEL, init_from={"user": path})
    two = LEARNING.model_copy(update={"epochs": 2})
    train(graph, tmp_path / "whole", model, two)
    train(graph, tmp_path / "halves", model, LEARNING)
    path.unlink()
    train(graph, tmp_path / "halves", model, two)
    halves, whole = (content_of(graph, tmp_path / name) for name in ("halves", "whole"))
    assert halves == whole


def test_given_vectors_are_trained_as_others_are(make_graph: MakeGraph, tmp_path: Path) -> None:
    """From the very vectors of a fresh start the same model comes out, but for rounding."""
    graph = a_graph(make_graph, 1)
    train(graph, tmp_path / "still", ModelConfig(**MODEL), STILL)
    files = export(Trained(graph, tmp_path / "still"), tmp_path / "out", "arrow")
    given = ModelConfig(**MODEL, init_from=dict(zip(("user", "item"), files, strict=True)))
    train(graph, tmp_path / "given", given, LEARNING)
    train(graph, tmp_path / "fresh", ModelConfig(**MODEL), LEARNING)
    for slot in graph.slots():
        found = [Trained(graph, tmp_path / name).vectors(slot) for name in ("given", "fresh")]
        np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "keys", "vectors", "error", "sentence"),
    [
        ("user", ["u1"], [[1, 2, 3]], ConfigError, "have 3 numbers and model.dim is 4. Make"),
        ("usr", ["u1"], [[1, 2, 3, 4]], ConfigError, "usr is not an entity type. Did you mean"),
        ("user", ["x"], [[1, 2, 3, 4]], DataError, "None of the keys of .* is a user of"),
        ("user", ["u1", "u2", "u1"], np.ones((3, 4)), DataError, "has the key 'u1' twice"),
        ("user", ["u1"], [[1, np.nan, 3, 4]], DataError, "'u1' has a number that is not finite"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_a_sentence(
    name: str,
    keys: list[str],
    vectors: Any,
    error: type[Exception],
    sentence: str,
    make_graph: MakeGraph,
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "given", keys, vectors)
    model = ModelConfig(**MODEL, init_from={name: path})
    with pytest.raises(error, match=sentence):
        train(a_graph(make_graph, 2), tmp_path / "checkpoint", model, STILL)


def test_a_key_twice_is_noticed_over_pieces(
    make_graph: MakeGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "_PIECE_NUMBERS", 4)
    path = write(tmp_path / "given", ["u1", "u2", "u1"], np.ones((3, 4)))
    model = ModelConfig(**MODEL, init_from={"user": path})
    with pytest.raises(DataError, match="has the key 'u1' twice"):
        train(a_graph(make_graph, 1), tmp_path / "checkpoint", model, STILL)
