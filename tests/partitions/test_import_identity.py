"""What goes in comes out, whatever the partitions, threads, files and pieces of work."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions import spool
from partitions.config import GraphConfig
from partitions.graph import Graph
from partitions.hashing import hash_keys
from partitions.importer import import_graph
from partitions.schema import SPLITS
from tests.partitions.import_cases import (
    NAMES,
    Edge,
    columns,
    edges_of,
    places_of,
    shop,
    shop_edges,
    tree,
    write_edges,
)

# What a tab-separated file can hold, with what trips programs: look-alikes, numbers, long keys,
# halves of escape sequences, other alphabets, characters beyond 16 bits, a zero byte.
NASTY = [
    "é",
    "e\u0301",
    "\uff21\uff22",
    "\u202e",
    "NaN",
    "null",
    "0",
    "00",
    "1e3",
    '"',
    "'",
    "\\N",
    "\\t",
]
NASTY += [
    "😀",
    "\U0001d518",
    "x" * 3000,
    " ",
    "  a",
    "a ",
    "\u2028",
    "\x00",
    "-1",
    "Ω",
    "Ω",
    "日本",
]
KEYS = st.sampled_from(NASTY) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n\ufeff"),
    min_size=1,
    max_size=4,
)


@contextmanager
def held_rows(rows: int) -> Iterator[None]:
    before, spool.HELD_ROWS = spool.HELD_ROWS, rows
    try:
        yield
    finally:
        spool.HELD_ROWS = before


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], list[Edge]]:
    """(entities and relations, edges with weight, seconds and split)"""
    types = ["red", "green", "blue"][: draw(st.integers(1, 3))]
    relations = {
        name: {"lhs": draw(st.sampled_from(types)), "rhs": draw(st.sampled_from(types))}
        for name in ("r", "relation two", "関係")[: draw(st.integers(1, 3))]
    }
    edge = st.tuples(
        KEYS,
        st.sampled_from(sorted(relations)),
        KEYS,
        st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.5, 3.9]),
        st.integers(-(1 << 62), 1 << 62),
        st.sampled_from(SPLITS),
    )
    edges = draw(st.lists(edge, min_size=1, max_size=30))
    keys: dict[str, set[str]] = {}
    for lhs, rel, rhs, *_ in edges:
        keys.setdefault(relations[rel]["lhs"], set()).add(lhs)
        keys.setdefault(relations[rel]["rhs"], set()).add(rhs)
    split_up = draw(st.sets(st.sampled_from(sorted(keys))))
    most = min((len(keys[name]) for name in split_up), default=1)
    partitions = draw(st.integers(1, most))
    return {
        "entities": {n: {"partitions": partitions if n in split_up else 1} for n in sorted(keys)},
        "relations": {n: r for n, r in relations.items() if set(r.values()) <= set(keys)},
    }, edges


@settings(max_examples=40)
@given(
    cases(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 5, 1 << 22]),
)
def test_import_then_read_is_the_identity(
    case: tuple[dict[str, Any], list[Edge]], weighted: bool, timed: bool, threads: int, held: int
) -> None:
    described, edges = case
    names = [n for n in NAMES if (n != "weight" or weighted) and (n != "timestamp" or timed)]
    chosen = [NAMES.index(name) for name in names]
    with tempfile.TemporaryDirectory() as name, held_rows(held):
        folder = Path(name)
        files: dict[str, list[list[str]]] = {}
        for at, edge in enumerate(edges):  # several files of a split, in turns
            cells = [repr(v) if isinstance(v, float) else str(v) for v in edge[:5]]
            files.setdefault(f"{edge[5]}-{at % 2}.tsv", []).append([cells[c] for c in chosen])
        inputs = []
        for file, rows in files.items():
            write_edges(folder / file, map(tuple, rows))
            split = file.split("-")[0]
            inputs.append({"path": file, "split": split, "columns": columns(*names)})
        described = described | {"data": folder, "inputs": inputs, "threads": threads}
        import_graph(GraphConfig.model_validate(described), folder / "graph")
        expected = Counter(
            (
                *edge[:3],
                float(np.float32(edge[3])) if weighted else None,
                edge[4] if timed else None,
                edge[5],
            )
            for edge in edges
        )
        assert edges_of(Graph(folder / "graph")) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"user": 3, "item": 3, "holdout": {"valid": 0.2, "test": 0.2}, "duplicates": "sum"},
        {"user": 4, "holdout": {"last": True}, "self_loops": "drop"},
        {"item": 2, "holdout": {"valid": 0.2, "test": 0.2, "by": "edge"}, "duplicates": "drop"},
        {"user": 2, "item": 2, "holdout": {"valid": 0.1, "test": 0.2, "by": "lhs"}},
    ],
    ids=str,
)
def test_threads_and_the_size_of_pieces_do_not_show_in_a_single_byte(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    for at in range(3):
        write_edges(tmp_path / f"{at}.tsv", shop_edges(1500, seed=at))
    inputs = [{"path": "?.tsv", "columns": columns(*NAMES)}]
    trees = []
    for threads, held in [(1, 1 << 22), (3, 1 << 22), (1, 10), (4, 700)]:
        with held_rows(held):
            config = shop(tmp_path, inputs=inputs, threads=threads, **settings)
            import_graph(config, tmp_path / "graph")
        trees.append(tree(tmp_path / "graph"))
    assert all(found == trees[0] for found in trees[1:])


def test_the_order_of_sight_is_the_order_of_offsets(tmp_path: Path) -> None:
    edges = shop_edges(800, seed=9)
    write_edges(tmp_path / "e.tsv", [edge[:3] for edge in edges])
    import_graph(shop(tmp_path, user=3, item=3), tmp_path / "graph")
    places = places_of(Graph(tmp_path / "graph"))
    items = list(dict.fromkeys(e[2] for e in edges if e[1] != "follows"))
    for partition in range(3):
        here = [key for key in items if places["item", key][0] == partition]
        assert [places["item", key][1] for key in here] == list(range(len(here)))


def test_a_graph_of_forged_hashes_is_still_the_graph_of_its_keys(tmp_path: Path) -> None:
    """Keys whose hashes agree in their low 10 bits: one partition of 2, one chain of slots."""
    numbers = [f"k{n}" for n in range(60_000)]
    low = hash_keys(pa.array(numbers)) & np.uint64(1023)
    keys = [key for key, bits in zip(numbers, low.tolist(), strict=True) if bits == 5]
    assert len(keys) > 40
    edges = [(a, "follows", b) for a, b in pairwise(keys)]
    write_edges(tmp_path / "e.tsv", [*edges, (keys[0], "bought", "i"), (keys[0], "saw", "j")])
    import_graph(shop(tmp_path, user=2), tmp_path / "graph")
    graph = Graph(tmp_path / "graph")
    assert [graph.num_rows(slot) for slot in graph.slots()[:2]] == [0, len(keys)]
    assert {e[:3] for e in edges_of(graph) if e[1] == "follows"} == set(edges)
