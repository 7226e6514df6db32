"""partitions.importer: the graph read back is the edges that went in; a failure changes nothing."""

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions import importer, spool
from partitions.config import GraphConfig
from partitions.errors import DataError
from partitions.graph import MANIFEST, Graph
from partitions.graph_writer import WRITING
from partitions.hashing import hash_keys
from partitions.importer import import_graph
from partitions.provenance import difference
from partitions.schema import SPLITS, Bucket
from tests.partitions.import_cases import shop, tree

ROOT = Path(__file__).parents[2]
Edge = tuple[str, str, str]


def config_of(
    folder: Path,
    *,
    inputs: list[dict[str, Any]] | None = None,
    user: int = 1,
    movie: int = 1,
    **settings: Any,
) -> GraphConfig:
    """Users like and rate movies; each edge is a line of e.tsv."""
    return GraphConfig.model_validate(
        {
            "data": folder,
            "gate": False,
            "entities": {"user": {"partitions": user}, "movie": {"partitions": movie}},
            "relations": {n: {"lhs": "user", "rhs": "movie"} for n in ("likes", "rates")},
            "inputs": inputs or [{"path": "e.tsv"}],
            **settings,
        }
    )


def write_edges(path: Path, edges: Iterable[Iterable[Any]]) -> None:
    path.write_text("".join("\t".join(map(str, edge)) + "\n" for edge in edges), "utf-8")


def some_edges(num_edges: int, seed: int = 0) -> list[Edge]:
    rng = np.random.default_rng(seed)
    users, movies = rng.integers(0, 50, num_edges), rng.integers(0, 30, num_edges)
    names = [("likes", "rates")[flag] for flag in rng.integers(0, 2, num_edges)]
    return [(f"u{u}", r, f"m{m}") for u, r, m in zip(users, names, movies, strict=True)]


def read_back(graph: Graph) -> Counter[tuple[str, str, str, float, str]]:
    """Every edge of a graph by its names: (lhs key, relation, rhs key, weight, split) -> times."""
    found: Counter[tuple[str, str, str, float, str]] = Counter()
    keys = {slot: graph.keys(slot).to_pylist() for slot in graph.slots()}
    for split in SPLITS:
        for bucket in graph.buckets(split):
            edges = graph.edges(split, bucket)
            weights = np.ones(len(edges)) if edges.weight is None else edges.weight
            columns = (edges.lhs, edges.rel, edges.rhs, weights)
            for lhs, rel, rhs, weight in zip(*(column.tolist() for column in columns), strict=True):
                r = graph.relations[rel]
                key = keys[graph.slot_of(r.lhs, bucket.lhs)][lhs]
                other = keys[graph.slot_of(r.rhs, bucket.rhs)][rhs]
                found[key, r.name, other, weight, split] += 1
    return found


# --- what goes in comes out -----------------------------------------------------------------------

KEYS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n\ufeff"),
    min_size=1,
    max_size=3,
)
WEIGHTS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, Any], list[tuple[str, str, str, float, str]], bool]:
    """(entities and relations of a config, edges, whether they have weights)"""
    types = [f"type{n}" for n in range(draw(st.integers(2, 3)))]
    relations = {
        f"rel {n}": {"lhs": draw(st.sampled_from(types)), "rhs": draw(st.sampled_from(types))}
        for n in range(draw(st.integers(1, 3)))
    }
    edge = st.tuples(
        st.sampled_from(sorted(relations)), KEYS, KEYS, WEIGHTS, st.sampled_from(SPLITS)
    )
    edges = [
        (lhs, r, rhs, w, s) for r, lhs, rhs, w, s in draw(st.lists(edge, min_size=1, max_size=25))
    ]
    keys: dict[str, set[str]] = {}
    for lhs, name, rhs, _, _ in edges:
        keys.setdefault(relations[name]["lhs"], set()).add(lhs)
        keys.setdefault(relations[name]["rhs"], set()).add(rhs)
    split_up = draw(st.sets(st.sampled_from(sorted(keys))))
    most = min((len(keys[name]) for name in split_up), default=1)
    partitions = draw(st.integers(1, most))
    return (
        {
            "entities": {
                n: {"partitions": partitions if n in split_up else 1} for n in sorted(keys)
            },
            "relations": {n: r for n, r in relations.items() if set(r.values()) <= set(keys)},
        },
        edges,
        draw(st.booleans()),
    )


