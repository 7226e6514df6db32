"""A column of rows, in whatever form it came -> text, whole numbers, numbers or times.

Training reads Parquet or text, a service gets Python lists: what both make of a value is decided
here, once. Missing is null, NaN and empty text. A value that can't be read as asked is an error
that names the feature, the row (counted from 1) and the value.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from partitions import cells
from partitions.errors import DataError

Column: TypeAlias = pa.Array | NDArray[Any] | Sequence[Any]
Rows: TypeAlias = pa.RecordBatch | pa.Table | Mapping[str, Column]

TEXT, INTEGER = pa.large_string(), pa.int64()
_TABLES = (pa.RecordBatch, pa.Table)
_TEXTS = {pa.string().id, TEXT.id, pa.string_view().id}
_KINDS: dict[type | None, pa.DataType] = {
    None: pa.null(),
    str: TEXT,
    int: INTEGER,
    float: pa.float64(),
    bool: pa.bool_(),
}
_EXACT = {pa.float16(): 1 << 11, pa.float32(): 1 << 24, pa.float64(): 1 << 53}  # whole numbers
KEY_TYPES = {"text": TEXT, "integer": INTEGER}
_EXPECTED = {"text": "text or a whole number", "integer": "a whole number"}


_YEAR_10_000 = 253_402_300_800  # seconds since 1970
_ORIGIN = b"embedsvc.origin"  # in a batch's metadata: the file that its rows are from


class CellError(DataError):
    """A value or a column that no feature can be made of. row: of the batch, None for a column."""

    def __init__(self, feature: str, row: int | None, what: str) -> None:
        super().__init__(_sentence("", feature, row, what))
        self.feature, self.row, self.what = feature, row, what

    def within(self, rows: Rows, first_row: int) -> DataError:
        """The same with the file, and with the row's place in it, where the batch knows them; else
        in the stream, of which first_row rows came before."""
        schema = rows.schema if isinstance(rows, _TABLES) else None
        origin = (schema.metadata or {}).get(_ORIGIN) if schema is not None else None
        file = ""
        if origin is not None:
            found = json.loads(origin)
            file, first_row = f"{found['file']}: ", found["first_row"]
        row = None if self.row is None else first_row + self.row
        return DataError(_sentence(file, self.feature, row, self.what))


def _sentence(file: str, feature: str, row: int | None, what: str) -> str:
    at = "" if row is None else f", row {row + 1:,}"
    return f"{file}feature {feature}{at}: {what}"


def with_origin(batch: pa.RecordBatch, file: str, first_row: int) -> pa.RecordBatch:
    """first_row: rows of the file before these. Errors about a slice of the batch count from its
    own first row."""
    origin = json.dumps({"file": file, "first_row": first_row})
    return batch.replace_schema_metadata({_ORIGIN: origin})


class Where(NamedTuple):
    """For errors: which feature, and where each row's values begin if they are of lists."""

    feature: str
    starts: NDArray[np.int64] | None = None

    def wrong(self, row: int, value: object, expected: str, remedy: str) -> CellError:
        if self.starts is not None:
            row = int(np.searchsorted(self.starts, row, "right")) - 1
        shown = repr(value if not isinstance(value, str) or len(value) < 100 else value[:100])
        return CellError(self.feature, row, f"found {shown}, expected {expected}. {remedy}.")

    def mistyped(self, kind: object, expected: str, remedy: str) -> CellError:
        what = f"its column is of type {kind}, expected {expected}. {remedy}."
        return CellError(self.feature, None, what)


