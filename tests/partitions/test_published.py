"""partitions.published: what the publisher writes is what a server reads, or a sentence why not."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from partitions import durable, published
from partitions.errors import BusyError, DataError
from partitions.published import (
    BLOB_BYTES,
    CURRENT,
    Draft,
    Index,
    Manifest,
    PublishedEntities,
    PublishedRelation,
    current,
    new_version,
    open_version,
    remove_versions,
    set_current,
    versions,
)

ROOT = Path(__file__).parents[2]
DIM = 4
SHARDS = [5, 0, 3]  # rows of each shard of users; a shard may be empty
RNG = np.random.default_rng(1)
VECTORS = RNG.standard_normal((8, DIM)).astype(np.float32)
KEYS = pa.table(
    {"key": pa.array([f"user {n}" for n in range(8)], pa.large_string()), "name": list("abcdefgh")}
)
INDEX = RNG.bytes(2 * BLOB_BYTES + 77)
GOLDEN = [{"query": "user 1", "answer": [["user 2", 0.5]]}]


def write(draft: Draft, index: bytes = INDEX) -> Manifest:
    """A small version with everything that a version may hold."""
    ends = np.cumsum(SHARDS)
    shards = [
        draft.write_shard("user", at, KEYS.slice(end - rows, rows), VECTORS[end - rows : end])
        for at, (end, rows) in enumerate(zip(ends, SHARDS, strict=True))
    ]
    draft.write_json("config.json", {"model": {"dim": DIM}})
    draft.write_json("metrics.json", {})
    draft.write_json("golden.json", GOLDEN)
    draft.write_tensors("relations.safetensors", {"likes": np.arange(DIM, dtype=np.float32)})
    seen = draft.write_seen(0, np.array([0, 2, 2, 3]), np.array([7, 1, 4], np.uint32))
    file = draft.write_bytes("entities/user/similar.faiss", index)
    likes = PublishedRelation(
        name="likes", lhs="user", rhs="user", operator="diagonal", has_params=True, seen=seen
    )
    return draft.finish(
        created="2026-01-02T03:04:05Z",
        dim=DIM,
        comparator="dot",
        graph_digest="d" * 64,
        entity_types=[
            PublishedEntities(
                name="user",
                shards=shards,
                indexes={"similar": Index(file=file, metric="cos", normalised=True, kind="exact")},
                attributes=["name"],
            )
        ],
        relations=[
            likes,
            PublishedRelation(
                name="is", lhs="user", rhs="user", operator="none", has_params=False, seen=None
            ),
        ],
    )


def publish(root: Path, index: bytes = INDEX) -> str:
    with new_version(root) as draft:
        write(draft, index)
    set_current(root, draft.name)
    return draft.name


def message_of(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- round trip -----------------------------------------------------------------------------------


def test_what_is_published_is_read(tmp_path: Path) -> None:
    with new_version(tmp_path) as draft:
        manifest = write(draft)
    assert draft.name == "v000001"
    set_current(tmp_path, draft.name)
    version = open_version(tmp_path)
    assert version.name == "v000001"
    assert version.manifest == manifest
    assert version.manifest.entities("user").num_rows == 8
    assert version.keys("user").to_pydict() == KEYS.to_pydict()
    np.testing.assert_array_equal(version.vectors("user"), VECTORS, strict=True)
    assert bytes(version.index("user", "similar")) == INDEX
    params = version.operator_params("likes")
    np.testing.assert_array_equal(params, np.arange(DIM, dtype=np.float32), strict=True)
    assert version.operator_params("is") is None
    seen = version.seen("likes")
    assert seen is not None
    np.testing.assert_array_equal(seen[0], np.array([0, 2, 2, 3]), strict=True)
    np.testing.assert_array_equal(seen[1], np.array([7, 1, 4], np.uint32), strict=True)
    assert version.seen("is") is None
    assert version.golden() == GOLDEN
    assert json.loads(bytes(version.file("config.json"))) == {"model": {"dim": DIM}}


def test_a_version_may_come_from_anywhere_that_gives_its_bytes(tmp_path: Path) -> None:
    publish(tmp_path)
    folder = tmp_path / "v000001"
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    manifest = published.parse_manifest(files.pop("manifest.json"))
    assert set(files) == set(manifest.files)
    version = published.PublishedVersion(manifest, lambda path, file: files[path])
    np.testing.assert_array_equal(version.vectors("user"), VECTORS, strict=True)
    assert version.keys("user").to_pydict() == KEYS.to_pydict()


def test_files_are_mapped_not_read(tmp_path: Path) -> None:
    publish(tmp_path)
    index = open_version(tmp_path).index("user", "similar")
    assert isinstance(index, np.memmap) and not index.flags.writeable


def test_every_file_is_described_in_blobs_that_a_cache_can_hold(tmp_path: Path) -> None:
    publish(tmp_path)
    manifest = published.read_manifest(tmp_path, "v000001")
    assert manifest.files["entities/user/similar.faiss"].bytes == len(INDEX)
    assert len(manifest.files["entities/user/similar.faiss"].blobs) == 3
    for path, file in manifest.files.items():
        content = (tmp_path / "v000001" / path).read_bytes()
        pieces = [content[at : at + BLOB_BYTES] for at in range(0, len(content), BLOB_BYTES)]
        assert file.bytes == len(content)
        assert file.sha256 == hashlib.sha256(content).hexdigest()
        assert file.blobs == [hashlib.sha256(piece).hexdigest() for piece in pieces]
    assert BLOB_BYTES < 1 << 20


def test_unknown_names_get_the_nearest(tmp_path: Path) -> None:
    publish(tmp_path)
    version = open_version(tmp_path)
    assert (
        message_of(version.keys, "users")
        == "There is no entity type named users. Did you mean user?"
    )
    assert (
        message_of(version.seen, "like") == "There is no relation named like. Did you mean likes?"
    )


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_each_damaged_file_is_named_when_it_is_asked_for(tmp_path: Path, damage: str) -> None:
    publish(tmp_path)
    for path in published.read_manifest(tmp_path, "v000001").files:
        file = tmp_path / "v000001" / path
        whole = file.read_bytes()
        content = bytearray(whole)
        content[len(whole) // 2] ^= 1
        if damage == "remove":
            file.unlink()
        else:
            file.write_bytes(content if damage == "flip" else whole[:-1])
        message = message_of(open_version(tmp_path).file, path)
        assert message.startswith(f"{file} ")
        assert message.endswith(
            "Publish again, or go back with embedsvc rollback --to another version."
        )
        file.write_bytes(whole)
        assert bytes(open_version(tmp_path).file(path)) == whole


def test_a_truncated_manifest_is_named(tmp_path: Path) -> None:
    publish(tmp_path)
    path = tmp_path / "v000001" / "manifest.json"
    whole = path.read_bytes()
    for length in [0, 1, *range(100, len(whole) - 2, 401), len(whole) - 2]:
        path.write_bytes(whole[:length])
        assert message_of(open_version, tmp_path).startswith(f"{path} is not valid JSON: ")
        with pytest.raises(DataError):
            published.parse_manifest(whole[:length])


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"dim": "wide"}, "dim: "),
        ({"comparator": "sum"}, "comparator: "),
        ({"files": {"a": {"bytes": 1}}}, "files.a.sha256: "),
        ({"surprise": 1}, "surprise: "),
        ({"relations": None}, "relations: "),
    ],
)
def test_an_altered_manifest_is_named(tmp_path: Path, change: dict[str, Any], where: str) -> None:
    publish(tmp_path)
    path = tmp_path / "v000001" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert message_of(open_version, tmp_path).startswith(f"{path} was altered: {where}")


def test_another_format_is_refused(tmp_path: Path) -> None:
    publish(tmp_path)
    path = tmp_path / "v000001" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    assert message_of(open_version, tmp_path).startswith(
        "Version v000001 is of format 2, this program reads 1. Publish again"
    )


# --- CURRENT --------------------------------------------------------------------------------------


def test_nothing_published_says_what_to_run(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        message = message_of(open_version, root)
        assert message == f"{root} holds no published version. Run embedsvc publish."
        assert versions(root) == []


@pytest.mark.parametrize(
    "content", [b"", b"3", b"../etc", b"v1", b"v000001\nv000002", b"\xff\xfe\x00", b"x" * 9999]
)
def test_a_damaged_pointer_is_named(tmp_path: Path, content: bytes) -> None:
    publish(tmp_path)
    (tmp_path / CURRENT).write_bytes(content)
    message = message_of(open_version, tmp_path)
    assert message.startswith(f"{tmp_path / CURRENT} does not name a version: ")
    assert len(message) < 300


def test_a_pointer_to_a_missing_version_is_named(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / CURRENT).write_text("v000009\n")
    assert current(tmp_path) == "v000009"
    assert message_of(open_version, tmp_path).startswith(
        f"{tmp_path / 'v000009' / 'manifest.json'} is missing. Publish again, or go back"
    )


def test_a_pointer_moves_to_whole_versions_only(tmp_path: Path) -> None:
    publish(tmp_path)
    publish(tmp_path)
    assert current(tmp_path) == "v000002"
    assert (tmp_path / CURRENT).read_text() == "v000002\n"
    set_current(tmp_path, "v000001")
    assert open_version(tmp_path).name == "v000001"
    assert message_of(set_current, tmp_path, "v000003") == (
        f"{tmp_path} has no version v000003. Did you mean v000002?"
    )
    assert current(tmp_path) == "v000001"
    assert open_version(tmp_path, "v000002").name == "v000002"


# --- versions come and go -------------------------------------------------------------------------


def test_versions_are_numbered_after_the_newest(tmp_path: Path) -> None:
    assert [publish(tmp_path) for _ in range(3)] == ["v000001", "v000002", "v000003"]
    (tmp_path / "v000002").rename(tmp_path / "not a version")
    assert publish(tmp_path) == "v000004"
    (tmp_path / "v000004").rename(tmp_path / "v999999")
    assert publish(tmp_path) == "v1000000"
    assert versions(tmp_path) == ["v000001", "v000003", "v999999", "v1000000"]


def test_a_draft_that_fails_leaves_nothing(tmp_path: Path) -> None:
    publish(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), new_version(tmp_path) as draft:
        write(draft)
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert open_version(tmp_path).name == "v000001"
    assert publish(tmp_path) == "v000002"


def test_a_version_is_not_live_before_the_pointer_moves(tmp_path: Path) -> None:
    publish(tmp_path)
    with new_version(tmp_path) as draft:
        write(draft)
        assert versions(tmp_path) == ["v000001"]
    assert versions(tmp_path) == ["v000001", "v000002"]
    assert current(tmp_path) == "v000001"


def test_old_versions_go_but_never_the_live_one(tmp_path: Path) -> None:
    for _ in range(5):
        publish(tmp_path)
    set_current(tmp_path, "v000002")
    assert remove_versions(tmp_path, keep=2) == ["v000001", "v000003"]
    assert versions(tmp_path) == ["v000002", "v000004", "v000005"]
    assert open_version(tmp_path).name == "v000002"
    assert remove_versions(tmp_path, keep=2) == []
    assert remove_versions(tmp_path, keep=9) == []
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {CURRENT, "lock", "v000002", "v000004", "v000005"}


def test_old_versions_go_also_where_none_is_live(tmp_path: Path) -> None:
    for _ in range(3):
        publish(tmp_path)
    (tmp_path / CURRENT).unlink()
    assert remove_versions(tmp_path, keep=2, spared=["v000001"]) == []
    (tmp_path / CURRENT).write_text("v")
    assert remove_versions(tmp_path, keep=1) == ["v000001", "v000002"]


def test_two_publishers_at_once_are_one_too_many(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from partitions.published import new_version\n"
        f"with new_version(Path({str(tmp_path)!r})): pass"
    )
    with new_version(tmp_path) as draft:
        with pytest.raises(BusyError, match=r"is in use: process \d+ is publishing into it\."):
            publish(tmp_path)
        other = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        assert other.returncode == 1
        assert other.stderr.splitlines()[-1].startswith("partitions.errors.BusyError: ")
        write(draft)
    assert versions(tmp_path) == ["v000001"]


# --- kills ----------------------------------------------------------------------------------------


def publish_second(folder: Path) -> None:
    publish(folder / "root", b"small")
    remove_versions(folder / "root", keep=1)


def a_version_is_live_and_whole(folder: Path) -> None:
    root = folder / "root"
    version = open_version(root)
    assert version.name in ("v000001", "v000002")
    for path in version.manifest.files:
        version.file(path)
    for name in versions(root):
        published.read_manifest(root, name)
    publish(root, b"small")
    leftovers = [path.name for path in root.glob(f"v*{durable.TEMPORARY}*")]
    assert leftovers == [], "the next publisher did not sweep"
    shutil.rmtree(root)
    shutil.copytree(folder / "as it was", root)


def test_a_kill_at_any_step_leaves_a_live_version(
    tmp_path: Path,
    kill_everywhere: Callable[[Callable[[Path], Any], Callable[[Path], Any]], int],
) -> None:
    publish(tmp_path / "root", b"small")
    shutil.copytree(tmp_path / "root", tmp_path / "as it was")
    assert kill_everywhere(publish_second, a_version_is_live_and_whole) >= 30


def test_leftovers_of_a_killed_publisher_are_no_versions(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / f"v000002{durable.TEMPORARY}77").mkdir()
    (tmp_path / f"{CURRENT}{durable.TEMPORARY}77").write_text("v0")
    assert versions(tmp_path) == ["v000001"]
    assert publish(tmp_path) == "v000002"
    assert not (tmp_path / f"v000002{durable.TEMPORARY}77").exists()
