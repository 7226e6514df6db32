"""Bags of features: files -> graph, and what an append may do to them."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions import bag_import
from partitions import bags as bag_files
from partitions.bags import Bags
from partitions.config import GraphConfig, from_tables
from partitions.errors import ConfigError, DataError
from partitions.graph import MANIFEST, Graph
from partitions.importer import ImportReport, import_graph
from partitions.provenance import difference
from tests.partitions.import_cases import (
    edges_of,
    full_disk,
    places_of,
    shop,
    tree,
    write_edges,
)
from tests.partitions.test_import_identity import KEYS

EDGES = [("u1", "bought", "i1"), ("u2", "bought", "i2"), ("u1", "follows", "u2")]


SKIPPING = {"skip_bad": True}


def tagged(folder: Path, *, skip_bad: bool = False, **features: Any) -> GraphConfig:
    """The shop, with items that have features in tags.tsv unless said else."""
    entities = {"user": {}, "item": {"features": {"path": "tags.tsv"} | features}}
    return shop(folder, entities=entities, inputs=[{"path": "e*.tsv"}], skip_bad=skip_bad)


def imported(folder: Path, tags: str, **features: Any) -> tuple[Graph, ImportReport]:
    write_edges(folder / "e.tsv", EDGES)
    (folder / "tags.tsv").write_text(tags, "utf-8")
    report = import_graph(tagged(folder, **features), folder / "graph")
    return Graph(folder / "graph"), report


def bags_of(graph: Graph, entity_type: str = "item") -> dict[str, list[str]]:
    """key -> the keys of its features"""
    bags = graph.bags(entity_type)
    assert bags is not None
    names = graph.all_keys(graph.entity_types[entity_type].features or "").to_pylist()
    return {
        key: [names[at] for at in bags.of(np.array([row]))[0]]
        for row, key in enumerate(graph.all_keys(entity_type).to_pylist())
    }


# --- what goes in comes out -----------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.lists(st.tuples(KEYS, st.lists(KEYS, max_size=4)), min_size=1, max_size=12),
    st.sampled_from(["rows", "separator", "list"]),
)
def test_import_then_read_is_the_identity(rows: list[tuple[str, list[str]]], how: str) -> None:
    """Repeated features, empty bags, keys that come again, features that look like keys."""
    if not any(features for _, features in rows):
        rows = [*rows, ("i1", ["x"])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_edges(folder / "e.tsv", EDGES)
        config: dict[str, Any] = {}
        if how == "list":
            table = {"key": [key for key, _ in rows], "features": [bag for _, bag in rows]}
            types = {"key": pa.string(), "features": pa.list_(pa.string())}
            pq.write_table(
                pa.table({n: pa.array(v, types[n]) for n, v in table.items()}),
                folder / "tags.parquet",
            )
            config = {"path": "tags.parquet", "columns": {"key": "key", "features": "features"}}
        elif how == "separator":
            config = {"separator": "\x02|"}
            lines = [f"{key}\t" + "\x02|".join(bag) for key, bag in rows]
            (folder / "tags.tsv").write_text("".join(f"{line}\n" for line in lines), "utf-8")
        else:
            pairs = [(key, one) for key, bag in rows for one in bag or [""]]
            write_edges(folder / "tags.tsv", pairs)
        import_graph(tagged(folder, **config), folder / "graph")
        graph = Graph(folder / "graph")
        expected: dict[str, list[str]] = {"i1": [], "i2": []}
        for key, bag in rows:
            expected.setdefault(key, []).extend(bag)
        assert bags_of(graph) == expected
        assert list(expected) == graph.all_keys("item").to_pylist()  # those of edges come first
        named = [one for _, bag in rows for one in bag]
        assert graph.all_keys("item-feature").to_pylist() == list(dict.fromkeys(named))
        assert {edge[:3] for edge in edges_of(graph)} == set(EDGES)


def test_bags_written_and_read_are_the_same_also_of_none(tmp_path: Path) -> None:
    one = Bags(np.array([0, 2, 2, 5]), np.array([7, 7, 1, 2**32 - 1, 0], np.uint32))
    none = Bags(np.array([0]), np.empty(0, np.uint32))
    for bags in (one, none):
        bag_files.write(tmp_path / "b.arrow", bags)
        back = bag_files.read(tmp_path / "b.arrow")
        assert back.starts.tolist() == bags.starts.tolist()
        assert back.features.tolist() == bags.features.tolist()
    both = bag_files.joined([one, none, one])
    assert both.starts.tolist() == [0, 2, 2, 5, 7, 7, 10]
    features, starts = both.of(np.array([5, 1, 0, 5]))
    assert features.tolist() == [1, 2**32 - 1, 0, 7, 7, 1, 2**32 - 1, 0]
    assert starts.tolist() == [0, 3, 3, 5]


def test_numbers_in_lists_are_keys_as_elsewhere(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", EDGES)
    lists = pa.array([[3, 4], None, []], pa.list_(pa.int64()))
    table = pa.table({"id": ["i1", "i2", "i3"], "tags": lists})
    pq.write_table(table, tmp_path / "tags.parquet")
    columns = {"key": "id", "features": "tags"}
    config = tagged(tmp_path, path="tags.parquet", columns=columns)
    report = import_graph(config, tmp_path / "graph")
    assert bags_of(Graph(tmp_path / "graph")) == {"i1": ["3", "4"], "i2": [], "i3": []}
    assert report.featureless_entities == {"item": 2}


def test_two_types_can_share_features_with_each_other_and_with_edges(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", [("u1", "bought", "i1"), ("u1", "likes", "x")])
    write_edges(tmp_path / "item.tsv", [("i1", "x"), ("i2", "y")])
    write_edges(tmp_path / "user.tsv", [("u1", "y"), ("u1", "z")])
    entities = {n: {"features": {"path": f"{n}.tsv", "type": "tag"}} for n in ("user", "item")}
    relations = {
        "bought": {"lhs": "user", "rhs": "item"},
        "likes": {"lhs": "user", "rhs": "tag"},
    }
    config = shop(tmp_path, entities=entities, relations=relations)
    report = import_graph(config, tmp_path / "graph")
    graph = Graph(tmp_path / "graph")
    assert bags_of(graph, "user") == {"u1": ["y", "z"]}
    assert bags_of(graph) == {"i1": ["x"], "i2": ["y"]}
    assert graph.all_keys("tag").to_pylist() == ["x", "y", "z"]
    assert {slot.entity_type for slot in graph.tables()} == {"tag"}
    assert report.untrained_entities == {"user": 0, "item": 1, "tag": 0}


def test_what_has_no_features_and_what_has_no_edges_is_counted(tmp_path: Path) -> None:
    graph, report = imported(tmp_path, "i1\tred\ni9\tblue\n")
    assert bags_of(graph) == {"i1": ["red"], "i2": [], "i9": ["blue"]}
    assert report.featureless_entities == {"item": 1}
    assert report.untrained_entities == {"user": 0, "item": 1, "item-feature": 1}
    assert report.num_entities == {"user": 2, "item": 3, "item-feature": 2}


def test_a_changed_features_file_is_another_graph(tmp_path: Path) -> None:
    imported(tmp_path, "i1\tred\n")
    assert difference(tagged(tmp_path), tmp_path / "graph") is None
    (tmp_path / "tags.tsv").write_text("i1\tblue\n")
    assert "tags.tsv is changed" in str(difference(tagged(tmp_path), tmp_path / "graph"))


def test_a_graph_without_features_has_a_manifest_as_ever(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", EDGES)
    import_graph(shop(tmp_path), tmp_path / "graph")
    text = (tmp_path / "graph" / MANIFEST).read_text()
    assert '"features":' not in text and '"bags":' not in text
    assert Graph(tmp_path / "graph").bags("item") is None


# --- growing --------------------------------------------------------------------------------------


def test_bags_of_an_append_come_behind_the_old(tmp_path: Path) -> None:
    graph, _ = imported(tmp_path, "i1\tred|red\ni2\tblue\n", separator="|")
    places, files = places_of(graph), tree(tmp_path / "graph")
    write_edges(tmp_path / "e2.tsv", [("u3", "bought", "i3"), ("u1", "bought", "i1")])
    (tmp_path / "tags.tsv").write_text("i2\tblue\ni1\tred\ni3\tnew|blue\ni4\tred\n")
    config = tagged(tmp_path, separator="|")
    report = import_graph(config, tmp_path / "graph", append=True)
    grown = Graph(tmp_path / "graph")
    assert bags_of(grown) == {
        "i1": ["red", "red"],
        "i2": ["blue"],
        "i3": ["new", "blue"],
        "i4": ["red"],
    }
    assert report.changed_bags == {"item": 1}  # i1 is said to have red once now
    assert report.featureless_entities == {"item": 0}
    assert report.untrained_entities == {"user": 0, "item": 1, "item-feature": 0}
    assert places.items() <= places_of(grown).items()
    now = tree(tmp_path / "graph")
    assert all(now[path] == data for path, data in files.items() if path != MANIFEST)


def test_an_append_without_new_entities_keeps_the_bags(tmp_path: Path) -> None:
    imported(tmp_path, "i1\tred\n")
    write_edges(tmp_path / "e2.tsv", [("u2", "bought", "i1")])
    (tmp_path / "tags.tsv").write_text("i1\tred\ni2\tnever seen\n")
    report = import_graph(tagged(tmp_path), tmp_path / "graph", append=True)
    graph = Graph(tmp_path / "graph")
    assert bags_of(graph) == {"i1": ["red"], "i2": []}
    assert report.changed_bags == {"item": 1}
    assert graph.all_keys("item-feature").to_pylist() == ["red"]  # what nobody has isn't kept


def test_an_append_can_not_change_what_vectors_are_made_of(tmp_path: Path) -> None:
    imported(tmp_path, "i1\tred\n")
    write_edges(tmp_path / "e2.tsv", [("u2", "bought", "i1")])
    for config, found in [
        (tagged(tmp_path, type="tag"), "item-feature for the features of item, the config tag"),
        (shop(tmp_path, inputs=[{"path": "e*.tsv"}]), "the config none"),
    ]:
        with pytest.raises(DataError, match=found):
            import_graph(config, tmp_path / "graph", append=True)


def test_an_import_broken_off_while_it_writes_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the features are read, and the journal knows nothing of them."""
    whole, _ = imported(tmp_path, "i9\tblue\ni1\tred\n\tbad\n", **SKIPPING)
    expected = tree(whole.path)

    with full_disk(monkeypatch, bag_import, "write"):
        import_graph(tagged(tmp_path, **SKIPPING), tmp_path / "graph")
    report = import_graph(tagged(tmp_path, **SKIPPING), tmp_path / "graph")
    assert report.resumed and report.skipped_rows == 1
    assert tree(tmp_path / "graph") == expected


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "features", "sentence"),
    [
        ("i1\n", {}, "tags.tsv:1: expected 2 tab-separated columns"),
        ("\tred\n", {}, "tags.tsv:1: the key key is empty"),
        ("i1\t\n", {}, "tags.tsv names no feature of any item. Mend graph.entities.item.features"),
        ("", {}, "names no feature of any item"),
        ("i1\tred\n", {"path": "tag.tsv"}, "tag.tsv is missing: no such file"),
    ],
)
def test_a_bad_file_is_one_sentence_and_leaves_no_graph(
    tmp_path: Path, tags: str, features: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        imported(tmp_path, tags, **features)
    assert not (tmp_path / "graph").exists()


def test_bad_rows_are_skipped_where_that_is_asked_for(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", EDGES)
    (tmp_path / "tags.tsv").write_text("i1\tred\nodd\n\tblue\n")
    report = import_graph(tagged(tmp_path, skip_bad=True), tmp_path / "graph")
    assert report.skipped_rows == 2
    assert bags_of(Graph(tmp_path / "graph")) == {"i1": ["red"], "i2": []}
    assert report.skipped_file is not None and "odd" in report.skipped_file.read_text()


def test_lists_need_no_separator_and_hold_keys(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", EDGES)
    columns = {"key": "k", "features": "f"}
    for values, separator, found in [
        ([["a"]], "|", "holds lists of features, which need no separator"),
        ([[0.5]], None, "column f is of type double, expected text or whole numbers"),
    ]:
        pq.write_table(pa.table({"k": ["i1"], "f": values}), tmp_path / "t.parquet")
        config = tagged(tmp_path, path="t.parquet", columns=columns, separator=separator)
        with pytest.raises(DataError, match=found):
            import_graph(config, tmp_path / "graph")


@pytest.mark.parametrize("harm", ["cut", "other", "short"])
def test_a_damaged_file_of_bags_is_named(tmp_path: Path, harm: str) -> None:
    graph, _ = imported(tmp_path, "i1\tred\n")
    path = graph.path / "entities/item/bags-000.arrow"
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif harm == "other":
        path.write_bytes(path.read_bytes().replace(b"features", b"fixtures"))
    else:
        manifest = json.loads((graph.path / MANIFEST).read_text())
        del manifest["digest"]  # that would be found first
        manifest["entity_types"][1]["partitions"][0]["bags"] = []
        (graph.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="Import the graph again") as caught:
        Graph(graph.path).bags("item")
    assert str(path if harm != "short" else MANIFEST) in str(caught.value)


def settings_of(**entities: Any) -> GraphConfig:
    """Of items, that relations name, and whatever else."""
    graph = {
        "entities": entities,
        "relations": {"like": {"lhs": "item", "rhs": "item"}},
        "inputs": [{"path": "e.tsv", "relation": "like"}],
    }
    return from_tables({"graph": graph}).table("graph", GraphConfig)


TAGS = {"path": "t.tsv"}


@pytest.mark.parametrize(
    ("entities", "sentence"),
    [
        ({"item": {"features": {}}}, "path is missing"),
        ({"item": {"features": TAGS | {"colums": {}}}}, "colums is not a setting. Did you mean"),
        (
            {"item": {"features": TAGS | {"columns": {"key": 0}}}},
            "columns does not map features",
        ),
        (
            {"item": {"features": TAGS, "partitions": 2}},
            "entities.item: a type with features has 1 partition, .*found 2",
        ),
        (
            {"item": {"features": TAGS | {"type": "tag"}}, "tag": {"partitions": 3}},
            "entities.tag: a type with features has 1 partition, .*found 3",
        ),
        (
            {"item": {"features": TAGS | {"type": "item"}}},
            "entities.item.features are of type item, which has features itself",
        ),
        ({"item": {"features": TAGS | {"type": "a b"}}}, "entities.a b: a type's name is made of"),
    ],
    ids=str,
)
def test_a_mistake_in_the_settings_is_one_sentence(entities: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        settings_of(**entities)
    assert "\n" not in str(caught.value)


def test_features_make_up_a_type_of_their_own_unless_it_is_named() -> None:
    assert list(settings_of(item={"features": TAGS}).entities) == ["item", "item-feature"]
    shared = settings_of(item={"features": TAGS | {"type": "tag"}}, tag={"expected": 9})
    assert shared.entities["tag"].expected == 9
    # What is written down resolves to itself: a checkpoint's settings can be read back.
    written = shared.model_dump(mode="json")
    assert GraphConfig.model_validate(written).model_dump(mode="json") == written


def test_own_buckets_have_no_features(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="own_buckets have no features: remove"):
        graph = {
            "entities": {"item": {"features": TAGS}},
            "relations": {"like": {"lhs": "item", "rhs": "item"}},
            "own_buckets": "x",
        }
        from_tables({"graph": graph}).table("graph", GraphConfig)
