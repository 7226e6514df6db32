"""A new version takes over whole or not at all."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from partitions import published
from partitions.errors import DataError
from serving.cache import MemoryCache
from serving.client import Client
from serving.loaded import load
from serving.versions import Versions
from tests.serving.toy import Toy, client_of, publish, wait_until


def test_a_folder_without_a_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no published version"):
        Versions(tmp_path, None, 1.0)


def test_a_second_server_loads_from_the_cache(toy: Toy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    cache = MemoryCache(100)
    first, second = (load(toy.root, toy.name, cache) for _ in range(2))
    assert first.blobs.from_cache == second.blobs.from_disk == 0
    assert second.blobs.from_cache == first.blobs.from_disk > 10
    count = second.blobs.from_cache
    assert caplog.messages[1].startswith(
        f"loaded v000001: {count} blobs from memory, 0 blobs from disk"
    )


def test_a_flip_mid_traffic_fails_no_call_and_mixes_no_reply(tmp_path: Path) -> None:
    prefixes = {"v000001": "old-", "v000002": "new-", "v000003": "newest-"}
    publish(tmp_path, prefix=prefixes["v000001"])
    end, asked, seen = threading.Event(), [], set()
    problems: list[Any] = []

    def ask(client: Client) -> None:
        try:
            while not end.is_set():
                rows = [[0.5] * 8, [-0.5] * 8]
                found = client.find_neighbors("item", vectors=rows, k=30, return_attributes=True)
                prefix = prefixes[found.version]
                for hits in found.hits:
                    titles = [title for title in hits.attributes["title"] if title]
                    assert all(key.startswith(prefix) for key in hits.keys)
                    assert all(title.startswith(f"Title of {prefix}") for title in titles)
                asked.append(found.version)
                seen.add(found.version)
        except BaseException as error:
            problems.append(error)

    with client_of(tmp_path) as client:
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for version, prefix in prefixes.items():
            if version != "v000001":
                publish(tmp_path, prefix=prefix, seed=len(prefix))
            wait_until(lambda version=version: version in seen or bool(problems))
        published.set_current(tmp_path, "v000002")  # and back
        wait_until(lambda: asked[-1] == "v000002" or bool(problems))
        end.set()
        for thread in threads:
            thread.join()
    assert not problems and seen == set(prefixes)


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, alter, Path.unlink])
@pytest.mark.parametrize("file", ["score.faiss", "keys-001.arrow", "vectors-000.safetensors"])
def test_a_broken_new_version_leaves_the_old_one_serving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: Callable[[Path], None]
) -> None:
    toy = publish(tmp_path)
    with client_of(tmp_path) as client:
        broken = publish(tmp_path, prefix="new-", live=False).name
        damage(tmp_path / broken / "entities" / "item" / file)
        published.set_current(tmp_path, broken)
        wait_until(lambda: "still serving v000001" in caplog.text)
        assert client.recommend("identity", toy.users[0]).version == "v000001"
    told = [message for message in caplog.messages if file in message]
    assert len(told) == 1 and "Publish again, or go back with embedsvc rollback" in told[0]


def test_a_version_that_was_mended_is_loaded_after_all(tmp_path: Path) -> None:
    publish(tmp_path)
    versions = Versions(tmp_path, None, poll_s=0.001)
    mended = publish(tmp_path, prefix="new-").name
    path = tmp_path / mended / "entities" / "item" / "score.faiss"
    data = path.read_bytes()
    path.write_bytes(data[:100])
    versions.look()
    assert versions.live.name == "v000001"
    path.write_bytes(data)

    def flipped() -> bool:
        versions.look()
        return versions.live.name == mended

    wait_until(flipped)


@pytest.mark.parametrize("content", ["", "v1\n", "../../etc\n"])
def test_a_broken_current_leaves_the_old_one_serving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    publish(tmp_path)
    versions = Versions(tmp_path, None, 1.0)
    (tmp_path / "CURRENT").write_text(content)
    for _ in range(3):
        versions.look()
    assert versions.live.name == "v000001"
    (problem,) = [message for message in caplog.messages if "still serving" in message]
    assert "does not name a version" in problem


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"operator": "twist"}, "uses the operator twist, which this server doesn't know."),
        ({"operator": "diagonal"}, r"identity has parameters of shape \(0,\)"),
        ({"rhs": "user"}, "the seen lists of identity are of other entities"),
        ({"lhs": "visitor"}, "identity names the unknown entity type visitor"),
    ],
)
def test_a_version_that_does_not_fit_together_is_refused(
    tmp_path: Path, changes: dict[str, str], sentence: str
) -> None:
    toy = publish(tmp_path)
    manifest = published.read_manifest(tmp_path, toy.name)
    relation = manifest.relations[0].model_copy(update=changes)
    text = manifest.model_copy(update={"relations": [relation]}).model_dump_json()
    (tmp_path / toy.name / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=sentence):
        load(tmp_path, toy.name, None)
