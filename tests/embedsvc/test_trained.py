"""A graph and its checkpoint together: ids, vectors, edges."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedsvc.config import ModelConfig, TrainConfig
from embedsvc.graph.initial import initial_vectors
from embedsvc.trained import Trained
from embedsvc.training.trainer import train
from partitions.checkpoint import MANIFEST
from partitions.errors import DataError
from partitions.graph import Graph
from partitions.hashing import hash_keys

MakeGraph = Callable[..., Graph]

RELATIONS = {"buys": ("user", "item"), "tagged": ("item", "tag")}
EDGES = [(f"u{i}", "buys", f"i{i % 9}") for i in range(20)] + [
    (f"i{i}", "tagged", f"t{i % 2}") for i in range(9)
]


def a_graph(make_graph: MakeGraph, name: str = "graph", **splits: Any) -> Graph:
    return make_graph(splits or {"train": EDGES}, RELATIONS, {"user": 3, "item": 3}, name=name)


def test_ids_number_the_rows_of_all_partitions(
    make_graph: MakeGraph, make_trained: Any, vector_from: Any
) -> None:
    graph = a_graph(make_graph)
    trained = make_trained(graph, ModelConfig(dim=4), lambda t, key: vector_from(1, 4, t, key))
    for entity_type in ("user", "item", "tag"):
        keys = graph.all_keys(entity_type).to_pylist()
        ids = np.random.default_rng(1).integers(0, len(keys), 50)
        found = trained.gather(entity_type, ids).numpy()
        wanted = np.stack([vector_from(1, 4, entity_type, keys[i]) for i in ids])
        assert np.array_equal(found, wanted)
    edges = trained.edges("train")
    keys = {t: graph.all_keys(t).to_pylist() for t in graph.entity_types}
    named = [
        (keys[RELATIONS[r][0]][lhs], r, keys[RELATIONS[r][1]][rhs])
        for lhs, r, rhs in zip(
            edges.lhs, [graph.relations[x].name for x in edges.rel], edges.rhs, strict=True
        )
    ]
    assert sorted(named) == sorted(EDGES)
    assert len(trained.edges("test")) == 0


def test_rows_that_training_never_touched_are_what_they_were_at_the_start(
    make_graph: MakeGraph, tmp_path: Path
) -> None:
    """An entity of a test edge alone, never drawn as a negative, is in no file."""
    hidden = [("new user", "buys", "new item")]
    graph = a_graph(make_graph, train=EDGES, test=hidden)
    model = ModelConfig(dim=6, init_scale=0.25)
    config = TrainConfig(
        epochs=1,
        seed=5,
        negatives={"uniform": 0},
        batch_size=4,
        chunk_size=4,
        buffer=3,
        threads=1,
    )
    train(graph, tmp_path / "c", model, config)
    trained = Trained(graph, tmp_path / "c")
    [lhs], [rhs] = trained.edges("test").lhs, trained.edges("test").rhs
    for entity_type, at, key in (("user", lhs, "new user"), ("item", rhs, "new item")):
        hashes = hash_keys(graph.all_keys(entity_type))
        first = initial_vectors(5, hashes, 6, 0.25)
        now = trained.gather(entity_type, np.arange(len(first))).numpy()
        assert graph.all_keys(entity_type)[int(at)].as_py() == key
        assert np.array_equal(now[at], first[at])
        assert (np.delete(now, at, 0) != np.delete(first, at, 0)).any(axis=1).mean() > 0.8


def test_a_checkpoint_of_another_graph_is_refused(
    make_graph: MakeGraph, make_trained: Any, vector_from: Any, tmp_path: Path
) -> None:
    graph = a_graph(make_graph)
    make_trained(graph, ModelConfig(dim=4), lambda t, key: vector_from(1, 4, t, key))
    other = a_graph(make_graph, name="other", train=EDGES[1:])
    with pytest.raises(DataError, match=r"was trained on another graph than .*other holds now"):
        Trained(other, tmp_path / "checkpoint")


def test_a_folder_without_a_checkpoint_is_named(make_graph: MakeGraph, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing holds no checkpoint\. Run embedsvc train"):
        Trained(a_graph(make_graph), tmp_path / "nothing")


@pytest.mark.parametrize("how", ["truncated", "altered"])
def test_a_damaged_table_is_named_when_it_is_read(
    how: str, make_graph: MakeGraph, make_trained: Any, vector_from: Any, tmp_path: Path
) -> None:
    graph = a_graph(make_graph)
    trained = make_trained(graph, ModelConfig(dim=4), lambda t, key: vector_from(1, 4, t, key))
    slot = graph.slots()[0]
    path = tmp_path / "checkpoint" / trained.manifest.tables[slot].path
    data = bytearray(path.read_bytes())
    if how == "truncated":
        del data[-1]
    else:
        data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{path.name} .*(truncated|altered)"):
        trained.vectors(slot)


def test_settings_that_can_not_be_read_are_named(make_graph: MakeGraph, tmp_path: Path) -> None:
    graph, model = a_graph(make_graph), ModelConfig(dim=4)
    config = TrainConfig(epochs=1, buffer=3, lr_schedule={"name": "linear", "epochs": 3})
    train(graph, tmp_path, model, config)
    path = tmp_path / MANIFEST
    whole = json.loads(path.read_text())
    damaged = {"lr_schedule": {"name": "linear", "epochs": None}}
    for value in ({**whole["config"]["train"], **damaged}, None, 3):
        path.write_text(json.dumps(whole | {"config": whole["config"] | {"train": value}}))
        for use in (
            lambda: Trained(graph, tmp_path),
            lambda: train(graph, tmp_path, model, config),
        ):
            with pytest.raises(
                DataError, match=rf"{path} was altered.* its \[train\] can't be read"
            ):
                use()
    path.write_text(json.dumps(whole | {"config": {"train": whole["config"]["train"]}}))
    with pytest.raises(DataError, match=r"its \[model\] can't be read: 'model'"):
        Trained(graph, tmp_path)
