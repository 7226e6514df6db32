"""Which files a graph was made from: what its manifest says of each, and what differs by now."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from partitions import durable, own_files, sources
from partitions.config import GraphConfig, InputConfig
from partitions.errors import DataError
from partitions.graph import MANIFEST, Graph
from partitions.sources import InputFile

Stamp = list[Any]
Files = list[tuple[InputConfig, InputFile]]

_MOST_NAMED = 3


def stamp_of(file: InputFile) -> Stamp:
    """What tells, without reading it, whether a file is still the one that it was."""
    return [file.address, file.num_bytes, file.modified_ns]


def read_as(source: InputConfig) -> dict[str, Any]:
    """What makes other edges of the same bytes."""
    return {
        "relation": source.relation,
        "columns": source.resolved_columns,
        "split": source.split,
        "member": source.member,
    }


def record(
    file: InputFile, before: Stamp, rows: int, source: InputConfig | None = None
) -> dict[str, Any]:
    """A file as the manifest names it. before: its stamp before it was read; source: the input that
    read it, None for attributes and features."""
    found = {
        "path": file.address,
        "resolved": _resolved(file.address),
        "bytes": before[1],
        "sha256": file.sha256(),
        "rows": rows,
    }
    if stamp_of(file) != before:
        raise DataError(f"{file} changed while it was read: import again when it is whole.")
    return found if source is None else found | {"input": read_as(source)}


def _resolved(address: str) -> str:
    """One name for a file, however it is spelled and wherever one stands."""
    return address if "://" in address else os.path.realpath(address)


def check_read_once(files: Files) -> None:
    seen: dict[tuple[str, str], InputFile] = {}
    for source, file in files:
        alike = _resolved(file.address), json.dumps(read_as(source), sort_keys=True)
        if (other := seen.setdefault(alike, file)) is not file:
            raise DataError(
                f"{file} and {other} are one file that [[graph.inputs]] read twice in the same "
                "way: its edges would count twice. Mend one of the paths."
            )


# --- what an append adds --------------------------------------------------------------------------


def new_files(files: Files, base: Graph) -> Files:
    """Those that the graph was not made from yet; one that changed since is an error."""
    known = [source for source in base.manifest.sources if not _is_of_attributes(source)]
    by_place: dict[str, list[Mapping[str, Any]]] = {}
    for source in known:
        place = source.get("resolved") or _resolved(source["path"])
        for name in {place, source["path"]}:
            by_place.setdefault(name, []).append(source)
    configured: dict[str, list[dict[str, Any]]] = {}
    for given, file in files:
        configured.setdefault(_resolved(file.address), []).append(read_as(given))
    imported_ns = (base.path / MANIFEST).stat().st_mtime_ns
    new = []
    for given, file in files:
        place = _resolved(file.address)
        records = by_place.get(place) or by_place.get(file.address, [])
        if not records:
            _check_no_copy(file, given, known)
            new.append((given, file))
        elif _is_read_anew(file, given, records, configured[place], imported_ns):
            new.append((given, file))
    if not new:
        they = f"all {len(files):,} input files" if len(files) > 1 else "its one input file"
        raise DataError(
            f"{base.path} was made from {they} already: there is nothing to append. Name a new "
            "file under [[graph.inputs]], or let a glob match one."
        )
    return new


def _is_of_attributes(source: Mapping[str, Any]) -> bool:
    return "resolved" in source and "input" not in source  # older manifests have neither


def _is_read_anew(
    file: InputFile,
    given: InputConfig,
    records: Sequence[Mapping[str, Any]],
    configured: list[dict[str, Any]],
    imported_ns: int,
) -> bool:
    """Whether a file that the graph was made from is read by an input that is new beside the old.
    Manifests of before that was noted count as read by any."""
    if _has_changed(file, records[0], imported_ns):
        raise DataError(
            f"{file} has changed since it was imported. Append what is new as a file of its "
            "own, or import anew with --replace."
        )
    mine = read_as(given)
    if any(source.get("input", mine) == mine for source in records):
        return False
    if any(source["input"] not in configured for source in records):
        raise DataError(
            f"{file} was imported by an input with another relation, columns, split or member: its "
            "edges can't be changed by an append. Put that input back, or import anew with "
            "--replace."
        )
    return True


def _check_no_copy(file: InputFile, given: InputConfig, known: Sequence[Mapping[str, Any]]) -> None:
    """Only a file of the same size is read for this."""
    size, mine = file.num_bytes, read_as(given)
    alike = [s for s in known if s["bytes"] == size > 0 and s.get("input", mine) == mine]
    if not alike:
        return
    digest = file.sha256()
    for source in alike:
        if source["sha256"] == digest:
            raise DataError(
                f"{file} holds the same bytes as {source['path']}, which was imported already: its "
                "edges would count twice. Take it out of [[graph.inputs]]."
            )


def _has_changed(file: InputFile, source: Mapping[str, Any], since_ns: int) -> bool:
    """By size; by digest only where the file's date is later or it lies elsewhere now, or an append
    would read all again."""
    if file.num_bytes != source["bytes"]:
        return True
    place = _resolved(file.address)
    moved = source.get("resolved", place) != place
    return (moved or file.modified_ns > since_ns) and file.sha256() != source["sha256"]


# --- what differs ---------------------------------------------------------------------------------


def difference(config: GraphConfig, path: Path) -> str | None:
    """What is not as in the graph at `path`, which this config and these source files would make
    otherwise; None where nothing is. Reads files whose size is right, for their digests."""
    durable.recover_folder(path)
    if not (path / MANIFEST).exists():
        return f"{path} holds no graph"
    manifest = Graph(path).manifest
    settings = list(_changed_settings(manifest.config, config.content, "graph"))
    if settings:
        return f"{_listed(settings)} changed since it was made"
    try:  # a glob may match other files by now
        files = {file.address: file for source in _all_files(config) for file in source}
    except DataError as error:
        return str(error).rstrip(".")
    known = {source["path"]: source for source in manifest.sources}
    changed = (
        address
        for address in files.keys() & known.keys()
        if files[address].num_bytes != known[address]["bytes"]
        or files[address].sha256() != known[address]["sha256"]
    )
    for what, names in (
        ("new", files.keys() - known.keys()),
        ("gone", known.keys() - files.keys()),
        ("changed", changed),
    ):
        if found := sorted(names):
            return f"{_listed(found)} {'is' if len(found) == 1 else 'are'} {what} since it was made"
    return None


def _all_files(config: GraphConfig) -> Iterator[list[InputFile]]:
    """The files of every input, and of every type's attributes and features."""
    if config.own_buckets is not None:
        yield own_files.files(config)
    for source in config.inputs:
        yield sources.expand(config.data, source)
    for entity in config.entities.values():
        if entity.attributes is not None:
            yield sources.expand(config.data, entity.attributes)
        if entity.features is not None:
            yield sources.expand(config.data, entity.features)


def _changed_settings(old: Any, new: Any, name: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from _changed_settings(old.get(key), new.get(key), f"{name}.{key}")
    elif old != new:
        yield name


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")
