"""import --append: the graph grows at its ends, and what was in it stays where it was."""

import json
import os
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from partitions import durable, importer
from partitions.config import GraphConfig
from partitions.errors import DataError
from partitions.graph import MANIFEST, Graph
from partitions.importer import import_graph
from partitions.provenance import difference
from partitions.schema import SPLITS
from tests.partitions.import_cases import (
    NAMES,
    columns,
    edges_of,
    full_disk,
    places_of,
    shop,
    shop_edges,
    tree,
    write_edges,
)


def config_of(folder: Path, **settings: Any) -> GraphConfig:
    inputs = [{"path": "day*.tsv", "columns": columns(*NAMES)}]
    holdout = {"valid": 0.1, "test": 0.1, "by": "edge"}
    return shop(folder, **{"user": 3, "item": 3, "inputs": inputs, "holdout": holdout} | settings)


def write_days(folder: Path, *days: int) -> None:
    for day in days:
        edges = shop_edges(200 + 50 * day, seed=day, users=60 + 30 * day, items=30 + 20 * day)
        write_edges(folder / f"day{day}.tsv", edges)


@pytest.fixture
def first(tmp_path: Path) -> Graph:
    write_days(tmp_path, 0)
    import_graph(config_of(tmp_path), tmp_path / "graph")
    return Graph(tmp_path / "graph")


def appended(folder: Path, **settings: Any) -> Graph:
    import_graph(config_of(folder, **settings), folder / "graph", append=True)
    return Graph(folder / "graph")


# --- what grows, and what stays -------------------------------------------------------------------


def test_batches_give_the_graph_of_everything_at_once(tmp_path: Path, first: Graph) -> None:
    graphs = [first]
    for day in (1, 2):
        write_days(tmp_path, day)
        graphs.append(appended(tmp_path))
    import_graph(config_of(tmp_path), tmp_path / "at once")
    whole = Graph(tmp_path / "at once")
    assert edges_of(graphs[-1]) == edges_of(whole)
    assert places_of(graphs[-1]) == places_of(whole)
    assert graphs[-1].manifest.relation_edges == whole.manifest.relation_edges
    assert graphs[-1].manifest.sources == whole.manifest.sources
    for split in SPLITS:
        assert graphs[-1].num_edges(split) == whole.num_edges(split)
    for before, after in pairwise(graphs):
        old, new = places_of(before), places_of(after)
        assert new.items() > old.items(), "old places stay"
        for slot in before.slots():
            rows = before.num_rows(slot)
            behind = {
                o
                for (kind, key), (p, o) in new.items()
                if (kind, p) == slot and (kind, key) not in old
            }
            assert behind == set(range(rows, after.num_rows(slot))), "new keys lie behind the old"


def test_no_file_of_the_old_graph_changes(tmp_path: Path, first: Graph) -> None:
    before = tree(first.path)
    write_days(tmp_path, 1)
    graph = appended(tmp_path)
    after = tree(first.path)
    del before[MANIFEST]
    assert before.items() < after.items()
    assert {*after} == graph.manifest.paths() | {MANIFEST}
    assert all(".1.arrow" in name for name in after.keys() - before.keys() - {MANIFEST})


def test_the_manifest_names_each_batch_and_each_ancestor(tmp_path: Path, first: Graph) -> None:
    digests = [first.digest]
    for day in (1, 2):
        write_days(tmp_path, day)
        graph = appended(tmp_path)
        assert graph.manifest.ancestors == digests
        assert graph.grew_from(first.digest) and graph.grew_from(graph.digest)
        digests.append(graph.digest)
    batches = graph.manifest.batches
    names = [[Path(source["path"]).name for source in batch["sources"]] for batch in batches]
    assert names == [["day0.tsv"], ["day1.tsv"], ["day2.tsv"]]
    assert [sum(batch["edges"].values()) for batch in batches] == [200, 250, 300]
    assert not first.grew_from(graph.digest)


def test_only_the_buckets_of_new_edges_count_as_changed(tmp_path: Path, first: Graph) -> None:
    user, item = first.all_keys("user")[0].as_py(), first.all_keys("item")[0].as_py()
    write_edges(tmp_path / "day1.tsv", [(user, "bought", item, 1.0, 0)])
    graph = appended(tmp_path, holdout={})
    places = places_of(graph)
    bucket = (places["user", user][0], places["item", item][0])
    assert [tuple(b) for b in graph.changed_buckets("train", 1)] == [bucket]
    assert graph.changed_buckets("train", 2) == []
    assert graph.changed_buckets("train", 0) == graph.buckets("train")
    assert not list(first.path.glob("entities/*/*.1.arrow")), "no new key, no file of keys"


