"""Rows of named columns from Parquet, Arrow and text files, as they lie there, batch by batch.

Parquet and Arrow columns keep their types, lists too; cells of text files are text, an empty one
where nothing stands (partitions.features reads numbers and times from text). A batch says in its
metadata which file its rows are from, so that an error about one can name it.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from partitions import delimited, readers, sources
from partitions.config import Column, SourceConfig
from partitions.errors import DataError
from partitions.features.columns import with_origin
from partitions.sources import InputFile


def batches(
    folder: Path, source: SourceConfig, columns: Iterable[str] | Mapping[str, Column]
) -> Iterator[pa.RecordBatch]:
    """The rows of all files that `source` names, file by file in the order of their names.

    folder: where its path starts. columns: names, or the file's column (name or position) by the
    name that it is to have.

    Raises DataError that names the file, and the line where one is malformed, for a file without
    one of the columns, without rows, or that can't be read to its end.
    """
    wanted: dict[str, Column] = dict(columns) if isinstance(columns, Mapping) else {}
    wanted = wanted or {name: name for name in columns}
    for file in sources.expand(folder, source):
        first_row = 0
        for batch in _of_file(file, source, wanted):
            if len(batch):
                yield with_origin(batch, file.name, first_row)
            first_row += len(batch)
        if not first_row:
            raise DataError(f"{file} has no rows. Remove it, or export it again.")


def _of_file(
    file: InputFile, source: SourceConfig, columns: dict[str, Column]
) -> Iterator[pa.RecordBatch]:
    if readers.knows_types(file, source):
        yield from readers.read_cells(file, source, columns)
    elif sources.format_of(file, source) == "json":
        raise DataError(
            f"{file} is JSON, which is not read as rows of features: its numbers have no one type. "
            "Convert it to Parquet."
        )
    else:
        try:
            yield from readers.read(file, source, columns, optional=tuple(columns))
        except DataError as error:  # such rows are never skipped here
            raise DataError(str(error).replace(delimited.FIX, "Fix the line.")) from None
