"""A killed import goes on where its journal says, and gives the graph of one that was not."""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from partitions import importer
from partitions.config import GraphConfig
from partitions.errors import DataError
from partitions.graph import Graph
from partitions.graph_writer import GraphWriter
from partitions.importer import import_graph
from partitions.journal import Journal
from partitions.spool import Spool
from tests.partitions.import_cases import (
    NAMES,
    columns,
    full_disk,
    shop,
    shop_edges,
    tree,
    write_edges,
)

ROOT = Path(__file__).parents[2]
BATCH_ROWS, BATCHES, FILES = 60, 8, 3
TOTAL = BATCH_ROWS * BATCHES * FILES
PLACES = {  # where a process dies: before its n-th call of
    "journal": (Journal, "write"),
    "flush": (Spool, "flush"),
    "sync": (Spool, "sync"),
    "bucket": (GraphWriter, "_write_bucket"),
    "entities": (GraphWriter, "_write_entities"),
}


def prepare(folder: Path) -> None:
    """Three files of eight record batches each."""
    for at in range(FILES):
        edges = shop_edges(BATCH_ROWS * BATCHES, seed=at, users=200 * (at + 1))
        table = pa.table(dict(zip(NAMES, map(list, zip(*edges, strict=True)), strict=True)))
        with pa.ipc.new_file(str(folder / f"{at}.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=BATCH_ROWS)


def config_of(folder: Path, **settings: Any) -> GraphConfig:
    inputs = [{"path": "?.arrow", "columns": {name: name for name in NAMES}}]
    return shop(
        folder, **{"user": 3, "item": 3, "inputs": inputs, "holdout": {"last": True}} | settings
    )


def often(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """A journal entry after every batch and every file."""
    patch(importer, "_JOURNAL_S", 0)
    patch(importer, "_JOURNAL_SHARE", 0)


def die(folder: Path, place: str, call: int, append: bool = False, **settings: Any) -> None:
    """Import, and be killed right before a call."""
    often()
    owner, name = PLACES[place]
    original, calls = getattr(owner, name), 0

    def dying(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(owner, name, dying)
    import_graph(config_of(folder, threads=1, **settings), folder / "graph", append=append)


def killed(folder: Path, place: str, call: int, **settings: Any) -> None:
    code = (
        "import runpy, sys; from pathlib import Path; sys.path.insert(0, '.'); "
        f"runpy.run_path({__file__!r})['die'](Path({str(folder)!r}), {place!r}, {call}, "
        f"**{settings!r})"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (folder / "graph").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an import that nobody disturbed, but for the manifest, which names a folder."""
    folder = tmp_path_factory.mktemp("whole")
    prepare(folder)
    import_graph(config_of(folder), folder / "graph")
    files = tree(folder / "graph")
    del files["graph.json"]
    return files


def files_of(folder: Path) -> dict[str, bytes]:
    assert {path.name for path in folder.iterdir()} == {
        "graph",
        *(f"{n}.arrow" for n in range(FILES)),
    }
    files = tree(folder / "graph")
    del files["graph.json"]
    return files


def rows_added(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each batch of the next import has that it gives places to."""
    rows: list[int] = []
    original = importer._Reading._add

    def counting(self: Any, batch: pa.RecordBatch, source: Any) -> None:
        rows.append(len(batch))
        original(self, batch, source)

    monkeypatch.setattr(importer._Reading, "_add", counting)
    return rows


@pytest.mark.parametrize(
    ("place", "call", "resumes_at"),
    [
        ("journal", 1, None),  # before anything was noted
        ("journal", 3, 2),  # in the first file, after its first two batches
        pytest.param(*("flush", 12, 10), marks=pytest.mark.slow),  # in the second file
        pytest.param(*("sync", 20, 17), marks=pytest.mark.slow),
        ("journal", 28, 24),  # all is read, but that is not noted
        pytest.param(*("entities", 1, 24), marks=pytest.mark.slow),
        ("bucket", 9, 24),
    ],
)
def test_a_killed_import_goes_on_where_its_journal_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, bytes],
    place: str,
    call: int,
    resumes_at: int | None,
) -> None:
    prepare(tmp_path)
    killed(tmp_path, place, call)
    rows = rows_added(monkeypatch)
    report = import_graph(config_of(tmp_path), tmp_path / "graph")
    assert report.resumed == (resumes_at is not None)
    assert sum(rows) == TOTAL - (resumes_at or 0) * BATCH_ROWS, "only what was not noted"
    assert sum(report.num_edges.values()) == TOTAL
    assert files_of(tmp_path) == whole
    again = import_graph(config_of(tmp_path), tmp_path / "graph")
    assert not again.resumed, "success leaves nothing to go on from"


def entry_in(folder: Path) -> dict[str, Any]:
    value = json.loads((folder / "graph.importing" / "journal.json").read_text())
    entry: dict[str, Any] = value["content"]["entry"]
    return entry


SHARES = {"valid": 0.1, "test": 0.2}
DRAWN = [{**SHARES, "by": "time"}, {**SHARES, "by": "lhs"}, {**SHARES, "by": "edge"}]


@pytest.mark.parametrize("place", ["journal", "bucket"])
@pytest.mark.parametrize("holdout", DRAWN, ids=lambda holdout: holdout["by"])
def test_shares_are_the_same_edges_after_a_kill(
    tmp_path: Path, place: str, holdout: dict[str, Any]
) -> None:
    """Killed after the first file, or amid the buckets that the choice is made for."""
    prepare(tmp_path)
    killed(tmp_path, place, 9, holdout=holdout)
    report = import_graph(config_of(tmp_path, holdout=holdout), tmp_path / "graph")
    assert report.resumed
    resumed = tree(tmp_path / "graph")
    import_graph(config_of(tmp_path, holdout=holdout), tmp_path / "graph")
    assert tree(tmp_path / "graph") == resumed
    assert all(report.num_edges.values())


def test_an_import_killed_twice_goes_on_twice(tmp_path: Path, whole: dict[str, bytes]) -> None:
    prepare(tmp_path)
    killed(tmp_path, "journal", 4)
    first = entry_in(tmp_path)
    killed(tmp_path, "journal", 3)
    second = entry_in(tmp_path)
    assert 0 < first["num_read"] < second["num_read"] < TOTAL
    assert import_graph(config_of(tmp_path), tmp_path / "graph").resumed
    assert files_of(tmp_path) == whole


@pytest.fixture
def broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An import that stopped in its second file, as a full disk would stop it."""
    prepare(tmp_path)
    often(monkeypatch.setattr)
    original = Spool.flush
    calls = 0

    def failing(self: Spool) -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "flush", failing)
        with pytest.raises(OSError, match="No space left"):
            import_graph(config_of(tmp_path), tmp_path / "graph")
    assert (tmp_path / "graph.importing" / "journal.json").exists()
    return tmp_path


def test_after_a_full_disk_it_goes_on(broken_off: Path, whole: dict[str, bytes]) -> None:
    assert import_graph(config_of(broken_off), broken_off / "graph").resumed
    assert files_of(broken_off) == whole


def test_the_number_of_threads_may_change_between(
    broken_off: Path, whole: dict[str, bytes]
) -> None:
    assert import_graph(config_of(broken_off, threads=1), broken_off / "graph").resumed
    assert files_of(broken_off) == whole


def other_content(folder: Path) -> None:
    """Same size, later date."""
    file = folder / "0.arrow"
    file.write_bytes(file.read_bytes().replace(b"u7", b"u8", 1))
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 1))


def one_file_more(folder: Path) -> None:
    """A glob matches a file that comes before those which are done."""
    (folder / "..arrow").write_bytes((folder / "1.arrow").read_bytes())
    (folder / "..arrow").rename(folder / "-.arrow")


def one_file_less(folder: Path) -> None:
    (folder / "2.arrow").unlink()


@pytest.mark.parametrize("change", [other_content, one_file_more, one_file_less])
def test_other_source_files_begin_anew(broken_off: Path, change: Callable[[Path], None]) -> None:
    change(broken_off)
    assert not import_graph(config_of(broken_off), broken_off / "graph").resumed
    resumed = tree(broken_off / "graph")
    import_graph(config_of(broken_off), broken_off / "graph")
    assert tree(broken_off / "graph") == resumed


def test_another_config_begins_anew(broken_off: Path) -> None:
    config = config_of(broken_off, user=2, item=2)
    assert not import_graph(config, broken_off / "graph").resumed


def torn_journal(work: Path) -> None:
    path = work / "journal.json"
    path.write_bytes(path.read_bytes()[:-30])


def short_spool(work: Path) -> None:
    path = sorted((work / "spool").iterdir())[0]
    path.write_bytes(path.read_bytes()[:12])


def lost_spool(work: Path) -> None:
    sorted((work / "spool").iterdir())[0].unlink()


def lost_keys(work: Path) -> None:
    sorted((work / "keys").iterdir())[0].unlink()


def cut_keys(work: Path) -> None:
    path = sorted((work / "keys").iterdir())[-1]
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 64
    path.write_bytes(bytes(data))


def flipped_spool(work: Path) -> None:
    """In an offset, which would be that of another entity or of none."""
    flip(sorted((work / "spool").iterdir())[0], 3)


def flipped_journal(work: Path) -> None:
    path = work / "journal.json"
    flip(path, path.read_bytes().index(b'"num_read": ') + 13)


def flipped_keys(work: Path) -> None:
    path = sorted((work / "keys").iterdir())[0]
    flip(path, len(path.read_bytes()) // 2)


def foreign_journal(work: Path) -> None:
    """Whole by its digest, and yet nothing that can be gone on from."""
    path = work / "journal.json"
    content = json.loads(path.read_text())["content"]
    content["entry"]["sources"] = None
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    path.write_text(json.dumps({"sha256": digest, "content": content}))


DAMAGES = [torn_journal, short_spool, lost_spool, lost_keys, cut_keys]
DAMAGES += [flipped_spool, flipped_journal, flipped_keys, foreign_journal]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_remains_begin_anew(
    broken_off: Path, whole: dict[str, bytes], damage: Callable[[Path], None]
) -> None:
    damage(broken_off / "graph.importing")
    assert not import_graph(config_of(broken_off), broken_off / "graph").resumed
    assert files_of(broken_off) == whole


def test_a_full_disk_in_the_second_pass_is_gone_on_from(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    prepare(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    refused = 0
    for most_bytes in range(2000, 60_000, 1000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
        try:
            report = import_graph(config_of(tmp_path), tmp_path / "graph")
            break
        except OSError as error:
            assert error.errno == errno.EFBIG
            refused += 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not (tmp_path / "graph").exists()
    assert refused
    assert files_of(tmp_path) == whole
    assert sum(report.num_edges.values()) == TOTAL


def test_bad_input_leaves_nothing_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often(monkeypatch.setattr)
    write_edges(tmp_path / "a.tsv", shop_edges(500))
    write_edges(tmp_path / "b.tsv", [*shop_edges(500, seed=1), ("u", "bought")])
    inputs = [{"path": "?.tsv", "columns": columns(*NAMES)}]
    with pytest.raises(DataError, match=r"b\.tsv:501: expected 5 "):
        import_graph(shop(tmp_path, inputs=inputs), tmp_path / "graph")
    assert {path.name for path in tmp_path.iterdir()} == {"a.tsv", "b.tsv"}


def test_skipped_rows_are_counted_once_by_an_import_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often(monkeypatch.setattr)
    for at in range(4):
        write_edges(tmp_path / f"{at}.tsv", [*shop_edges(200, seed=at), ("bad",), ("u", "bought")])
    inputs = [{"path": "?.tsv", "columns": columns(*NAMES)}]
    config = shop(tmp_path, inputs=inputs, skip_bad=True)
    with full_disk(monkeypatch, GraphWriter, "_write_buckets"):
        import_graph(config, tmp_path / "graph")
    report = import_graph(config, tmp_path / "graph")
    assert (report.resumed, report.skipped_rows) == (True, 8)
    assert Graph(tmp_path / "graph").manifest.skipped_rows == 8
