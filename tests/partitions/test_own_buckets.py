"""partitions.own_buckets: buckets made elsewhere are the graph that is read back, or an error."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partitions import importer, own_buckets, own_files
from partitions.config import GraphConfig, load
from partitions.errors import ConfigError, DataError
from partitions.graph import MANIFEST, Graph
from partitions.hashing import hash_keys
from partitions.importer import import_graph
from partitions.provenance import difference
from partitions.schema import SPLITS, Bucket

Edge = tuple[str, str, str, float, int, str]


def config_of(folder: Path, *, item: int = 2, shop: int = 1, **settings: Any) -> GraphConfig:
    return GraphConfig.model_validate(
        {
            "data": folder,
            "entities": {
                "user": {"partitions": 2},
                "item": {"partitions": item},
                "shop": {"partitions": shop},
            },
            "relations": {
                "bought": {"lhs": "user", "rhs": "item"},
                "sells": {"lhs": "shop", "rhs": "item"},
            },
            "own_buckets": "own",
            **settings,
        }
    )


def write(folder: Path, where: str, **columns: Any) -> Path:
    path = folder / "own" / where
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def write_keys(folder: Path) -> None:
    """Users u0..u5 in partitions by their number's last bit, items likewise, one shop."""
    for letter, name in (("u", "user"), ("i", "item")):
        for part in (0, 1):
            keys = [f"{letter}{n}" for n in range(6) if n % 2 == part]
            write(folder, f"entities/{name}/part={part}/part-0.snappy.parquet", key=keys[:2])
            write(folder, f"entities/{name}/part={part}/part-1.snappy.parquet", key=keys[2:])
    write(folder, "entities/shop/part=0/only.parquet", key=["shop"])


def some_edges(num_edges: int, seed: int = 0) -> list[Edge]:
    rng = np.random.default_rng(seed)
    found: list[Edge] = []
    for n in range(num_edges):
        lhs, rhs = rng.integers(0, 6, 2)
        rel = ("bought", "sells")[int(rng.integers(0, 2))]
        weight, split = float(rng.integers(1, 9) / 4), SPLITS[int(rng.integers(0, 3))]
        found.append((f"u{lhs}" if rel == "bought" else "shop", rel, f"i{rhs}", weight, n, split))
    return found


def offset(key: str) -> int:
    return 0 if key == "shop" else int(key[1:]) // 2


def part(key: str) -> int:
    return 0 if key == "shop" else int(key[1:]) % 2


def write_edges(folder: Path, edges: list[Edge], rel: Callable[[str], Any] = str) -> None:
    places: dict[tuple[str, int, int], list[Edge]] = {}
    for edge in edges:
        places.setdefault((edge[5], part(edge[0]), part(edge[2])), []).append(edge)
    for (split, i, j), found in places.items():
        for start in range(0, len(found), 7):
            some = found[start : start + 7]
            write(
                folder,
                f"edges/split={split}/lhs_part={i}/rhs_part={j}/part-{start:03}.parquet",
                lhs=[offset(edge[0]) for edge in some],
                rhs=pa.array([offset(edge[2]) for edge in some], pa.uint16()),
                rel=[rel(edge[1]) for edge in some],
                weight=[edge[3] for edge in some],
                timestamp=[edge[4] for edge in some],
                note=["left alone"] * len(some),
            )


def read_back(graph: Graph) -> list[Edge]:
    found: list[Edge] = []
    keys = {slot: graph.keys(slot).to_pylist() for slot in graph.slots()}
    for split in SPLITS:
        for bucket in graph.buckets(split):
            edges = graph.edges(split, bucket)
            assert edges.weight is not None and edges.time is not None
            for at in range(len(edges)):
                r = graph.relations[int(edges.rel[at])]
                lhs = keys[graph.slot_of(r.lhs, bucket.lhs)][int(edges.lhs[at])]
                rhs = keys[graph.slot_of(r.rhs, bucket.rhs)][int(edges.rhs[at])]
                weight, time = float(edges.weight[at]), int(edges.time[at])
                found.append((lhs, r.name, rhs, weight, time, split))
    return found


def taken(folder: Path, **settings: Any) -> Graph:
    import_graph(config_of(folder, **settings), folder / "graph")
    return Graph(folder / "graph")


