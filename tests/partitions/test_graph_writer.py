"""partitions.graph_writer: policies on duplicates and self-loops, splits by time, counts."""

import tempfile
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions import edges as edge_files
from partitions import graph_writer
from partitions.edges import Edges
from partitions.graph import Graph
from partitions.importer import ImportReport, import_graph
from partitions.schema import SPLITS, Bucket
from tests.partitions.import_cases import (
    NAMES,
    Edge,
    columns,
    edges_in_order,
    edges_of,
    shop,
    shop_edges,
    tree,
    write_edges,
)


def imported(folder: Path, edges: list[Edge], **settings: Any) -> tuple[Graph, ImportReport]:
    write_edges(folder / "e.tsv", edges)
    names = NAMES[: len(edges[0])]
    config = shop(folder, inputs=[{"path": "e.tsv", "columns": columns(*names)}], **settings)
    report = import_graph(config, folder / "graph")
    return Graph(folder / "graph"), report


# --- duplicates -----------------------------------------------------------------------------------


def test_duplicates_are_kept_unless_said_otherwise(tmp_path: Path) -> None:
    edges = [("u", "bought", "i", 1.5)] * 3 + [("u", "saw", "i", 1.5)]
    graph, report = imported(tmp_path, edges)
    assert report.dropped_edges == 0
    assert [e[:4] for e in edges_in_order(graph, "train")] == edges


def test_dropped_duplicates_leave_the_first_in_its_place(tmp_path: Path) -> None:
    edges = [
        *(("b", "bought", "x", 2.0), ("a", "bought", "x", 1.0), ("b", "bought", "x", 9.0)),
        *(("a", "saw", "x", 3.0), ("a", "bought", "y", 4.0), ("a", "bought", "x", 7.0)),
    ]
    graph, report = imported(tmp_path, edges, duplicates="drop")
    assert [e[:4] for e in edges_in_order(graph, "train")] == [edges[n] for n in (0, 1, 3, 4)]
    assert report.dropped_edges == graph.manifest.batches[0]["dropped_edges"] == 2
    assert report.num_edges["train"] == 4


def test_summed_weights_are_the_float32_of_the_float64_sum(tmp_path: Path) -> None:
    weights = [0.5, 1.5, 2.25, 3.9]
    edges = [("u", "bought", "i", w) for w in weights] + [
        ("u", "saw", "i", w) for w in [3.9] * 1000
    ]
    graph, report = imported(tmp_path, edges, duplicates="sum")
    as_read = np.array(weights, np.float32).astype(np.float64)
    exact = [np.float32(as_read.sum()), np.float32(np.float64(np.float32(3.9)) * 1000)]
    assert [e[3] for e in edges_in_order(graph, "train")] == [float(value) for value in exact]
    assert report.dropped_edges == 1002


def test_edges_without_weights_weigh_one_in_a_sum(tmp_path: Path) -> None:
    edges = [("u", "bought", "i")] * 3 + [("u", "saw", "i")]
    graph, _ = imported(tmp_path, edges, duplicates="sum")
    assert [e[:4] for e in edges_in_order(graph, "train")] == [
        ("u", "bought", "i", 3.0),
        ("u", "saw", "i", 1.0),
    ]


def plain_policies(edges: list[Edge], duplicates: str, self_loops: str) -> Counter[Edge]:
    kept: dict[Edge, list[Edge]] = {}
    for at, edge in enumerate(edges):
        if self_loops == "drop" and edge[1] == "follows" and edge[0] == edge[2]:
            continue
        key = edge[:3] if duplicates != "keep" else (at,)
        kept.setdefault(key, []).append(edge)
    found: Counter[Edge] = Counter()
    for same in kept.values():
        weight = sum(edge[3] for edge in same) if duplicates == "sum" else same[0][3]
        found[(*same[0][:3], weight, same[0][4], "train")] += 1
    return found


