"""Who asks is a vector of what he had before the moment he is asked about, whatever was trained."""

from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from embedsvc import publish as publishing
from embedsvc.config import OutputConfig, PublishConfig, TrainConfig
from embedsvc.evaluation.recommend import evaluate_lists
from embedsvc.export import export
from embedsvc.publish import publish
from embedsvc.ranking import tower_onnx
from embedsvc.ranking.tower_onnx import export_tower
from embedsvc.ranking.towers import HistoryTower
from embedsvc.trained import Trained
from embedsvc.training import askers, outputs
from embedsvc.training.askers import known_before, make_tower
from partitions import embeddings, published
from partitions.checkpoint import Checkpoint
from partitions.errors import DataError
from partitions.graph import Graph, slots_of

MakeGraph = Callable[..., Graph]

NUM_ITEMS, NUM_USERS, DIM = 40, 30, 6
CONFIG = TrainConfig(epochs=2, threads=1)
TOWERS: list[dict[str, Any]] = [
    {"tower": "mean"},
    {"tower": {"name": "recency", "decay": 0.5}, "optimizer": "sgd"},
    {"tower": "max"},
    {"tower": "attention", "hidden": 5},
    {"examples": {"name": "skip_gram", "window": 2}},
    {"tower": "gru"},
]


def an_output(**changes: object) -> OutputConfig:
    examples = {"name": "next_item", "max_history": 4}
    settings = {"kind": "full_softmax", "examples": examples, "dim": DIM, "batch_size": 8}
    return OutputConfig.model_validate(settings | changes)


@pytest.fixture(scope="module")
def graph(make_graph: MakeGraph) -> Graph:
    """Users have 0 to 12 training clicks, then one of each other split; one item is in none of the
    training clicks, and so is one user."""
    rng = np.random.default_rng(4)
    splits: dict[str, list[tuple[str, str, str]]] = {"train": [], "valid": [], "test": []}
    for user in range(NUM_USERS):
        first, num = int(rng.integers(NUM_ITEMS)), int(rng.integers(13)) if user else 0
        clicks = [(f"u{user}", "clicks", f"i{(first + at) % NUM_ITEMS}") for at in range(num + 2)]
        splits["train"] += clicks[:-2]
        splits["valid"].append(clicks[-2])
        splits["test"].append(clicks[-1])
    splits["valid"].append(("u3", "clicks", "unknown"))
    return make_graph(splits, {"clicks": ("user", "item")}, {"user": 2, "item": 2})


def clicks_of(graph: Graph, user: int, splits: tuple[str, ...]) -> list[int]:
    """Ids of items, in order, edge by edge."""
    found = []
    for split in splits:
        for key, item in _named(graph, split):
            if key == graph.all_keys("user")[user].as_py():
                found.append(graph.all_keys("item").to_pylist().index(item))
    return found


def _named(graph: Graph, split: str) -> list[tuple[str, str]]:
    """The edges in the order of the file, as far as that is known: by bucket."""
    found = []
    for bucket in graph.buckets(split):
        edges = graph.edges(split, bucket)
        ends = ((graph.slot_of("user", bucket.lhs), edges.lhs),)
        ends += ((graph.slot_of("item", bucket.rhs), edges.rhs),)
        lhs, rhs = ([graph.keys(slot)[int(at)].as_py() for at in ids] for slot, ids in ends)
        found += list(zip(lhs, rhs, strict=True))
    return found


def vectors_by_hand(
    graph: Graph, folder: Path, output: OutputConfig, splits: tuple[str, ...]
) -> NDArray[np.float32]:
    """[x, 1] of each user: the tower over a whole table of rows, one user at a time, of the items
    that were learnt."""
    checkpoint = Checkpoint(folder)
    manifest = checkpoint.read_manifest()
    tables = [
        checkpoint.read_table(
            manifest.tables[slot._replace(entity_type="item.input")],
            lambda offsets: np.full((len(offsets), DIM), np.nan, np.float32),  # was not learnt
            graph.num_rows(slot),
        ).vectors
        for slot in slots_of(graph.entity_types["item"])
    ]
    learnt = ~np.isnan(np.concatenate(tables)).any(axis=1)
    assert (output.optimizer == "sgd") == learnt.all()  # whose state says nothing of rows
    tower = make_tower(output, CONFIG, longest=20).eval()
    tower.table.weight.data = torch.from_numpy(np.concatenate(tables))
    parameters = checkpoint.read_parameters(manifest.parameters)
    found = []
    with torch.no_grad():
        for name, value in tower.named_parameters():
            if value.requires_grad:
                value.copy_(torch.from_numpy(parameters[f"tower.{name}"]))
        for user in range(NUM_USERS):
            clicks = clicks_of(graph, user, splits)[-tower.max_history :]
            clicks = [item for item in clicks if learnt[item]]
            x = tower(torch.tensor([clicks], dtype=torch.int64))[0]
            found.append(np.append(x.numpy(), np.float32(1)))
    return np.stack(found)


