"""What an import leaves beside its graph, safe against a kill right after the graph is committed.

    GRAPH.importing/notes/NAME        the new content of a file beside the graph
    GRAPH.importing/notes/notes.json  {"graph": sha256 of the graph.json to come, "files": {NAME:
                                      where its content lies in the work folder, null: no file}}

They are written before the graph takes its place and moved to theirs after it. A kill between the
two is mended by the next command, which tells by the digest whether the graph is there.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from partitions import durable
from partitions.errors import DataError
from partitions.graph import MANIFEST
from partitions.skipped import path_of

_FOLDER, _LIST = "notes", "notes.json"


def work_folder(graph: Path) -> Path:
    """Where an import works until its graph is whole."""
    return graph.with_name(f"{graph.name}.importing")


def prepare(graph: Path, digest: str, contents: Mapping[str, bytes], skipped: Path | None) -> None:
    """Before the commit. digest: of the new graph.json; skipped: rows left out, already synced."""
    folder = work_folder(graph) / _FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in contents.items():
        with durable.replacing(folder / name) as file:
            file.write(content)
    files: dict[str, str | None] = {name: f"{_FOLDER}/{name}" for name in contents}
    files[path_of(graph).name] = None if skipped is None else skipped.name
    durable.write_json(folder / _LIST, {"graph": digest, "files": files})
    durable.sync_folder(folder.parent)


def publish(graph: Path) -> None:
    """After the commit: move each file to its place, and remove what the import could have gone on
    from. May be broken off and done again."""
    durable.sweep_folder(graph)
    work = work_folder(graph)
    for name, source in durable.read_json(work / _FOLDER / _LIST, "")["files"].items():
        if source is None:
            graph.with_name(name).unlink(missing_ok=True)
        elif (work / source).exists():
            os.replace(work / source, graph.with_name(name))
    durable.sync_folder(graph.parent)
    for path in work.iterdir():
        if path.name not in ("lock", _FOLDER):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(work / _FOLDER)


def settle(graph: Path) -> None:
    """Finish an import that was killed after its graph was committed; forget the notes of one that
    was killed before. For whoever looks at the graph or at what lies beside it."""
    work = work_folder(graph)
    if not (work / _FOLDER).exists():
        return
    with durable.only_writer(work, "importing into"):
        settle_held(graph)
        if not (work / _FOLDER).exists() and not any(p.name != "lock" for p in work.iterdir()):
            shutil.rmtree(work, ignore_errors=True)


def settle_held(graph: Path) -> None:
    """The same for who holds the work folder."""
    durable.recover_folder(graph)
    work = work_folder(graph)
    try:
        committed = _is_committed(graph)
    except (DataError, KeyError, TypeError):  # no list, or half of one: it was before the commit
        committed = False
    if committed:
        publish(graph)
    else:
        shutil.rmtree(work / _FOLDER, ignore_errors=True)


def _is_committed(graph: Path) -> bool:
    expected = durable.read_json(work_folder(graph) / _FOLDER / _LIST, "")["graph"]
    manifest = graph / MANIFEST
    return manifest.exists() and durable.sha256_of(manifest) == expected