def test_the_report_is_of_the_batch(tmp_path: Path, first: Graph) -> None:
    lines = [("u1", "bought", "i1", 1.0, 0), ("new", "bought", "i1", 1.0, 0)]
    write_edges(tmp_path / "day1.tsv", lines)
    config = config_of(tmp_path, holdout={"test_after": -1})
    report = import_graph(config, tmp_path / "graph", append=True)
    assert report.num_edges == {"train": 0, "valid": 0, "test": 2}
    assert report.num_entities == {
        "user": first.num_entities("user") + 1,
        "item": first.num_entities("item"),
    }
    assert report.untrained_entities == {"user": 1, "item": 0}, "of the new ones"


def test_new_relations_get_ids_behind_the_old(tmp_path: Path) -> None:
    star = {"*": {"lhs": "user", "rhs": "item"}}
    write_edges(tmp_path / "day0.tsv", [("u1", "m", "i1", 2.0, 0), ("u2", "x", "i1", 1.0, 0)])
    settings: dict[str, Any] = {"user": 1, "item": 1, "relations": star, "holdout": {}}
    import_graph(config_of(tmp_path, **settings), tmp_path / "graph")
    write_edges(tmp_path / "day1.tsv", [(f"u{n}", f"a{n}", "i1", 1.0, 0) for n in range(300)])
    graph = appended(tmp_path, **settings)
    names = [relation.name for relation in graph.relations]
    assert names == ["m", "x", *sorted(f"a{n}" for n in range(300))]
    assert graph.manifest.relation_edges["train"] == [1] * 302
    assert {e[:3] for e in edges_of(graph)} == {
        *(("u1", "m", "i1"), ("u2", "x", "i1")),
        *((f"u{n}", f"a{n}", "i1") for n in range(300)),
    }


def test_a_graph_of_one_relation_may_get_a_second(tmp_path: Path) -> None:
    write_edges(tmp_path / "day0.tsv", [("u1", "bought", "i1", 2.0, 0)])
    one = {"bought": {"lhs": "user", "rhs": "item"}}
    two = {"abandoned": {"lhs": "user", "rhs": "item"}} | one
    settings: dict[str, Any] = {"user": 1, "item": 1, "holdout": {}}
    import_graph(config_of(tmp_path, relations=one, **settings), tmp_path / "graph")
    write_edges(tmp_path / "day1.tsv", [("u1", "abandoned", "i1", 3.0, 0)])
    graph = appended(tmp_path, relations=two, **settings)
    assert [relation.name for relation in graph.relations] == ["bought", "abandoned"]
    assert {e[:4] for e in edges_of(graph)} == {
        ("u1", "bought", "i1", 2.0),
        ("u1", "abandoned", "i1", 3.0),
    }


def test_a_new_entity_type_comes_with_its_relation(tmp_path: Path, first: Graph) -> None:
    config = config_of(tmp_path).model_dump()
    config["entities"]["city"] = {}
    config["relations"]["lives_in"] = {"lhs": "user", "rhs": "city"}
    config["inputs"].append(
        {"path": "c.tsv", "relation": "lives_in", "columns": columns("lhs", "rhs", "timestamp")}
    )
    write_edges(tmp_path / "c.tsv", [("u1", "Köln", 5), ("stranger", "Oslo", 6)])
    old = places_of(first)
    import_graph(GraphConfig.model_validate(config), tmp_path / "graph", append=True)
    graph = Graph(tmp_path / "graph")
    assert graph.all_keys("city").to_pylist() == ["Köln", "Oslo"]
    assert places_of(graph).items() > old.items()
    assert edges_of(graph).total() == edges_of(first).total() + 2


def test_edges_before_the_first_weights_weigh_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"user": 1, "item": 1, "holdout": {}}
    write_edges(tmp_path / "a.tsv", [("u1", "bought", "i1"), ("u2", "bought", "i2")])
    inputs: list[dict[str, Any]] = [{"path": "a.tsv"}]
    import_graph(config_of(tmp_path, inputs=inputs, **settings), tmp_path / "graph")
    write_edges(tmp_path / "b.tsv", [("u1", "bought", "i3", 2.25)])
    inputs.append({"path": "b.tsv", "columns": columns("lhs", "rel", "rhs", "weight")})
    graph = appended(tmp_path, inputs=inputs, **settings)
    assert {e[2]: e[3] for e in edges_of(graph)} == {"i1": 1.0, "i2": 1.0, "i3": 2.25}


