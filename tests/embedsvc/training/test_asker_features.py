"""What a tower knows of who asks besides his history: learnt, kept, published, of use to cold
ones."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from embedsvc.config import OutputConfig, PublishConfig, TrainConfig
from embedsvc.evaluation.recommend import evaluate_lists
from embedsvc.evaluation.sources import OfVersion
from embedsvc.publish import publish
from embedsvc.trained import Trained
from embedsvc.training import outputs
from embedsvc.training.asker_features import AskerFeatures
from embedsvc.training.output_plan import plan_output
from partitions import importer, published
from partitions.checkpoint import Checkpoint
from partitions.config import GraphConfig
from partitions.errors import ConfigError, DataError
from partitions.graph import Graph, slots_of
from partitions.schema import Slot

KINDS, ITEMS, USERS, COLD = 6, 60, 120, 30
CONFIG = TrainConfig(epochs=6, threads=1, commit_every_s=0)
OUTPUT: dict[str, Any] = {
    "kind": "full_softmax",
    "relation": "clicks",
    "features": ["kind", "mood"],
    "examples": {"name": "next_item", "max_history": 4},
    "dim": 8,
    "batch_size": 8,
    "lr": 0.3,
}


def an_output(**changes: Any) -> OutputConfig:
    return OutputConfig.model_validate(OUTPUT | changes)


def config_of(folder: Path, *paths: str) -> GraphConfig:
    inputs = [{"path": path, "relation": "clicks", "split": path[:-5]} for path in paths]
    return GraphConfig.model_validate(
        {
            "data": folder,
            "gate": False,
            "entities": {
                "user": {
                    "partitions": 2,
                    "attributes": {
                        "path": "users.tsv",
                        "columns": {"key": 0, "kind": 1, "mood": 2},
                    },
                },
                "item": {"partitions": 2},
            },
            "relations": {"clicks": {"lhs": "user", "rhs": "item"}},
            "inputs": inputs,
        }
    )


def write_events(folder: Path) -> None:
    """A user of kind k clicks items of the k-th tenth, whatever else; the mood says nothing. Cold
    users have no training click; the last of them is of a kind that nobody else is."""
    rng = np.random.default_rng(1)
    clicks: dict[str, list[str]] = {"train": [], "test": []}
    users = []
    for user in range(USERS):
        kind, mood = user % KINDS, rng.integers(3)
        items = 10 * kind + rng.permutation(10)[:5]
        first = 4 if user >= USERS - COLD else 0
        for at, item in enumerate(items[first:].tolist()):
            split = "test" if first + at == 4 else "train"
            clicks[split].append(f"u{user}\ti{item}\n")
        name = "odd" if user == USERS - 1 else f"k{kind}"
        if user % 10:  # of others nothing is known
            users.append(f"u{user}\t{name}\t{'' if user % 4 == 0 else f'm{mood}'}\n")
    for split, lines in clicks.items():
        (folder / f"{split}0.tsv").write_text("".join(lines))
    (folder / "users.tsv").write_text("".join(users))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("featured")
    write_events(folder)
    importer.import_graph(config_of(folder, "train0.tsv", "test0.tsv"), folder / "graph")
    return Graph(folder / "graph")


def kinds(graph: Graph) -> list[str]:
    table = graph.attributes("user")
    assert table is not None
    return [str(one) for one in table.column("kind").to_pylist()]


def cold(graph: Graph) -> np.ndarray:
    """Ids of users without a training click."""
    keys = graph.all_keys("user").to_pylist()
    return np.array([at for at, key in enumerate(keys) if int(key[1:]) >= USERS - COLD])


def test_values_are_those_that_training_met_and_the_rest_is_counted(graph: Graph) -> None:
    asked = np.ones(USERS, np.bool_)
    asked[cold(graph)] = False
    found = AskerFeatures.learn(graph, "user", ["kind", "mood"], asked)
    wanted = [("kind", f"k{k}") for k in range(KINDS)] + [("mood", f"m{m}") for m in range(3)]
    assert found.values == wanted
    assert found.missing["kind"] == kinds(graph).count("") == 12
    assert found.unknown == {"kind": 1, "mood": 0}  # the odd one
    for user, kind in enumerate(kinds(graph)):
        row = wanted.index(("kind", kind)) if ("kind", kind) in wanted else -1
        assert found.ids[user, 0] == row
    again = AskerFeatures.encode(graph, "user", ["kind", "mood"], found.values)
    np.testing.assert_array_equal(again.ids, found.ids)


def test_new_values_come_after_those_of_before(graph: Graph) -> None:
    everybody = np.ones(USERS, np.bool_)
    found = AskerFeatures.learn(graph, "user", ["kind"], everybody, [("kind", "k5"), ("kind", "x")])
    assert found.values[:3] == [("kind", "k5"), ("kind", "x"), ("kind", "k0")]
    assert len(found.values) == KINDS + 2 and found.values[-1] == ("kind", "odd")


def test_nothing_known_of_those_who_learn_is_an_error(graph: Graph) -> None:
    with pytest.raises(DataError, match=r"no user with training edges and a value of kind"):
        AskerFeatures.learn(graph, "user", ["kind"], np.zeros(USERS, np.bool_))


@pytest.fixture(scope="module")
def folder(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    outputs.train(graph, path, an_output(hidden=3, tower="attention"), CONFIG)
    return path


def recall_of_cold(trained: Trained, graph: Graph) -> float:
    """Of ten listed, of each cold user whose kind is known."""
    who = [int(at) for at in cold(graph) if kinds(graph)[at] not in ("", "odd")]
    rows = [trained.vectors(slot) for slot in slots_of(graph.entity_types["item"])]
    scores = trained.gather("user", np.array(who)).numpy() @ np.concatenate(rows).T
    edges = trained.edges("test")
    goal = {int(one): int(other) for one, other in zip(edges.lhs, edges.rhs, strict=True)}
    lists = np.argsort(-scores, axis=1)[:, :10]
    return float(np.mean([goal[user] in lists[at] for at, user in enumerate(who)]))


def test_cold_users_are_found_what_their_features_say(graph: Graph, tmp_path: Path) -> None:
    """Ten of 60 items by features alone; without them .17 are found by chance."""
    found = {}
    for features in (["kind"], []):
        path = tmp_path / str(features)
        outputs.train(graph, path, an_output(features=features), CONFIG)
        trained = Trained(graph, path).before("test")
        found[len(features)] = recall_of_cold(trained, graph)
        assert evaluate_lists(trained, "clicks", "test", 10).num_lists == USERS
    assert found[1] > 0.9 and found[0] < 0.4


def test_vectors_are_the_towers_of_history_and_features(graph: Graph, folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    manifest = checkpoint.read_manifest()
    values = json.loads(
        checkpoint.read_parameters(manifest.parameters)["features.vocabulary"].tobytes()
    )
    stored = checkpoint.read_table(
        manifest.tables[Slot("user.features", 0)],
        lambda offsets: np.zeros((len(offsets), 8), np.float32),
        len(values),
    ).vectors
    assert (stored != 0).any(axis=1).all()  # each value had an example
    trained = Trained(graph, folder).before("test")
    assert trained.askers is not None
    tower = trained.askers.tower
    mood = graph.attributes("user").column("mood").to_pylist()  # type: ignore[union-attr]
    for user in cold(graph)[:10].tolist():
        known = [[name, one[user]] for name, one in (("kind", kinds(graph)), ("mood", mood))]
        rows = [values.index(one) for one in known if one in values]
        pooled = torch.from_numpy(stored[rows].sum(0))[None]  # of a history of nothing, 0 besides
        with torch.no_grad():
            assert tower.layers is not None
            wanted = (pooled + tower.bias + tower.layers(pooled)).numpy()
        found = trained.gather("user", np.array([user])).numpy()
        np.testing.assert_allclose(found[:, :-1], wanted, rtol=1e-5, atol=1e-6)


def contents(folder: Path) -> dict[Any, bytes]:
    checkpoint = Checkpoint(folder)
    manifest = checkpoint.read_manifest()
    arrays = checkpoint.read_parameters(manifest.parameters)
    found: dict[Any, bytes] = {name: array.tobytes() for name, array in arrays.items()}
    return found | {slot: entry.sha256.encode() for slot, entry in manifest.tables.items()}


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adam_lite", "sgd"])
def test_a_run_broken_off_has_the_same_bits(
    optimizer: str, graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = an_output(optimizer=optimizer, lr=0.05, batch_size=1)  # four pieces an epoch
    short = CONFIG.model_copy(update={"epochs": 2})
    outputs.train(graph, tmp_path / "whole", output, short)
    commits = 0

    def commit(self: Any, leases: Any) -> None:
        nonlocal commits
        whole(self, leases)
        commits += 1
        if commits % 3 == 0:
            raise KeyboardInterrupt

    whole = outputs._Trainer._commit
    monkeypatch.setattr(outputs._Trainer, "_commit", commit)
    for _ in range(20):
        try:
            outputs.train(graph, tmp_path / "broken", output, short)
            break
        except KeyboardInterrupt:
            pass
    assert commits > 3
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_the_first_of_a_history_is_learnt_from_features(graph: Graph, tmp_path: Path) -> None:
    report = outputs.train(graph, tmp_path, an_output(), CONFIG.model_copy(update={"epochs": 1}))
    assert report.num_edges == 4 * (USERS - COLD)  # without features each history has one less


def test_published_files_ask_as_training_does(graph: Graph, folder: Path, tmp_path: Path) -> None:
    trained = Trained(graph, folder)
    publish(trained, tmp_path, PublishConfig(), {"output": {"kind": "full_softmax"}}, {})
    version = published.open_version(tmp_path)
    numbers = json.loads(bytes(version.file("tower_features.json")))
    session = onnxruntime.InferenceSession(bytes(version.file("tower.onnx")))
    assert list(numbers) == ["kind", "mood"]
    features = np.array([[numbers["kind"]["k2"], -1], [-1, -1]])
    asked = {"history": np.full((2, 1), -1), "features": features}
    [query] = session.run(["query"], asked)
    assert trained.askers is not None
    table = trained.askers.tower
    with torch.no_grad():
        wanted = table(torch.full((2, 1), -1), torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(query[:, :-1], wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.01
    known = OfVersion(version, graph, "clicks", "test").queries(np.arange(USERS)).numpy()
    wanted = trained.before("test").gather("user", np.arange(USERS)).numpy()
    np.testing.assert_allclose(known, wanted, rtol=1e-5, atol=1e-5)  # as a version is judged
    everybody = np.arange(USERS)
    vectors = version.vectors("user")
    np.testing.assert_allclose(vectors, trained.gather("user", everybody), rtol=1e-5, atol=1e-6)


def test_a_graph_that_grew_keeps_the_rows_of_values(tmp_path: Path) -> None:
    write_events(tmp_path)
    importer.import_graph(config_of(tmp_path, "train0.tsv", "test0.tsv"), tmp_path / "graph")
    output = an_output(features=["kind"])
    outputs.train(Graph(tmp_path / "graph"), tmp_path / "c", output, CONFIG)
    before = Trained(Graph(tmp_path / "graph"), tmp_path / "c").askers
    (tmp_path / "train1.tsv").write_text("new\ti3\nnew\ti4\nu3\ti31\n")
    with (tmp_path / "users.tsv").open("a") as file:
        file.write("new\tAfirst\tm1\n")
    files = "train0.tsv", "test0.tsv", "train1.tsv"
    importer.import_graph(config_of(tmp_path, *files), tmp_path / "graph", append=True)
    grown = Graph(tmp_path / "graph")
    opened = Trained(grown, tmp_path / "c").askers  # before it is trained on
    assert before is not None and before.features is not None
    assert opened is not None and opened.features is not None
    assert opened.features.unknown == {"kind": 2}
    np.testing.assert_array_equal(opened.feature_rows, before.feature_rows)
    outputs.train(grown, tmp_path / "c", output, CONFIG.model_copy(update={"epochs": 7}))
    after = Trained(grown, tmp_path / "c").askers
    assert after is not None and after.features is not None
    assert after.features.values == [*before.features.values, ("kind", "Afirst")]
    moved = np.abs(after.feature_rows[:KINDS] - before.feature_rows).max()
    assert 0 < moved < 1 and after.feature_rows[KINDS].any()


def test_the_plan_counts_features(graph: Graph, tmp_path: Path) -> None:
    with_them, without = (
        plan_output(graph, an_output(features=names), CONFIG, tmp_path)
        for names in (["kind", "mood"], [])
    )
    ids, rows = 8 * USERS * 2, (KINDS + 1 + 3) * 4 * (8 + 1)
    assert ids + rows < with_them.total - without.total < 10 * (ids + rows)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": ["king"]}, "king, which is no attribute of user.* kind"),
        ({"features": ["kind", "kind"]}, "each once"),
        ({"sequences": "walks"}, "features are of who has a history"),
        ({"examples": "skip_gram"}, "features are of who asks for a next_item"),
    ],
)
def test_features_that_can_not_be_are_refused(
    changes: dict[str, Any], said: str, graph: Graph, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, ValueError), match=said):
        plan_output(graph, an_output(**changes), CONFIG, tmp_path)


def test_a_graph_without_attributes_is_named(tmp_path: Path) -> None:
    write_events(tmp_path)
    config = config_of(tmp_path, "train0.tsv")
    user = config.entities["user"].model_copy(update={"attributes": None})
    config = config.model_copy(update={"entities": config.entities | {"user": user}})
    importer.import_graph(config, tmp_path / "graph")
    with pytest.raises(ConfigError, match=r"attributes of user, which .* has none of: set"):
        plan_output(Graph(tmp_path / "graph"), an_output(), CONFIG, tmp_path)


def test_other_features_are_another_model(graph: Graph, folder: Path) -> None:
    output = an_output(hidden=3, tower="attention", features=["kind"])
    with pytest.raises(ConfigError, match=r"begun with output\.features"):
        outputs.train(graph, folder, output, CONFIG)


def test_counts_are_said(graph: Graph, caplog: pytest.LogCaptureFixture) -> None:
    found = AskerFeatures.learn(graph, "user", ["kind"], np.ones(USERS, np.bool_))
    with caplog.at_level("INFO"):
        replace(found, unknown={"kind": 1234}).say()
    assert "kind of user: 7 values; of 120 entities 12 have none, 1,234 an unknown" in caplog.text


MakeGraph = Callable[..., Graph]


def test_a_relation_within_one_type_has_nobody_who_asks(
    make_graph: MakeGraph, tmp_path: Path
) -> None:
    edges = {"train": [("a", "clicks", "b"), ("a", "clicks", "c")]}
    same = make_graph(edges, {"clicks": ("item", "item")})
    with pytest.raises(ConfigError, match=r"has item on both sides: remove output\.features"):
        plan_output(same, an_output(), CONFIG, tmp_path)
