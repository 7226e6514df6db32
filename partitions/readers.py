"""Raw files of every format -> checked Arrow record batches of string columns.

delimited.py, json_lines.py and columnar.py give the cells as they stand; what they may hold is
checked here, alike for all.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from partitions import columnar, delimited, json_lines, sources
from partitions.cells import (
    as_floats,
    as_lists,
    as_seconds,
    as_strings,
    is_list,
    seconds_of,
    shown,
)
from partitions.config import Column, SourceConfig
from partitions.delimited import FIX
from partitions.errors import DataError
from partitions.sources import InputFile, line_of

_A_TIME = "whole seconds since 1970 or a date"


class BadRow(NamedTuple):
    """A row that was left out."""

    why: str
    text: str  # the line as it stands, or its cells as JSON
    is_row: bool  # whether its cells could be told apart, and stand among a piece's `cells`


class Piece(NamedTuple):
    """Some rows of a file. `bad` of text also holds the lines before it that are no rows."""

    cells: pa.RecordBatch  # as they stand in the file, of the columns that are wanted
    rows: pa.RecordBatch  # what of them is good, as `read` gives it
    bad: list[BadRow]


OnBad = Callable[[BadRow], None]


class _Wanted(NamedTuple):
    """The columns of a batch, and how each is read."""

    columns: dict[str, Column]
    floats: tuple[str, ...]
    times: tuple[str, ...]
    optional: tuple[str, ...]
    skip_garbled: bool = True
    lists: tuple[str, ...] = ()


def read(
    file: InputFile,
    source: SourceConfig,
    columns: dict[str, Column],
    *,
    skip_bad: bool = False,
    on_skipped: Callable[[int], None] = lambda count: None,
    floats: tuple[str, ...] = (),
    times: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
    skip_garbled: bool = True,
) -> Iterator[pa.RecordBatch]:
    """Batches with exactly the columns `columns` names, as strings (`floats` as float32, `times` as
    int64 seconds since 1970 UTC). They are the same whatever the number of threads.

    Only columns named in `optional` may be empty.

    Raises DataError naming file and line for a line with too few or too many columns, a broken
    archive, an unknown column, an empty or missing value. With skip_bad such rows are left out and
    counted by on_skipped; lines that are not UTF-8 only where skip_garbled says so too.
    """
    wanted = _Wanted(columns, floats, times, optional, skip_garbled)
    for piece in _pieces(file, source, wanted, skip_bad):
        if piece.bad:
            on_skipped(len(piece.bad))
        if piece.rows.num_columns:
            yield piece.rows


def read_pieces(
    file: InputFile,
    source: SourceConfig,
    columns: dict[str, Column],
    *,
    skip_bad: bool = False,
    floats: tuple[str, ...] = (),
    times: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
    lists: tuple[str, ...] = (),
) -> Iterator[Piece]:
    """The same batches with the cells they were made of and the rows that were left out. A piece
    without columns holds bad rows only. `lists`: columns that may also be lists of strings."""
    return _pieces(file, source, _Wanted(columns, floats, times, optional, lists=lists), skip_bad)


def knows_types(file: InputFile, source: SourceConfig) -> bool:
    """Whether the file is of a format whose columns have types."""
    return sources.format_of(file, source) in _COLUMNAR


def read_cells(
    file: InputFile, source: SourceConfig, columns: dict[str, Column]
) -> Iterator[pa.RecordBatch]:
    """All rows of a file that knows its types, unchecked: cells as they lie there."""
    with sources.reading(file):
        yield from _COLUMNAR[sources.format_of(file, source)](file, columns)


def _pieces(
    file: InputFile, source: SourceConfig, wanted: _Wanted, skip_bad: bool
) -> Iterator[Piece]:
    reader = _FORMATS[sources.format_of(file, source)]
    bad: list[BadRow] = []
    num_rows = 0
    with sources.reading(file):
        for cells in reader(file, source, wanted, skip_bad, bad.append):
            rows = _checked(cells, file, source, wanted, skip_bad, bad.append, num_rows)
            num_rows += len(cells)
            yield Piece(cells, rows, bad.copy())
            bad.clear()
        if bad:
            nothing = pa.record_batch({})
            yield Piece(nothing, nothing, bad)


# --- how each format is read ----------------------------------------------------------------------


def _read_text(
    file: InputFile, source: SourceConfig, wanted: _Wanted, skip_bad: bool, on_bad: OnBad
) -> Iterator[pa.RecordBatch]:
    def bad(why: str, line: str) -> None:
        on_bad(BadRow(why, line, False))

    columns, skip_garbled = wanted.columns, wanted.skip_garbled
    return delimited.read(file, source, columns, skip_bad, skip_garbled, bad)


def _read_json(
    file: InputFile,
    source: SourceConfig,
    wanted: _Wanted,
    skip_bad: bool,
    on_bad: OnBad,
) -> Iterator[pa.RecordBatch]:
    fields = _json_fields(file, wanted)
    with sources.opened(file, source.member) as stream:
        try:

            def bad(flaw: json_lines.Flaw, text: str) -> None:
                on_bad(BadRow(f"line {flaw.line}: {flaw.what}", text, False))

            yield from json_lines.read(
                stream, fields, delimited.BLOCK_BYTES, skip_bad=skip_bad, on_bad=bad
            )
        except json_lines.Flaw as flaw:
            raise _flawed(file, source, flaw) from None


def _json_fields(file: InputFile, wanted: _Wanted) -> json_lines.Fields:
    names = {}
    for name, column in wanted.columns.items():
        if isinstance(column, int):
            raise DataError(
                f"{file}: the fields of JSON lines have names, no positions, found {column} for "
                f'{name}. Name each, such as columns = {{lhs = "user", rhs = "item.id"}}.'
            )
        names[name] = column
    return json_lines.Fields(names, wanted.floats, wanted.times, wanted.optional)


def _flawed(file: InputFile, source: SourceConfig, flaw: json_lines.Flaw) -> DataError:
    return DataError(f"{line_of(file, source, flaw.line)}: {flaw.what}. {FIX}")


def _read_columnar(
    file: InputFile, source: SourceConfig, wanted: _Wanted, *_: Any
) -> Iterator[pa.RecordBatch]:
    return _COLUMNAR[sources.format_of(file, source)](file, wanted.columns)


_COLUMNAR = {"parquet": columnar.read_parquet, "arrow": columnar.read_arrow}
_FORMATS = {
    "text": _read_text,
    "json": _read_json,
    "parquet": _read_columnar,
    "arrow": _read_columnar,
}


# --- checks that every format shares --------------------------------------------------------------


def _checked(
    batch: pa.RecordBatch,
    file: InputFile,
    source: SourceConfig,
    wanted: _Wanted,
    skip_bad: bool,
    on_bad: OnBad,
    first_row: int,
) -> pa.RecordBatch:
    """The batch as non-empty strings, finite floats and times, bad rows refused or left out.
    first_row: rows of the file before it."""
    arrays, fine, good = {}, {}, None
    for name in batch.schema.names:
        column = batch.column(name)
        if name in wanted.lists and is_list(column.type):
            arrays[name] = as_lists(column, file, wanted.columns[name])
            continue
        if name in wanted.floats:
            values = as_floats(column, file, wanted.columns[name])
            fine[name] = pc.fill_null(pc.is_finite(values), False)
        elif name in wanted.times:
            values = as_seconds(column, file, wanted.columns[name])
            fine[name] = pc.is_valid(values)
        else:
            values = as_strings(column, file, wanted.columns[name])
            fine[name] = pc.fill_null(pc.not_equal(pc.binary_length(values), 0), False)
        if name not in wanted.optional:
            good = fine[name] if good is None else pc.and_(good, fine[name])
        else:
            values = pc.fill_null(values, "")
            del fine[name]
        arrays[name] = values
    checked = pa.record_batch(arrays)
    num_bad = len(good) - (pc.sum(good).as_py() or 0) if good is not None else 0
    if not num_bad:
        return checked
    assert good is not None
    bad = np.flatnonzero(~good.to_numpy(zero_copy_only=False))
    if not skip_bad:
        bad = bad[:1]
    rows = batch.take(pa.array(bad))
    cells = {name: shown(rows.column(name)) for name in rows.schema.names}
    for at, row in enumerate(bad.tolist()):
        found = {name: column[at] for name, column in cells.items()}
        name = next(name for name in fine if not fine[name][row].as_py())
        why = _why_bad(name, found[name], wanted)
        if not skip_bad:
            raise _bad_value(file, source, wanted, first_row + row, why)
        on_bad(BadRow(why, json.dumps(found, default=str), True))
    return checked.filter(good)


def _why_bad(name: str, cell: Any, wanted: _Wanted) -> str:
    """What is wrong with a cell that was not taken."""
    if cell is None or cell == "":
        return f"{name} is missing or empty"
    expected = "a number" if name in wanted.floats else _A_TIME
    return f"{name} is {cell!r}, expected {expected}"


def _bad_value(
    file: InputFile,
    source: SourceConfig,
    wanted: _Wanted,
    row: int,
    why: str,
) -> DataError:
    """The sentence about the first empty key or unreadable number; in text and JSON it is found by
    reading again, for its line. row: counted from 0."""
    form = sources.format_of(file, source)
    if form == "json":
        with sources.opened(file, source.member) as stream:
            flaw = json_lines.first_flaw(stream, _json_fields(file, wanted), delimited.BLOCK_BYTES)
        if flaw is not None:
            return _flawed(file, source, flaw)
    if form != "text":
        return DataError(
            f"{file} row {row + 1:,}: {why}. Fix the row, or import with graph.skip_bad=true to "
            "count and skip such rows."
        )
    for where, cells in delimited.cells_of(file, source, wanted.columns):
        for name, cell in cells.items():
            if name in wanted.floats:
                alone = as_floats(pa.array([cell]), file, name)
                if not pc.fill_null(pc.is_finite(alone), False)[0].as_py():
                    return DataError(f"{where}: {name} is {cell!r}, expected a number. {FIX}")
            elif name in wanted.times:
                if seconds_of(cell.strip()) is None:
                    return DataError(
                        f"{where}: {name} is {cell!r}, expected {_A_TIME} such as "
                        f"2024-05-01T12:00:00Z. {FIX}"
                    )
            elif not cell and name not in wanted.optional:
                return DataError(f"{where}: the {name} key is empty. {FIX}")
    return DataError(f"{file} has an empty key or an unreadable number. {FIX}")
