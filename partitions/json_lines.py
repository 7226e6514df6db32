"""JSON lines -> record batches: one object a line, columns by name, nested ones by dotted path.

The stream is cut into blocks at line ends. A block goes through Arrow's parser, several at a time
and each by one thread, so that batches are the same whatever the number of threads. Arrow knows
neither which line it can't take nor how to leave it out, and wants one type a column: a block that
it refuses is read by Python, line by line, which names, skips, or makes text of 7 and "x7" alike.
"""

import io
import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from partitions import cells
from partitions.errors import did_you_mean

_INT64 = range(-(2**63), 2**63)
_MARK = b"\xef\xbb\xbf"  # a byte order mark, which some programs write even here


@dataclass(frozen=True)
class Fields:
    """What is wanted of a line: batch column -> name in the file, and how to read it."""

    columns: Mapping[str, str]
    floats: tuple[str, ...] = ()
    times: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


class Flaw(Exception):
    """A line that is not what was asked for."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line, self.what = line, what  # line: counted from 1


class _Decoded(NamedTuple):
    batch: pa.RecordBatch | None
    skipped: list[tuple[Flaw, str]]  # and the lines themselves
    flaw: Flaw | None


def read(
    stream: IO[bytes],
    fields: Fields,
    block_bytes: int,
    *,
    skip_bad: bool = False,
    on_bad: Callable[[Flaw, str], None] = lambda flaw, text: None,
) -> Iterator[pa.RecordBatch]:
    """Batches of the wanted columns; their types may differ from batch to batch (text or whole
    numbers). Raises Flaw at the first bad line, or leaves such lines out and hands them to
    on_bad."""
    num_threads = max(1, pa.cpu_count())
    with ThreadPoolExecutor(num_threads, "json") as pool:
        ahead: deque[Future[_Decoded]] = deque()
        try:
            for block, first_line in _blocks(stream, block_bytes):
                ahead.append(pool.submit(_decode, block, first_line, fields, skip_bad))
                if len(ahead) > num_threads:
                    yield from _taken(ahead.popleft().result(), on_bad)
            while ahead:
                yield from _taken(ahead.popleft().result(), on_bad)
        finally:
            for waiting in ahead:
                waiting.cancel()


def _taken(decoded: _Decoded, on_bad: Callable[[Flaw, str], None]) -> Iterator[pa.RecordBatch]:
    if decoded.flaw is not None:
        raise decoded.flaw
    for bad in decoded.skipped:
        on_bad(*bad)
    if decoded.batch is not None:
        yield decoded.batch


def first_flaw(stream: IO[bytes], fields: Fields, block_bytes: int) -> Flaw | None:
    for block, first_line in _blocks(stream, block_bytes):
        if (flaw := _decode_slowly(block, first_line, fields, False).flaw) is not None:
            return flaw
    return None


def _blocks(stream: IO[bytes], block_bytes: int) -> Iterator[tuple[bytes, int]]:
    """(whole lines, the number of the first)"""
    kept = [stream.read(len(_MARK)).removeprefix(_MARK)]  # lines that have not ended yet
    line = 1
    while block := stream.read(block_bytes):
        end = block.rfind(b"\n") + 1
        if not end:
            kept.append(block)
            continue
        whole = b"".join([*kept, block[:end]])
        yield whole, line
        line += whole.count(b"\n")
        kept = [block[end:]]
    if (rest := b"".join(kept)).strip():
        yield rest, line


def _decode(block: bytes, first_line: int, fields: Fields, skip_bad: bool) -> _Decoded:
    batch = _decode_fast(block, fields)
    if batch is not None:
        return _Decoded(batch, [], None)
    return _decode_slowly(block, first_line, fields, skip_bad)


# --- fast ----------------------------------------------------------------------------------------


def _decode_fast(block: bytes, fields: Fields) -> pa.RecordBatch | None:
    """The block as Arrow reads it, where the types of its first line hold for all of it."""
    found = _schema_of(block, fields)
    if found is None:
        return None
    schema, paths = found
    try:
        block.decode()  # Arrow does not look whether text is UTF-8
        table = pyarrow.json.read_json(
            io.BytesIO(block),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore"
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
        return None
    num_lines = block.count(b"\n") + (not block.endswith(b"\n"))
    if table.num_rows != num_lines and table.num_rows != sum(
        map(bool, map(bytes.strip, _lines(block)))
    ):
        return None  # not for blank lines, but for an object that is not alone on its line
    arrays = {}
    for name, path in paths.items():
        column = table.column(path[0]).combine_chunks()
        column = pc.struct_field(column, path[1:]) if len(path) > 1 else column
        if name not in fields.optional and column.null_count:
            return None
        arrays[name] = column
    return pa.record_batch(arrays)


def _schema_of(block: bytes, fields: Fields) -> tuple[pa.Schema, dict[str, list[str]]] | None:
    """The types that the block's first line has, and where in it each column is; None where it
    gives no answer."""
    start = next((line for line in _lines(block) if line.strip()), b"")
    try:
        first = json.loads(start)
    except (ValueError, RecursionError):
        return None
    if not isinstance(first, dict):
        return None
    tree: dict[str, Any] = {}
    paths = {}
    for name, column in fields.columns.items():
        kind = _type_of(_value(first, column), name, fields)
        if kind is None:
            return None
        paths[name] = path = [column] if column in first else column.split(".")
        inside = tree
        for step in path[:-1]:
            inside = inside.setdefault(step, {})
            if not isinstance(inside, dict):
                return None
        if inside.setdefault(path[-1], kind) != kind:
            return None
    return pa.schema(_arrow_fields(tree)), paths


def _type_of(value: Any, name: str, fields: Fields) -> Any:
    if isinstance(value, str) or (value is None and name in fields.optional):
        return pa.string()
    if isinstance(value, bool):
        return None
    if name in fields.floats:
        return pa.float64() if isinstance(value, int | float) else None
    return pa.int64() if isinstance(value, int) else None


def _arrow_fields(tree: Mapping[str, Any]) -> list[pa.Field]:
    return [
        pa.field(name, pa.struct(_arrow_fields(kind)) if isinstance(kind, dict) else kind)
        for name, kind in tree.items()
    ]


def _lines(block: bytes) -> Iterator[bytes]:
    """Lines end at \\n only: a lone \\r is white space to JSON."""
    start = 0
    while start < len(block):
        end = block.find(b"\n", start)
        end = len(block) if end < 0 else end
        yield block[start:end]
        start = end + 1


# --- line by line --------------------------------------------------------------------------------


def _decode_slowly(block: bytes, first_line: int, fields: Fields, skip_bad: bool) -> _Decoded:
    cells_of: dict[str, list[Any]] = {name: [] for name in fields.columns}
    skipped: list[tuple[Flaw, str]] = []
    for number, line in enumerate(_lines(block), start=first_line):
        if not line.strip():
            continue
        try:
            row = _row(line, fields)
        except ValueError as error:
            if not skip_bad:
                return _Decoded(None, [], Flaw(number, str(error)))
            skipped.append((Flaw(number, str(error)), line.decode("utf-8", "replace")))
            continue
        for name, cell in row.items():
            cells_of[name].append(cell)
    kinds = {name: pa.string() for name in fields.columns}
    kinds |= dict.fromkeys(fields.floats, pa.float64()) | dict.fromkeys(fields.times, pa.int64())
    arrays = {name: pa.array(values, kinds[name]) for name, values in cells_of.items()}
    return _Decoded(pa.record_batch(arrays), skipped, None)


def _row(line: bytes, fields: Fields) -> dict[str, Any]:
    """The wanted cells of one line; a ValueError says what is wrong with it."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise ValueError("the bytes are not utf-8") from None
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("the object is nested too deep") from None
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise ValueError(f"expected a JSON object, found something else ({reason})") from None
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, found {_shown(found)}")
    return {name: _cell(found, name, column, fields) for name, column in fields.columns.items()}


