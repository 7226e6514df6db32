"""Encoded training rows on disk: encoded once, then read in every epoch, any rows of them.

An Arrow IPC file, uncompressed and memory-mapped, a record batch for each block of BLOCK_ROWS rows
(the last one may have fewer). Nothing is null. Columns, those of nothing left out:

    single     fixed-size list of int32 [S]     ids of the slots with one a row
    bag0, ...  large_list of int32              ids of a slot with any number a row
    dense      fixed-size list of float32 [M]
    labels     fixed-size list of float32 [T]
    weight     float32

The schema's metadata has, under `embedsvc`, {"format_version": 1, "features": digest of the
features that encoded the rows} as JSON. A block is read without a copy. Bytes: 4 a number, and 8 a
row and bag.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from partitions import durable
from partitions.errors import DataError
from partitions.features import Encoded, Features, Layout, joined
from partitions.features.columns import Rows

FORMAT_VERSION = 1
BLOCK_ROWS = 65_536
_REMEDY = "Remove it and encode the rows again."

Floats = NDArray[np.float32]


class Labelled(NamedTuple):
    """Encoded rows with what they are to teach. labels: [n, T]; weight: [n]."""

    rows: Encoded
    labels: Floats
    weight: Floats

    def slice(self, first: int, last: int) -> "Labelled":
        rows = self.rows.slice(first, last)
        return Labelled(rows, self.labels[first:last], self.weight[first:last])


def write(path: Path, features: Features, batches: Iterable[tuple[Rows, Floats, Floats]]) -> int:
    """Encode batches of (rows, labels [n, T], weight [n]); returns the number of rows.

    The file appears when all is written. Memory holds a block and a batch.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    num_rows, blocks = 0, _blocks(_encoded(features, batches))
    first = next(blocks, None)
    if first is None:
        raise DataError(f"{path}: there are no rows to encode. Mend the inputs of training.")
    schema = _schema(features, first.labels.shape[1])
    with durable.replacing(path) as file, pa.ipc.new_file(file, schema) as writer:
        while first is not None:
            writer.write_batch(_batch(schema, first))
            num_rows += len(first.weight)
            first = next(blocks, None)
    return num_rows


def _encoded(
    features: Features, batches: Iterable[tuple[Rows, Floats, Floats]]
) -> Iterator[Labelled]:
    for rows, labels, weight in batches:
        encoded = features.encode(rows)
        labels = np.ascontiguousarray(labels, np.float32)
        weight = np.ascontiguousarray(weight, np.float32)
        assert labels.ndim == 2 and len(labels) == len(weight) == len(encoded)
        yield Labelled(encoded, labels, weight)


def _blocks(pieces: Iterable[Labelled]) -> Iterator[Labelled]:
    """The same rows, BLOCK_ROWS at a time."""
    held: list[Labelled] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece.weight)
        if count < BLOCK_ROWS:
            continue
        rows = _joined(held)
        full = count - count % BLOCK_ROWS
        for first in range(0, full, BLOCK_ROWS):
            yield rows.slice(first, first + BLOCK_ROWS)
        held, count = [rows.slice(full, count)], count - full
    if count:
        yield _joined(held)


def _joined(pieces: list[Labelled]) -> Labelled:
    if len(pieces) == 1:
        return pieces[0]
    return Labelled(
        joined([piece.rows for piece in pieces]),
        np.concatenate([piece.labels for piece in pieces]),
        np.concatenate([piece.weight for piece in pieces]),
    )


# --- as Arrow -------------------------------------------------------------------------------------


def _schema(features: Features, num_labels: int) -> pa.Schema:
    layout, whole, real = features.layout, pa.int32(), pa.float32()
    kinds: list[tuple[str, pa.DataType, int]] = [("single", whole, layout.num_single)]
    kinds += [(f"bag{n}", whole, -1) for n in range(layout.num_bags)]
    kinds += [("dense", real, len(layout.dense)), ("labels", real, num_labels)]
    fields = []
    for name, kind, size in kinds:
        item = pa.field("item", kind, nullable=False)
        wide = pa.large_list(item) if size < 0 else pa.list_(item, size)
        if size:
            fields.append(pa.field(name, wide, nullable=False))
    fields.append(pa.field("weight", real, nullable=False))
    about = {"format_version": FORMAT_VERSION, "features": features.digest}
    return pa.schema(fields, metadata={"embedsvc": json.dumps(about, sort_keys=True)})


