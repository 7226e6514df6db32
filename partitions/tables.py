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

import numpy as np
from numpy.typing import NDArray

from partitions import durable, tensors
from partitions.durable import FileEntry
from partitions.errors import DataError
from partitions.schema import Slot

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


def write(folder: Path, slot: Slot, token: int, table: Table) -> FileEntry:
    path = folder / file_name(slot, token)
    touched = table.state != 0  # NaN too: what diverged must not be made anew in silence
    all_touched = bool(touched.all())
    rows, dim = table.vectors.shape
    with durable.replacing(path) as file:
        tensors.write(
            file,
            {
                "vectors": table.vectors if all_touched else table.vectors[touched],
                "state": table.state if all_touched else table.state[touched],
                "touched": np.packbits(touched, bitorder="little"),
            },
            {"format_version": str(FORMAT_VERSION), "rows": str(rows), "dim": str(dim)},
        )
    return durable.entry_of(folder.parent, path)


def read(path: Path, make: Fresh, num_rows: int) -> Table:
    """The whole table of `num_rows` rows, in memory of its own; untouched rows by `make`.

    A graph may have grown since the table was written: rows beyond the stored ones are untouched.
    """
    stored = tensors.read(path)
    try:
        version = int(stored.metadata["format_version"])
        rows, dim = int(stored.metadata["rows"]), int(stored.metadata["dim"])
        vectors, state = stored.arrays["vectors"], stored.arrays["state"]
        bits = stored.arrays["touched"]
    except (KeyError, ValueError):
        raise DataError(f"{path} is not an embedding table.") from None
    if version != FORMAT_VERSION:
        raise DataError(f"{path} is of format {version}, this program reads {FORMAT_VERSION}.")
    if rows > num_rows:
        raise DataError(f"{path} has {rows} rows where its partition has {num_rows} entities.")
    if len(vectors) == num_rows:
        return Table(np.array(vectors), np.array(state))
    touched = np.zeros(num_rows, np.bool_)
    touched[:rows] = np.unpackbits(bits, count=rows, bitorder="little")
    table = Table(np.empty((num_rows, dim), np.float32), np.zeros(num_rows, np.float32))
    table.vectors[touched], table.state[touched] = vectors, state
    untouched = np.flatnonzero(~touched)
    table.vectors[untouched] = make(untouched)
    return table