def _cell(found: dict[str, Any], name: str, column: str, fields: Fields) -> Any:
    value = _value(found, column)
    if value is None:
        if name in fields.optional:
            return None
        if column in found or "." in column:
            raise ValueError(f"{name} is missing: {column} is null or not there")
        hint = did_you_mean(column, list(found)).rstrip(".")
        raise ValueError(f"{name} is missing: there is no {column} ({hint})")
    if name in fields.floats:
        return _float(value, name)
    if name in fields.times:
        return _seconds(value, name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_shown(value)}, expected text or a whole number")
    if not value and name not in fields.optional:
        raise ValueError(f"the {name} key is empty")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name} holds half a surrogate pair, which is no text")
    return value


def _float(value: Any, name: str) -> float:
    number: Any = cells.number_of(value) if isinstance(value, str) else value
    try:
        # float32 rounds what is at most half a step beyond its largest number down to it.
        if not isinstance(value, bool) and abs(float(number)) < 2.0**128 - 2.0**103:
            return float(number)
    except (TypeError, OverflowError):
        pass
    raise ValueError(f"{name} is {_shown(value)}, expected a number")


def _seconds(value: Any, name: str) -> int:
    seconds = cells.seconds_of(value.strip()) if isinstance(value, str) else value
    if type(seconds) is int and seconds in _INT64:
        return seconds
    raise ValueError(
        f"{name} is {_shown(value)}, expected whole seconds since 1970 or a date such as "
        "2024-05-01T12:00:00Z"
    )


def _value(found: Mapping[str, Any], column: str) -> Any:
    """By its whole name, else by the path that its dots make; None where it is not there."""
    if column in found:
        return found[column]
    value: Any = found
    for step in column.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(step)
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not _is_odd(value) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