def with_titles(folder: Path, **names: int) -> dict[str, Any]:
    entities = {
        "user": {"partitions": 3},
        "item": {"partitions": 3, "attributes": {"path": "titles.tsv", "columns": names}},
    }
    return {"entities": entities}


def test_attributes_grow_with_their_keys(tmp_path: Path) -> None:
    write_days(tmp_path, 0)
    write_edges(tmp_path / "titles.tsv", [(f"i{n}", f"Title {n}") for n in range(200)])
    settings = with_titles(tmp_path, key=0, title=1)
    import_graph(config_of(tmp_path, **settings), tmp_path / "graph")
    for day in (1, 2):
        write_days(tmp_path, day)
        graph = appended(tmp_path, **settings)
    keys, titles = graph.all_keys("item").to_pylist(), graph.attributes("item")
    assert titles is not None and len(keys) > 50
    assert titles.column("title").to_pylist() == [f"Title {key[1:]}" for key in keys]


def test_attributes_stay_where_an_append_brings_no_new_key(tmp_path: Path) -> None:
    edges = shop_edges(50)
    write_edges(tmp_path / "day0.tsv", edges)
    write_edges(tmp_path / "titles.tsv", [(f"i{n}", f"Title {n}") for n in range(200)])
    settings = with_titles(tmp_path, key=0, title=1)
    import_graph(config_of(tmp_path, **settings), tmp_path / "graph")
    before = Graph(tmp_path / "graph").attributes("item")
    write_edges(tmp_path / "day1.tsv", edges[:9])
    assert before is not None
    for _ in range(2):
        assert before.equals(appended(tmp_path, **settings).attributes("item"))
        write_edges(tmp_path / "day2.tsv", edges[9:20])


def test_a_graph_that_grew_is_current(tmp_path: Path, first: Graph) -> None:
    write_days(tmp_path, 1)
    assert difference(config_of(tmp_path), tmp_path / "graph") is not None
    appended(tmp_path)
    assert difference(config_of(tmp_path), tmp_path / "graph") is None
    assert difference(config_of(tmp_path, threads=1), tmp_path / "graph") is None


# --- refusals -------------------------------------------------------------------------------------


def refusal(folder: Path, **settings: Any) -> str:
    before = tree(folder / "graph")
    with pytest.raises(DataError) as caught:
        appended(folder, **settings)
    assert tree(folder / "graph") == before
    assert not (folder / "graph.importing").exists()
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message.replace(f"{folder}/", "")


def test_nothing_new_is_one_sentence(tmp_path: Path, first: Graph) -> None:
    assert refusal(tmp_path) == (
        "graph was made from its one input file already: there is nothing to append. Name a new "
        "file under [[graph.inputs]], or let a glob match one."
    )


def test_a_changed_old_file_is_one_sentence(tmp_path: Path, first: Graph) -> None:
    write_days(tmp_path, 1)
    old = tmp_path / "day0.tsv"
    text = old.read_text()
    sentence = (
        "day0.tsv has changed since it was imported. Append what is new as a file of its own, or "
        "import anew with --replace."
    )
    old.write_text(text + "u1\tbought\ti1\t1.0\t0\n")
    assert refusal(tmp_path) == sentence
    old.write_text(text.replace("bought", "bouGht", 1))
    later = (tmp_path / "graph" / MANIFEST).stat().st_mtime_ns + 1
    os.utime(old, ns=(later, later))
    assert refusal(tmp_path) == sentence
    old.write_text(text)
    os.utime(old, ns=(later, later))
    appended(tmp_path)  # a new date alone says nothing


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"user": 2, "item": 2},
            "graph has 3 partitions of user, the config 2: they can't change. Set "
            "graph.entities.user.partitions back, or import anew with --replace.",
        ),
        (
            {"relations": {"bought": {"lhs": "user", "rhs": "item"}}},
            "graph has the relation saw from user to item, the config another or none: an append "
            "can't change it. Put [graph.relations.saw] back, or import anew with --replace.",
        ),
        (
            {"relations": {"*": {"lhs": "user", "rhs": "item"}}},
            "graph has the relation follows from user to user, the config another or none: an "
            "append can't change it. Put [graph.relations.follows] back, or import anew with "
            "--replace.",
        ),
        (
            {
                "entities": {"user": {"partitions": 3}},
                "relations": {"*": {"lhs": "user", "rhs": "user"}},
            },
            "graph has entities of type item, the config none: an append can't take them away. Put "
            "[graph.entities.item] back.",
        ),
        (
            {"inputs": [{"path": "day1.tsv", "columns": columns(*NAMES[:4])}], "holdout": {}},
            "graph has timestamps and the config's inputs have none: all of a graph's edges carry "
            "a time or none does. Mend graph.inputs, or import anew with --replace.",
        ),
        (
            with_titles(Path(), key=0, title=1),
            "graph has the attributes none of item, the config title: they can't change. Put "
            "[graph.entities.item.attributes] back, or import anew with --replace.",
        ),
    ],
    ids=["partitions", "relation gone", "relation changed", "type gone", "times", "attributes"],
)  # fmt: skip
def test_what_an_append_cannot_change_is_one_sentence(
    tmp_path: Path, first: Graph, settings: dict[str, Any], sentence: str
) -> None:
    write_days(tmp_path, 1)
    write_edges(tmp_path / "titles.tsv", [("i1", "One")])
    assert refusal(tmp_path, **settings) == sentence