@pytest.mark.parametrize("duplicates", ["keep", "drop", "sum"])
@pytest.mark.parametrize("self_loops", ["keep", "drop"])
@pytest.mark.parametrize(("user", "item"), [(1, 1), (3, 3), (3, 1)])
def test_policies_are_those_of_a_plain_loop(
    tmp_path: Path, duplicates: str, self_loops: str, user: int, item: int
) -> None:
    edges = shop_edges(600, seed=3, users=12, items=9)  # eighths: their sums are exact
    graph, report = imported(
        tmp_path, edges, duplicates=duplicates, self_loops=self_loops, user=user, item=item
    )
    found = edges_of(graph)
    assert found == plain_policies(edges, duplicates, self_loops)
    assert report.dropped_edges == len(edges) - found.total()


def test_equal_edges_of_two_splits_are_no_duplicates(tmp_path: Path) -> None:
    write_edges(tmp_path / "a.tsv", [("u", "bought", "i")] * 2)
    inputs = [{"path": "a.tsv"}, {"path": "a.tsv", "split": "test"}]
    report = import_graph(shop(tmp_path, inputs=inputs, duplicates="drop"), tmp_path / "graph")
    assert (report.num_edges, report.dropped_edges) == ({"train": 1, "valid": 0, "test": 1}, 2)


def test_a_user_and_an_item_of_the_same_key_are_no_self_loop(tmp_path: Path) -> None:
    edges = [("x", "bought", "x"), ("x", "follows", "x"), ("y", "follows", "x")]
    graph, report = imported(tmp_path, edges, self_loops="drop")
    assert [e[:3] for e in edges_in_order(graph, "train")] == [edges[0], edges[2]]
    assert report.dropped_edges == 1


def test_equal_offsets_of_two_partitions_are_no_self_loop(tmp_path: Path) -> None:
    """Every user follows every user: each offset meets itself in each pair of partitions."""
    users = [f"u{n}" for n in range(20)]
    edges = [(a, "follows", b) for a in users for b in users] + [("u1", "bought", "i1")]
    edges += [("u2", "bought", f"i{n}") for n in range(20)]
    graph, report = imported(tmp_path, edges, self_loops="drop", user=3, item=3)
    assert report.dropped_edges == 20
    assert {e[:3] for e in edges_of(graph)} == {e for e in edges if e[0] != e[2]}


# --- splits ---------------------------------------------------------------------------------------

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "cuts",
    [
        {"valid_after": int(NOON.timestamp()), "test_after": int(NOON.timestamp()) + 3600},
        {"valid_after": NOON, "test_after": "2024-05-01T13:00:00Z"},
        {"valid_after": "2024-05-01 12:00:00", "test_after": "2024-05-01T15:00:00+02:00"},
    ],
    ids=["seconds", "moments", "without a zone it is UTC"],
)
def test_edges_after_a_moment_are_held_out(tmp_path: Path, cuts: dict[str, Any]) -> None:
    start = int(NOON.timestamp())
    offsets = [-86400, -1, 0, 1, 3599, 3600, 3601, 10**9]
    edges = [("u", "bought", f"i{n}", 1.0, start + n) for n in offsets]
    graph, report = imported(tmp_path, edges, holdout=cuts)
    for split, chosen in zip(SPLITS, (offsets[:3], offsets[3:6], offsets[6:]), strict=True):
        assert [e[4] - start for e in edges_in_order(graph, split)] == chosen
    assert report.num_edges == {"train": 3, "valid": 3, "test": 2}


def test_a_cut_may_be_a_day_and_may_stand_alone(tmp_path: Path) -> None:
    day = date(2024, 5, 2)
    start = int(datetime(2024, 5, 2, tzinfo=UTC).timestamp())
    edges = [("u", "bought", f"i{n}", 1.0, start + n) for n in (-1, 0, 1)]
    for split in ("valid", "test"):
        _, report = imported(tmp_path, edges, holdout={f"{split}_after": day})
        assert report.num_edges == {"train": 2, "valid": 0, "test": 0} | {split: 1}


def test_only_the_relations_asked_for_are_cut_in_time(tmp_path: Path) -> None:
    edges = shop_edges(300, seed=4)
    graph, _ = imported(tmp_path, edges, holdout={"test_after": 99, "relations": ["saw"]})
    expected = Counter((*e, "test" if e[4] > 99 and e[1] == "saw" else "train") for e in edges)
    assert edges_of(graph) == expected