def _batch(schema: pa.Schema, block: Labelled) -> pa.RecordBatch:
    numbers = {"single": block.rows.single, "dense": block.rows.dense, "labels": block.labels}
    columns = []
    for field in schema:
        if field.name == "weight":
            columns.append(pa.array(block.weight))
        elif field.name in numbers:
            flat = pa.array(np.ascontiguousarray(numbers[field.name]).ravel())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type))
        else:
            values, offsets = block.rows.bags[int(field.name.removeprefix("bag"))]
            lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values), field.type)
            columns.append(lists)
    return pa.record_batch(columns, schema=schema)


class EncodedFile:
    """Rows that `write` wrote, memory-mapped."""

    def __init__(self, path: Path, features: Features) -> None:
        """Raises DataError for a file that is missing, cut, or encoded by other features."""
        self.path, self.layout = path, features.layout
        self._reader, about = _opened(path)
        if about.get("format_version") != FORMAT_VERSION:
            raise DataError(f"{path} holds no encoded rows of format {FORMAT_VERSION}. {_REMEDY}")
        if about.get("features") != features.digest:
            raise DataError(f"{path} was encoded by other features than these. {_REMEDY}")
        num_blocks = self._reader.num_record_batches
        last = self._reader.get_batch(num_blocks - 1).num_rows if num_blocks else 0
        self._num_rows = max(num_blocks - 1, 0) * BLOCK_ROWS + last
        kinds = {field.name: field.type for field in self._reader.schema}
        self.num_labels = kinds["labels"].list_size if "labels" in kinds else 0
        self._latest: tuple[int, Labelled] | None = None

    def __len__(self) -> int:
        return self._num_rows

    def read(self, first: int, last: int) -> Labelled:
        """(rows first .. last - 1, labels float32 [n, T], weight float32 [n]); within one block
        they are views of the file."""
        first, last, _ = slice(first, last).indices(len(self))
        pieces = []
        for number in range(first // BLOCK_ROWS, -(-last // BLOCK_ROWS)):
            start = number * BLOCK_ROWS
            block = self._block(number)
            pieces.append(block.slice(max(first - start, 0), min(last - start, BLOCK_ROWS)))
        return _joined(pieces) if pieces else self._block(0).slice(0, 0)

    def _block(self, number: int) -> Labelled:
        latest = self._latest  # one read of it: other threads may replace it
        if latest is None or latest[0] != number:
            latest = number, _labelled(self._reader.get_batch(number), self.layout)
            self._latest = latest
        return latest[1]


def _opened(path: Path) -> tuple[Any, dict[str, Any]]:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Encode the rows again.") from None
    except pa.ArrowInvalid:
        raise DataError(f"{path} can't be read: it was truncated or altered. {_REMEDY}") from None
    metadata = reader.schema.metadata or {}
    try:
        about = json.loads(metadata.get(b"embedsvc", b"{}"))
    except ValueError:
        about = {}
    return reader, about


def _labelled(batch: pa.RecordBatch, layout: Layout) -> Labelled:
    rows = batch.num_rows

    def numbers(name: str, kind: type) -> NDArray:
        if name not in batch.schema.names:
            return np.empty((rows, 0), kind)
        return batch.column(name).flatten().to_numpy().reshape(rows, -1)

    bags = []
    for number in range(layout.num_bags):
        lists = batch.column(f"bag{number}")
        bags.append((lists.values.to_numpy(), lists.offsets.to_numpy()))
    encoded = Encoded(numbers("single", np.int32), tuple(bags), numbers("dense", np.float32))
    return Labelled(encoded, numbers("labels", np.float32), batch.column("weight").to_numpy())