def test_an_append_needs_a_graph(tmp_path: Path) -> None:
    write_days(tmp_path, 0)
    with pytest.raises(DataError, match=r"holds no graph: graph\.json is missing"):
        appended(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"day0.tsv"}


def test_bad_lines_in_the_new_file_leave_the_old_graph(tmp_path: Path, first: Graph) -> None:
    write_edges(tmp_path / "day1.tsv", [*shop_edges(50), ("u", "bought")])
    assert refusal(tmp_path).startswith("day1.tsv:51: expected 5 tab-separated columns ")


@pytest.mark.parametrize("way", ["absolute", "dots", "link"])
def test_a_file_is_known_however_its_path_is_spelled(
    tmp_path: Path, first: Graph, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "link.tsv").symlink_to("../day0.tsv")
    path = {"absolute": f"{tmp_path}/day0.tsv", "dots": "sub/../day0.tsv", "link": "sub/link.tsv"}
    inputs = [{"path": path[way], "columns": columns(*NAMES)}]
    assert "there is nothing to append" in refusal(tmp_path, data=Path(), inputs=inputs)


def test_a_copy_of_an_imported_file_is_one_sentence(tmp_path: Path, first: Graph) -> None:
    (tmp_path / "day9.tsv").write_bytes((tmp_path / "day0.tsv").read_bytes())
    assert refusal(tmp_path) == (
        "day9.tsv holds the same bytes as day0.tsv, which was imported already: its edges would "
        "count twice. Take it out of [[graph.inputs]]."
    )


def test_a_second_input_over_an_imported_file_is_imported_or_refused(
    tmp_path: Path, first: Graph
) -> None:
    old = {"path": "day*.tsv", "columns": columns(*NAMES)}
    named = {"lhs": 2, "rhs": 2, "timestamp": 4}
    other = {"path": "day0.tsv", "relation": "again", "columns": named}
    more = {"again": {"lhs": "item", "rhs": "item"}}
    relations = config_of(tmp_path).model_dump()["relations"] | more
    told = "was imported by an input with another relation, columns, split or member"
    assert told in refusal(tmp_path, inputs=[other], relations=relations)
    graph = appended(tmp_path, inputs=[old, other], relations=relations)
    assert edges_of(graph).total() == 400
    assert [batch["sources"][0]["input"]["relation"] for batch in graph.manifest.batches] == [
        None,
        "again",
    ]
    told = "there is nothing to append"
    assert told in refusal(tmp_path, inputs=[old, other], relations=relations)


def test_a_manifest_from_before_inputs_were_noted_still_grows(tmp_path: Path, first: Graph) -> None:
    manifest = json.loads((first.path / MANIFEST).read_text())
    for source in manifest["batches"][0]["sources"]:
        del source["input"], source["resolved"]
    del manifest["digest"]
    (first.path / MANIFEST).write_text(json.dumps(manifest))
    assert "there is nothing to append" in refusal(tmp_path)
    write_days(tmp_path, 1)
    assert edges_of(appended(tmp_path)).total() == 450


# --- kills ----------------------------------------------------------------------------------------


