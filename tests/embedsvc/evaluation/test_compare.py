"""embedsvc.evaluation.compare: two versions with different entities, by a plain loop; errors."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from embedsvc import publish as publishing
from embedsvc.config import ModelConfig, PublishConfig
from embedsvc.evaluation import compare_page
from embedsvc.evaluation.compare import MAX_RELATIONS, compare, opened
from embedsvc.evaluation.lists import Asked, judge
from embedsvc.evaluation.sources import OfCheckpoint
from embedsvc.road import Road
from embedsvc.trained import Trained
from partitions import published
from partitions.config import from_tables
from partitions.errors import ConfigError, DataError
from partitions.graph import Graph

SHOP = {"bought": ("user", "item")}
K = 5
Edges = dict[str, list[tuple[str, str, str]]]


def shop(users: range, items: range) -> Edges:
    """Everybody has edges in both splits, to different items; the same ones in whatever range."""
    edges: Edges = {"train": [], "test": []}
    for u in users:
        liked = np.random.default_rng(u).permutation(60)[:20]
        kept = [f"i{i}" for i in liked if i in items]
        edges["train"] += [(f"u{u}", "bought", item) for item in kept[: len(kept) // 2]]
        edges["test"] += [(f"u{u}", "bought", item) for item in kept[len(kept) // 2 :]]
    edges["train"] += [(f"u{users[0]}", "bought", f"i{i}") for i in items]
    return edges


Make = Callable[..., Trained]


@pytest.fixture
def make(
    make_graph: Callable[..., Graph],
    make_trained: Callable[..., Trained],
    vector_from: Callable[..., np.ndarray],
) -> Make:
    def made(
        edges: Edges, seed: int, name: str, dim: int = 4, **relations: tuple[str, str]
    ) -> Trained:
        graph = make_graph(edges, relations or SHOP, {"item": 2})
        return make_trained(
            graph, ModelConfig(dim=dim), lambda *names: vector_from(seed, dim, *names), name=name
        )

    return made


def publish(trained: Trained, root: Path, **train: int) -> None:
    publishing.publish(
        trained, root, PublishConfig(keep=9), {"train": train}, {"checkpoint": trained.digest}
    )


def test_versions_with_other_entities_are_judged_by_the_stated_rule(
    make: Make, tmp_path: Path, vector_from: Callable[..., np.ndarray]
) -> None:
    old = make(shop(range(20), range(40)), 1, "old")
    new = make(shop(range(5, 30), range(10, 60)), 2, "new")
    publish(old, tmp_path, lr=1)
    publish(new, tmp_path, lr=2)
    versions = opened(tmp_path, "v000001"), opened(tmp_path, "v000002")
    found = compare(*versions, new.graph, "test", K, [])
    [change] = found.lists
    asked = Asked.of(new.graph, "bought", "test")
    users, items = (new.graph.all_keys(name).to_pylist() for name in ("user", "item"))
    had = {name: {*old.graph.all_keys(name).to_pylist()} for name in ("user", "item")}
    unknown = [users[u] not in had["user"] for u in asked.lhs]
    assert 0 < sum(unknown) < len(asked)
    assert (change.num_asked, change.without_old, change.without_new) == (
        len(asked),
        sum(unknown),
        0,
    )
    recall = []
    for row, u in enumerate(asked.lhs):
        left_out = {*asked.left_out[row].indices.tolist()}
        scores = {
            i: float(vector_from(1, 4, "user", users[u]) @ vector_from(1, 4, "item", key))
            for i, key in enumerate(items)
            if key in had["item"] and i not in left_out
        }
        top = sorted(scores, key=lambda i: -scores[i])[:K] if not unknown[row] else []
        goals = {*asked.goals[row].indices.tolist()}
        recall.append(len(goals & {*top}) / len(goals))
    assert change.metrics[f"recall@{K}"].old == pytest.approx(np.mean(recall))
    judged = judge(OfCheckpoint(new, "bought"), asked, K)
    for name, values in judged.values.items():
        assert change.metrics[name].new == pytest.approx(values.mean())
    assert found.entities is not None
    for name in ("user", "item"):
        now, entity = {*new.graph.all_keys(name).to_pylist()}, found.entities[name]
        assert (entity.appeared, entity.vanished) == (len(now - had[name]), len(had[name] - now))
    assert found.settings == {"train.lr": (1, 2)}
    assert (found.old.version, found.new.version) == ("v000001", "v000002")
    assert sum(found.old.bytes.values()) == sum(
        file.bytes for file in versions[0].version.manifest.files.values()
    )


def test_a_version_beside_itself_did_not_change(make: Make, tmp_path: Path) -> None:
    trained = make(shop(range(40), range(60)), 1, "one")
    publish(trained, tmp_path)
    one = opened(tmp_path, "v000001")
    found = compare(one, one, trained.graph, "test", K, ["bought"])
    [change] = found.lists
    assert all(one.difference.value == 0 and one.adjusted == 1 for one in change.metrics.values())
    assert change.churn.order_changed == 0 and change.churn.jaccard == 1
    assert found.vectors is not None and found.vectors["item"].cosine == pytest.approx(1, abs=1e-6)
    assert found.settings == {}


def test_versions_of_other_sizes_compare_but_for_their_vectors(make: Make, tmp_path: Path) -> None:
    edges = shop(range(20), range(40))
    small, large = make(edges, 1, "small"), make(edges, 1, "large", dim=6)
    publish(small, tmp_path)
    publish(large, tmp_path)
    found = compare(
        opened(tmp_path, "v000001"), opened(tmp_path, "v000002"), large.graph, "test", K, []
    )
    assert found.vectors is not None and "4 numbers, then 6" in found.vectors["user"].why
    assert found.lists[0].without_old == 0
    assert "4 numbers, then 6" in compare_page.page(found)


def test_relations_that_only_one_has_and_those_left_out_are_named(
    make: Make, tmp_path: Path
) -> None:
    names = [f"r{n:02}" for n in range(MAX_RELATIONS + 3)]
    edges: Edges = {"train": [], "test": []}
    for at, name in enumerate(names):
        edges["train"] += [(f"n{n}", name, f"n{n + 1}") for n in range(30)]
        edges["test"] += [(f"n{n}", name, f"n{n + 3}") for n in range(at)]
    few = {split: [edge for edge in some if edge[1] != "r00"] for split, some in edges.items()}
    ends = dict.fromkeys(names, ("n", "n"))
    old = make(few, 1, "old", **{name: ends[name] for name in names[1:]})
    new = make(edges, 1, "new", **ends)
    publish(old, tmp_path)
    publish(new, tmp_path)
    versions = opened(tmp_path, "v000001"), opened(tmp_path, "v000002")
    found = compare(*versions, new.graph, "test", K, [])
    assert [one.relation for one in found.lists] == names[:2:-1]  # r00 is new, r01, r02 have few
    said = " ".join(found.notes)
    assert "Only v000002 has the relations r00." in said
    assert f"Of {MAX_RELATIONS + 2} relations the {MAX_RELATIONS} with the most" in said
    assert [one.relation for one in compare(*versions, new.graph, "test", K, ["r01"]).lists] == [
        "r01"
    ]
    with pytest.raises(DataError, match=r"do not both have the relation r00\. Did you mean"):
        compare(*versions, new.graph, "test", K, ["r00"])


@pytest.fixture
def road(make: Make) -> Road:
    """A run with two versions."""
    trained = make(shop(range(20), range(40)), 1, "first")
    folder = trained.graph.path.parent
    for at, each in enumerate((trained, make(shop(range(20), range(40)), 2, "second"))):
        publish(each, folder / "published", lr=at)
    road = Road(from_tables({"run": {"dir": str(folder)}, "eval": {"k": K}}), quiet=True)
    return road


def test_the_command_prints_tables_writes_a_page_and_ends_in_json(road: Road) -> None:
    road.console = Console(file=io.StringIO(), width=80)
    road.compare("v000001", "v000002", [], None, as_json=True)
    printed = road.console.file.getvalue()  # type: ignore[attr-defined]
    found = json.loads(printed.splitlines()[-1])
    [change] = found["lists"]
    recall = change["metrics"][f"recall@{K}"]
    assert re.search(rf"recall@{K} +{recall['old']:.4f} +{recall['new']:.4f}", printed)
    assert "train.lr: 0 -> 1" in printed
    page = (road.folders.published / "compare-v000001-v000002.html").read_text()
    assert f"<td>{recall['old']:.4f}</td><td>{recall['new']:.4f}</td>" in page
    assert not re.search(r"https?:|<script|<link|<img|@import|url\(|src=|href=", page)
    assert published.versions(road.folders.published) == ["v000001", "v000002"]


def test_a_version_may_be_named_by_its_folder_or_its_run(road: Road, tmp_path: Path) -> None:
    root = road.folders.published
    elsewhere = tmp_path / "kept"
    shutil.copytree(root / "v000001", elsewhere)
    (tmp_path / "run.toml").write_text(f'[run]\ndir = "{road.folders.dir}"\n')
    assert opened(root, str(elsewhere)).version.keys("user").num_rows == 20
    assert opened(tmp_path, str(root)).name == "v000002"
    assert opened(tmp_path, str(tmp_path / "run.toml")).folder == root / "v000002"
    road.compare(str(elsewhere), "v000001", [], tmp_path / "deep" / "page.html")
    assert (tmp_path / "deep" / "page.html").exists()


def test_what_can_not_be_compared_is_said(road: Road, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no version v000003\. Did you mean v00000"):
        road.compare("v000001", "v000003", [], None)
    with pytest.raises(DataError, match="holds no published version"):
        road.compare(str(tmp_path), "v000001", [], None)
    (road.folders.published / "v000002" / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json"):
        road.compare("v000001", "v000002", [], None)
    (tmp_path / "odd.toml").write_text("[run]\nodd = 1\n")
    with pytest.raises(ConfigError, match="odd is not a setting"):
        opened(tmp_path, str(tmp_path / "odd.toml"))