@settings(max_examples=60)
@given(graphs(), st.booleans())
def test_import_then_read_is_identity(
    case: tuple[dict[str, Any], list[tuple[str, str, str, float, str]], bool], by_file: bool
) -> None:
    described, edges, weighted = case
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs: dict[str, dict[str, Any]] = {}
        for at, (lhs, rel, rhs, weight, split) in enumerate(edges):
            # One file a split, or one file a relation and split: then no column names the relation.
            cells = [lhs, rhs] if by_file else [lhs, rel, rhs]
            if weighted:
                cells.append(repr(weight))
            file = f"{split}{f'-{rel}' if by_file else ''}.tsv"
            names = ["lhs", "rhs"] if by_file else ["lhs", "rel", "rhs"]
            inputs[file] = {
                "path": file,
                "split": split if at % 2 or split != "train" else None,
                "relation": rel if by_file else None,
                "columns": {n: i for i, n in enumerate([*names, "weight"][: len(cells)])},
            }
            with (folder / file).open("a", encoding="utf-8") as out:
                out.write("\t".join(cells) + "\n")
        config = GraphConfig.model_validate(
            {**described, "data": folder, "inputs": list(inputs.values())}
        )
        report = import_graph(config, folder / "graph")
        graph = Graph(folder / "graph")
        expected = Counter(
            (lhs, rel, rhs, float(np.float32(weight)) if weighted else 1.0, split)
            for lhs, rel, rhs, weight, split in edges
        )
        assert read_back(graph) == expected
        counts = Counter(split for *_, split in edges)
        assert report.num_edges == {split: counts[split] for split in SPLITS}
        assert report.num_entities == {n: graph.num_entities(n) for n in described["entities"]}
        for slot in graph.slots():
            parts = graph.entity_types[slot.entity_type].num_partitions
            assert set(hash_keys(graph.keys(slot)) % np.uint64(parts)) <= {slot.partition}


def test_fractional_weights_come_back_as_they_were(tmp_path: Path) -> None:
    weights = [0.5, 1.5, 2.25, 3.9]
    write_edges(tmp_path / "e.tsv", [("u", "likes", f"m{n}", w) for n, w in enumerate(weights)])
    columns = {"lhs": 0, "rel": 1, "rhs": 2, "weight": 3}
    config = config_of(tmp_path, inputs=[{"path": "e.tsv", "columns": columns}])
    import_graph(config, tmp_path / "graph")
    edges = Graph(tmp_path / "graph").edges("train", Bucket(0, 0))
    assert edges.weight is not None
    np.testing.assert_array_equal(edges.weight, np.array(weights, np.float32), strict=True)


