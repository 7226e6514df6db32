"""One column of an input, as it lies in the file -> text, float32 or seconds.

What can't be read as asked becomes null, for the caller to count or to name; a type that can't
hold such values at all is an error.
"""

import math
import re
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from partitions.config import Column
from partitions.errors import DataError

_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"


def as_strings(column: pa.Array, file: object, name: Column) -> pa.Array:
    """Text, or whole numbers as text; file and name are for the message."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type) or pa.types.is_nested(column.type):
        raise DataError(
            f"{file}: column {name} is of type {column.type}, expected text or whole numbers. "
            "Export it as text."
        )
    return column.cast(pa.string())


def as_floats(column: pa.Array) -> pa.Array:
    if _is_text(column.type):
        try:  # without the regex, which costs more; nan and inf are for the caller to refuse
            return column.cast(pa.float32())
        except pa.ArrowInvalid:
            pass
        number = pc.match_substring_regex(column, _NUMBER)
        column = pc.if_else(number, pc.utf8_trim_whitespace(column), None)
    return column.cast(pa.float32(), safe=False)


def as_seconds(column: pa.Array) -> pa.Array:
    """int64 seconds since 1970 UTC of whole numbers (seconds already), timestamps, dates, or text
    that holds whole numbers or ISO 8601; null for anything else."""
    if _is_text(column.type):
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
        moments = [seconds_of(value) for value in text.to_pylist()]
        return pa.array(moments, pa.int64())
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return column.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64())
    raise pa.ArrowInvalid(f"a time is of type {column.type}, expected seconds or a timestamp")


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
