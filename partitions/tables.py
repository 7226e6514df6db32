"""Embedding table files: one per (entity type, partition, version), optimizer state included.

A safetensors file (tensors.py) with metadata {format_version, rows, dim, optimizer} and

    vectors  [touched, dim]           rows that training has touched, in the order of offsets;
                                      float32, bfloat16 or float16
    state    float32 [touched, S]     the optimizer's, of each row; [touched] for some (Form).
                                      Not all 0 for a touched row
    shared   float32 [K]              the optimizer's, of the table; only where K > 0
    touched  uint8 [ceil(rows / 8)]   bitmap over all rows, least significant bit first

Rows that were never touched are not stored: the reader regenerates them (from the seed and the
key's hash, which is the caller's knowledge). A file is written once, under a name that carries the
token of its writer; nothing is overwritten.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions import precision, streams, tensors
from partitions.durable import FileEntry
from partitions.errors import DataError
from partitions.precision import DTYPES
from partitions.schema import Slot
from partitions.streams import Incoming, Traffic
from partitions.tensors import Layout, Rows, Source

FORMAT_VERSION = 1

# offsets int64 [n] -> float32 [n, dim]: the vectors that rows have before training
Fresh = Callable[[NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True)
class Form:
    """How a table is kept."""

    optimizer: str = "rowwise_adagrad"
    state_shape: tuple[int, ...] = ()  # of a row: () is one number, (S,) are S
    num_shared: int = 0
    precision: str = "float32"  # of the vectors

    def row_bytes(self, dim: int) -> int:
        return self.vector_bytes(dim) + 4 * math.prod(self.state_shape)

    def vector_bytes(self, dim: int) -> int:
        return DTYPES[self.precision].itemsize * dim


_PLAIN = Form()


@dataclass
class Table:
    """One partition in memory.

    vectors: [rows, dim], of a dtype of precision.py; state: float32 [rows] or [rows, S];
    shared: float32 [K].
    """

    vectors: NDArray[Any]
    state: NDArray[np.float32]
    shared: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    optimizer: str = _PLAIN.optimizer

    @property
    def num_bytes(self) -> int:
        return self.vectors.nbytes + self.state.nbytes + self.shared.nbytes

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def largest_state(self) -> float:
        """NaN where there is one, 0 of nothing; so the next."""
        return float(self.state.max(initial=0))

    def largest_number(self) -> float:
        """Of the vectors, absolute."""
        return precision.largest(self.vectors)

    @property
    def touched(self) -> NDArray[np.bool_]:
        """Of each row, whether training has touched it; NaN too: what diverged must not be made
        anew in silence."""
        if self.state.ndim == 1:
            return np.not_equal(self.state, 0)
        return np.any(self.state, axis=1)


def empty(num_rows: int, dim: int, form: Form) -> Table:
    """A table whose vectors are still to be filled in."""
    return Table(
        np.empty((num_rows, dim), DTYPES[form.precision]),
        np.zeros((num_rows, *form.state_shape), np.float32),
        np.zeros(form.num_shared, np.float32),
        form.optimizer,
    )


def fresh(num_rows: int, make: Fresh, form: Form = _PLAIN) -> Table:
    if DTYPES[form.precision] == np.float32:
        return replace(empty(num_rows, 0, form), vectors=make(np.arange(num_rows)))
    table = empty(num_rows, make(np.arange(0)).shape[1], form)
    _make_rows(table.vectors, np.arange(num_rows), make)
    return table


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
    touched = table.touched
    arrays: dict[str, NDArray[Any] | Rows] = {"vectors": table.vectors, "state": table.state}
    if not touched.all():
        stored = np.flatnonzero(touched)
        arrays = {"vectors": Rows(table.vectors, stored), "state": Rows(table.state, stored)}
    if len(table.shared):
        arrays["shared"] = table.shared
    path = folder / file_name(slot, token)
    with streams.writing(folder.parent, path, traffic, keep_cached=keep_cached) as file:
        _write(file, arrays, touched, table.dim, table.optimizer)
    return file.entry


def write_rows(
    folder: Path,
    slot: Slot,
    token: int,
    vectors: Source,
    state: Source,
    touched: NDArray[np.bool_],
    optimizer: str,
    traffic: Traffic | None = None,
    *,
    keep_cached: bool = True,
) -> FileEntry:
    """The same of rows that need not be in memory: read block by block.

    vectors: [rows, dim]; state: [rows] or [rows, S]; touched: [rows], which ones are stored.
    """
    stored = np.flatnonzero(touched)
    arrays: dict[str, NDArray[Any] | Rows] = {
        "vectors": Rows(vectors, stored),
        "state": Rows(state, stored),
    }
    path = folder / file_name(slot, token)
    with streams.writing(folder.parent, path, traffic, keep_cached=keep_cached) as file:
        _write(file, arrays, touched, vectors.shape[1], optimizer)
    return file.entry


def _write(
    file: Any,
    arrays: dict[str, NDArray[Any] | Rows],
    touched: NDArray[np.bool_],
    dim: int,
    optimizer: str,
) -> None:
    metadata: dict[str, Any] = {"format_version": FORMAT_VERSION, "rows": len(touched)}
    metadata |= {"dim": dim, "optimizer": optimizer}
    tensors.write(
        file,
        arrays | {"touched": np.packbits(touched, bitorder="little")},
        {name: str(value) for name, value in metadata.items()},
    )


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
        form, num_stored = _form(layout)
    except (KeyError, ValueError, IndexError):
        raise DataError(f"{file.path} is not an embedding table.") from None
    if version != FORMAT_VERSION:
        raise DataError(f"{file.path} is of format {version}, this program reads {FORMAT_VERSION}.")
    if rows > num_rows:
        raise DataError(f"{file.path} has {rows} rows where its partition has {num_rows} entities.")
    if not set(layout.extents) - {"shared"} == {"vectors", "state", "touched"} or num_stored > rows:
        raise DataError(f"{file.path} is not an embedding table.")
    table = empty(num_rows, dim, form)
    bits = np.empty(-(-rows // 8), np.uint8)
    places: dict[str, NDArray[Any]] = {"shared": table.shared, "touched": bits}
    places |= {"vectors": table.vectors[:num_stored], "state": table.state[:num_stored]}
    for name, extent in layout.extents.items():
        tensors.read_into(file, extent, places[name])
    if num_stored < num_rows:
        touched = np.zeros(num_rows, np.bool_)
        touched[:rows] = np.unpackbits(bits, count=rows, bitorder="little")
        _spread(table, np.flatnonzero(touched), file.path, num_stored)
        _make_rows(table.vectors, np.flatnonzero(~touched), make)
    return table


@dataclass(frozen=True)
class Stored:
    """The rows of a file, memory-mapped and read-only."""

    rows: NDArray[np.int64]  # [stored], ascending
    vectors: NDArray[Any]  # [stored, dim]
    state: NDArray[np.float32]  # [stored] or [stored, S]

    def blocks(self) -> Iterator[slice]:
        """Of 1 MiB of vectors."""
        step = tensors.rows_per_block(self.vectors)
        for start in range(0, len(self.rows), step):
            yield slice(start, min(start + step, len(self.rows)))


def stored_rows(path: Path, num_rows: int, dim: int) -> Stored:
    """What is stored of a table of at most `num_rows` rows; untouched ones are the caller's to
    make. Nothing is digested: Checkpoint.verify does that."""
    file = tensors.read(path)
    try:
        rows, version = int(file.metadata["rows"]), int(file.metadata["format_version"])
        bits, vectors, state = (file.arrays[name] for name in ("touched", "vectors", "state"))
        stored = np.flatnonzero(np.unpackbits(bits, count=rows, bitorder="little"))
    except (KeyError, ValueError):
        raise DataError(f"{path} is not an embedding table.") from None
    if version != FORMAT_VERSION:
        raise DataError(f"{path} is of format {version}, this program reads {FORMAT_VERSION}.")
    fits = rows <= num_rows and len(stored) == len(vectors) == len(state)
    if not fits or vectors.shape[1:] != (dim,):
        raise DataError(f"{path} was altered: it is not a table of {num_rows} rows of {dim}.")
    return Stored(stored, vectors, state)


def _form(layout: Layout) -> tuple[Form, int]:
    """Of a file's table, and how many rows it has stored."""
    num_stored, *state_shape = layout.extents["state"].shape
    # Files from before there was a choice don't say it.
    name = layout.metadata.get("optimizer", _PLAIN.optimizer)
    shared = layout.extents.get("shared")
    num_shared = shared.shape[0] if shared else 0
    kept = precision.name_of(layout.extents["vectors"].dtype)
    return Form(name, tuple(state_shape), num_shared, kept), num_stored


def _spread(table: Table, rows: NDArray[np.int64], path: Path, num_stored: int) -> None:
    """Move the stored rows, which lie at the front, to their places: the last ones first, so that
    none is overwritten before it has moved."""
    if len(rows) != num_stored:
        raise DataError(f"{path} was altered: its bitmap has {len(rows)} rows, not {num_stored}.")
    per_block = tensors.rows_per_block(table.vectors)
    for start in range(0, num_stored, per_block)[::-1]:
        block = slice(start, min(start + per_block, num_stored))
        table.vectors[rows[block]] = table.vectors[block].copy()
        state = table.state[block].copy()
        table.state[block] = 0
        table.state[rows[block]] = state


def _make_rows(vectors: NDArray[Any], rows: NDArray[np.int64], make: Fresh) -> None:
    per_block = 8 * tensors.rows_per_block(vectors)
    for start in range(0, len(rows), per_block):
        block = rows[start : start + per_block]
        vectors[block] = precision.nearest(make(block), vectors.dtype)
