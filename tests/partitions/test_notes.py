"""What an import leaves beside its graph is there if and only if the graph is."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from partitions import durable, notes
from partitions.config import GraphConfig
from partitions.errors import DataError
from partitions.gate.anomalies import Refused
from partitions.graph import MANIFEST
from partitions.importer import import_graph
from partitions.skipped import path_of
from partitions.validation import REPORT, SCHEMA, STATISTICS
from tests.partitions.import_cases import NAMES, columns, shop, shop_edges, tree, write_edges

AS_OF = 1_700_000_000
BESIDE = (SCHEMA, STATISTICS, REPORT, "graph.skipped.jsonl")


def config_of(folder: Path) -> GraphConfig:
    inputs = [{"path": "day*.tsv", "columns": columns(*NAMES)}]
    return shop(folder / "in", user=2, item=2, gate=True, inputs=inputs, skip_bad=True, threads=1)


def write_day(folder: Path, day: int, weight: float | None = None) -> None:
    edges = shop_edges(400, seed=day, users=30, items=20)
    if weight is not None:
        edges = [(*e[:3], weight if at % 5 == 0 else e[3], e[4]) for at, e in enumerate(edges)]
    (folder / "in").mkdir(exist_ok=True)
    write_edges(folder / "in" / f"day{day}.tsv", [*edges, ("bad",)])


def once(folder: Path) -> None:
    """As the command does it: what a kill left is settled before the graph is looked at."""
    notes.settle(folder / "graph")
    if not (folder / "graph").exists():
        import_graph(config_of(folder), folder / "graph", as_of=AS_OF)


def append_accepted(folder: Path) -> None:
    """The second day is refused once, then accepted."""
    try:
        for accept in (False, True):
            with suppress(Refused):
                import_graph(
                    config_of(folder), folder / "graph", append=True, accept=accept, as_of=AS_OF
                )
    except DataError as error:
        assert "nothing to append" in str(error)


def left(folder: Path) -> dict[str, bytes]:
    files = {f"graph/{name}": content for name, content in tree(folder / "graph").items()}
    files |= {name: (folder / name).read_bytes() for name in BESIDE if (folder / name).exists()}
    return files


def assert_as_undisturbed(folder: Path, act: Callable[[Path], None]) -> None:
    act(folder)
    expected = tree(folder / "expected")
    found = left(folder)
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        assert found[name] == content, name
    beside = {path.name for path in folder.iterdir()}
    assert beside <= {"in", "first", "expected", "graph", "graph.importing", *BESIDE}
    work = folder / "graph.importing"
    assert not work.exists() or {path.name for path in work.iterdir()} <= {"lock"}


def keep(folder: Path, name: str) -> None:
    for path, content in left(folder).items():
        (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / path).write_bytes(content)


def clear(folder: Path) -> None:
    for name in left(folder):
        (folder / name).unlink()
    for path in sorted((folder / "graph").rglob("*"), reverse=True):
        path.rmdir()
    (folder / "graph").rmdir()


def put_back(folder: Path) -> None:
    clear(folder)
    for name, content in tree(folder / "first").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def as_undisturbed(folder: Path) -> None:
    assert_as_undisturbed(folder, once)
    clear(folder)


def appended_as_undisturbed(folder: Path) -> None:
    assert_as_undisturbed(folder, append_accepted)
    put_back(folder)


def prepare_append(folder: Path) -> None:
    write_day(folder, 0)
    once(folder)
    keep(folder, "first")
    write_day(folder, 1, weight=-1.0)
    append_accepted(folder)
    keep(folder, "expected")
    assert (folder / "expected" / SCHEMA).read_bytes() != (folder / "first" / SCHEMA).read_bytes()
    put_back(folder)


@pytest.mark.slow
def test_a_kill_at_any_step_and_the_command_again_give_graph_and_notes(
    tmp_path: Path,
    kill_everywhere: Callable[[Callable[[Path], Any], Callable[[Path], Any]], int],
) -> None:
    write_day(tmp_path, 0)
    once(tmp_path)
    keep(tmp_path, "expected")
    clear(tmp_path)
    assert kill_everywhere(once, as_undisturbed) >= 30


@pytest.mark.slow
def test_a_kill_at_any_step_of_an_accepted_append_loses_no_note(
    tmp_path: Path,
    kill_everywhere: Callable[[Callable[[Path], Any], Callable[[Path], Any]], int],
) -> None:
    prepare_append(tmp_path)
    assert kill_everywhere(append_accepted, appended_as_undisturbed) >= 30


@pytest.mark.parametrize("moved", range(5))
def test_an_import_broken_off_after_its_commit_is_finished_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """What the slow tests do everywhere, at the steps between graph and notes."""
    write_day(tmp_path, 0)
    once(tmp_path)
    keep(tmp_path, "expected")
    clear(tmp_path)
    replace, left_to_move = os.replace, [moved]

    def failing(source: Path, target: Path) -> None:
        if Path(target).name in BESIDE and Path(target).parent == tmp_path:
            if not left_to_move[0]:
                raise OSError("killed")
            left_to_move[0] -= 1
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(notes.os, "replace", failing)
        if moved < 4:
            with pytest.raises(OSError, match="killed"):
                once(tmp_path)
            assert len(left(tmp_path).keys() & set(BESIDE)) == moved
        else:
            once(tmp_path)
    assert_as_undisturbed(tmp_path, once)


def test_the_notes_of_a_graph_that_did_not_come_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_append(tmp_path)
    before = left(tmp_path)
    original = durable.write_json

    def broken(path: Path, value: Any) -> None:
        if path.name == MANIFEST:
            raise OSError("killed")
        original(path, value)

    with pytest.raises(Refused):
        import_graph(config_of(tmp_path), tmp_path / "graph", append=True, as_of=AS_OF)
    before[REPORT] = (tmp_path / REPORT).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_json", broken)
        with pytest.raises(OSError, match="killed"):
            import_graph(
                config_of(tmp_path), tmp_path / "graph", append=True, accept=True, as_of=AS_OF
            )
    work = notes.work_folder(tmp_path / "graph")
    assert (work / "notes" / SCHEMA).exists()
    notes.settle(tmp_path / "graph")
    assert not (work / "notes").exists() and (work / "journal.json").exists()
    kept = left(tmp_path)
    assert {name: kept[name] for name in BESIDE} == {name: before[name] for name in BESIDE}
    assert_as_undisturbed(tmp_path, append_accepted)


# --- places that are taken ------------------------------------------------------------------------


@pytest.mark.parametrize("name", BESIDE)
def test_a_folder_where_a_note_belongs_is_one_sentence(tmp_path: Path, name: str) -> None:
    write_day(tmp_path, 0)
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"{name} is a folder where a file belongs: move it away"):
        import_graph(config_of(tmp_path), tmp_path / "graph", as_of=AS_OF)
    assert {path.name for path in tmp_path.iterdir()} == {"in", name}


def test_a_link_or_a_file_where_the_graph_belongs_is_one_sentence(tmp_path: Path) -> None:
    write_day(tmp_path, 0)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "graph").symlink_to("elsewhere")
    with pytest.raises(DataError, match="graph is a symbolic link, which a graph can't take"):
        import_graph(config_of(tmp_path), tmp_path / "graph", as_of=AS_OF)
    assert (tmp_path / "graph").is_symlink() and not path_of(tmp_path / "graph").exists()
    (tmp_path / "graph").unlink()
    (tmp_path / "graph").write_text("mine")
    with pytest.raises(DataError, match="graph is a file where the graph's folder belongs"):
        import_graph(config_of(tmp_path), tmp_path / "graph", as_of=AS_OF)
    assert (tmp_path / "graph").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"in", "elsewhere", "graph"}