# --- what is counted ------------------------------------------------------------------------------


@pytest.mark.parametrize(("user", "item"), [(1, 1), (3, 3), (1, 3), (3, 1)])
def test_entities_without_a_training_edge_are_counted(tmp_path: Path, user: int, item: int) -> None:
    edges = shop_edges(150, seed=6, users=80, items=60)
    graph, report = imported(tmp_path, edges, user=user, item=item, holdout={"test": 0.4})
    untrained = {"user": 0, "item": 0}
    trained = {
        (kind, key)
        for lhs, rel, rhs, *_ in edges_in_order(graph, "train")
        for kind, key in (("user", lhs), ("user" if rel == "follows" else "item", rhs))
    }
    for kind in untrained:
        untrained[kind] = sum(
            (kind, key) not in trained for key in graph.all_keys(kind).to_pylist()
        )
    assert report.untrained_entities == untrained
    assert min(untrained.values()) > 3


# --- large buckets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"user": 3, "item": 3, "holdout": {"valid": 0.2, "test": 0.2}},
        {"self_loops": "drop", "holdout": {"test_after": 99}},
        {"holdout": {"last": True}, "self_loops": "drop"},
        {"user": 3, "item": 3, "holdout": {"valid": 0.2, "test": 0.2, "by": "edge"}},
        {"holdout": {"valid": 0.1, "test": 0.1, "by": "lhs"}, "self_loops": "drop"},
        {"duplicates": "sum"},
    ],
    ids=str,
)
def test_a_bucket_written_in_pieces_is_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    edges = shop_edges(1000, seed=7)
    _, report = imported(tmp_path, edges, **settings)
    (tmp_path / "graph").rename(tmp_path / "whole")
    monkeypatch.setattr(graph_writer, "READ_ROWS", 64)
    _, in_pieces = imported(tmp_path, edges, **settings)
    assert tree(tmp_path / "graph") == tree(tmp_path / "whole")
    assert in_pieces == report


LENGTHS = st.lists(st.integers(0, 70), max_size=5)


@settings(max_examples=40)
@given(LENGTHS, st.sampled_from([1, 2, 300]), st.booleans(), st.booleans())
def test_pieces_of_any_length_give_the_file_of_the_whole(
    lengths: list[int], num_relations: int, weighted: bool, timed: bool
) -> None:
    total = sum(lengths)
    rng = np.random.default_rng(total)
    whole = Edges(
        rng.integers(0, 1 << 32, total, np.uint32),
        rng.integers(0, num_relations, total, np.uint32),
        rng.integers(0, 1 << 32, total, np.uint32),
        rng.random(total, np.float32) if weighted else None,
        rng.integers(-(1 << 62), 1 << 62, total) if timed else None,
    )
    if not total:
        return
    pieces, start = [], 0
    for length in lengths:
        part = slice(start, start + length)
        fields = [None if column is None else column[part] for column in vars(whole).values()]
        pieces.append(Edges(*fields))  # type: ignore[arg-type]
        start += length
    with tempfile.TemporaryDirectory() as folder:
        one, many = Path(folder, "one.arrow"), Path(folder, "many.arrow")
        edge_files.write(one, whole, num_relations)
        edge_files.write_pieces(many, total, iter(pieces), num_relations)
        assert many.read_bytes() == one.read_bytes()


def test_relations_of_many_names_keep_their_counts(tmp_path: Path) -> None:
    """More than 256 of them: `rel` takes two bytes."""
    edges = [(f"u{n % 7}", f"r{n % 300:03}", f"i{n % 11}") for n in range(900)]
    relation = {"lhs": "user", "rhs": "item"}
    graph, _ = imported(tmp_path, edges, relations={"*": relation})
    assert [r.name for r in graph.relations] == [f"r{n:03}" for n in range(300)]
    assert graph.manifest.relation_edges["train"] == [3] * 300
    assert graph.edges("train", Bucket(0, 0)).rel.dtype == np.uint16
    assert Counter(e[:3] for e in edges_of(graph).elements()) == Counter(edges)
