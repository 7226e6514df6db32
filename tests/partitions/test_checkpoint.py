"""partitions.checkpoint: at every moment the newest manifest is a whole checkpoint."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from partitions import durable, tables
from partitions.checkpoint import BEST, MANIFEST, PREVIOUS, Checkpoint, CheckpointManifest
from partitions.errors import DataError
from partitions.schedule import Progress
from partitions.schema import Bucket, Slot
from partitions.tables import Table

SLOTS = [Slot("user", 0), Slot("user", 1), Slot("movie", 0)]
EMPTY = CheckpointManifest(graph_digest="d" * 64, config={"model": {"dim": 4}})


def made(offsets: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.repeat(offsets[:, None], 4, axis=1).astype(np.float32)


def table_of(token: int) -> Table:
    """The table that the commit under `token` writes: told from every other by its content."""
    table = tables.fresh(10, made)
    table.vectors[token % 10] = token
    table.state[token % 10] = token
    return table


def commit(checkpoint: Checkpoint, token: int, slots: list[Slot] = SLOTS) -> CheckpointManifest:
    """Train `slots` under `token` and commit: the order of steps is the trainer's."""
    before = checkpoint.read_manifest() if checkpoint.exists else EMPTY
    written = {slot: checkpoint.write_table(slot, token, table_of(token)) for slot in slots}
    manifest = replace(
        before,
        progress=Progress(token // 4, (Bucket(0, token), Bucket(1, 0)), token + 1),
        tables={**before.tables, **written},
        parameters=checkpoint.write_parameters(
            token, {"diagonal": np.full((2, 4), token, np.float32)}
        ),
    )
    checkpoint.commit(manifest)
    return manifest


def token_of(manifest: CheckpointManifest) -> int:
    return manifest.progress.next_token - 1


def assert_whole(checkpoint: Checkpoint, manifest: CheckpointManifest) -> None:
    """Everything it names is there, and holds what its name's token says."""
    for entry in manifest.tables.values():
        token = int(entry.path.split(".")[1])
        found = checkpoint.read_table(entry, made, 10)
        np.testing.assert_array_equal(found.vectors, table_of(token).vectors, strict=True)
        np.testing.assert_array_equal(found.state, table_of(token).state, strict=True)
    parameters = checkpoint.read_parameters(manifest.parameters)
    if manifest.parameters:
        assert parameters["diagonal"].tolist() == np.full((2, 4), token_of(manifest)).tolist()
        parameters["diagonal"] += 1  # ours to change: no view of the file


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_is_committed_is_read(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    assert not checkpoint.exists
    with pytest.raises(DataError) as caught:
        checkpoint.read_manifest()
    assert str(caught.value) == f"{checkpoint.path} holds no checkpoint. Run embedsvc train."
    manifest = commit(checkpoint, 7)
    assert checkpoint.exists
    found = Checkpoint(tmp_path / "checkpoint").read_manifest()
    assert found == manifest
    assert_whole(checkpoint, found)
    checkpoint.verify(found)
    checkpoint.verify(EMPTY)
    assert checkpoint.read_parameters(None) == {}


def test_an_empty_manifest_survives_a_round_trip() -> None:
    assert CheckpointManifest.from_json(json.loads(json.dumps(EMPTY.as_json()))) == EMPTY


def test_files_without_a_manifest_change_nothing_and_are_swept_by_the_next_commit(
    tmp_path: Path,
) -> None:
    checkpoint = Checkpoint(tmp_path)
    first = commit(checkpoint, 1)
    checkpoint.write_table(SLOTS[0], 2, table_of(2))  # killed between the files and the manifest
    checkpoint.write_parameters(2, {"diagonal": np.zeros((2, 4), np.float32)})
    half = tmp_path / "tables" / f"{tables.file_name(SLOTS[1], 2)}{durable.TEMPORARY}99"
    half.write_bytes(b"half")
    assert checkpoint.read_manifest() == first
    assert_whole(checkpoint, first)
    third = commit(checkpoint, 3, SLOTS[:1])
    assert_whole(checkpoint, third)
    assert not [name for name in names(tmp_path) if ".0000000002." in name or "tmp" in name]


def test_the_sweep_keeps_the_files_of_the_newest_two_manifests_and_no_other(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    (tmp_path / "evaluation.json").write_text("{}")  # others' files lie here too
    for token in range(1, 8):
        manifest = commit(checkpoint, token, [SLOTS[token % 3]])
        kept = [checkpoint.read_manifest()]
        if (tmp_path / PREVIOUS).exists():
            kept.append(CheckpointManifest.from_json(json.loads((tmp_path / PREVIOUS).read_text())))
        assert kept[0] == manifest
        assert [token_of(found) for found in kept] == [token, token - 1][: len(kept)]
        expected = {MANIFEST, "evaluation.json"} | ({PREVIOUS} if len(kept) == 2 else set())
        for found in kept:
            assert found.parameters is not None
            expected |= {entry.path for entry in found.tables.values()} | {found.parameters.path}
        assert names(tmp_path) == expected
    assert len(kept) == 2


def test_the_best_manifest_stays_whole_until_it_is_forgotten(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    assert not checkpoint.has_best
    best = commit(checkpoint, 1)
    checkpoint.keep_as_best()
    checkpoint.keep_as_best()  # twice is once
    for token in range(2, 6):
        commit(checkpoint, token, SLOTS[:2])
        assert checkpoint.read_manifest(BEST) == best
        assert_whole(checkpoint, best)
        checkpoint.verify(best)
    better = checkpoint.read_manifest()
    checkpoint.keep_as_best()
    assert checkpoint.has_best and checkpoint.read_manifest(BEST) == better
    checkpoint.forget_best()
    checkpoint.forget_best()
    commit(checkpoint, 6)
    commit(checkpoint, 7)
    assert not [name for name in names(tmp_path) if ".0000000001." in name or "tmp" in name]


def test_the_previous_manifest_can_be_restored_and_gone_on_from(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    commit(checkpoint, 1)
    second = commit(checkpoint, 2)
    third = commit(checkpoint, 3)
    damaged = tmp_path / third.tables[SLOTS[0]].path
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(DataError) as caught:
        assert_whole(checkpoint, checkpoint.read_manifest())
    message = str(caught.value)
    assert message.startswith(f"{damaged} has ")
    assert message.endswith(
        f"Copy {tmp_path / PREVIOUS} over {tmp_path / MANIFEST} to go on from the commit before, "
        f"or remove {tmp_path} to train from the start."
    )
    shutil.copyfile(tmp_path / PREVIOUS, tmp_path / MANIFEST)  # as the sentence says
    assert checkpoint.read_manifest() == second
    assert_whole(checkpoint, second)
    fourth = commit(checkpoint, 4)
    assert checkpoint.read_manifest() == fourth
    assert_whole(checkpoint, fourth)


@pytest.mark.parametrize("what", ["table", "parameters"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_an_altered_file_is_named_with_the_remedy(tmp_path: Path, what: str, damage: str) -> None:
    checkpoint = Checkpoint(tmp_path)
    manifest = commit(checkpoint, 1)
    assert manifest.parameters is not None
    entry = manifest.tables[SLOTS[1]] if what == "table" else manifest.parameters
    path = tmp_path / entry.path
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-70] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    with pytest.raises(DataError) as caught:
        if what == "table":
            checkpoint.read_table(entry, made, 10)
        else:
            checkpoint.read_parameters(entry)
    message = str(caught.value)
    assert message.startswith(f"{path} ") and "\n" not in message
    assert f"Copy {tmp_path / PREVIOUS} over {tmp_path / MANIFEST}" in message
    with pytest.raises(DataError) as caught:
        checkpoint.verify(manifest)
    assert str(caught.value) == message


@pytest.mark.parametrize("cut", [0, 1, 100, -2])
def test_a_truncated_manifest_is_named_with_the_remedy(tmp_path: Path, cut: int) -> None:
    checkpoint = Checkpoint(tmp_path)
    commit(checkpoint, 1)
    text = (tmp_path / MANIFEST).read_bytes()
    (tmp_path / MANIFEST).write_bytes(text[:cut])
    with pytest.raises(DataError, match=r"Copy .*previous.json over") as caught:
        checkpoint.read_manifest()
    assert str(caught.value).startswith(f"{tmp_path / MANIFEST} is not valid JSON: ")


@pytest.mark.parametrize(
    "key", ["graph_digest", "config", "epoch", "done", "next_token", "tables", "parameters"]
)
def test_a_manifest_that_lacks_a_part_is_named(tmp_path: Path, key: str) -> None:
    checkpoint = Checkpoint(tmp_path)
    commit(checkpoint, 1)
    value = json.loads((tmp_path / MANIFEST).read_text())
    del value[key]
    (tmp_path / MANIFEST).write_text(json.dumps(value))
    with pytest.raises(DataError) as caught:
        checkpoint.read_manifest()
    assert str(caught.value).startswith(
        f"{tmp_path / MANIFEST} was altered: KeyError('{key}'). Copy "
    )


@pytest.mark.parametrize("value", [{"format_version": 2}, {}, [1], 3, None])
def test_another_format_is_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(value))
    version = 2 if value == {"format_version": 2} else None
    with pytest.raises(DataError) as caught:
        Checkpoint(tmp_path).read_manifest()
    assert str(caught.value) == (
        f"{tmp_path / MANIFEST} is of format {version}, this program reads 1. "
        f"Remove {tmp_path} to train from the start."
    )


def commit_third(folder: Path) -> None:
    commit(Checkpoint(folder), 3)


def is_whole(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    manifest = checkpoint.read_manifest()
    assert token_of(manifest) in (2, 3)
    assert_whole(checkpoint, manifest)
    previous = CheckpointManifest.from_json(json.loads((folder / PREVIOUS).read_text()))
    assert token_of(previous) in (1, 2)
    assert_whole(checkpoint, previous)
    shutil.rmtree(folder)
    prepare(folder)


def prepare(folder: Path) -> None:
    commit(Checkpoint(folder), 1)
    commit(Checkpoint(folder), 2)


def test_a_kill_at_any_step_of_a_commit_leaves_a_whole_checkpoint(
    tmp_path: Path,
    kill_everywhere: Callable[[Callable[[Path], Any], Callable[[Path], Any]], int],
) -> None:
    prepare(tmp_path)
    assert kill_everywhere(commit_third, is_whole) >= 15