def small_config(folder: Path, *names: str) -> GraphConfig:
    inputs = [{"path": name} for name in names]
    return shop(folder / "in", user=2, inputs=inputs, threads=1)


def prepare(folder: Path) -> None:
    (folder / "in").mkdir()
    for at, name in enumerate(("old.tsv", "new.tsv", "next.tsv")):
        edges = [edge[:3] for edge in shop_edges(60, seed=at, users=20 + 20 * at)]
        write_edges(folder / "in" / name, edges)
    import_graph(small_config(folder, "old.tsv"), folder / "graph")
    (folder / "old").mkdir()
    copy(folder / "graph", folder / "old")
    import_graph(small_config(folder, "old.tsv", "new.tsv"), folder / "graph", append=True)
    copy(folder / "graph", folder / "new")
    put_back(folder)


def copy(source: Path, target: Path) -> None:
    for name, content in tree(source).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)


def put_back(folder: Path) -> None:
    for name in tree(folder / "graph"):
        (folder / "graph" / name).unlink()
    copy(folder / "old", folder / "graph")


def append_new(folder: Path) -> None:
    import_graph(small_config(folder, "old.tsv", "new.tsv"), folder / "graph", append=True)


def old_or_new_and_the_next_append_sweeps(folder: Path) -> None:
    found = Graph(folder / "graph")
    whole = {name: tree(folder / name) for name in ("old", "new")}
    state = "old" if found.digest == Graph(folder / "old").digest else "new"
    assert found.digest == Graph(folder / state).digest
    for name, content in whole[state].items():
        assert (folder / "graph" / name).read_bytes() == content
    names = ["old.tsv", "next.tsv"] + (["new.tsv"] if state == "new" else [])
    import_graph(small_config(folder, *names), folder / "graph", append=True)
    grown = Graph(folder / "graph")
    assert {*tree(folder / "graph")} == grown.manifest.paths() | {MANIFEST}, "nothing is left over"
    expected = Counter(
        tuple(line.split("\t"))
        for name in names
        for line in (folder / "in" / name).read_text().splitlines()
    )
    assert Counter(edge[:3] for edge in edges_of(grown).elements()) == expected
    assert {path.name for path in folder.iterdir()} == {"in", "old", "new", "graph"}
    put_back(folder)


@pytest.mark.slow
def test_a_kill_at_any_step_of_an_append_leaves_the_old_graph_or_the_new(
    tmp_path: Path,
    kill_everywhere: Callable[[Callable[[Path], Any], Callable[[Path], Any]], int],
) -> None:
    prepare(tmp_path)
    assert kill_everywhere(append_new, old_or_new_and_the_next_append_sweeps) >= 15


@pytest.mark.parametrize("at", ["before", "after"])
def test_an_append_broken_off_around_its_last_rename_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """What the slow test does everywhere, at the one step that decides."""
    prepare(tmp_path)
    original = durable.write_json

    def broken(path: Path, value: Any) -> None:
        if path.name == MANIFEST and at == "before":
            raise OSError("killed")
        original(path, value)
        if path.name == MANIFEST:
            raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(importer.durable, "write_json", broken)
        with pytest.raises(OSError, match="killed"):
            append_new(tmp_path)
    expected = "old" if at == "before" else "new"
    assert json.loads((tmp_path / "graph" / MANIFEST).read_text()) == json.loads(
        (tmp_path / expected / MANIFEST).read_text()
    )
    old_or_new_and_the_next_append_sweeps(tmp_path)


def test_an_append_that_was_broken_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    with full_disk(monkeypatch, durable, "sync_tree"):
        append_new(tmp_path)
    config = small_config(tmp_path, "old.tsv", "new.tsv")
    assert import_graph(config, tmp_path / "graph", append=True).resumed
    assert tree(tmp_path / "graph") == tree(tmp_path / "new")


def test_summed_duplicates_are_those_of_one_batch(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"user": 1, "item": 1, "holdout": {}, "duplicates": "sum"}
    write_edges(tmp_path / "day0.tsv", [("u", "bought", "i", 0.5, 0)] * 2)
    import_graph(config_of(tmp_path, **settings), tmp_path / "graph")
    write_edges(tmp_path / "day1.tsv", [("u", "bought", "i", 0.25, 0)] * 3)
    graph = appended(tmp_path, **settings)
    weights = sorted(edge[3] for edge in edges_of(graph).elements())
    assert weights == [0.75, 1.0]
    assert np.float32(sum(weights)) == 1.75
