"""Bucket files: one Arrow IPC file per bucket, split and import batch.

    lhs     uint32   offset in the lhs partition
    rhs     uint32   offset in the rhs partition
    rel     smallest unsigned integer that fits; absent where the graph has one relation
    weight  float32; absent where the import had no weights
    time    int64, seconds since 1970 UTC; absent where it had no timestamps

At most 4 + 4 + 1 (+ 4) (+ 8) bytes an edge up to 256 relations; memory-mapped, not copied to be
read (a bucket of several import batches is, once).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from partitions.errors import DataError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Edges:
    """The edges of one bucket: arrays of one length, views of the file where they were read."""

    lhs: NDArray[np.uint32]
    rel: NDArray[np.unsignedinteger[Any]]
    rhs: NDArray[np.uint32]
    weight: NDArray[np.float32] | None = None
    time: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.lhs)


def relation_dtype(num_relations: int) -> np.dtype[Any]:
    return np.min_scalar_type(max(num_relations - 1, 0))


def _columns(edges: Edges, num_relations: int) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {"lhs": edges.lhs, "rhs": edges.rhs}
    if num_relations > 1:
        columns["rel"] = edges.rel.astype(relation_dtype(num_relations), copy=False)
    if edges.weight is not None:
        columns["weight"] = edges.weight
    if edges.time is not None:
        columns["time"] = edges.time
    return columns


def write(path: Path, edges: Edges, num_relations: int) -> None:
    """The caller vouches that offsets and relations are in range, and makes the file durable."""
    _write_columns(path, _columns(edges, num_relations))


def write_pieces(path: Path, num_edges: int, pieces: Iterable[Edges], num_relations: int) -> None:
    """What `write` would write of all pieces laid end to end, with one of them in memory.

    A column lies in the file as one run of bytes, so the file is first written full of zeros (of
    pages that the kernel shares: they take no memory) and then filled piece by piece.
    """
    starts: dict[str, int] = {}
    done = 0
    for piece in pieces:
        if len(piece) == num_edges:
            write(path, piece, num_relations)
            return
        columns = _columns(piece, num_relations)
        if not starts:
            zeros = {name: np.zeros(num_edges, c.dtype) for name, c in columns.items()}
            _write_columns(path, zeros)
            starts = _starts(path)
        with path.open("r+b") as file:
            for name, values in columns.items():
                file.seek(starts[name] + done * values.itemsize)
                file.write(np.ascontiguousarray(values).data)
        done += len(piece)
    assert done == num_edges


def _starts(path: Path) -> dict[str, int]:
    """Where in the file each column's bytes begin."""
    with pa.memory_map(str(path)) as file:
        first = file.read_buffer(1).address
        batch = pa.ipc.open_file(file).get_batch(0)
        return {
            name: batch.column(name).buffers()[1].address - first for name in batch.schema.names
        }


def _write_columns(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    batch = pa.record_batch({name: pa.array(values) for name, values in columns.items()})
    with path.open("wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def read(path: Path) -> Edges:
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        batch = reader.get_batch(0) if reader.num_record_batches == 1 else None
    if batch is None or not {"lhs", "rhs"} <= set(batch.schema.names):
        raise DataError(f"{path} is not a bucket file of format {FORMAT_VERSION}. Import again.")
    columns = {name: batch.column(name).to_numpy() for name in batch.schema.names}
    return Edges(
        lhs=columns["lhs"],
        rel=columns.get("rel", np.broadcast_to(np.uint8(0), len(columns["lhs"]))),
        rhs=columns["rhs"],
        weight=columns.get("weight"),
        time=columns.get("time"),
    )


def joined(parts: Sequence[Edges]) -> Edges:
    """Edges of several import batches, end to end; edges without a weight weigh 1."""
    if len(parts) == 1:
        return parts[0]
    weights, times = [part.weight for part in parts], [part.time for part in parts]
    return Edges(
        np.concatenate([part.lhs for part in parts]),
        np.concatenate([part.rel for part in parts]),
        np.concatenate([part.rhs for part in parts]),
        np.concatenate(
            [
                np.ones(len(part), np.float32) if part.weight is None else part.weight
                for part in parts
            ]
        )
        if any(weight is not None for weight in weights)
        else None,
        np.concatenate([time for time in times if time is not None])
        if all(time is not None for time in times)
        else None,
    )