def num_rows(rows: Rows) -> int:
    if isinstance(rows, _TABLES):
        return int(rows.num_rows)
    for name, column in rows.items():
        if isinstance(column, str | bytes) or not hasattr(column, "__len__"):
            shown = repr(column)[:100]
            raise DataError(f"the column {name} is {shown}: give a list with a value for each row.")
    lengths = {name: len(column) for name, column in rows.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise DataError(f"the columns are not of one length: {found}. Give each row each column.")
    return next(iter(lengths.values()), 0)


def names(rows: Rows) -> list[str]:
    return list(rows.schema.names if isinstance(rows, _TABLES) else rows)


def column_of(rows: Rows, name: str, where: Where) -> pa.Array | None:
    """The column as one Arrow array, None where there is none."""
    if isinstance(rows, _TABLES):
        place = rows.schema.get_field_index(name)
        if place < 0:
            if (count := rows.schema.names.count(name)) > 1:
                raise DataError(f"the rows have {count} columns {name}. Rename all but one.")
            return None
        found = rows.column(place)
    elif name in rows:
        found = _array(rows[name], where)
    else:
        return None
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks() if found.num_chunks != 1 else found.chunk(0)
        if isinstance(found, pa.ChunkedArray):  # of no chunks, in older versions
            found = pa.concat_arrays(found.chunks) if found.num_chunks else pa.nulls(0, found.type)
    return found.dictionary_decode() if isinstance(found, pa.DictionaryArray) else found


def _array(values: Column, where: Where) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if not isinstance(values, np.ndarray):
        try:
            if (kind := _kind_of(values)) is not None:
                return pa.array(values, kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            pass
    return _guessed(values, where)


def _kind_of(values: Iterable[Any]) -> pa.DataType | None:
    """What plain Python values are; None where they are mixed or others. For Arrow to find out
    takes it ten times as long; asked for integers without a look, it makes 2 of 2.5."""
    found = set(map(type, values)) - {type(None)}
    if found <= {list, tuple} and found:
        inner = _kind_of(chain.from_iterable(value for value in values if value is not None))
        return None if inner is None else pa.large_list(inner)
    if found == {int, float}:
        return pa.float64()
    return _KINDS.get(found.pop() if found else None) if len(found) < 2 else None


def _guessed(values: NDArray[Any] | Sequence[Any], where: Where) -> pa.Array:
    if isinstance(values, np.ndarray) and values.dtype in ("M8[h]", "M8[m]"):
        values = values.astype("datetime64[s]")  # Arrow doesn't know hours and minutes
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass
    found = [_as_texts(value, row, where) for row, value in enumerate(values)]
    kind = pa.large_list(TEXT) if any(isinstance(value, list) for value in found) else TEXT
    for row, value in enumerate(found):
        if kind != TEXT and isinstance(value, str):
            raise where.wrong(row, values[row], "a list, as other rows have", "Mend the row")
    try:
        return pa.array(found, kind)  # numbers and text together
    except UnicodeError:
        row = next(row for row, value in enumerate(found) if not _is_unicode(value))
        raise where.wrong(row, values[row], "text in Unicode", "Mend the value") from None


def _as_texts(value: Any, row: int, where: Where) -> str | list[str | None] | None:
    if isinstance(value, list | tuple | np.ndarray):
        return [_as_text(one, row, where) for one in value]
    return _as_text(value, row, where)


def _as_text(value: Any, row: int, where: Where) -> str | None:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int | float):
        return str(value)
    raise where.wrong(row, value, "one value, text or a number", "Mend the row")


def _is_unicode(value: str | list[str | None] | None) -> bool:
    texts = value if isinstance(value, list) else [value]
    try:
        "".join(text or "" for text in texts).encode()
    except UnicodeError:
        return False
    return True


# --- keys: text or whole numbers ------------------------------------------------------------------


def type_of_keys(column: pa.Array) -> str | None:
    """How a category's or hash's values are kept: "text" or "integer"; None where none came."""
    kind = column.type
    while cells.is_list(kind):
        kind = kind.value_type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_null(kind) or not len(column):
        return None
    whole = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _may_be_whole(kind)
    return "integer" if whole else "text"


def as_keys(column: pa.Array, kind: str, where: Where) -> pa.Array:
    """large_string or int64; null where missing."""
    wanted = KEY_TYPES[kind]
    if column.type != wanted:
        column = _cast_keys(column, kind, wanted, where)
    return _without_empty(column) if kind == "text" else column


def _cast_keys(column: pa.Array, kind: str, wanted: pa.DataType, where: Where) -> pa.Array:
    if _may_be_whole(column.type):
        column = _whole(column, kind, where)
    elif pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    elif pa.types.is_large_binary(column.type) or pa.types.is_binary(column.type):
        raise where.mistyped(column.type, _EXPECTED[kind], "Export it as text")
    elif not (_is_text(column.type) or pa.types.is_integer(column.type) or _is_null(column.type)):
        raise where.mistyped(column.type, _EXPECTED[kind], "Choose another kind, or cast it")
    if _is_text(column.type):
        column = as_large(column)
        if kind == "text":
            return column
        column = _without_empty(column)
        if pc.any(pc.match_substring(column, "x", ignore_case=True)).as_py():  # Arrow reads 0x10
            row = pc.index(pc.match_substring(column, "x", ignore_case=True), True).as_py()
            raise _wrong_key(column, row, kind, where)
    try:
        return column.cast(wanted)
    except pa.ArrowInvalid:
        raise _wrong_key(column, _first_bad(column, wanted), kind, where) from None


def _wrong_key(column: pa.Array, row: int, kind: str, where: Where) -> DataError:
    remedy = 'Mend the row, or fit with type = "text" for this feature'
    return where.wrong(row, column[row].as_py(), _EXPECTED[kind], remedy)


def _may_be_whole(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _whole(column: pa.Array, kind: str, where: Where) -> pa.Array:
    """int64 of floats or decimals that are whole numbers: what programs give that have no missing
    integers, and databases for their ids. Floats so large that neighbours are one are refused."""
    most = _EXACT.get(column.type)
    if most is not None and len(column):
        column = pc.if_else(pc.is_nan(column), None, column).cast(pa.float64())
        large = pc.greater(pc.abs(column), most)
        if pc.any(large).as_py():
            row = pc.index(large, True).as_py()
            remedy = "Its float has lost digits: export the column as integers"
            raise where.wrong(row, column[row].as_py(), f"at most {most:,}", remedy)
    try:
        return column.cast(INTEGER)
    except pa.ArrowInvalid:
        row = _first_bad(column, INTEGER)
        remedy = "Make it a number with buckets, or round it"
        raise where.wrong(row, column[row].as_py(), _EXPECTED[kind], remedy) from None


def _first_bad(column: pa.Array, wanted: pa.DataType) -> int:
    for row in range(len(column)):
        try:
            column.slice(row, 1).cast(wanted)
        except pa.ArrowInvalid:
            return row
    raise AssertionError("every cell could be cast")


def as_large(texts: pa.Array) -> pa.Array:
    """large_string of any text; `cast` takes longer for the few rows of a request."""
    if texts.type != pa.string() or texts.null_count or not len(texts):
        return texts.cast(TEXT)
    _, offsets, data = texts.buffers()
    starts = np.frombuffer(offsets, np.int32, len(texts) + 1, texts.offset * 4).astype(np.int64)
    return pa.Array.from_buffers(TEXT, len(texts), [None, pa.py_buffer(starts), data], 0)


def _without_empty(texts: pa.Array) -> pa.Array:
    """large_string with null for empty text."""
    offsets = texts.buffers()[1]
    if not len(texts) or offsets is None:
        return texts
    starts = np.frombuffer(offsets, np.int64, len(texts) + 1, texts.offset * 8)
    if np.count_nonzero(starts[1:] == starts[:-1]) == texts.null_count:
        return texts
    return pc.if_else(pc.equal(texts, ""), None, texts)


def _is_text(kind: pa.DataType) -> bool:
    return kind.id in _TEXTS


def _is_null(kind: pa.DataType) -> bool:
    return bool(pa.types.is_null(kind))


def mask_of(column: pa.Array) -> NDArray[np.bool_] | None:
    """True where null; None where nothing is."""
    return column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None


# --- lists ----------------------------------------------------------------------------------------


def split(column: pa.Array, separator: str | None, where: Where) -> pa.Array:
    """Lists as they are, text with a separator as lists; null where missing."""
    if _is_text(column.type) and separator is not None:
        return pc.split_pattern(_without_empty(as_large(column)), separator)
    if cells.is_list(column.type) or _is_null(column.type):
        return column
    remedy = "Set its separator, or list = false where a row has one value"
    raise where.mistyped(column.type, "lists", remedy)


def flat(column: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
    """(values end to end, starts [rows + 1]); null and empty lists have none."""
    if isinstance(column, pa.ListArray | pa.LargeListArray) and not column.null_count:
        starts = column.offsets.to_numpy().astype(np.int64)
        values = column.values.slice(starts[0], starts[-1] - starts[0])
        starts -= starts[0]
    else:
        starts = np.zeros(len(column) + 1, np.int64)
        if _is_null(column.type):
            return pa.nulls(0), starts
        lengths = pc.fill_null(pc.list_value_length(column), 0)
        np.cumsum(lengths.to_numpy(zero_copy_only=False), out=starts[1:])
        values = column.flatten()
    return values.dictionary_decode() if isinstance(values, pa.DictionaryArray) else values, starts


def without_null(values: pa.Array, starts: NDArray[np.int64]) -> tuple[pa.Array, NDArray[np.int64]]:
    """The same without the values that are missing."""
    if not values.null_count:
        return values, starts
    kept = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values.is_valid().to_numpy(zero_copy_only=False), out=kept[1:])
    return values.drop_null(), kept[starts]


# --- numbers and times ----------------------------------------------------------------------------


def as_numbers(column: pa.Array, where: Where) -> NDArray[np.float64]:
    """float64 [n], NaN where missing; may be a view of the column."""
    kind, remedy = column.type, "Mend the row, or make the feature a category"
    if _is_text(kind):
        column = _without_empty(pc.utf8_trim_whitespace(column.cast(TEXT)))
    elif not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or _is_null(kind)
    ):
        raise where.mistyped(kind, "numbers", "Choose another kind, or cast it")
    try:
        column = column.cast(pa.float64(), safe=False)
    except pa.ArrowInvalid:
        row = _first_bad(column, pa.float64())
        raise where.wrong(row, column[row].as_py(), "a number", remedy) from None
    return column.to_numpy(zero_copy_only=False)


def as_times(column: pa.Array, where: Where) -> pa.Array:
    """int64 seconds since 1970 UTC, null where missing, of times in any form that
    `cells.as_seconds` takes; fractions of a second are dropped."""
    kind = column.type
    if _is_text(kind):
        column = _without_empty(pc.utf8_trim_whitespace(column.cast(TEXT)))
    elif pa.types.is_floating(kind):
        column = column.cast(pa.float64())
        column = pc.if_else(pc.is_finite(column), pc.floor(column), None)
        column = _whole(column, "integer", where)
    elif pa.types.is_integer(kind):
        column = as_keys(column, "integer", where)
    try:
        seconds = cells.as_seconds(column, f"feature {where.feature}", "of times")
    except DataError:
        expected = "seconds since 1970, a timestamp or a date"
        raise where.mistyped(kind, expected, "Cast it, or choose another kind") from None
    if seconds.null_count > column.null_count:
        row = pc.index(pc.and_(seconds.is_null(), column.is_valid()), True).as_py()
        expected = "seconds since 1970 or a date such as 2024-05-01T12:00:00Z"
        raise where.wrong(row, column[row].as_py(), expected, "Mend the row")
    return _of_our_time(seconds, where)


def _of_our_time(seconds: pa.Array, where: Where) -> pa.Array:
    """Milliseconds, taken for seconds, are of the year 50,000 and have an hour all the same."""
    found = pc.fill_null(seconds, 0).to_numpy(zero_copy_only=False)
    if (odd := np.abs(found) >= _YEAR_10_000).any():
        row = int(np.flatnonzero(odd)[0])
        expected = "seconds since 1970, of a year before 10,000"
        raise where.wrong(row, int(found[row]), expected, "Divide milliseconds by 1,000")
    return seconds
