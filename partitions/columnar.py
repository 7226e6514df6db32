"""Parquet and Arrow files -> record batches of the columns that are wanted, as they lie there."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from partitions.config import Column
from partitions.errors import DataError, did_you_mean
from partitions.sources import InputFile

STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream
_BATCH_ROWS = 1 << 18


def read_parquet(file: InputFile, columns: Mapping[str, Column]) -> Iterator[pa.RecordBatch]:
    far = file.local is None  # then neighbouring reads are asked for together
    with file.open_random() as opened, pq.ParquetFile(opened, pre_buffer=far) as table:
        names = _names(file, columns, table.schema_arrow.names)
        for batch in table.iter_batches(columns=list(names.values()), batch_size=_BATCH_ROWS):
            yield _renamed(batch, names)


def read_arrow(file: InputFile, columns: Mapping[str, Column]) -> Iterator[pa.RecordBatch]:
    """Of an Arrow IPC file or stream."""
    with file.open_random() as opened:
        try:
            open_ipc, schema = pa.ipc.open_file, pa.ipc.open_file(opened).schema
        except pa.ArrowInvalid:
            opened.seek(0)
            open_ipc, schema = pa.ipc.open_stream, pa.ipc.open_stream(opened).schema
        names = _names(file, columns, schema.names)
        fields = sorted({schema.get_field_index(column) for column in names.values()})
        opened.seek(0)
        reader = open_ipc(opened, options=pa.ipc.IpcReadOptions(included_fields=fields))
        batches = _of_file(reader) if open_ipc is pa.ipc.open_file else _of_stream(reader, opened)
        for batch in batches:
            found = _renamed(batch, names)
            for start in range(0, len(found), _BATCH_ROWS):  # some write all rows as one batch
                yield found.slice(start, _BATCH_ROWS)


def _of_file(reader: Any) -> Iterator[pa.RecordBatch]:
    return map(reader.get_batch, range(reader.num_record_batches))


def _of_stream(reader: Any, file: Any) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow stream; an error where the mark at its end is missing: the reader
    itself takes a stream cut between two batches for a whole one."""
    yield from reader
    file.seek(file.tell() - len(STREAM_END))
    if file.read(len(STREAM_END)) != STREAM_END:
        raise EOFError("the Arrow stream has no end mark, so it was truncated")


def _renamed(batch: pa.RecordBatch, names: Mapping[str, str]) -> pa.RecordBatch:
    return pa.record_batch({name: batch.column(column) for name, column in names.items()})


def _names(file: InputFile, columns: Mapping[str, Column], known: list[str]) -> dict[str, str]:
    names = {}
    for name, column in columns.items():
        if isinstance(column, int):
            if column >= len(known):
                raise DataError(
                    f"{file} has {len(known)} columns, so there is no column {column} "
                    f"(counted from 0) for {name}. Known here: {', '.join(known)}."
                )
            column = known[column]
        if column not in known:
            raise DataError(f"{file} has no column {column}. {did_you_mean(column, known)}")
        if known.count(column) > 1:
            raise DataError(
                f"{file} has {known.count(column)} columns {column}. Rename all but one."
            )
        names[name] = column
    return names