def error_of(folder: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        import_graph(config_of(folder, **settings), folder / "graph")
    assert not (folder / "graph").exists() and not (folder / "graph.importing").exists()
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{folder}/own/")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_keys(tmp_path)
    write_edges(tmp_path, some_edges(200))
    return tmp_path


# --- what is right --------------------------------------------------------------------------------


@pytest.mark.parametrize("by_number", [False, True])
@pytest.mark.parametrize("batch_rows", [3, 1 << 20])
def test_the_graph_is_the_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_number: bool, batch_rows: int
) -> None:
    monkeypatch.setattr(own_files, "_BATCH_ROWS", batch_rows)
    edges = some_edges(300)
    write_keys(tmp_path)
    write_edges(tmp_path, edges, ["bought", "sells"].index if by_number else str)
    report = import_graph(config_of(tmp_path), tmp_path / "graph")
    graph = Graph(tmp_path / "graph")
    assert Counter(read_back(graph)) == Counter(edges)
    assert report.num_edges == dict(Counter(edge[5] for edge in edges))
    assert report.num_entities == {"user": 6, "item": 6, "shop": 1}
    assert report.untrained_entities == {"user": 0, "item": 0, "shop": 0}
    for slot in graph.slots():  # row order is the offset
        letter = {"user": "u", "item": "i"}.get(slot.entity_type)
        if letter:
            assert graph.keys(slot).to_pylist() == [
                f"{letter}{n}" for n in range(slot.partition, 6, 2)
            ]
    # A shop has one partition: its edges lie in the bucket of their items.
    per_relation = Counter(edge[1] for edge in edges if edge[5] == "train")
    sold = [
        int((graph.edges("train", bucket).rel == graph.relation_id("sells")).sum())
        for bucket in (Bucket(0, 0), Bucket(1, 1))
    ]
    assert sum(sold) == per_relation["sells"]


def test_edges_keep_the_order_of_the_sorted_files(folder: Path) -> None:
    graph = taken(folder)
    for split in SPLITS:
        for bucket in graph.buckets(split):
            times = [
                edge[4]
                for edge in some_edges(200)
                if edge[1] == "bought"
                and edge[5] == split
                and (part(edge[0]), part(edge[2])) == bucket
            ]
            found = graph.edges(split, bucket)
            assert found.time is not None
            assert [t for t in found.time.tolist() if t in set(times)] == times


