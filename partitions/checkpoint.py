"""Checkpoint = manifest. At every moment the newest manifest is a whole, consistent state.

    checkpoint.json            the newest manifest; checkpoint.previous.json the one before
    checkpoint.best.json       where training keeps its best: a copy of that commit's manifest
    tables/TYPE-PPP.TOKEN.safetensors   embedding tables (tables.py)
    parameters.TOKEN.safetensors        relation parameters and their optimiser state
    lock                       held by the one process that trains here

A commit writes new files under names that carry a token nobody else has, fsyncs them, and renames a
manifest that names them over the old one; only then may the schedule call a bucket done. Between
commits, tables that leave memory are spilled the same way: their files are nobody's until the next
manifest names them. The sweep, after a commit and when training goes on, removes what neither the
newest two manifests nor the best one name.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions import durable, streams, tables, tensors
from partitions.durable import FileEntry
from partitions.errors import DataError
from partitions.schedule import Progress
from partitions.schema import Bucket, Slot
from partitions.streams import Traffic
from partitions.tables import Fresh, Stored, Table
from partitions.tensors import Source

FORMAT_VERSION = 1
MANIFEST = "checkpoint.json"
PREVIOUS = "checkpoint.previous.json"
BEST = "checkpoint.best.json"
_TABLES = "tables"


@dataclass(frozen=True)
class CheckpointManifest:
    """What a checkpoint names. `tables` lacks the slots that no training has touched."""

    graph_digest: str
    config: Mapping[str, Any]
    progress: Progress = field(default_factory=Progress)
    tables: Mapping[Slot, FileEntry] = field(default_factory=dict)
    parameters: FileEntry | None = None
    trained_batches: int = 0  # import batches of the graph that were there when it last grew

    def as_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "graph_digest": self.graph_digest,
            "config": self.config,
            "trained_batches": self.trained_batches,
            "epoch": self.progress.epoch,
            "done": [list(bucket) for bucket in self.progress.done],
            "next_token": self.progress.next_token,
            "tables": [
                {"entity_type": slot.entity_type, "partition": slot.partition}
                | {"file": entry.as_json()}
                for slot, entry in sorted(self.tables.items())
            ],
            "parameters": self.parameters.as_json() if self.parameters else None,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "CheckpointManifest":
        return CheckpointManifest(
            graph_digest=value["graph_digest"],
            config=value["config"],
            trained_batches=value["trained_batches"],
            progress=Progress(
                value["epoch"], tuple(Bucket(*b) for b in value["done"]), value["next_token"]
            ),
            tables={
                Slot(t["entity_type"], t["partition"]): FileEntry(**t["file"])
                for t in value["tables"]
            },
            parameters=FileEntry(**value["parameters"]) if value["parameters"] else None,
        )


class Checkpoint:
    """A checkpoint directory. Writers hold `durable.only_writer` on it."""

    def __init__(self, path: Path, *, keep_cached: bool = True) -> None:
        """keep_cached=False: the system need not keep table files in its page cache."""
        self.path, self._keep_cached = path, keep_cached
        self.table_traffic = Traffic()  # bytes of table files, where they are read and written
        self._remedy = (
            f"Copy {path / PREVIOUS} over {path / MANIFEST} to go on from the commit before, "
            f"or remove {path} to train from the start."
        )

    @property
    def exists(self) -> bool:
        """DataError where the newest manifest is gone but the one before is there: starting anew
        would sweep away what it names."""
        found = (self.path / MANIFEST).exists()
        if not found and (self.path / PREVIOUS).exists():
            raise DataError(f"{self.path / MANIFEST} is missing. {self._remedy}")
        return found

    @property
    def has_best(self) -> bool:
        return (self.path / BEST).exists()

    def keep_as_best(self) -> None:
        """Make the newest manifest the best one, whose files no sweep removes."""
        self._link(MANIFEST, BEST)
        durable.sync_folder(self.path)

    def forget_best(self) -> None:
        """The next sweep removes what only the best manifest named."""
        (self.path / BEST).unlink(missing_ok=True)

    def _link(self, name: str, other: str) -> None:
        kept = durable.temporary_name(self.path / other)
        kept.unlink(missing_ok=True)
        os.link(self.path / name, kept)
        os.replace(kept, self.path / other)
        kept.unlink(missing_ok=True)  # renaming one name of a file to another does nothing

    def read_manifest(self, name: str = MANIFEST) -> CheckpointManifest:
        path = self.path / name
        if not path.exists():
            raise DataError(f"{self.path} holds no checkpoint. Run embedsvc train.")
        value = durable.read_json(path, self._remedy)
        version = value.get("format_version") if isinstance(value, dict) else None
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path} is of format {version}, this program reads {FORMAT_VERSION}. "
                f"Remove {self.path} to train from the start."
            )
        try:
            return CheckpointManifest.from_json(value)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} was altered: {error!r}. {self._remedy}") from None

    def verify(self, manifest: CheckpointManifest) -> None:
        """DataError where a file is damaged. Before any commit, as the next but one sweeps away
        the manifest that a damaged checkpoint is mended by."""
        for entry in (*manifest.tables.values(), manifest.parameters):
            if entry is not None:
                durable.verify(self.path, entry, self._remedy)

    def write_table(self, slot: Slot, token: int, table: Table) -> FileEntry:
        (self.path / _TABLES).mkdir(parents=True, exist_ok=True)
        traffic, keep = self.table_traffic, self._keep_cached
        return tables.write(self.path / _TABLES, slot, token, table, traffic, keep_cached=keep)

    def write_rows(
        self,
        slot: Slot,
        token: int,
        vectors: Source,
        state: Source,
        touched: NDArray[np.bool_],
        optimizer: str,
    ) -> FileEntry:
        """The same of rows that need not be in memory (tables.write_rows)."""
        (self.path / _TABLES).mkdir(parents=True, exist_ok=True)
        rows = (vectors, state, touched, optimizer)
        traffic, keep = self.table_traffic, self._keep_cached
        return tables.write_rows(self.path / _TABLES, slot, token, *rows, traffic, keep_cached=keep)

    def stored_rows(
        self, entry: FileEntry, num_rows: int, dim: int, *, digest: bool = False
    ) -> Stored:
        """Memory-mapped. digest=False: for what `verify` has digested."""
        path = durable.verify(self.path, entry, self._remedy, digest=digest)
        return tables.stored_rows(path, num_rows, dim)

    def read_table(self, entry: FileEntry, make: Fresh, num_rows: int) -> Table:
        """The table, digested while it is read; DataError where it is not the one named."""
        path = durable.verify(self.path, entry, self._remedy, digest=False)
        with streams.reading(path, self.table_traffic, keep_cached=self._keep_cached) as file:
            try:
                table = tables.read_from(file, make, num_rows)
            except DataError:
                durable.check_digest(path, file.sha256(), entry, self._remedy)
                raise
            durable.check_digest(path, file.sha256(), entry, self._remedy)
        return table

    def write_parameters(self, token: int, arrays: Mapping[str, NDArray[Any]]) -> FileEntry:
        path = self.path / f"parameters.{token:010}.safetensors"
        with streams.writing(self.path, path) as file:
            tensors.write(file, arrays)
        return file.entry

    def read_parameters(self, entry: FileEntry | None) -> dict[str, NDArray[Any]]:
        if entry is None:
            return {}
        stored = tensors.read(durable.verify(self.path, entry, self._remedy))
        return {name: np.array(array) for name, array in stored.arrays.items()}

    def commit(self, manifest: CheckpointManifest) -> None:
        """Make `manifest` the newest; every file it names must be written already."""
        if (self.path / MANIFEST).exists():
            self._link(MANIFEST, PREVIOUS)
        durable.write_json(self.path / MANIFEST, manifest.as_json())
        self.sweep()

    def sweep(self) -> None:
        """Remove what no manifest that is kept names; a kill may have come before it once."""
        named = set()
        for path in (self.path / name for name in (MANIFEST, PREVIOUS, BEST)):
            if path.exists():
                value = CheckpointManifest.from_json(durable.read_json(path, self._remedy))
                named |= {entry.path for entry in value.tables.values()}
                named |= {value.parameters.path} if value.parameters else set()
        for file in [*self.path.glob(f"{_TABLES}/*"), *self.path.glob("parameters.*")]:
            if file.relative_to(self.path).as_posix() not in named:
                file.unlink(missing_ok=True)
        for file in self.path.glob(f"*{durable.TEMPORARY}*"):
            file.unlink(missing_ok=True)