@pytest.fixture(scope="module")
def trained_folders(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp("askers") for _ in TOWERS]
    for folder, changes in zip(folders, TOWERS, strict=True):
        outputs.train(graph, folder, an_output(**changes), CONFIG)
    return folders


def test_what_is_known_when_a_split_is_judged() -> None:
    assert known_before("train") == known_before("valid") == ("train",)
    assert known_before("test") == ("train", "valid")
    assert known_before(None) == ("train", "valid", "test")


@pytest.mark.parametrize("at", range(len(TOWERS)))
def test_vectors_are_those_of_the_tower_of_each_history(
    at: int, graph: Graph, trained_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked one by one, and all at once in blocks of two users or so."""
    folder, output = trained_folders[at], an_output(**TOWERS[at])
    trained = Trained(graph, folder)
    monkeypatch.setattr(askers, "BLOCK_NUMBERS", 10 * DIM)
    rows = []
    for split in ("valid", "test", None):
        before = trained.before(split)
        wanted = vectors_by_hand(graph, folder, output, known_before(split))
        whole = np.concatenate(
            [before.vectors(slot) for slot in slots_of(graph.entity_types["user"])]
        )
        np.testing.assert_allclose(whole, wanted, rtol=1e-5, atol=1e-6)
        who = np.array([5, 0, 29, 5])
        found = before.gather("user", who).numpy()
        np.testing.assert_allclose(found, wanted[who], rtol=1e-5, atol=1e-6)
        rows.append(wanted)
    changed = [(np.abs(a - b).max(axis=1) > 1e-4).mean() for a, b in pairwise(rows)]
    assert min(changed) > 0.8  # each moment has vectors of its own


def test_nobody_asked_about_gets_no_vector(graph: Graph, trained_folders: list[Path]) -> None:
    found = Trained(graph, trained_folders[0]).gather("user", np.empty(0, np.int64))
    assert found.shape == (0, DIM + 1)


@pytest.mark.parametrize("at", range(len(TOWERS)))
def test_the_published_tower_finds_the_lists_of_evaluation(
    at: int, graph: Graph, trained_folders: list[Path], tmp_path: Path
) -> None:
    """By onnxruntime and the published index alone, from histories of published ids."""
    trained = Trained(graph, trained_folders[at])
    publish(trained, tmp_path, PublishConfig(), {}, {})
    version = published.open_version(tmp_path)
    assert version.manifest.files["tower.onnx"].bytes
    session = onnxruntime.InferenceSession(bytes(version.file("tower.onnx")))
    index = faiss.deserialize_index(np.array(version.index("item", "score")))
    hits = []
    for user in range(NUM_USERS):
        seen = clicks_of(graph, user, ("train", "valid"))
        history = np.array([[-1, *seen]])
        [query] = session.run(["query"], {"history": history})
        wanted = trained.before("test").gather("user", np.array([user])).numpy()
        np.testing.assert_allclose(query, wanted, rtol=1e-5, atol=1e-5)
        listed = [i for i in index.search(query, NUM_ITEMS)[1][0].tolist() if i not in seen][:3]
        if goals := set(clicks_of(graph, user, ("test",))) - set(seen):
            hits.append(len(goals & set(listed)) / len(goals))
    assert np.mean(hits) == pytest.approx(evaluate_lists(trained, "clicks", "test", 3).recall)


def test_a_tower_that_answers_otherwise_is_not_published(
    graph: Graph, trained_folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(tower: HistoryTower, *rest: Any) -> Any:
        tower = deepcopy(tower)
        tower.bias.data += 1
        return export_tower(tower, *rest)

    monkeypatch.setattr(publishing, "export_tower", other)
    with pytest.raises(DataError, match=r"tower\.onnx is off by 1 .* not published"):
        publish(Trained(graph, trained_folders[0]), tmp_path, PublishConfig(), {}, {})
    assert not published.versions(tmp_path)


def test_rows_too_many_for_a_file_are_told_and_the_rest_is_published(
    graph: Graph,
    trained_folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tower_onnx, "MAX_BYTES", 100)
    publish(Trained(graph, trained_folders[0]), tmp_path, PublishConfig(), {}, {})
    assert "It is left out of the version" in caplog.text
    assert "tower.onnx" not in published.open_version(tmp_path).manifest.files


@pytest.mark.parametrize("split", ["valid", "test"])
def test_lists_are_asked_with_what_came_before_the_split(
    split: str, graph: Graph, trained_folders: list[Path]
) -> None:
    """Whatever moment the checkpoint was opened for."""
    folder, output = trained_folders[1], an_output(**TOWERS[1])
    known = known_before(split)
    users = vectors_by_hand(graph, folder, output, known)
    trained = Trained(graph, folder)
    items = trained.gather("item", np.arange(graph.num_entities("item"))).numpy()
    hits = []
    for user in range(NUM_USERS):
        scores = items @ users[user]
        seen = clicks_of(graph, user, known)
        scores[seen] = -np.inf
        goals = set(clicks_of(graph, user, (split,))) - set(seen)
        if goals:
            hits.append(len(goals & set(np.argsort(-scores)[:3].tolist())) / len(goals))
    assert np.mean(hits) > 0
    for opened in (trained, trained.before("valid"), trained.before("test")):
        report = evaluate_lists(opened, "clicks", split, 3)
        assert report.num_lists == len(hits)
        assert report.recall == pytest.approx(np.mean(hits))


def test_what_is_published_and_exported_knows_all_events(
    graph: Graph, trained_folders: list[Path], tmp_path: Path
) -> None:
    folder, output = trained_folders[0], an_output(**TOWERS[0])
    wanted = vectors_by_hand(graph, folder, output, ("train", "valid", "test"))
    keys = graph.all_keys("user").to_pylist()
    publish(Trained(graph, folder), tmp_path / "published", PublishConfig(), {}, {})
    version = published.open_version(tmp_path / "published")
    assert version.keys("user").column("key").to_pylist() == keys
    np.testing.assert_allclose(version.vectors("user"), wanted, rtol=1e-5, atol=1e-6)
    [file] = export(Trained(graph, folder), tmp_path / "users.parquet", entity_type="user")
    _, exported = embeddings.read(file)
    np.testing.assert_allclose(exported, wanted, rtol=1e-5, atol=1e-6)
    starts, seen = version.seen("clicks")
    for user in range(NUM_USERS):
        clicks = clicks_of(graph, user, ("train", "valid", "test"))
        assert seen[starts[user] : starts[user + 1]].tolist() == sorted(set(clicks))


def test_commits_hold_no_vectors_of_who_asks(graph: Graph, trained_folders: list[Path]) -> None:
    tables = Checkpoint(trained_folders[0]).read_manifest().tables
    assert {slot.entity_type for slot in tables} == {"item", "item.input"}


def test_damaged_input_rows_are_named(graph: Graph, tmp_path: Path) -> None:
    outputs.train(graph, tmp_path, an_output(), CONFIG)
    trained = Trained(graph, tmp_path)
    slot = slots_of(graph.entity_types["item"])[1]._replace(entity_type="item.input")
    path = tmp_path / trained.manifest.tables[slot].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{path.name} was altered: its sha256"):
        trained.gather("user", np.arange(3))


def test_rows_swept_away_by_a_running_trainer_are_said_so(graph: Graph, tmp_path: Path) -> None:
    outputs.train(graph, tmp_path, an_output(), TrainConfig(epochs=1, threads=1))
    trained = Trained(graph, tmp_path)
    outputs.train(graph, tmp_path, an_output(), TrainConfig(epochs=4, threads=1, commit_every_s=0))
    with pytest.raises(DataError, match="is being trained: newer commits replaced"):
        trained.gather("user", np.arange(3))