def test_it_is_the_directory_that_the_importer_writes(tmp_path: Path) -> None:
    """Cut by our hash, in the order of first sight: byte for byte the importer's files."""
    edges = [(f"k{n % 40}", f"k{n * 7 % 40}") for n in range(400)]
    keys = list(dict.fromkeys([lhs for lhs, _ in edges] + [rhs for _, rhs in edges]))
    parts = (hash_keys(pa.array(keys)) % 3).tolist()
    rows: dict[int, list[str]] = {0: [], 1: [], 2: []}
    place = {}
    for key, at in zip(keys, parts, strict=True):
        place[key] = (at, len(rows[at]))
        rows[at].append(key)
    for at, found in rows.items():
        write(tmp_path, f"entities/k/part={at}/x.parquet", key=found)
    for i in range(3):
        for j in range(3):
            here = [(a, b) for a, b in edges if (place[a][0], place[b][0]) == (i, j)]
            write(
                tmp_path,
                f"edges/split=train/lhs_part={i}/rhs_part={j}/x.parquet",
                lhs=[place[a][1] for a, _ in here],
                rhs=[place[b][1] for _, b in here],
            )
    (tmp_path / "e.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in edges))
    described: dict[str, Any] = {
        "data": tmp_path,
        "entities": {"k": {"partitions": 3}},
        "relations": {"r": {"lhs": "k", "rhs": "k"}},
    }
    ours = described | {"inputs": [{"path": "e.tsv", "relation": "r"}]}
    import_graph(GraphConfig.model_validate(ours), tmp_path / "ours")
    own = GraphConfig.model_validate(described | {"own_buckets": "own"})
    import_graph(own, tmp_path / "theirs")
    one, two = (
        {
            p.relative_to(tmp_path / name): p.read_bytes()
            for p in (tmp_path / name).rglob("*")
            if p.is_file() and p.name != MANIFEST
        }
        for name in ("ours", "theirs")
    )
    assert one == two
    assert Graph(tmp_path / "theirs").manifest.partitioning == "hash"


def test_weights_relations_and_times_may_be_absent(tmp_path: Path) -> None:
    write_keys(tmp_path)
    write(tmp_path, "edges/split=train/lhs_part=0/rhs_part=1/a.parquet", lhs=[0, 2], rhs=[1, 1])
    write(
        tmp_path,
        "edges/split=train/lhs_part=0/rhs_part=1/b.parquet",
        lhs=[1],
        rhs=[0],
        weight=pa.array([7], pa.int8()),
    )
    one = {"bought": {"lhs": "user", "rhs": "item"}}
    graph = taken(tmp_path, relations=one)
    edges = graph.edges("train", Bucket(0, 1))
    assert edges.weight is not None and edges.time is None
    assert edges.weight.tolist() == [1, 1, 7]
    assert (edges.lhs.tolist(), edges.rhs.tolist()) == ([0, 2, 1], [1, 1, 0])


def test_relations_of_a_wildcard_are_found_in_the_data(tmp_path: Path) -> None:
    write_keys(tmp_path)
    rel = pa.array(["z", "a", "bought", "z"]).dictionary_encode()
    write(
        tmp_path,
        "edges/split=test/lhs_part=1/rhs_part=0/a.parquet",
        lhs=[0, 1, 2, 0],
        rhs=[0, 0, 0, 0],
        rel=rel,
    )
    ends = {"lhs": "user", "rhs": "item"}
    graph = taken(tmp_path, relations={"bought": ends, "*": ends})
    assert [r.name for r in graph.relations] == ["bought", "a", "z"]
    assert graph.edges("test", Bucket(1, 0)).rel.tolist() == [2, 1, 0, 2]


def test_times_of_any_kind_become_seconds(tmp_path: Path) -> None:
    write_keys(tmp_path)
    moment = datetime(2024, 5, 1, 12, 0, 0, 999_000, tzinfo=UTC)
    for name, kind in (("a", pa.timestamp("us", tz="UTC")), ("b", pa.timestamp("ns"))):
        write(
            tmp_path,
            f"edges/split=train/lhs_part=0/rhs_part=0/{name}.parquet",
            lhs=[0],
            rhs=[0],
            rel=["bought"],
            timestamp=pa.array([moment], kind),
        )
    time = taken(tmp_path).edges("train", Bucket(0, 0)).time
    assert time is not None and time.tolist() == [1714564800, 1714564800]


def test_a_single_sides_part_may_follow_the_other(tmp_path: Path) -> None:
    write_keys(tmp_path)
    for i in (0, 1):
        write(
            tmp_path,
            f"edges/split=train/lhs_part={i}/rhs_part=1/a.parquet",
            lhs=[0],
            rhs=[i],
            rel=["sells"],
        )
    edges = taken(tmp_path).edges("train", Bucket(1, 1))
    assert edges.rhs.tolist() == [0, 1]


def test_whole_number_keys_become_text(tmp_path: Path) -> None:
    write_keys(tmp_path)
    for file in (tmp_path / "own/entities/user/part=1").iterdir():
        file.unlink()
    write(tmp_path, "entities/user/part=1/a.parquet", key=pa.array([12, 7], pa.int32()))
    write(
        tmp_path,
        "edges/split=train/lhs_part=1/rhs_part=0/a.parquet",
        lhs=[1],
        rhs=[0],
        rel=["bought"],
    )
    graph = taken(tmp_path)
    assert graph.all_keys("user").to_pylist() == ["u0", "u2", "u4", "12", "7"]


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_the_number_of_threads_does_not_show(folder: Path, num_threads: int) -> None:
    import_graph(config_of(folder, threads=num_threads), folder / "graph")
    import_graph(config_of(folder), folder / "other")
    one, two = (
        {p.relative_to(folder / name): p.read_bytes() for p in (folder / name).rglob("*.*")}
        for name in ("graph", "other")
    )
    assert one == two


def test_a_graph_is_taken_from_a_uri(folder: Path) -> None:
    graph = taken(folder, own_buckets=f"file://{folder}/own")
    assert Counter(read_back(graph)) == Counter(some_edges(200))


def test_hidden_files_are_left_alone(folder: Path) -> None:
    for name in ("_SUCCESS", ".crc", "edges/_SUCCESS", "entities/user/part=0/.part-0.parquet.crc"):
        (folder / "own" / name).write_text("")
    assert Counter(read_back(taken(folder))) == Counter(some_edges(200))


def test_it_is_current_until_a_file_changes(folder: Path) -> None:
    config = config_of(folder)
    import_graph(config, folder / "graph")
    assert difference(config, folder / "graph") is None
    sources = Graph(folder / "graph").manifest.sources
    assert sum(s["rows"] for s in sources if "/edges/" in s["path"]) == 200
    write(folder, "entities/shop/part=0/only.parquet", key=["other"])
    assert difference(config, folder / "graph") is not None


# --- growth ---------------------------------------------------------------------------------------


def test_the_manifest_says_whose_rule_it_is_and_append_refuses(folder: Path) -> None:
    assert taken(folder).manifest.partitioning == "own"
    (folder / "e.tsv").write_text("u0\tbought\ti1\n")
    config = config_of(folder, own_buckets=None, inputs=[{"path": "e.tsv"}])
    with pytest.raises(DataError) as caught:
        import_graph(config, folder / "graph", append=True)
    assert str(caught.value) == (
        f"{folder}/graph was partitioned elsewhere, by a rule that is not known here, so new keys "
        "have no partition. Partition the grown graph there, and import it with --replace."
    )
    with pytest.raises(DataError, match=r"^graph\.own_buckets can't be appended"):
        import_graph(config_of(folder), folder / "graph", append=True)
    assert Counter(read_back(Graph(folder / "graph"))) == Counter(some_edges(200))


def test_a_failure_leaves_the_old_graph(folder: Path) -> None:
    before = read_back(taken(folder))
    write(folder, "entities/shop/part=0/only.parquet", key=["shop", None])
    with pytest.raises(DataError):
        import_graph(config_of(folder), folder / "graph")
    assert read_back(Graph(folder / "graph")) == before


# --- what is wrong --------------------------------------------------------------------------------

EDGES = "edges/split=train/lhs_part=0/rhs_part=1/x.parquet"
GOOD: dict[str, Any] = {
    "lhs": [0, 1, 2],
    "rhs": [0, 1, 2],
    "rel": ["bought"] * 3,
    "weight": [1.0, 2.0, 3.0],
    "timestamp": [1, 2, 3],
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lhs": [0, 1, 3]}, "row 2 (counted from 0): lhs is 3, expected an offset from 0 to 2"),
        ({"rhs": [0, -1, 0]}, "row 1 (counted from 0): rhs is -1, expected an offset from 0 to 2"),
        (
            {"rhs": pa.array([0, 2**64 - 1, 0], pa.uint64())},
            "row 1 (counted from 0): rhs is 18446744073709551615, expected an offset from 0 to 2",
        ),
        ({"lhs": [0, None, 1]}, "row 1 (counted from 0): lhs is nothing, expected an offset. "),
        ({"lhs": ["0", "1", "2"]}, "column lhs is of type string, expected whole numbers: the"),
        ({"rhs": [0.0, 1.0, 2.0]}, "column rhs is of type double, expected whole numbers: the"),
        (
            {"rel": ["bought", "bougth", "x"]},
            "row 1 (counted from 0): the relation bougth is not under [graph.relations]. "
            "Did you mean bought?",
        ),
        ({"rel": ["bought", None, "x"]}, "row 1 (counted from 0): rel is nothing, expected a rel"),
        (
            {"rel": [0, 2, 0]},
            "row 1 (counted from 0): rel is 2, expected a number from 0 to 1 (the",
        ),
        ({"rel": [0, -1, 0]}, "row 1 (counted from 0): rel is -1, expected a number from 0 to 1"),
        ({"rel": [0, None, 0]}, "row 1 (counted from 0): rel is nothing, expected a number from 0"),
        ({"rel": [0.5, 1.0, 0.0]}, "column rel is of type double, expected text or whole numbers."),
        ({"weight": [1, 2, np.nan]}, "row 2 (counted from 0): weight is nan, expected a finite"),
        ({"weight": [1, None, 2]}, "row 1 (counted from 0): weight is nothing, expected a finite"),
        ({"weight": ["1", "2", "3"]}, "column weight is of type string, expected numbers."),
        ({"timestamp": [1, 2, None]}, "row 2 (counted from 0): timestamp is nothing, expected a"),
        ({"timestamp": [1.0, 2.0, 3.0]}, "column timestamp is of type double, expected"),
    ],
)
def test_a_bad_edge_names_file_and_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], sentence: str
) -> None:
    monkeypatch.setattr(own_files, "_BATCH_ROWS", 2)
    write(folder, EDGES, **(GOOD | change))
    message = error_of(folder)
    assert message.startswith(f"{EDGES}: {sentence}"), message


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (["a", None], "row 1 (counted from 0): key is nothing, expected a key. Write the file"),
        (["a", "b", ""], "row 2 (counted from 0): key is nothing, expected a key. Write the file"),
        ([1.5, 2.5], "column key is of type double, expected text or whole numbers. Export it"),
        ([["a"], ["b"]], "column key is of type list<"),
    ],
)
def test_a_bad_key_names_file_and_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch, keys: list[Any], sentence: str
) -> None:
    monkeypatch.setattr(own_files, "_BATCH_ROWS", 2)
    write(folder, "entities/user/part=1/x.parquet", key=keys)
    assert error_of(folder).startswith(f"entities/user/part=1/x.parquet: {sentence}")


