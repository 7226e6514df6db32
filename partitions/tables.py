"""Embedding table files: one per (entity type, partition, version), row-wise state included.

A safetensors file (tensors.py) with metadata {format_version, rows, dim} and

    vectors  float32 [touched, dim]   rows that training has touched, in the order of offsets
    state    float32 [touched]        row-wise optimiser state, not 0 for a touched row
    touched  uint8 [ceil(rows / 8)]   bitmap over all rows, least significant bit first

Rows that were never touched are not stored: the reader regenerates them (from the seed and the
key's hash, which is the caller's knowledge). A file is written once, under a name that carries the
token of its writer; nothing is overwritten.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions import streams, tensors
from partitions.durable import FileEntry
from partitions.errors import DataError
from partitions.schema import Slot
from partitions.streams import Incoming, Traffic
from partitions.tensors import Rows

FORMAT_VERSION = 1

# offsets int64 [n] -> float32 [n, dim]: the vectors that rows have before training
Fresh = Callable[[NDArray[np.int64]], NDArray[np.float32]]


@dataclass
class Table:
    """One partition in memory. vectors: float32 [rows, dim]; state: float32 [rows], 0 = fresh."""

    vectors: NDArray[np.float32]
    state: NDArray[np.float32]

    @property
    def num_bytes(self) -> int:
        return self.vectors.nbytes + self.state.nbytes


def fresh(num_rows: int, make: Fresh) -> Table:
    return Table(make(np.arange(num_rows)), np.zeros(num_rows, np.float32))


def file_name(slot: Slot, token: int) -> str:
    return f"{slot.entity_type}-{slot.partition:03}.{token:010}.safetensors"


def write(
    folder: Path,
    slot: Slot,
    token: int,
    table: Table,
    traffic: Traffic | None = None,
    *,
    keep_cached: bool = True,
) -> FileEntry:
    path = folder / file_name(slot, token)
    touched = table.state != 0  # NaN too: what diverged must not be made anew in silence
    rows, dim = table.vectors.shape
    arrays: dict[str, NDArray[Any] | Rows] = {"vectors": table.vectors, "state": table.state}
    if not touched.all():
        stored = np.flatnonzero(touched)
        arrays = {name: Rows(array, stored) for name, array in vars(table).items()}
    with streams.writing(folder.parent, path, traffic, keep_cached=keep_cached) as file:
        tensors.write(
            file,
            arrays | {"touched": np.packbits(touched, bitorder="little")},
            {"format_version": str(FORMAT_VERSION), "rows": str(rows), "dim": str(dim)},
        )
    return file.entry


def read(path: Path, make: Fresh, num_rows: int) -> Table:
    """The whole table of `num_rows` rows, in memory of its own; untouched rows by `make`.

    A graph may have grown since the table was written: rows beyond the stored ones are untouched.
    """
    with streams.reading(path) as file:
        return read_from(file, make, num_rows)


def read_from(file: Incoming, make: Fresh, num_rows: int) -> Table:
    """The same from a stream. Nothing is in memory twice but a block of rows."""
    layout = tensors.read_layout(file)
    try:
        version = int(layout.metadata["format_version"])
        rows, dim = int(layout.metadata["rows"]), int(layout.metadata["dim"])
        num_stored = layout.extents["state"].shape[0]
    except (KeyError, ValueError, IndexError):
        raise DataError(f"{file.path} is not an embedding table.") from None
    if version != FORMAT_VERSION:
        raise DataError(f"{file.path} is of format {version}, this program reads {FORMAT_VERSION}.")
    if rows > num_rows:
        raise DataError(f"{file.path} has {rows} rows where its partition has {num_rows} entities.")
    if set(layout.extents) != {"vectors", "state", "touched"} or num_stored > rows:
        raise DataError(f"{file.path} is not an embedding table.")
    table = Table(np.empty((num_rows, dim), np.float32), np.zeros(num_rows, np.float32))
    bits = np.empty(-(-rows // 8), np.uint8)
    places = {"vectors": table.vectors[:num_stored], "state": table.state[:num_stored]}
    for name, extent in layout.extents.items():
        tensors.read_into(file, extent, places.get(name, bits))
    if num_stored < num_rows:
        touched = np.zeros(num_rows, np.bool_)
        touched[:rows] = np.unpackbits(bits, count=rows, bitorder="little")
        _spread(table, np.flatnonzero(touched), file.path, num_stored)
        _make_rows(table.vectors, np.flatnonzero(~touched), make)
    return table


def _spread(table: Table, rows: NDArray[np.int64], path: Path, num_stored: int) -> None:
    """Move the stored rows, which lie at the front, to their places: the last ones first, so that
    none is overwritten before it has moved."""
    if len(rows) != num_stored:
        raise DataError(f"{path} was altered: its bitmap has {len(rows)} rows, not {num_stored}.")
    per_block = tensors.rows_per_block(table.vectors)
    for start in range(0, num_stored, per_block)[::-1]:
        block = slice(start, min(start + per_block, num_stored))
        table.vectors[rows[block]] = table.vectors[block].copy()
    state = table.state[:num_stored].copy()
    table.state[:num_stored] = 0
    table.state[rows] = state


def _make_rows(vectors: NDArray[np.float32], rows: NDArray[np.int64], make: Fresh) -> None:
    per_block = 8 * tensors.rows_per_block(vectors)
    for start in range(0, len(rows), per_block):
        block = rows[start : start + per_block]
        vectors[block] = make(block)
