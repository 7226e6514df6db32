"""One Arrow batch as typed columns: what the statistics and the rules of the data gate look at.

A column has one of four kinds. `lhs` and `rhs` are keys; `timestamp` is seconds since the epoch,
UTC; `weight` is a number; any other column goes by its Arrow type, and text that reads as numbers
from its first cell to its last is a number too. A cell is missing (null, empty, NaN) or mistyped
(it does not read as its kind) or a value; nothing is dropped without being counted as one of these.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from partitions.cells import shown, whole_seconds
from partitions.errors import DataError
from partitions.gate.key_traits import BROKEN, scan

Kind = Literal["key", "category", "number", "timestamp"]
KEY_COLUMNS = ("lhs", "rhs")
NO_TIME = np.iinfo(np.int64).min  # a missing or mistyped timestamp
_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"


@dataclass(frozen=True)
class Keys:
    """A key column: its text, one 64-bit hash a row, and what its characters look like."""

    text: pa.Array  # large_string, no nulls: a missing key is ""
    hashes: NDArray[np.uint64]
    traits: NDArray[np.uint16]  # bits of sketches.TRAITS that occur in the key

    @cached_property  # for a thousand relations, each with some of the rows
    def lengths(self) -> NDArray[np.int64]:
        """Bytes of each key."""
        return np.diff(_offsets(self.text))

    @cached_property
    def slices(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        data = self.text.buffers()[2]
        bytes_ = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
        return bytes_, _offsets(self.text)


@dataclass(frozen=True)
class Coded:
    """A category column: each word once, and for each row which, -1 where it has none."""

    words: pa.Array  # large_string, no nulls
    codes: NDArray[np.int32]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each word."""
        return np.bincount(self.codes + 1, minlength=len(self.words) + 1)[1:]

    def rows(self, of_words: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The rows whose word is one of those."""
        return np.flatnonzero(np.append(of_words, False)[self.codes])


@dataclass(frozen=True)
class Chunk:
    """The typed columns of one batch; `groups` has the rows of each relation that lack no part."""

    rows: int
    keys: dict[str, Keys]
    numbers: dict[str, NDArray[np.float64]]  # NaN: missing or mistyped
    timestamps: dict[str, NDArray[np.int64]]  # NO_TIME: missing or mistyped
    categories: dict[str, Coded]
    missing: dict[str, NDArray[np.bool_]]
    mistyped: dict[str, NDArray[np.bool_]]
    groups: list[tuple[str, NDArray[np.int64]]]  # one group "" where the table has no edges
    batch: pa.RecordBatch
    row_hashes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))

    def cell(self, column: str, row: int) -> str:
        """The cell as it came, for a message."""
        if column not in self.batch.schema.names:
            return ""
        return str(shown(self.batch.column(column).slice(row, 1))[0])


def kinds_of(batch: pa.RecordBatch) -> dict[str, Kind]:
    return {name: _kind_of(name, batch.column(name)) for name in batch.schema.names}


def _kind_of(name: str, column: pa.Array) -> Kind:
    kind = column.type
    if name in KEY_COLUMNS:
        return "key"
    if name == "timestamp" or pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "timestamp"
    if name == "rel" or pa.types.is_boolean(kind) or pa.types.is_dictionary(kind):
        return "category"
    if name == "weight" or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    if pa.types.is_decimal(kind):
        return "number"
    if not _is_text(kind):
        raise DataError(
            f"The column {name} is of type {kind}: the data gate knows text, numbers, booleans and "
            "timestamps. Leave it out, or flatten it before."
        )
    filled = column.filter(pc.not_equal(column, ""))
    numeric = len(filled) > 0 and bool(pc.all(pc.match_substring_regex(filled, _NUMBER)).as_py())
    return "number" if numeric else "category"


def typed(batch: pa.RecordBatch, kinds: Mapping[str, Kind], relation: str | None) -> Chunk:
    """relation: the relation of all rows, where no `rel` column names it.

    A column of the batch that `kinds` lacks is left out; one that the batch lacks is all missing.
    """
    chunk = Chunk(len(batch), {}, {}, {}, {}, {}, {}, [], batch)
    nothing = np.zeros(len(batch), bool)
    for name, kind in kinds.items():
        chunk.mistyped[name] = nothing
        if name not in batch.schema.names:
            chunk.missing[name] = nothing if name == "rel" and relation else ~nothing
            column = pa.nulls(len(batch), pa.string())
        else:
            column = batch.column(name)
            if pa.types.is_dictionary(column.type) and kind != "category":
                column = column.dictionary_decode()
        _FILL[kind](chunk, name, column)
    chunk.groups.extend(_groups(chunk, batch, relation))
    return chunk


def _fill_keys(chunk: Chunk, name: str, column: pa.Array) -> None:
    missing = column.is_null()
    if pa.types.is_floating(column.type):  # 123.0 is no name: a whole column of them
        chunk.mistyped[name] = ~missing.to_numpy(zero_copy_only=False)
    text = pc.fill_null(column.cast(pa.large_string()), "") if column.null_count else column
    text = text.cast(pa.large_string())
    chunk.missing[name] = np.diff(_offsets(text)) == 0
    keys = Keys(text, np.empty(len(text), np.uint64), np.empty(len(text), np.uint16))
    scan(*keys.slices, keys.hashes, keys.traits)
    chunk.keys[name] = keys


def _fill_categories(chunk: Chunk, name: str, column: pa.Array) -> None:
    if name not in chunk.batch.schema.names:
        return
    if not pa.types.is_dictionary(column.type):
        column = (column if _is_text(column.type) else column.cast(pa.string())).dictionary_encode()
    words = pc.fill_null(column.dictionary.cast(pa.large_string()), "")
    codes = pc.fill_null(column.indices.cast(pa.int32()), -1).to_numpy()
    empty = np.append(pc.equal(words, "").to_numpy(zero_copy_only=False), True)
    chunk.missing[name] = empty[codes]
    if empty[:-1].any():
        codes = np.where(chunk.missing[name], np.int32(-1), codes)
    chunk.categories[name] = Coded(words, codes)


def _fill_numbers(chunk: Chunk, name: str, column: pa.Array) -> None:
    if name not in chunk.batch.schema.names:
        chunk.numbers[name] = np.full(chunk.rows, np.nan)
        return
    values, missing = _numbers(column)
    if name == "weight":  # the graph keeps weights as float32: judge what it will keep
        with np.errstate(over="ignore"):
            values = values.astype(np.float32).astype(np.float64)
    mistyped = ~missing & ~np.isfinite(values)
    chunk.missing[name], chunk.mistyped[name] = missing, mistyped
    chunk.numbers[name] = np.where(mistyped, np.nan, values) + 0.0  # -0.0 is 0.0


def _fill_timestamps(chunk: Chunk, name: str, column: pa.Array) -> None:
    if name not in chunk.batch.schema.names:
        chunk.timestamps[name] = np.full(chunk.rows, NO_TIME)
        return
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        column = whole_seconds(column)
    if pa.types.is_integer(column.type):
        missing = column.is_null().to_numpy(zero_copy_only=False)
        seconds = pc.fill_null(column.cast(pa.int64()), NO_TIME).to_numpy()
        mistyped = np.zeros(chunk.rows, bool)
    else:
        values, missing = _numbers(column)
        fine = np.isfinite(values) & (np.abs(values) < 2.0**62)
        seconds = np.full(chunk.rows, NO_TIME)
        seconds[fine] = np.floor(values[fine]).astype(np.int64)
        rest = np.flatnonzero(~fine & ~missing)
        for row in rest.tolist():
            seconds[row] = _iso(str(shown(column.slice(row, 1))[0]))
        mistyped = ~missing & (seconds == NO_TIME)
    chunk.missing[name], chunk.mistyped[name] = missing, mistyped
    chunk.timestamps[name] = seconds


_FILL = {
    "key": _fill_keys,
    "category": _fill_categories,
    "number": _fill_numbers,
    "timestamp": _fill_timestamps,
}


def _numbers(column: pa.Array) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(float64 values with NaN where there is none, whether the cell is missing)."""
    if _is_text(column.type):
        empty = pc.fill_null(pc.equal(column, ""), True)
        missing = empty.to_numpy(zero_copy_only=False)
        column = pc.if_else(empty, pa.scalar(None, column.type), column)
        try:
            column = column.cast(pa.float64())
        except pa.ArrowInvalid:
            number = pc.match_substring_regex(column, _NUMBER)
            text = pc.if_else(number, pc.utf8_trim_whitespace(column), None)
            # Arrow reads no leading plus sign.
            column = pc.replace_substring_regex(text, r"^\+", "").cast(pa.float64())
        return pc.fill_null(column, np.nan).to_numpy(zero_copy_only=False), missing
    values = pc.fill_null(column.cast(pa.float64(), safe=False), np.nan)
    values = values.to_numpy(zero_copy_only=False)
    return values, np.isnan(values)


def _iso(text: str) -> int:
    """Seconds since the epoch of a date such as 2026-11-20T08:00:00Z; NO_TIME where it is none."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return NO_TIME
    return math.floor((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _groups(
    chunk: Chunk, batch: pa.RecordBatch, relation: str | None
) -> list[tuple[str, NDArray[np.int64]]]:
    parts = [name for name in (*KEY_COLUMNS, "rel") if name in chunk.missing]
    whole = np.ones(chunk.rows, bool)
    for name in parts:
        whole &= ~(chunk.missing[name] | chunk.mistyped[name])
    rows = np.flatnonzero(whole)
    every = len(rows) == chunk.rows
    if relation is not None or "rel" not in chunk.categories:
        return [(relation or "", rows)] if len(rows) else []
    rel = chunk.categories["rel"]
    names, codes = rel.words.to_pylist(), rel.codes if every else rel.codes[rows]
    if len(names) < 1 << 15:
        codes = codes.astype(np.int16)  # numpy sorts 16-bit integers by radix
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    return [
        (names[code], order[start:end] if every else rows[order[start:end]])
        for code, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
        if end > start
    ]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _offsets(text: pa.Array) -> NDArray[np.int64]:
    offsets: Any = text.buffers()[1]
    if offsets is None or not len(text):
        return np.zeros(len(text) + 1, np.int64)
    return np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]


def is_broken(traits: NDArray[np.uint16]) -> NDArray[np.bool_]:
    return (traits & BROKEN) != 0