@pytest.mark.parametrize("where", [0, 1])
def test_a_key_that_comes_twice_names_both_places(folder: Path, where: int) -> None:
    """In the same partition or in another."""
    write(folder, f"entities/user/part={where}/x.parquet", key=["new", "u2"])
    first = f"{folder}/own/entities/user/part=0/part-0.snappy.parquet, row 1"
    assert error_of(folder) == (
        f"entities/user/part={where}/x.parquet: row 1 (counted from 0): the key u2 is there twice: "
        f"also in {first}. Write the file again."
    )


def test_keys_that_only_share_a_hash_are_two(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_buckets, "hash_keys", lambda keys: np.ones(len(keys), np.uint64))
    assert taken(folder).num_entities("user") == 6


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("entities/usr/part=0/x.parquet", "there is no entity type usr. Did you mean user?"),
        ("edges/split=tran/lhs_part=0/rhs_part=0/x.parquet", "there is no split tran. Did you"),
        (
            "entities/user/part=2/x.parquet",
            "part=2 is no partition: [graph.entities.user] says partitions = 2, so expected "
            "part=0 to part=1. Mend either.",
        ),
        ("entities/user/part=-1/x.parquet", "part=-1 is no partition: "),
        ("entities/user/part=__HIVE_DEFAULT_PARTITION__/x.parquet", "part=__HIVE"),
        (
            "edges/split=train/lhs_part=2/rhs_part=0/x.parquet",
            "lhs_part=2 is no partition: [graph.entities] say partitions = 2, so expected "
            "lhs_part=0 to lhs_part=1. Mend either.",
        ),
        ("edges/split=train/rhs_part=0/lhs_part=0/x.parquet", "expected a folder lhs_part=..., f"),
        ("edges/train/lhs_part=0/rhs_part=0/x.parquet", "expected a folder split=..., found train"),
        ("edges/split=train/x.parquet", "is out of place: expected entities/TYPE/part=P/NAME"),
        ("entities/user/part=0/x.csv", "is out of place: expected entities/TYPE/part=P/NAME"),
        ("x.parquet", "is out of place: expected entities/TYPE/part=P/NAME"),
    ],
)
def test_a_file_out_of_place_is_named(folder: Path, where: str, sentence: str) -> None:
    write(folder, where, key=["x"])
    assert error_of(folder).removeprefix(where).lstrip(": ").startswith(sentence)


