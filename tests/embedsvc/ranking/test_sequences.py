"""Histories of a graph against a plain sort of its rows; walks against what is known by sight."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedsvc.ranking.sequences import Sequences, histories, keeps_order, walks
from partitions import importer
from partitions.config import GraphConfig
from partitions.errors import ConfigError, DataError
from partitions.graph import Graph

MakeGraph = Callable[..., Graph]

BUYS = {"buys": ("user", "item")}
RELATIONS = {**BUYS, "tagged": ("item", "tag")}


def named(graph: Graph, relation: str, found: Sequences) -> dict[str, list[str]]:
    """Sequences by keys; of lhs that have something."""
    at = graph.relations[graph.relation_id(relation)]
    lhs, rhs = graph.all_keys(at.lhs).to_pylist(), graph.all_keys(at.rhs).to_pylist()
    assert len(found) == len(lhs)
    return {lhs[s]: [rhs[i] for i in found[s]] for s in range(len(found)) if len(found[s])}


def timed_graph(tmp_path: Path, rows: list[tuple[Any, ...]], partitions: int) -> Graph:
    """rows: (user, item, seconds)"""
    (tmp_path / "log.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    config = GraphConfig.model_validate(
        {
            "data": tmp_path,
            "gate": False,
            "entities": {t: {"partitions": partitions} for t in ("user", "item")},
            "relations": {"buys": {"lhs": "user", "rhs": "item"}},
            "inputs": [
                {
                    "path": "log.tsv",
                    "relation": "buys",
                    "columns": {"lhs": 0, "rhs": 1, "timestamp": 2},
                }
            ],
        }
    )
    importer.import_graph(config, tmp_path / "graph")
    return Graph(tmp_path / "graph")


@pytest.mark.parametrize("partitions", [1, 3])
def test_histories_are_in_the_order_of_time(tmp_path: Path, partitions: int) -> None:
    rng = np.random.default_rng(5)
    rows = [
        (f"u{rng.integers(7)}", f"i{item}", 1_000_000 + int(time))
        for item, time in enumerate(rng.permutation(60))
    ]
    wanted: dict[str, list[str]] = {}
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        wanted.setdefault(user, []).append(item)
    graph = timed_graph(tmp_path, rows, partitions)
    assert named(graph, "buys", histories(graph, "buys")) == wanted
    assert keeps_order(graph, "buys")


def test_equal_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [("u", f"i{i}", 1000 + i // 10 % 2) for i in range(40)]
    graph = timed_graph(tmp_path, rows, 1)
    wanted = [f"i{i}" for i in range(40) if i // 10 % 2 == 0]
    wanted += [f"i{i}" for i in range(40) if i // 10 % 2 == 1]
    assert named(graph, "buys", histories(graph, "buys")) == {"u": wanted}


def test_without_times_the_order_is_that_of_the_file(make_graph: MakeGraph) -> None:
    rng = np.random.default_rng(6)
    rows = [(f"u{rng.integers(5)}", "buys", f"i{item}") for item in rng.permutation(40)]
    wanted: dict[str, list[str]] = {}
    for user, _, item in rows:
        wanted.setdefault(user, []).append(item)
    train, valid = rows[:30], [("u0", "buys", "i77"), ("u1", "buys", "i0")]
    others = [(f"i{i}", "tagged", "t") for i in range(40)]
    graph = make_graph(
        {"train": rows + others, "valid": valid}, RELATIONS, {"user": 3}, name="files"
    )
    assert named(graph, "buys", histories(graph, "buys")) == wanted
    both = named(graph, "buys", histories(graph, "buys", ["train", "valid"]))
    assert both["u0"] == [*wanted["u0"], "i77"] and both["u1"] == [*wanted["u1"], "i0"]
    assert keeps_order(graph, "buys")
    assert not keeps_order(make_graph({"train": train}, BUYS, {"item": 2}), "buys")


def test_a_relation_that_is_not_there(make_graph: MakeGraph) -> None:
    graph = make_graph({"train": [("u", "buys", "i")]}, BUYS)
    with pytest.raises(DataError, match=r"has no relation bys\. Did you mean buys\?"):
        histories(graph, "bys")
    with pytest.raises(DataError, match="no entity type house"):
        walks(graph, None, "house", 3, 1, 0)
    with pytest.raises(ConfigError, match="must be at least 1"):
        walks(graph, None, "item", 0, 1, 0)


def test_sequences_that_make_no_sense() -> None:
    for starts, items in [
        ([], []),
        ([1, 2], [0]),
        ([0, 2, 1], [5]),
        ([0, 3, 2], [1, 2]),
        ([0], [1]),
    ]:
        with pytest.raises(DataError, match="must rise from 0"):
            Sequences(np.array(starts, np.int64), np.array(items, np.int64))
    with pytest.raises(DataError, match="at least 0, found -4"):
        Sequences(np.array([0, 2]), np.array([3, -4]))


def test_newest_items_are_at_the_right() -> None:
    sequences = Sequences(np.array([0, 4, 4, 5]), np.array([7, 8, 9, 6, 1]))
    found = sequences.newest(np.array([2, 0, 1, 0]), 3)
    assert found.tolist() == [[-1, -1, 1], [8, 9, 6], [-1, -1, -1], [8, 9, 6]]


def test_a_walk_of_a_chain_has_one_way_to_go(make_graph: MakeGraph) -> None:
    """u has bought a only, so from a every second node is a again; b is alone with its tag."""
    rows = [("u", "buys", "a"), ("b", "tagged", "t")]
    graph = make_graph({"train": rows}, RELATIONS, {"item": 2})
    keys = graph.all_keys("item").to_pylist()
    found = walks(graph, None, "item", 5, 2, 0)
    assert len(found) == 4
    for s in range(4):
        assert [keys[i] for i in found[s]] == [keys[s // 2]] * 3
    only = walks(graph, ["buys"], "item", 5, 1, 0)
    assert [keys[i] for i in only[keys.index("b")]] == ["b"]
    users = walks(graph, ["buys"], "user", 4, 1, 0)
    assert users.items.tolist() == [0, 0]


def test_each_neighbour_is_as_likely(make_graph: MakeGraph) -> None:
    """From a, by its one buyer: to a, b or c."""
    rows = [("u", "buys", item) for item in "abc"] + [("v", "buys", item) for item in "xy"]
    graph = make_graph({"train": rows}, BUYS)
    keys = graph.all_keys("item").to_pylist()
    found = walks(graph, ["buys"], "item", 3, 3000, 1)
    for item, group in (("a", "abc"), ("y", "xy")):
        at = keys.index(item)
        seen = Counter(keys[found[s][1]] for s in range(at * 3000, (at + 1) * 3000))
        assert set(seen) == set(group)
        for count in seen.values():
            # Five standard deviations of a binomial draw.
            p = 1 / len(group)
            assert abs(count - 3000 * p) < 5 * (3000 * p * (1 - p)) ** 0.5


def test_walks_are_a_function_of_the_seed_alone(make_graph: MakeGraph) -> None:
    rng = np.random.default_rng(3)
    rows = [(f"u{rng.integers(40)}", "buys", f"i{rng.integers(60)}") for _ in range(300)]
    graph = make_graph({"train": rows}, BUYS, {"item": 2})
    one = walks(graph, None, "item", 9, 5, 7, threads=1)
    two = walks(graph, None, "item", 9, 5, 7, threads=2)
    other = walks(graph, None, "item", 9, 5, 8, threads=1)
    assert np.array_equal(one.items, two.items) and np.array_equal(one.starts, two.starts)
    assert not np.array_equal(one.items, other.items)
