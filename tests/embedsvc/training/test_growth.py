"""A graph that grows by an append, and training that goes on from where it was."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedsvc.config import ModelConfig, TrainConfig
from embedsvc.graph.initial import initial_vectors
from embedsvc.trained import Trained
from embedsvc.training.trainer import train
from partitions.config import GraphConfig
from partitions.errors import ConfigError
from partitions.graph import Graph
from partitions.hashing import hash_keys
from partitions.importer import import_graph
from partitions.schema import Bucket, Slot

MODEL = ModelConfig(dim=4, operator="diagonal", reciprocal=True)


def graph_config(tmp_path: Path) -> GraphConfig:
    return GraphConfig.model_validate(
        {
            "data": tmp_path,
            "gate": False,
            "entities": {"user": {"partitions": 3}, "item": {}},
            "relations": {"*": {"lhs": "user", "rhs": "item"}},
            "inputs": [{"path": "*.tsv"}],
        }
    )


def write(path: Path, users: range, items: int, rel: str) -> None:
    rng = np.random.default_rng(users.start)
    rows = [f"u{user}\t{rel}\ti{item}\n" for user in users for item in rng.integers(0, items, 4)]
    path.write_text("".join(rows))


def config(**settings: object) -> TrainConfig:
    return TrainConfig.model_validate(
        {"epochs": 2, "batch_size": 20, "chunk_size": 10, "negatives": {"uniform": 5}, "buffer": 3}
        | settings
    )


@pytest.fixture
def grown(tmp_path: Path) -> tuple[Graph, Graph]:
    """A graph that was trained for two epochs, before and after new users, items, a relation."""
    write(tmp_path / "a.tsv", range(30), 10, "likes")
    import_graph(graph_config(tmp_path), tmp_path / "graph")
    before = Graph(tmp_path / "graph")
    train(before, tmp_path / "checkpoint", MODEL, config())
    write(tmp_path / "b.tsv", range(30, 40), 15, "buys")
    import_graph(graph_config(tmp_path), tmp_path / "graph", append=True)
    return before, Graph(tmp_path / "graph")


def vectors_by_key(trained: Trained) -> dict[str, bytes]:
    return by_key(trained.graph, {slot: trained.vectors(slot) for slot in trained.graph.slots()})


def first_vectors_by_key(graph: Graph) -> dict[str, bytes]:
    slots = graph.slots()
    hashes = {slot: hash_keys(graph.keys(slot)) for slot in slots}
    scale = MODEL.init_scale
    return by_key(graph, {s: initial_vectors(1, hashes[s], MODEL.dim, scale) for s in slots})


def by_key(graph: Graph, tables: dict[Slot, NDArray[np.float32]]) -> dict[str, bytes]:
    return {
        f"{slot.entity_type} {key}": row.tobytes()
        for slot, rows in tables.items()
        for key, row in zip(graph.keys(slot).to_pylist(), rows, strict=True)
    }


def test_a_checkpoint_is_read_with_the_graph_it_grew_into(
    grown: tuple[Graph, Graph], tmp_path: Path
) -> None:
    before, after = grown
    keys = {slot: before.manifest.num_rows[slot] for slot in before.slots()}
    assert all(after.num_rows(slot) >= rows for slot, rows in keys.items())
    found = vectors_by_key(Trained(after, tmp_path / "checkpoint"))
    assert {f"user u{n}" for n in range(40)} <= set(found)
    fresh = first_vectors_by_key(after)
    new = [f"user u{n}" for n in range(30, 40)]
    assert all(found[name] == fresh[name] for name in new), "new rows start where they would"
    assert any(found[f"user u{n}"] != fresh[f"user u{n}"] for n in range(30))


def test_training_goes_on_and_learns_the_new_entities(
    grown: tuple[Graph, Graph], tmp_path: Path
) -> None:
    _, after = grown
    start = vectors_by_key(Trained(after, tmp_path / "checkpoint"))
    report = train(after, tmp_path / "checkpoint", MODEL, config(epochs=3))
    assert report.resumed and report.num_edges == after.num_edges("train")
    end = vectors_by_key(Trained(after, tmp_path / "checkpoint"))
    assert all(start[f"user u{n}"] != end[f"user u{n}"] for n in range(30, 40))
    parameters = Trained(after, tmp_path / "checkpoint").model.parameters.values
    assert all(len(table) == 2 for table in parameters.values())


def test_only_changed_buckets_are_visited_if_asked(
    grown: tuple[Graph, Graph], tmp_path: Path
) -> None:
    _, after = grown
    changed = after.changed_buckets("train", 1)
    new_parts = hash_keys(after.all_keys("user").filter(is_new(after))) % np.uint64(3)
    assert changed == sorted(Bucket(part, part) for part in set(new_parts.tolist()))
    report = train(after, tmp_path / "checkpoint", MODEL, config(epochs=3, only_changed=True))
    assert report.num_edges == sum(after.num_edges("train", bucket) for bucket in changed)
    # It stays so when the same is asked again: the change is what came after the first import.
    again = train(after, tmp_path / "checkpoint", MODEL, config(epochs=4, only_changed=True))
    assert again.num_edges == report.num_edges


def is_new(graph: Graph) -> list[bool]:
    return [int(key[1:]) >= 30 for key in graph.all_keys("user").to_pylist()]


def test_a_graph_made_anew_is_not_taken_for_a_grown_one(
    grown: tuple[Graph, Graph], tmp_path: Path
) -> None:
    import_graph(graph_config(tmp_path), tmp_path / "graph")
    with pytest.raises(ConfigError) as caught:
        train(Graph(tmp_path / "graph"), tmp_path / "checkpoint", MODEL, config(epochs=3))
    assert "was trained on another graph" in str(caught.value)


def test_old_places_do_not_move(grown: tuple[Graph, Graph], tmp_path: Path) -> None:
    before, after = grown
    slot = Slot("user", 0)
    rows = before.manifest.num_rows[slot]
    first = after.manifest.key_files[slot][0]
    assert before.manifest.key_files[slot] == [first]
    assert after.keys(slot).to_pylist()[:rows] == before.keys(slot).to_pylist()
