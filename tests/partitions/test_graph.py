"""partitions.graph: what the manifest says is what is read, and damage is named."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from partitions import importer
from partitions.config import GraphConfig
from partitions.errors import DataError
from partitions.graph import MANIFEST, Graph, GraphManifest
from partitions.hashing import hash_keys
from partitions.schema import SPLITS, Bucket, RelationType, Slot

USERS = [f"user {n}" for n in range(12)]
MOVIES = [f"movie {n}" for n in range(7)]
EDGES = [(u, ("likes", "hates")[n % 2], MOVIES[n * 5 % 7]) for n, u in enumerate(USERS * 3)]
FOLLOWS = [(USERS[n], USERS[n * 5 % 12]) for n in range(12)]


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    """Users in 3 partitions, movies in 1 with titles, countries in 1; three relations."""
    (tmp_path / "e.tsv").write_text("".join("\t".join(edge) + "\n" for edge in EDGES))
    (tmp_path / "f.tsv").write_text("".join("\t".join(edge) + "\n" for edge in FOLLOWS))
    (tmp_path / "m.tsv").write_text("".join(f"{m}\tThe {m}\n" for m in MOVIES[1:]))
    config = GraphConfig.model_validate(
        {
            "data": tmp_path,
            "gate": False,
            "entities": {
                "user": {"partitions": 3},
                "movie": {"attributes": {"path": "m.tsv", "columns": {"key": 0, "title": 1}}},
            },
            "relations": {
                "likes": {"lhs": "user", "rhs": "movie"},
                "hates": {"lhs": "user", "rhs": "movie"},
                "follows": {"lhs": "user", "rhs": "user"},
            },
            "inputs": [
                {"path": "e.tsv"},
                {"path": "f.tsv", "relation": "follows", "split": "test"},
            ],
        }
    )
    importer.import_graph(config, tmp_path / "graph")
    return Graph(tmp_path / "graph")


def everything(graph: Graph) -> None:
    """Read each file of the graph once."""
    for slot in graph.slots():
        graph.keys(slot)
    for entity_type in graph.entity_types:
        graph.attributes(entity_type)
    for split in SPLITS:
        for bucket in graph.buckets(split):
            graph.edges(split, bucket)


def test_the_manifest_survives_json(graph: Graph) -> None:
    value = json.loads((graph.path / MANIFEST).read_text())
    assert GraphManifest.from_json(value) == graph.manifest
    assert json.loads(json.dumps(graph.manifest.as_json())) == value


def test_counts_agree_with_the_files(graph: Graph) -> None:
    assert {name: graph.num_entities(name) for name in graph.entity_types} == {
        "user": 12,
        "movie": 7,
    }
    for slot in graph.slots():
        assert graph.num_rows(slot) == len(graph.keys(slot))
    for split, count in {"train": 36, "valid": 0, "test": 12}.items():
        sizes = [len(graph.edges(split, bucket)) for bucket in graph.buckets(split)]
        assert sizes == [graph.num_edges(split, bucket) for bucket in graph.buckets(split)]
        assert sum(sizes) == graph.num_edges(split) == count
    assert graph.num_edges("train", Bucket(0, 1)) == 0
    assert graph.manifest.relation_edges == {
        "train": [18, 18, 0],
        "valid": [0, 0, 0],
        "test": [0, 0, 12],
    }


def test_an_id_is_the_row_over_the_partitions_laid_end_to_end(graph: Graph) -> None:
    starts = graph.starts["user"]
    keys = graph.all_keys("user")
    assert sorted(keys.to_pylist()) == sorted(USERS)
    assert starts[0] == 0 and starts[-1] == 12
    for partition in range(3):
        part = graph.keys(Slot("user", partition))
        assert keys.slice(starts[partition], len(part)).equals(part)
        assert (hash_keys(part) % np.uint64(3) == partition).all()


def test_a_side_with_one_partition_does_not_bind(graph: Graph) -> None:
    assert graph.buckets("train") == [Bucket(p, p) for p in range(3)]
    assert graph.slot_of("movie", 2) == Slot("movie", 0)
    assert graph.slot_of("user", 2) == Slot("user", 2)
    assert set(graph.slots_of_bucket(Bucket(2, 1))) == {
        Slot("user", 2),
        Slot("user", 1),
        Slot("movie", 0),
    }
    assert len(graph.slots_of_bucket(Bucket(1, 1))) == 2


def test_attributes_lie_in_the_order_of_ids(graph: Graph) -> None:
    titles = graph.attributes("movie")
    assert titles is not None
    expected = [
        "" if key == MOVIES[0] else f"The {key}" for key in graph.all_keys("movie").to_pylist()
    ]
    assert titles.to_pydict() == {"title": expected}
    assert graph.attributes("user") is None


def test_relations_are_found_by_name(graph: Graph) -> None:
    assert graph.relations[2] == RelationType("follows", "user", "user")
    assert [graph.relation_id(name) for name in ("likes", "hates", "follows")] == [0, 1, 2]
    with pytest.raises(DataError) as caught:
        graph.relation_id("folows")
    assert str(caught.value) == f"{graph.path} has no relation folows. Did you mean follows?"


def test_keys_and_edges_are_mapped_not_copied(graph: Graph) -> None:
    before = pa.total_allocated_bytes()
    kept = [graph.edges("train", bucket) for bucket in graph.buckets("train")]
    keys = [graph.keys(slot) for slot in graph.slots()]
    assert pa.total_allocated_bytes() - before < 2000
    assert all(not edges.lhs.flags.owndata for edges in kept) and len(keys) == 4


def files_of(graph: Graph) -> list[str]:
    return sorted(str(p.relative_to(graph.path)) for p in graph.path.rglob("*.arrow"))


def test_each_data_file_cut_altered_or_missing_is_named_once(graph: Graph) -> None:
    files = files_of(graph)
    assert len(files) == 4 + 1 + 3 + len(graph.buckets("test"))
    for name in files:
        path = graph.path / name
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for damage in (whole[:-1], whole[: len(whole) // 2], b"", bytes(flipped), None):
            path.write_bytes(damage) if damage is not None else path.unlink()
            with pytest.raises(DataError) as caught:
                everything(Graph(graph.path))
            message = str(caught.value)
            assert message.startswith(f"{path} ") and message.endswith(". Import the graph again.")
            assert "\n" not in message
            path.write_bytes(whole)
    everything(Graph(graph.path))


def test_a_file_cut_after_it_was_read_once_is_still_noticed(graph: Graph) -> None:
    everything(graph)
    path = graph.path / files_of(graph)[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=re.escape(str(path))):
        everything(graph)


def test_a_truncated_manifest_is_one_sentence(graph: Graph) -> None:
    path = graph.path / MANIFEST
    whole = path.read_bytes()
    for length in [0, 1, *range(100, len(whole) - 2, 501), len(whole) - 2]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError) as caught:
            Graph(graph.path)
        assert str(caught.value) == (
            f"{path} is not valid JSON: it was truncated or altered. Import the graph again."
        )


def test_a_manifest_whose_keys_were_altered_is_one_sentence(graph: Graph) -> None:
    path = graph.path / MANIFEST
    text = path.read_text()
    value = json.loads(text)
    del value["config"]  # its keys are the user's
    del value["batches"]
    for key in sorted(set(re.findall(r'"(\w+)":', json.dumps(value))) - {"train", "valid", "test"}):
        path.write_text(text.replace(f'"{key}":', f'"{key}s":'))
        with pytest.raises(DataError) as caught:
            Graph(graph.path)
        message = str(caught.value)
        assert message.startswith(f"{path} ") and message.endswith(". Import the graph again."), key
        assert "\n" not in message


def test_a_flipped_bit_of_the_manifest_never_gives_another_graph(graph: Graph) -> None:
    path = graph.path / MANIFEST
    whole = path.read_bytes()
    value, num_errors = json.loads(whole), 0
    for at in range(0, len(whole), 5):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 7
        path.write_bytes(flipped)
        try:
            assert Graph(graph.path).manifest == graph.manifest, at
            assert json.loads(flipped) == value, at
        except DataError as error:
            num_errors += 1
            assert str(error).startswith(f"{path} ") and "\n" not in str(error)
    assert num_errors > 50


def test_a_manifest_from_before_it_had_a_digest_is_read(graph: Graph) -> None:
    path = graph.path / MANIFEST
    value = json.loads(path.read_text())
    del value["digest"]
    path.write_text(json.dumps(value))
    assert Graph(graph.path).manifest == graph.manifest
    value["relations"][0]["lhs"] = "usfr"
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match="was altered: ValueError\\('usfr is not known here'\\)"):
        Graph(graph.path)


@pytest.mark.parametrize("text", ["null", "[]", "3", '{"format_version": 2}', "{}"])
def test_another_format_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    version = 2 if "2" in text else None
    with pytest.raises(DataError) as caught:
        Graph(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / MANIFEST} is of format {version}, this program reads 1. "
        "Import the graph again."
    )


def test_a_folder_without_a_graph_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        Graph(tmp_path / "graph")
    assert str(caught.value) == (
        f"{tmp_path / 'graph'} holds no graph: graph.json is missing. Run embedsvc import."
    )


def test_opening_mends_an_import_killed_between_its_renames(graph: Graph) -> None:
    graph.path.rename(graph.path.with_name("graph.old"))
    everything(Graph(graph.path))
    assert not graph.path.with_name("graph.old").exists()
