"""The journal of an import: how far the spool and the dictionaries are good after a kill.

    journal.json            the newest entry, and the sha256 of its JSON
    keys/NNNNNN.TYPE.arrow  keys that a dictionary learnt between two entries: large_string `key`,
                            partition by partition, each in the order of offsets
    refused                 there where the data gate refused the batch that the entry is all of

Entries only ever name files that were fsynced before them, with a digest or a checksum. Where one
is damaged all the same, or is of another import, the import begins anew.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from partitions import dictionary, durable
from partitions.dictionary import Dictionary
from partitions.durable import FileEntry
from partitions.errors import DataError
from partitions.spool import Place

_log = logging.getLogger(__name__)

FORMAT_VERSION = 3
_NAME = "journal.json"
_REFUSED = "refused"


@dataclass(frozen=True)
class JournalEntry:
    files_done: int
    pieces_done: int  # of the file after those
    rows_done: int  # in these pieces, bad ones too
    spool_rows: Mapping[Place, int]
    spool_checksums: Mapping[Place, int]
    relations: list[str]
    sources: list[dict[str, Any]]
    skipped: int  # rows so far
    skipped_bytes: int  # of the file that holds them
    num_read: int
    gate: Mapping[str, Any] | None  # what the data gate has seen

    def as_json(self) -> dict[str, Any]:
        """The spool's two mappings as rows of place, count and checksum."""
        rows = [
            [*place, count, self.spool_checksums[place]] for place, count in self.spool_rows.items()
        ]
        value = vars(self) | {"spool_rows": rows}
        del value["spool_checksums"]
        return value

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "JournalEntry":
        rows = value["spool_rows"]
        counts = {(split, i, j): count for split, i, j, count, _ in rows}
        checksums = {(split, i, j): checksum for split, i, j, _, checksum in rows}
        return JournalEntry(**{**value, "spool_rows": counts, "spool_checksums": checksums})


# False: what the entry speaks of is not there, and nothing was restored.
Restore = Callable[[JournalEntry, Iterable[tuple[str, pa.Array]]], bool]


class Journal:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._segments: list[
            tuple[str, FileEntry]
        ] = []  # (entity type, file) of all entries so far
        self._num_rows: dict[str, list[int]] = {}  # of each dictionary, at the last entry
        self._identity: Mapping[str, Any] = {}

    @staticmethod
    def exists(folder: Path) -> bool:
        return (folder / _NAME).exists()

    @property
    def was_refused(self) -> bool:
        """By the data gate, all of it, in an import of the same identity."""
        return (self.folder / _REFUSED).exists()

    def note_refusal(self) -> None:
        (self.folder / _REFUSED).touch()
        durable.sync_folder(self.folder)

    def open(self, identity: Mapping[str, Any], restore: Restore) -> JournalEntry | None:
        """Go on from the entry of an import of the same identity, else begin with nothing."""
        self._identity = identity
        entry = self._read()
        if entry is not None and self._restored(entry, restore):
            return entry
        self._segments, self._num_rows = [], {}
        for path in self.folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.folder / "spool").mkdir()
        (self.folder / "keys").mkdir()
        return None

    def _read(self) -> JournalEntry | None:
        if not self.exists(self.folder):
            return None
        try:
            value = durable.read_json(self.folder / _NAME, "")
            content = value["content"]
            if _digest(json.dumps(content)) != value["sha256"]:
                raise DataError("its sha256 is not the one beside it")
            if content["format_version"] != FORMAT_VERSION or content["identity"] != self._identity:
                return None
            self._segments = [(name, FileEntry(**file)) for name, file in content["segments"]]
            self._num_rows = content["num_rows"]
            for _, file in self._segments:
                durable.verify(self.folder, file, "")
            return JournalEntry.from_json(content["entry"])
        except (DataError, KeyError, TypeError, ValueError) as error:
            self._warn(error)
            return None

    def _restored(self, entry: JournalEntry, restore: Restore) -> bool:
        """Whatever goes wrong: what can't be gone on from now can't be at the next try either."""
        try:
            return restore(entry, self._keys())
        except Exception as error:
            self._warn(error)
            return False

    def _warn(self, error: Exception) -> None:
        _log.warning("%s: what is left of it is damaged (%r): starting anew", self.folder, error)

    def _keys(self) -> Iterator[tuple[str, pa.Array]]:
        for entity_type, file in self._segments:
            yield entity_type, dictionary.read(self.folder / file.path)

    def write(self, entry: JournalEntry, dictionaries: Mapping[str, Dictionary]) -> None:
        """Note that everything up to here is on disk; the spool must be synced already."""
        for entity_type, keys in dictionaries.items():
            before = self._num_rows.get(entity_type, [0] * keys.num_partitions)
            if keys.num_rows == before:
                continue
            new = [keys.keys(at, start) for at, start in enumerate(before)]
            name = f"{len(self._segments):06}.{entity_type}.arrow"
            path = self.folder / "keys" / name
            dictionary.write(path, pa.concat_arrays(new))
            with path.open("rb") as segment:
                os.fsync(segment.fileno())
            self._segments.append((entity_type, durable.entry_of(self.folder, path)))
            self._num_rows[entity_type] = keys.num_rows
        content = json.dumps(
            {
                "format_version": FORMAT_VERSION,
                "identity": self._identity,
                "entry": entry.as_json(),
                "segments": [(name, file.as_json()) for name, file in self._segments],
                "num_rows": self._num_rows,
            }
        )
        with durable.replacing(self.folder / _NAME) as journal:
            journal.write(f'{{"sha256": "{_digest(content)}", "content": {content}}}\n'.encode())


def _digest(content: str) -> str:
    """Of JSON as json.dumps writes it: what was read and is written again is the same text."""
    return hashlib.sha256(content.encode()).hexdigest()
