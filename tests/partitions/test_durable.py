"""partitions.durable: at every moment the old file or the new one, whole."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from partitions import durable
from partitions.durable import FileEntry
from partitions.errors import BusyError, DataError
from tests.partitions.import_cases import tree

ROOT = Path(__file__).parents[2]
Kill = Callable[[Callable[[Path], Any], Callable[[Path], Any]], int]


# --- files ----------------------------------------------------------------------------------------


def replace_file(folder: Path) -> None:
    with durable.replacing(folder / "file") as file:
        for _ in range(10):
            file.write(b"new " * 10_000)
            file.flush()
            sys.audit("test.step")


def file_is_whole(folder: Path) -> None:
    assert (folder / "file").read_bytes() in (b"old " * 100_000, b"new " * 100_000)
    (folder / "file").write_bytes(b"old " * 100_000)


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path: Path, kill_everywhere: Kill) -> None:
    (tmp_path / "file").write_bytes(b"old " * 100_000)
    assert kill_everywhere(replace_file, file_is_whole) == 12


def test_an_exception_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), durable.replacing(tmp_path / "file") as file:
        file.write(b"half of it")
        raise KeyboardInterrupt
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError) as caught, durable.replacing(tmp_path / "file") as file:
            file.write(bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]


def test_json_survives_a_round_trip(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": {"ключ": "東京\u2028"}}
    durable.write_json(tmp_path / "x.json", value)
    assert durable.read_json(tmp_path / "x.json", "Make it again.") == value
    assert (tmp_path / "x.json").read_text().index('"a"') < (tmp_path / "x.json").read_text().index(
        '"b"'
    )


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff", None])
def test_broken_json_is_one_sentence_and_a_remedy(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        durable.read_json(path, "Make it again.")
    fault = "is missing" if content is None else "is not valid JSON: it was truncated or altered"
    assert str(caught.value) == f"{path} {fault}. Make it again."


# --- digests --------------------------------------------------------------------------------------


def test_an_entry_names_a_file_by_its_place_size_and_digest(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "f").write_bytes(b"abc")
    entry = durable.entry_of(tmp_path, tmp_path / "sub" / "f")
    # The digest is the first test vector of FIPS 180-2.
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert entry == FileEntry("sub/f", 3, digest)
    assert FileEntry(**entry.as_json()) == entry
    assert durable.verify(tmp_path, entry, "") == tmp_path / "sub" / "f"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is missing. Copy it."),
        (
            b"abcdef" * 199,
            "has 1,194 bytes where its manifest says 1,200: it was truncated or altered. Copy it.",
        ),
        (b"abcdeF" + b"abcdef" * 199, "was altered: its sha256 is not the manifest's. Copy it."),
    ],
)
def test_a_file_that_is_not_the_manifests_is_named(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abcdef" * 200)
    entry = durable.entry_of(tmp_path, path)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        durable.verify(tmp_path, entry, "Copy it.")
    assert str(caught.value) == f"{path} {sentence}"


def test_the_digest_check_can_be_left_out_but_not_the_size_check(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    entry = durable.entry_of(tmp_path, path)
    path.write_bytes(b"abd")
    assert durable.verify(tmp_path, entry, "", digest=False) == path
    path.write_bytes(b"ab")
    with pytest.raises(DataError):
        durable.verify(tmp_path, entry, "", digest=False)


# --- folders --------------------------------------------------------------------------------------


def fill(folder: Path, content: bytes) -> None:
    (folder / "sub").mkdir()
    for name in ("a", "b", "sub/c"):
        (folder / name).write_bytes(content)


def replace_folder(folder: Path) -> None:
    with durable.replacing_folder(folder / "graph") as fresh:
        fill(fresh, b"new")


def folder_is_whole(folder: Path) -> None:
    durable.recover_folder(folder / "graph")
    found = tree(folder / "graph")
    assert found in [dict.fromkeys(["a", "b", "sub/c"], content) for content in (b"old", b"new")]
    with durable.replacing_folder(folder / "graph") as fresh:
        fill(fresh, b"old")
    assert [path.name for path in folder.iterdir()] == ["graph"], "leftovers were not swept"
    assert tree(folder / "graph")["a"] == b"old"


def test_a_kill_leaves_the_old_folder_or_the_new_one(tmp_path: Path, kill_everywhere: Kill) -> None:
    with durable.replacing_folder(tmp_path / "graph") as fresh:
        fill(fresh, b"old")
    assert kill_everywhere(replace_folder, folder_is_whole) >= 10


def test_an_exception_leaves_the_old_folder_and_no_other(tmp_path: Path) -> None:
    with durable.replacing_folder(tmp_path / "runs" / "graph") as fresh:
        fill(fresh, b"old")
    with (
        pytest.raises(KeyboardInterrupt),
        durable.replacing_folder(tmp_path / "runs" / "graph") as fresh,
    ):
        fill(fresh, b"new")
        raise KeyboardInterrupt
    assert tree(tmp_path) == dict.fromkeys(
        ["runs/graph/a", "runs/graph/b", "runs/graph/sub/c"], b"old"
    )


def test_an_exception_after_a_kill_between_the_renames_still_leaves_the_old_folder(
    tmp_path: Path,
) -> None:
    with durable.replacing_folder(tmp_path / "graph") as fresh:
        fill(fresh, b"old")
    (tmp_path / "graph").rename(tmp_path / "graph.old")  # where the kill came
    with pytest.raises(KeyboardInterrupt), durable.replacing_folder(tmp_path / "graph"):
        raise KeyboardInterrupt
    assert tree(tmp_path) == dict.fromkeys(["graph/a", "graph/b", "graph/sub/c"], b"old")


def test_recovering_a_whole_folder_changes_nothing(tmp_path: Path) -> None:
    durable.recover_folder(tmp_path / "graph")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph.old").mkdir()
    durable.recover_folder(tmp_path / "graph")
    assert {path.name for path in tmp_path.iterdir()} == {"graph", "graph.old"}


# --- the only writer ------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_is_first(tmp_path: Path) -> None:
    with durable.only_writer(tmp_path / "run", "importing into"):
        code = (
            "from pathlib import Path; from partitions import durable\n"
            f"with durable.only_writer(Path({str(tmp_path / 'run')!r}), 'training'): pass"
        )
        second = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        assert second.returncode == 1
        assert second.stderr.splitlines()[-1] == (
            f"partitions.errors.BusyError: {tmp_path / 'run'} is in use: process {os.getpid()} is "
            "importing into it. Wait for it to end, or choose another [run] dir."
        )
    with durable.only_writer(tmp_path / "run", "training"):
        pass


def test_the_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from partitions import durable\n"
        f"with durable.only_writer(Path({str(tmp_path)!r}), 'training'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -9
    assert (tmp_path / "lock").read_text()
    with durable.only_writer(tmp_path, "training"), pytest.raises(BusyError):
        durable.only_writer(tmp_path, "training").__enter__()


def test_a_full_disk_is_named_by_the_folder_that_was_written_to(tmp_path: Path) -> None:
    def fill(*name: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", *name)

    for name, found in (((), str(tmp_path)), (("input.tsv",), "input.tsv")):
        caught = pytest.raises(OSError, match="No space")
        with caught as error, durable.only_writer(tmp_path, "training into"):
            fill(*name)
        assert error.value.filename == found


def test_the_next_only_writer_sweeps_what_killed_ones_left(tmp_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from partitions import durable\n"
        f"with durable.only_writer(Path({str(tmp_path)!r}), 'training'):\n"
        f"    with durable.replacing(Path({str(tmp_path / 'CURRENT')!r})) as file:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -9
    [left] = tmp_path.glob("CURRENT*")
    spared = [f"x.json{durable.TEMPORARY}{os.getpid()}", f"x{durable.TEMPORARY}y", "z"]
    for name in spared:
        (tmp_path / name).write_text("")
    with durable.only_writer(tmp_path, "training"):
        assert not left.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"lock", *spared}


def test_who_reads_and_writes_again_sweeps_too(tmp_path: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True
    )
    left = tmp_path / f"x.json{durable.TEMPORARY}{int(dead.stdout)}"
    left.write_text("")
    with durable.one_at_a_time(tmp_path / "x.json"):
        assert not left.exists()
