"""partitions.last_edges: leave-last-out is what a plain loop over the input says."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions import candidates, graph_writer
from partitions.graph import Graph
from partitions.importer import import_graph
from tests.partitions.import_cases import (
    NAMES,
    Edge,
    columns,
    edges_of,
    shop,
    shop_edges,
    write_edges,
)


def expected(edges: list[Edge], relations: list[str] | None = None) -> Counter[Edge]:
    """Each user's last edge for the test, the one before it for validation; ties by place."""
    per_user: dict[str, list[int]] = {}
    for at, edge in enumerate(edges):
        if relations is None or edge[1] in relations:
            per_user.setdefault(edge[0], []).append(at)
    split = ["train"] * len(edges)
    for places in per_user.values():
        if len(places) >= 3:
            ordered = sorted(places, key=lambda at: (edges[at][4], at))
            split[ordered[-1]], split[ordered[-2]] = "test", "valid"
    return Counter((*edge, part) for edge, part in zip(edges, split, strict=True))


def imported(folder: Path, edges: list[Edge], **settings: Any) -> Counter[Edge]:
    write_edges(folder / "e.tsv", edges)
    inputs = [{"path": "e.tsv", "columns": columns(*NAMES)}]
    holdout = {"last": True, "relations": settings.pop("relations", None)}
    import_graph(shop(folder, inputs=inputs, holdout=holdout, **settings), folder / "graph")
    return edges_of(Graph(folder / "graph"))


@pytest.mark.parametrize(("user", "item"), [(1, 1), (3, 3), (3, 1), (1, 3)])
@pytest.mark.parametrize("relations", [None, ["bought"], ["saw", "follows"], []])
def test_each_user_gives_the_last_edges(
    tmp_path: Path, user: int, item: int, relations: list[str] | None
) -> None:
    edges = shop_edges(400, seed=user + 2 * item)  # times from 0 to 199: many ties
    found = imported(tmp_path, edges, user=user, item=item, relations=relations)
    assert found == expected(edges, relations)


EDGES = st.lists(
    st.tuples(
        st.sampled_from(["u1", "u2", "u3"]),
        st.sampled_from(["bought", "saw"]),
        st.sampled_from(["i1", "i2"]),
        st.just(1.0),
        st.sampled_from([-(1 << 63), -5, 0, 1, 2, (1 << 63) - 1]),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=40)
@given(EDGES)
def test_any_times_with_ties_and_users_of_few_edges(edges: list[Edge]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert imported(Path(folder), edges) == expected(edges)


def test_ties_are_broken_by_the_place_over_all_files(tmp_path: Path) -> None:
    write_edges(tmp_path / "a.tsv", [("u", "bought", f"i{n}", 7) for n in range(4)])
    write_edges(tmp_path / "b.tsv", [("u", "saw", f"i{n}", 7) for n in range(2)])
    inputs = [{"path": "?.tsv", "columns": columns("lhs", "rel", "rhs", "timestamp")}]
    import_graph(shop(tmp_path, inputs=inputs, holdout={"last": True}), tmp_path / "graph")
    found = {edge[:3]: edge[5] for edge in edges_of(Graph(tmp_path / "graph"))}
    assert [e for e, split in found.items() if split == "valid"] == [("u", "saw", "i0")]
    assert [e for e, split in found.items() if split == "test"] == [("u", "saw", "i1")]


def test_inputs_with_a_split_of_their_own_are_passed_over(tmp_path: Path) -> None:
    files = {"train": 9, "valid": 8, "test": 7, None: 1}
    inputs = []
    for split, seconds in files.items():
        write_edges(
            tmp_path / f"{split}.tsv",
            [("u", "bought", f"i{seconds}{n}", seconds) for n in range(3)],
        )
        inputs.append(
            {
                "path": f"{split}.tsv",
                "split": split,
                "columns": columns("lhs", "rel", "rhs", "timestamp"),
            }
        )
    import_graph(shop(tmp_path, inputs=inputs, holdout={"last": True}), tmp_path / "graph")
    found = {edge[2]: edge[5] for edge in edges_of(Graph(tmp_path / "graph"))}
    drawn = {"i10": "train", "i11": "valid", "i12": "test"}
    given_split = {f"i{files[s]}{n}": s for s in ("train", "valid", "test") for n in range(3)}
    assert found == drawn | given_split


def test_large_buckets_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "READ_ROWS", 17)
    monkeypatch.setattr(graph_writer, "READ_ROWS", 23)
    edges = shop_edges(500, seed=5)
    assert imported(tmp_path, edges, user=2, item=2) == expected(edges)