def test_inputs_without_weights_weigh_one_beside_inputs_with_weights(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", [("u", "likes", "m", 2.5)])
    write_edges(tmp_path / "f.tsv", [("u", "rates", "m")])
    columns = {"lhs": 0, "rel": 1, "rhs": 2, "weight": 3}
    inputs = [{"path": "e.tsv", "columns": columns}, {"path": "f.tsv"}]
    import_graph(config_of(tmp_path, inputs=inputs), tmp_path / "graph")
    assert read_back(Graph(tmp_path / "graph")) == Counter(
        [("u", "likes", "m", 2.5, "train"), ("u", "rates", "m", 1.0, "train")]
    )


def test_a_second_import_gives_the_same_bytes(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", some_edges(3000))
    config = config_of(tmp_path, user=4, holdout={"valid": 0.1, "test": 0.1})
    import_graph(config, tmp_path / "graph")
    first = tree(tmp_path / "graph")
    import_graph(config, tmp_path / "graph")
    assert tree(tmp_path / "graph") == first
    import_graph(config, tmp_path / "another")
    assert tree(tmp_path / "another") == first
    assert len(first) == 1 + 4 + 1 + 3 * 4


def test_spooling_in_pieces_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_edges(tmp_path / "a.tsv", some_edges(1000, 1))
    write_edges(tmp_path / "b.tsv", some_edges(1000, 2))
    config = config_of(tmp_path, user=3, inputs=[{"path": "*.tsv"}])
    import_graph(config, tmp_path / "at once")
    monkeypatch.setattr(spool, "HELD_ROWS", 100)
    import_graph(config, tmp_path / "in pieces")
    assert tree(tmp_path / "in pieces") == tree(tmp_path / "at once")


def test_a_star_takes_every_relation_of_the_data(tmp_path: Path) -> None:
    edges = [("a", "z", "b"), ("a", "known", "b"), ("c", "é", "d"), ("c", "b", "a")]
    write_edges(tmp_path / "e.tsv", edges)
    config = GraphConfig.model_validate(
        {
            "data": tmp_path,
            "entities": {"node": {}},
            "relations": {n: {"lhs": "node", "rhs": "node"} for n in ("well", "known", "*")},
            "inputs": [{"path": "e.tsv"}],
        }
    )
    import_graph(config, tmp_path / "graph")
    graph = Graph(tmp_path / "graph")
    names = [relation.name for relation in graph.relations]
    assert names == ["well", "known", "b", "z", "é"], "as declared, then by name"
    assert graph.manifest.relation_edges["train"] == [0, 1, 1, 1, 1]
    assert read_back(graph) == Counter((*edge, 1.0, "train") for edge in edges)


def test_progress_hears_of_every_row(tmp_path: Path) -> None:
    write_edges(tmp_path / "a.tsv", some_edges(30, 1))
    write_edges(tmp_path / "b.tsv", some_edges(20, 2))
    heard: Counter[str] = Counter()

    def progress(name: str, rows: int) -> None:
        heard[name] += rows

    import_graph(config_of(tmp_path, inputs=[{"path": "*.tsv"}]), tmp_path / "graph", progress)
    assert heard == {"a.tsv": 30, "b.tsv": 20, WRITING: 50}
    sources = Graph(tmp_path / "graph").manifest.sources
    assert [(Path(s["path"]).name, s["rows"]) for s in sources] == [("a.tsv", 30), ("b.tsv", 20)]


def test_two_relations_cost_at_most_ten_bytes_an_edge(tmp_path: Path) -> None:
    num_edges = 200_000
    rng = np.random.default_rng(1)
    table = pa.table(
        {
            "l": rng.integers(0, 5000, num_edges),
            "rel": pa.array(["likes", "rates"]).take(pa.array(rng.integers(0, 2, num_edges))),
            "r": rng.integers(0, 3000, num_edges),
        }
    )
    pq.write_table(table, tmp_path / "e.parquet")
    config = config_of(tmp_path, user=4, movie=4, inputs=[{"path": "e.parquet"}])
    import_graph(config, tmp_path / "graph")
    graph = Graph(tmp_path / "graph")
    assert (graph.num_edges("train"), len(graph.buckets("train"))) == (num_edges, 16)
    size = sum(path.stat().st_size for path in (tmp_path / "graph" / "edges").rglob("*.arrow"))
    assert 9 * num_edges <= size <= 10 * num_edges


# --- partitions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("user", "movie"), [(1, 1), (4, 1), (1, 4), (4, 4)])
def test_sides_with_one_partition_do_not_multiply_buckets(
    tmp_path: Path, user: int, movie: int
) -> None:
    edges = some_edges(2000)
    write_edges(tmp_path / "e.tsv", edges)
    import_graph(config_of(tmp_path, user=user, movie=movie), tmp_path / "graph")
    graph = Graph(tmp_path / "graph")
    expected = [Bucket(i, j) for i in range(4) for j in range(4)]
    if (user, movie) == (1, 1):
        expected = [Bucket(0, 0)]
    elif 1 in (user, movie):
        expected = [Bucket(i, i) for i in range(4)]
    assert graph.buckets("train") == expected
    assert read_back(graph) == Counter((*edge, 1.0, "train") for edge in edges)


def test_new_edges_move_no_old_id(tmp_path: Path) -> None:
    write_edges(tmp_path / "a.tsv", some_edges(100, 1))
    config = config_of(tmp_path, user=3, inputs=[{"path": "*.tsv"}])
    import_graph(config, tmp_path / "graph")
    before = Graph(tmp_path / "graph")
    write_edges(tmp_path / "b.tsv", [("new", "likes", "m1"), *some_edges(500, 2)])
    import_graph(config, tmp_path / "later")
    after = Graph(tmp_path / "later")
    for slot in before.slots():
        old = before.keys(slot).to_pylist()
        assert after.keys(slot).to_pylist()[: len(old)] == old


def test_an_empty_partition_is_fine(tmp_path: Path) -> None:
    even = [f"u{n}" for n in range(50) if hash_keys(pa.array([f"u{n}"]))[0] % 2 == 0][:2]
    write_edges(tmp_path / "e.tsv", [(key, "likes", "m") for key in even])
    import_graph(config_of(tmp_path, user=2), tmp_path / "graph")
    graph = Graph(tmp_path / "graph")
    assert [len(graph.keys(slot)) for slot in graph.slots()] == [2, 0, 1]
    assert graph.all_keys("user").to_pylist() == even


def test_more_partitions_than_entities_are_refused(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", [("a", "likes", "x"), ("b", "likes", "x")])
    with pytest.raises(DataError) as caught:
        import_graph(config_of(tmp_path, user=3), tmp_path / "graph")
    assert str(caught.value) == (
        "[graph.entities.user] asks for 3 partitions of 2 entities: each needs at least one. "
        "Lower graph.entities.user.partitions (1 suits everything that fits in memory)."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["e.tsv"]


def test_inputs_without_a_single_edge_are_refused(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", [])
    with pytest.raises(DataError, match=r"^The inputs hold no edge with an entity of type user\. "):
        import_graph(config_of(tmp_path), tmp_path / "graph")


# --- held-out edges -------------------------------------------------------------------------------


def splits_of(graph: Graph) -> dict[Edge, str]:
    found: dict[Edge, str] = {}
    for lhs, rel, rhs, _, split in read_back(graph):
        assert found.setdefault((lhs, rel, rhs), split) == split, "equal edges in two splits"
    return found


@pytest.fixture(scope="module")
def distinct() -> list[Edge]:
    return [(f"u{n % 211}", "likes", f"m{n}") for n in range(6000)]


def held_out(folder: Path, edges: list[Edge], **settings: Any) -> dict[Edge, str]:
    write_edges(folder / "e.tsv", edges)
    import_graph(config_of(folder, **settings), folder / "graph")
    return splits_of(Graph(folder / "graph"))


def test_the_shares_held_out_are_near_what_was_asked(tmp_path: Path, distinct: list[Edge]) -> None:
    splits = held_out(tmp_path, distinct, holdout={"valid": 0.1, "test": 0.25})
    counts = Counter(splits.values())
    for split, share in {"train": 0.65, "valid": 0.1, "test": 0.25}.items():
        deviation = (share * (1 - share) * len(distinct)) ** 0.5
        assert abs(counts[split] - share * len(distinct)) < 4 * deviation


def test_the_draw_depends_on_the_edge_and_the_seed_alone(
    tmp_path: Path, distinct: list[Edge]
) -> None:
    holdout = {"valid": 0.1, "test": 0.1}
    first = held_out(tmp_path, distinct, holdout=holdout)
    shuffled = [distinct[at] for at in np.random.default_rng(1).permutation(len(distinct))]
    assert held_out(tmp_path, shuffled + shuffled[:100], holdout=holdout, user=4, movie=4) == first
    some = held_out(tmp_path, distinct[::3], holdout=holdout)
    assert some == {edge: first[edge] for edge in distinct[::3]}
    other = held_out(tmp_path, distinct, holdout={**holdout, "seed": 2})
    changed = sum(other[edge] != first[edge] for edge in distinct) / len(distinct)
    assert 0.25 < changed < 0.45  # independent draws differ in 1 - .8^2 - 2 * .1^2 = .34


def test_more_valid_edges_leave_the_old_ones_in_place(tmp_path: Path, distinct: list[Edge]) -> None:
    few = held_out(tmp_path, distinct, holdout={"valid": 0.05})
    many = held_out(tmp_path, distinct, holdout={"valid": 0.2})
    assert {e for e, s in few.items() if s == "valid"} < {
        e for e, s in many.items() if s == "valid"
    }


def test_equal_edges_share_a_split_whatever_their_weights(tmp_path: Path) -> None:
    edges = [(f"u{n % 40}", "likes", f"m{n % 25}", n / 7) for n in range(2000)]
    columns = {"lhs": 0, "rel": 1, "rhs": 2, "weight": 3}
    splits = held_out(
        tmp_path,
        edges,  # type: ignore[arg-type]
        holdout={"valid": 0.5},
        inputs=[{"path": "e.tsv", "columns": columns}],
    )
    assert len(splits) == 200 and set(splits.values()) == {"train", "valid"}


@pytest.mark.parametrize(
    ("relations", "expected"), [(["likes"], {"likes"}), ([], set()), (None, {"likes", "rates"})]
)
def test_only_the_relations_asked_for_are_held_out(
    tmp_path: Path, relations: list[str] | None, expected: set[str]
) -> None:
    splits = held_out(tmp_path, some_edges(1000), holdout={"test": 0.3, "relations": relations})
    assert {rel for (_, rel, _), split in splits.items() if split == "test"} == expected


def test_an_input_with_a_split_of_its_own_is_not_drawn_from(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", some_edges(500, 1))
    write_edges(tmp_path / "t.tsv", some_edges(500, 2))
    inputs = [{"path": "e.tsv", "split": "train"}, {"path": "t.tsv", "split": "test"}]
    config = config_of(tmp_path, inputs=inputs, holdout={"valid": 0.5})
    assert import_graph(config, tmp_path / "graph").num_edges == {
        "train": 500,
        "valid": 0,
        "test": 500,
    }


# --- attributes -----------------------------------------------------------------------------------


def with_titles(folder: Path, **settings: Any) -> GraphConfig:
    columns = {"key": "id", "title": "title", "year": "year"}
    entities = {
        "user": {"partitions": 3},
        "movie": {"partitions": 3, "attributes": {"path": "m.csv", "columns": columns}},
    }
    return config_of(folder, **settings).model_copy(
        update={
            "entities": GraphConfig.model_validate(
                {**config_of(folder).model_dump(), "entities": entities}
            ).entities
        }
    )


def test_attributes_lie_beside_their_keys_and_strangers_are_counted(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", some_edges(300))
    movies = {f"m{n}": (f"Movie, {n}", str(1990 + n)) for n in range(5, 40)}
    lines = [f'{year},"{title}",{key}' for key, (title, year) in movies.items()]
    (tmp_path / "m.csv").write_text("year,title,id\n" + "\n".join(lines))
    report = import_graph(with_titles(tmp_path), tmp_path / "graph")
    graph = Graph(tmp_path / "graph")
    keys, attributes = graph.all_keys("movie").to_pylist(), graph.attributes("movie")
    assert attributes is not None
    assert attributes.column_names == ["title", "year"]
    assert list(zip(*attributes.to_pydict().values(), strict=True)) == [
        movies.get(key, ("", "")) for key in keys
    ]
    assert len(keys) == 30
    assert report.unmatched_attributes == {"movie": len(set(movies) - set(keys))} == {"movie": 10}


def test_bad_attribute_rows_are_skipped_where_that_is_asked_for(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", some_edges(300))
    (tmp_path / "m.csv").write_text("year,title,id\n1999,One,m1\n2000,Two\n,,m3\n2001,None,\n")
    with pytest.raises(DataError, match=r"m\.csv:3: expected 3 .* graph\.skip_bad=true "):
        import_graph(with_titles(tmp_path), tmp_path / "graph")
    report = import_graph(with_titles(tmp_path, skip_bad=True), tmp_path / "graph")
    assert report.skipped_rows == 2
    graph = Graph(tmp_path / "graph")
    titles = dict(
        zip(
            graph.all_keys("movie").to_pylist(),
            graph.attributes("movie").column("title").to_pylist(),  # type: ignore[union-attr]
            strict=True,
        )
    )
    assert {key: title for key, title in titles.items() if title} == {"m1": "One"}


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (
            "u\tlikse\tm\n",
            "e.tsv row 1: the relation likse is not under [graph.relations]. Did you mean likes?",
        ),
        ("u\tlikes\n", "e.tsv:1: expected 3 tab-separated columns (lhs, rel, rhs), found 2. "),
        ("u\tlikes\tm\nu\t\tm\n", "e.tsv:2: the rel key is empty. "),
    ],
)
def test_a_failed_import_leaves_the_graph_as_it_was(
    tmp_path: Path, lines: str, sentence: str
) -> None:
    write_edges(tmp_path / "e.tsv", some_edges(200))
    import_graph(config_of(tmp_path, user=2), tmp_path / "graph")
    before = tree(tmp_path)
    good = (tmp_path / "e.tsv").read_text()
    (tmp_path / "e.tsv").write_text(good + lines if "1:" not in sentence else lines + good)
    with pytest.raises(DataError) as caught:
        import_graph(config_of(tmp_path, user=2), tmp_path / "graph")
    message = str(caught.value).removeprefix(f"{tmp_path}/")
    assert message.replace(":202:", ":2:").startswith(sentence)
    write_edges(tmp_path / "e.tsv", some_edges(200))
    assert tree(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"e.tsv", "graph"}


def test_skipped_rows_are_counted_over_all_files(tmp_path: Path) -> None:
    good = some_edges(50)
    write_edges(tmp_path / "a.tsv", [*good[:20], ("u", "likes"), ("", "likes", "m")])
    write_edges(tmp_path / "b.tsv", [("x",), *good[20:], ("u", "likes", "m", "more")])
    config = config_of(tmp_path, inputs=[{"path": "?.tsv"}], skip_bad=True)
    report = import_graph(config, tmp_path / "graph")
    graph = Graph(tmp_path / "graph")
    assert (report.skipped_rows, graph.manifest.skipped_rows) == (4, 4)
    assert read_back(graph) == Counter((*edge, 1.0, "train") for edge in good)


def test_an_input_of_an_undeclared_relation_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is of relation lieks.*Did you mean likes\?"):
        config_of(tmp_path, inputs=[{"path": "e.tsv", "relation": "lieks"}])


# --- full disks and kills -------------------------------------------------------------------------


@pytest.mark.parametrize("largest", ["spool", "keys"])
def test_a_full_disk_leaves_the_graph_as_it_was(tmp_path: Path, largest: str) -> None:
    write_edges(tmp_path / "e.tsv", some_edges(200))
    import_graph(config_of(tmp_path, user=2), tmp_path / "graph")
    edges = some_edges(20_000, 1) if largest == "spool" else some_edges(100, 1)
    edges[:] = [(u if largest == "spool" else u * 999, r, m) for u, r, m in edges]
    write_edges(tmp_path / "e.tsv", edges)
    before = tree(tmp_path)
    config = config_of(tmp_path, user=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    failures = 0
    for most_bytes in [0, 100, 1000, 2000, *range(4000, 300_000, 16_000)]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
        try:
            import_graph(config, tmp_path / "graph")
        except OSError as error:
            # The reason must reach the command line, which explains it: not a bare "short write".
            assert error.errno == errno.EFBIG, most_bytes
            failures += 1
        else:
            break
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert tree(tmp_path) == before, most_bytes
    assert failures >= 7
    assert sum(read_back(Graph(tmp_path / "graph")).values()) == len(edges)


def old_config(folder: Path) -> GraphConfig:
    return config_of(folder / "in", user=2, inputs=[{"path": "old.tsv"}])


def new_config(folder: Path) -> GraphConfig:
    return config_of(folder / "in", movie=3, inputs=[{"path": "new.tsv"}])


def prepare(folder: Path) -> None:
    (folder / "in").mkdir()
    write_edges(folder / "in" / "old.tsv", some_edges(200, 1))
    write_edges(folder / "in" / "new.tsv", some_edges(300, 2))
    import_graph(new_config(folder), folder / "graph")
    (folder / "graph").rename(folder / "new")
    import_graph(old_config(folder), folder / "graph")
    (folder / "old").mkdir()
    for name, content in tree(folder / "graph").items():
        (folder / "old" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "old" / name).write_bytes(content)


def import_new(folder: Path) -> None:
    import_graph(new_config(folder), folder / "graph")


def one_is_whole_and_the_next_import_succeeds(folder: Path) -> None:
    Graph(folder / "graph")
    assert tree(folder / "graph") in (tree(folder / "old"), tree(folder / "new"))
    import_graph(old_config(folder), folder / "graph")
    assert tree(folder / "graph") == tree(folder / "old")
    assert {path.name for path in folder.iterdir()} == {"in", "old", "new", "graph"}


def test_a_kill_at_any_step_leaves_the_old_graph_or_the_new_one(
    tmp_path: Path,
    kill_everywhere: Callable[[Callable[[Path], Any], Callable[[Path], Any]], int],
) -> None:
    prepare(tmp_path)
    assert kill_everywhere(import_new, one_is_whole_and_the_next_import_succeeds) >= 30


def import_for_ever(folder: Path) -> None:
    """The two graphs in turns, each import announced when it is done."""
    while True:
        import_graph(new_config(folder), folder / "graph")
        import_graph(old_config(folder), folder / "graph")
        print("imported", flush=True)


def test_a_kill_at_any_moment_leaves_the_old_graph_or_the_new_one(tmp_path: Path) -> None:
    prepare(tmp_path)
    code = (
        "import runpy, sys; from pathlib import Path; "
        f"runpy.run_path({__file__!r})['import_for_ever'](Path({str(tmp_path)!r}))"
    )
    rng = np.random.default_rng(1)
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "imported\n"
            with suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, 0.2))
            os.kill(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        one_is_whole_and_the_next_import_succeeds(tmp_path)


# --- is_current -----------------------------------------------------------------------------------


@pytest.fixture
def imported(tmp_path: Path) -> GraphConfig:
    write_edges(tmp_path / "a.tsv", some_edges(100, 1))
    write_edges(tmp_path / "b.tsv", some_edges(100, 2))
    (tmp_path / "m.csv").write_text("id,title,year\nm1,One,1991\n")
    config = with_titles(tmp_path, inputs=[{"path": "[ab].tsv"}])
    import_graph(config, tmp_path / "graph")
    return config


def test_a_graph_of_this_config_and_these_files_is_current(
    tmp_path: Path, imported: GraphConfig
) -> None:
    assert difference(imported, tmp_path / "graph") is None
    (tmp_path / "a.tsv").write_bytes((tmp_path / "a.tsv").read_bytes())  # a new date says nothing
    assert difference(imported, tmp_path / "graph") is None


def test_no_graph_is_not_current(tmp_path: Path, imported: GraphConfig) -> None:
    assert difference(imported, tmp_path / "elsewhere") is not None


@pytest.mark.parametrize("update", [{"skip_bad": True}, {"holdout": {"valid": 0.1}}, {"user": 2}])
def test_another_config_makes_it_stale(
    tmp_path: Path, imported: GraphConfig, update: dict[str, Any]
) -> None:
    assert difference(config_of(tmp_path, **update), tmp_path / "graph") is not None
    changed = imported.model_copy(update={"skip_bad": True})
    assert difference(changed, tmp_path / "graph") is not None


@pytest.mark.parametrize("change", ["content", "size", "removed", "title", "another file matches"])
def test_other_source_files_make_it_stale(
    tmp_path: Path, imported: GraphConfig, change: str
) -> None:
    a, titles = tmp_path / "a.tsv", tmp_path / "m.csv"
    if change == "content":
        a.write_text(a.read_text().replace("likes", "rates", 1))
    elif change == "size":
        a.write_text(a.read_text() + "u1\tlikes\tm1\n")
    elif change == "removed":
        a.unlink()
    elif change == "title":
        titles.write_text(titles.read_text().replace("One", "Two"))
    else:
        inputs = imported.model_copy(
            update={"inputs": [imported.inputs[0].model_copy(update={"path": "*.tsv"})]}
        )
        import_graph(inputs, tmp_path / "graph")
        assert difference(inputs, tmp_path / "graph") is None
        write_edges(tmp_path / "c.tsv", some_edges(10, 3))
        assert difference(inputs, tmp_path / "graph") is not None
        return
    assert difference(imported, tmp_path / "graph") is not None


def test_a_damaged_manifest_is_an_error_not_an_answer(
    tmp_path: Path, imported: GraphConfig
) -> None:
    path = tmp_path / "graph" / MANIFEST
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError) as caught:
        difference(imported, tmp_path / "graph")
    assert str(caught.value).startswith(f"{path} is not valid JSON: ")


def test_what_differs_from_the_graph_is_named(tmp_path: Path, imported: GraphConfig) -> None:
    path = tmp_path / "graph"
    changed = imported.model_copy(update={"duplicates": "drop"})
    assert difference(changed, path) == "graph.duplicates changed since it was made"
    (file,) = [Path(source["path"]) for source in Graph(path).manifest.sources][:1]
    file.write_bytes(file.read_bytes() + b"\n")
    assert difference(imported, path) == f"{file} is changed since it was made"


def test_rows_that_come_while_a_file_is_read_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_edges(tmp_path / "e.tsv", [("u1", "bought", "i1")])
    take = importer._Reading._take

    def growing(*arguments: Any) -> None:
        take(*arguments)
        with (tmp_path / "e.tsv").open("a") as file:
            file.write("u2\tbought\ti2\n")

    monkeypatch.setattr(importer._Reading, "_take", growing)
    with pytest.raises(
        DataError, match=r"e\.tsv changed while it was read: import again when it is"
    ):
        import_graph(shop(tmp_path), tmp_path / "graph")
    assert {path.name for path in tmp_path.iterdir()} == {"e.tsv"}


def test_summed_weights_beyond_float32_name_the_edge(tmp_path: Path) -> None:
    inputs = [{"path": "e.tsv", "columns": {"lhs": 0, "rel": 1, "rhs": 2, "weight": 3}}]
    lines = [("u0", "saw", "i0", 1), *[("u1", "bought", "i1", 3e38)] * 2]
    write_edges(tmp_path / "e.tsv", lines)
    with pytest.raises(DataError, match="edge u1 bought i1 add up to more than a float32 holds"):
        import_graph(shop(tmp_path, inputs=inputs, duplicates="sum"), tmp_path / "graph")


def test_two_inputs_that_read_a_file_alike_are_one_sentence(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", [("u1", "bought", "i1")])
    inputs = [{"path": "e.tsv"}, {"path": "../" + tmp_path.name + "/*.tsv"}]
    with pytest.raises(DataError, match=r"one file that .* read twice in the same way"):
        import_graph(shop(tmp_path, inputs=inputs), tmp_path / "graph")