def test_a_part_of_a_type_with_one_is_refused(folder: Path) -> None:
    write(
        folder,
        "edges/split=train/lhs_part=1/rhs_part=0/x.parquet",
        **(GOOD | {"rel": ["bought", "sells", "bought"]}),
    )
    assert error_of(folder) == (
        "edges/split=train/lhs_part=1/rhs_part=0/x.parquet: row 1 (counted from 0): an edge of "
        "sells lies in lhs_part=1, but shop has one partition, 0. Write the file again."
    )


def test_missing_parts_columns_and_folders_are_named(tmp_path: Path) -> None:
    assert error_of(tmp_path) == f"{tmp_path}/own is missing: no such folder. Mend the path."
    (tmp_path / "own").mkdir()
    assert error_of(tmp_path) == (
        "own has no entities/user/part=0, and [graph.entities.user] says partitions = 2. "
        "Mend either."
    )
    write_keys(tmp_path)
    assert error_of(tmp_path).startswith("own has no edges: expected entities/TYPE/part=P/NAME")
    write(tmp_path, EDGES, lhs=[0], rhs=[0])
    assert error_of(tmp_path) == f"{EDGES} has no column rel. Known here: lhs, rhs."
    write(tmp_path, EDGES, lhs=[0], rsh=[0], rel=["bought"])
    assert error_of(tmp_path) == f"{EDGES} has no column rhs. Did you mean rsh?"
    write(tmp_path, EDGES, **GOOD)
    other = EDGES.replace("x.", "y.")
    write(tmp_path, other, lhs=[0], rhs=[0], rel=["bought"])
    assert error_of(tmp_path) == (
        f"{EDGES} has a column timestamp and {tmp_path}/own/{other} has none: all edge files need "
        "one or none may have one. Mend either."
    )
    (tmp_path / "own" / other).unlink()
    write(tmp_path, "entities/shop/part=0/only.parquet", kye=["a"])
    assert error_of(tmp_path) == (
        "entities/shop/part=0/only.parquet has no column key. Did you mean kye?"
    )
    write(tmp_path, "entities/shop/part=0/only.parquet", key=pa.array([], pa.string()))
    assert error_of(tmp_path) == (
        "entities/shop/part=0/only.parquet: part 0 of shop has no keys, and each needs at least "
        "one. Lower graph.entities.shop.partitions."
    )


