"""One column of an input, as it lies in the file -> text, float32 or seconds.

What can't be read as asked becomes null, for the caller to count or to name; a type that can't
hold such values at all is an error.
"""

import math
import re
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from partitions.config import Column
from partitions.errors import DataError

_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"


def as_strings(column: pa.Array, file: object, name: Column) -> pa.Array:
    """Text, or whole numbers as text; file and name are for the message, here and below."""
    column = _decoded(column)
    if pa.types.is_floating(column.type) or pa.types.is_nested(column.type):
        raise _mistyped(column, file, name, "text or whole numbers", "Export it as text")
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        raise DataError(
            f"{file}: column {name} holds bytes that are not utf-8. Export it as text."
        ) from None


def as_lists(column: pa.Array, file: object, name: Column) -> pa.Array:
    """large_list of text, or of whole numbers as text; a list that is null is empty."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return pa.LargeListArray.from_arrays(
        pa.array(starts, pa.int64()), as_strings(column.flatten(), file, name)
    )


def is_list(kind: Any) -> bool:
    return isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType)


def as_floats(column: pa.Array, file: object, name: Column) -> pa.Array:
    """float32 of numbers, or of text that holds numbers; null, or not finite, for anything else."""
    column = _decoded(column)
    if _is_text(column.type):
        try:  # without the regex, which costs more; nan and inf are for the caller to refuse
            return column.cast(pa.float32())
        except pa.ArrowInvalid:
            pass
        number = pc.match_substring_regex(column, _NUMBER)
        column = pc.if_else(number, pc.utf8_trim_whitespace(column), None)
    try:
        return column.cast(pa.float32(), safe=False)
    except pa.ArrowNotImplementedError:
        raise _mistyped(column, file, name, "numbers", "Cast the column, or leave it out") from None


def as_seconds(column: pa.Array, file: object, name: Column) -> pa.Array:
    """int64 seconds since 1970 UTC of whole numbers (seconds already), timestamps, dates, or text
    that holds whole numbers or ISO 8601; null for anything else."""
    column = _decoded(column)
    if _is_text(column.type):
        return _seconds_of_text(column)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return whole_seconds(column)
    if pa.types.is_integer(column.type) or pa.types.is_null(column.type):
        return column.cast(pa.int64())
    expected = "whole seconds, a timestamp or a date"
    raise _mistyped(column, file, name, expected, "Cast the column, or leave it out")


def _seconds_of_text(column: pa.Array) -> pa.Array:
    try:  # what nearly every file has
        seconds = column.cast(pa.int64())
        if not pc.any(pc.match_substring(column, "x", ignore_case=True)).as_py():
            return seconds  # else 0x10, which Arrow takes for 16
    except pa.ArrowInvalid:
        pass
    text = pc.utf8_trim_whitespace(column)
    number = pc.match_substring_regex(text, r"^-?\d{1,18}$")
    if pc.all(pc.fill_null(number, False)).as_py():
        return text.cast(pa.int64())
    return pa.array([seconds_of(value) for value in text.to_pylist()], pa.int64())


def whole_seconds(column: pa.Array) -> pa.Array:
    """int64 seconds since 1970 of timestamps or dates, rounded down: half a second before is -1."""
    if pa.types.is_date(column.type):  # whose days of 32 bits reach further than their nanoseconds
        return column.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    seconds = column.cast(pa.timestamp("s", column.type.tz), safe=False)  # towards 1970
    late = pc.greater(seconds.cast(column.type), column)
    return pc.subtract(seconds.cast(pa.int64()), late.cast(pa.int64()))


def shown(column: pa.Array) -> list[Any]:
    """The cells for people to read. What Python can't hold (nanoseconds, the year 30000) or JSON
    can't (bytes) comes as text."""
    kind = (column := _decoded(column)).type
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        column = column.cast(pa.string())
    cells = column.to_pylist()
    return [cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell for cell in cells]


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def as_judged(column: pa.Array, file: object, name: Column, part: str) -> pa.Array:
    """The column as the data gate takes it, which finds single cells itself: text as text, not as
    bytes, and numbers and times of types that it knows. part: what of an edge it holds."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    odd = pa.types.is_nested(kind) or _is_binary(kind)
    if part in ("lhs", "rel", "rhs"):
        return as_strings(column, file, name) if odd else column
    if odd or pa.types.is_time(kind) or pa.types.is_duration(kind):
        expected = "times" if part == "timestamp" else "numbers or text"
        raise _mistyped(column, file, name, expected, "Cast the column, or leave it out")
    return column


def _is_binary(kind: Any) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _mistyped(
    column: pa.Array, file: object, name: Column, expected: str, remedy: str
) -> DataError:
    return DataError(
        f"{file}: column {name} is of type {column.type}, expected {expected}. {remedy}."
    )


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def number_of(text: str) -> float | None:
    """What as_floats makes of one cell of text, before it is cut to float32."""
    return float(text) if re.match(_NUMBER, text, re.ASCII) else None


def seconds_of(text: str | None) -> int | None:
    try:
        if text is None or text.lstrip("+-").isdigit():
            seconds = None if text is None else int(text)
            return seconds if seconds is None or -(2**63) <= seconds < 2**63 else None
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return math.floor((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
