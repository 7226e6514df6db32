"""Blobs come from the cache where they are whole, from disk else, and never damaged from either."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from partitions.errors import DataError
from partitions.published import BLOB_BYTES, Manifest, new_version
from serving.blobs import VersionBlobs
from serving.cache import MemoryCache
from serving.keeper import Keeper
from serving.loaded import load
from tests.serving.toy import Toy

LARGE = bytes(range(256)) * (BLOB_BYTES * 18 // 256)  # more than one message to the cache


@pytest.fixture
def large(tmp_path: Path) -> Manifest:
    """A version with a file of several groups of blobs, and an empty one."""
    with new_version(tmp_path) as draft:
        draft.write_bytes("large", LARGE)
        draft.write_bytes("empty", b"")
        return draft.finish(
            created="", dim=1, comparator="dot", graph_digest="", entity_types=[], relations=[]
        )


def counts(blobs: VersionBlobs) -> tuple[int, int]:
    return blobs.from_cache, blobs.from_disk


def test_the_first_reader_fills_the_cache_for_the_next(tmp_path: Path, large: Manifest) -> None:
    cache = MemoryCache(100)
    for from_cache, from_disk in ((0, 18), (18, 0)):
        blobs = VersionBlobs(tmp_path / large.version, large, cache)
        for path, data in (("large", LARGE), ("empty", b"")):
            assert bytes(blobs.fetch(path, large.files[path])) == data
        assert len(blobs.names) == 18
        assert counts(blobs) == (from_cache, from_disk)


def test_names_carry_version_and_manifest(tmp_path: Path, large: Manifest) -> None:
    digest = hashlib.sha256(large.model_dump_json().encode()).hexdigest()[:12]
    blobs = VersionBlobs(tmp_path / large.version, large, None)
    blobs.fetch("large", large.files["large"])
    names = blobs.names
    assert names[0] == f"embedsvc:{{v000001-{digest}/large}}:0000"
    assert names[17].endswith("large}:0017")


def test_damaged_blobs_in_the_cache_are_mended(
    tmp_path: Path, large: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    cache = MemoryCache(100)
    blobs = VersionBlobs(tmp_path / large.version, large, cache)
    blobs.fetch("large", large.files["large"])
    good = cache.get(blobs.names)
    cache.put({blobs.names[0]: b"", blobs.names[3]: bytes(BLOB_BYTES), blobs.names[17]: b"short"})
    again = VersionBlobs(tmp_path / large.version, large, cache)
    assert bytes(again.fetch("large", large.files["large"])) == LARGE
    assert counts(again) == (15, 3)
    assert cache.get(blobs.names) == good
    assert caplog.messages == ["memory held 3 damaged blobs of large: mended"]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.unlink(), "large is missing."),
        (lambda path: path.write_bytes(LARGE[:-1]), "it was truncated or altered."),
        (lambda path: path.write_bytes(LARGE[:-1] + b"?"), "its sha256 is not the manifest's."),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, large: Manifest, damage: Any, sentence: str
) -> None:
    path = tmp_path / large.version / "large"
    damage(path)
    with pytest.raises(DataError) as caught:
        VersionBlobs(path.parent, large, MemoryCache(100)).fetch("large", large.files["large"])
    assert str(caught.value).startswith(str(path)) and sentence in str(caught.value)


def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, large: Manifest) -> None:
    file = large.files["large"].model_copy(update={"blobs": ["0" * 64]})
    with pytest.raises(DataError, match="was altered at large"):
        VersionBlobs(tmp_path / large.version, large, None).fetch("large", file)


def test_the_keeper_puts_back_what_the_cache_lost(
    toy: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    cache = MemoryCache(100, lambda: now)
    blobs = load(toy.root, toy.name, cache).blobs
    count = len(blobs.names)
    caplog.set_level("INFO")
    keeper = Keeper(cache, lambda: blobs)
    for now in (90.0, 180.0, 270.0, 900.0):  # noqa: B007 - the clock; the last jump is too far
        for _ in range(count):
            keeper.tick()
        assert None not in cache.get(blobs.names)
    assert caplog.messages == [f"memory had lost blobs: put back {count} of {count}"]


def test_the_keeper_lives_on_when_the_files_are_gone(
    toy: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    blobs = load(toy.root, toy.name, None).blobs
    (toy.root / toy.name).rename(toy.root / "removed")
    Keeper(MemoryCache(100), lambda: blobs).tick()
    assert "memory can't be refilled" in caplog.text and "is missing" in caplog.text