@pytest.mark.parametrize("where", ["entities/shop/part=0/only.parquet", EDGES])
def test_a_truncated_file_is_an_error(folder: Path, where: str) -> None:
    path = write(folder, where, **(GOOD if where == EDGES else {"key": ["shop"]}))
    whole = path.read_bytes()
    for length in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert error_of(folder).startswith(f"{where} can't be read: ")


TOML = """
[graph]
own_buckets = "own"
[graph.entities.user]
[graph.relations.knows]
lhs = "user"
rhs = "user"
"""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            'graph.inputs=[{path="e.tsv"}]',
            "the edges come from inputs or from own_buckets: remove one of them",
        ),
        ("graph.holdout.test=0.1", "own_buckets are taken as they are: remove holdout"),
        (
            "graph.self_loops=drop",
            "own_buckets are taken as they are: remove self_loops",
        ),
        (
            'graph.entities.user.attributes={path="a.tsv", columns={key=0}}',
            "own_buckets have no attributes: remove entities.user.attributes",
        ),
    ],
)
def test_settings_that_would_change_the_buckets_are_refused(
    tmp_path: Path, change: str, sentence: str
) -> None:
    path = tmp_path / "g.toml"
    path.write_text(TOML)
    assert load(path).table("graph", GraphConfig).own_buckets == "own"
    with pytest.raises(ConfigError) as caught:
        load(path, [change]).table("graph", GraphConfig)
    assert str(caught.value) == f"{path}: [graph] {sentence}."


# --- kills ----------------------------------------------------------------------------------------


def take_again(folder: Path) -> None:
    importer.import_graph(config_of(folder), folder / "graph")


def is_whole(folder: Path) -> None:
    if (folder / "graph").exists() or (folder / "graph.old").exists():
        assert Counter(read_back(Graph(folder / "graph"))) == Counter(some_edges(9))


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_a_whole_graph_or_none(
    tmp_path: Path, kill_everywhere: Callable[..., int]
) -> None:
    write_keys(tmp_path)
    write_edges(tmp_path, some_edges(9))
    assert kill_everywhere(take_again, is_whole) > 20
