"""Raw files -> Arrow record batches of string columns.

Text goes through Arrow's block parser. Where it meets a malformed line it can't say which, so the
file is read once more, line by line, only to name the line: the fast path stays free of counting.
"""

import csv
import gzip
import io
import math
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from partitions.config import Column, SourceConfig
from partitions.errors import DataError, did_you_mean

_BLOCK_BYTES = 8 << 20
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
_COLUMN_SEPARATOR = "\x1f"  # stands in for a delimiter of several characters


def expand(folder: Path, source: SourceConfig) -> list[Path]:
    """The files a source names, sorted; a DataError where there are none."""
    parts = Path(source.path)
    base, pattern = (
        (Path(parts.anchor), parts.relative_to(parts.anchor))
        if parts.anchor
        else (
            folder,
            parts,
        )
    )
    found = sorted(p for p in base.glob(str(pattern)) if p.is_file())
    if not found:
        raise DataError(
            f"{base / pattern} is missing: no such file. Mend the path (it starts from graph.data)."
        )
    return found


def read(
    path: Path,
    source: SourceConfig,
    columns: dict[str, Column],
    *,
    skip_bad: bool = False,
    on_skipped: Callable[[int], None] = lambda count: None,
    floats: tuple[str, ...] = (),
    times: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
) -> Iterator[pa.RecordBatch]:
    """Batches with exactly the columns `columns` names, as strings (`floats` as float32, `times` as
    int64 seconds since 1970 UTC).

    Only columns named in `optional` may be empty.

    Raises DataError naming file and line for a line with too few or too many columns, a broken
    archive, an unknown column, an empty or missing value. With skip_bad such rows are left out and
    counted by on_skipped.
    """
    reader = _FORMATS[source.format or _format_of(path, source)]
    try:
        for batch in reader(path, source, columns, skip_bad, on_skipped):
            yield _checked(
                batch, path, source, columns, skip_bad, on_skipped, floats, times, optional
            )
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.ReadError, zipfile.BadZipFile) as error:
        raise _broken(path, error) from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".:")
    return DataError(f"{path} can't be read: {reason}. Copy or export the file again.")


def _format_of(path: Path, source: SourceConfig) -> str:
    endings = Path(source.member or path).suffixes
    if ".parquet" in endings:
        return "parquet"
    return "arrow" if {".arrow", ".feather", ".ipc"} & set(endings) else "text"


# --- text ----------------------------------------------------------------------------------------


@contextmanager
def _bytes_of(path: Path, source: SourceConfig) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file or of one member of an archive."""
    with ExitStack() as stack:
        if source.member is not None:
            yield _member(stack, path, source.member)
        elif path.suffix == ".gz":
            gz = stack.enter_context(gzip.GzipFile(path, "rb"))
            yield cast(IO[bytes], gz)
        elif path.suffix == ".zst":
            yield stack.enter_context(pa.input_stream(str(path), compression="zstd"))
        else:
            yield stack.enter_context(path.open("rb"))


def _member(stack: ExitStack, path: Path, member: str) -> IO[bytes]:
    if path.suffix == ".zip":
        archive = stack.enter_context(zipfile.ZipFile(path))
        names = archive.namelist()
        if member in names:
            try:
                return stack.enter_context(archive.open(member))
            except (RuntimeError, OSError) as error:  # encrypted, unknown compression, damaged
                raise zipfile.BadZipFile(str(error)) from None
    else:
        tar = stack.enter_context(tarfile.TarFile.open(path))
        names = tar.getnames()
        while tar.fileobj is not None and tar.fileobj.read(_BLOCK_BYTES):
            pass  # to the end, where the compressed file's checksum is
        if member in names and (file := tar.extractfile(member)) is not None:
            return stack.enter_context(file)
    raise DataError(f"{path} has no member {member}. {did_you_mean(member, names)}")


class _OneDelimiter(io.RawIOBase):
    """A byte stream with a long delimiter replaced by a short one, for the block parser."""

    def __init__(self, stream: IO[bytes], old: bytes, new: bytes) -> None:
        self._stream, self._old, self._new = stream, old, new
        self._kept = b""  # a possible first half of a delimiter at the end of the last block
        self._ready = b""  # replaced already, more than the last buffer could take

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._stream.read(len(buffer))
            text = (self._kept + block).replace(self._old, self._new)
            halves = (n for n in range(len(self._old) - 1, 0, -1) if text.endswith(self._old[:n]))
            keep = next(halves, 0) if block else 0
            self._ready, self._kept = text[: len(text) - keep], text[len(text) - keep :]
            if not block:
                break
        taken, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _read_text(
    path: Path,
    source: SourceConfig,
    columns: dict[str, Column],
    skip_bad: bool,
    on_skipped: Callable[[int], None],
) -> Iterator[pa.RecordBatch]:
    names, width, header_lines = _text_columns(path, source, columns)
    delimiter = _delimiter(path, source)
    # The block parser knows only delimiters of one ASCII character.
    stand_in = len(delimiter) > 1 or not delimiter.isascii()
    bad = 0

    def on_invalid(row: Any) -> str:
        nonlocal bad
        if _is_blank(row.text):
            return "skip"  # which is no row
        bad += 1
        return "skip" if skip_bad else "error"

    with _bytes_of(path, source) as stream:
        if stand_in:
            stream = io.BufferedReader(
                _OneDelimiter(stream, delimiter.encode(source.encoding), _COLUMN_SEPARATOR.encode())
            )
        try:
            batches = pyarrow.csv.open_csv(
                stream,
                read_options=pyarrow.csv.ReadOptions(
                    column_names=[str(i) for i in range(width)],
                    skip_rows=header_lines,
                    block_size=_BLOCK_BYTES,
                    encoding=source.encoding,
                ),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=_COLUMN_SEPARATOR if stand_in else delimiter,
                    quote_char='"' if delimiter == "," else False,
                    newlines_in_values=delimiter == ",",
                    invalid_row_handler=on_invalid,
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types={str(i): pa.string() for i in range(width)},
                    strings_can_be_null=False,
                ),
            )
            for batch in batches:
                yield pa.record_batch(
                    {name: batch.column(position) for name, position in names.items()}
                )
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            rows = (
                last_line for _, last_line, _ in _rows(path, source) if last_line > header_lines
            )
            if "Empty CSV file" in str(error) or next(rows, None) is None:
                return
            garbled = isinstance(error, UnicodeDecodeError) or "invalid UTF8" in str(error)
            find = _bad_bytes if garbled else _bad_line
            raise find(path, source, columns) or _broken(path, error) from None
    if bad:
        on_skipped(bad)


def _delimiter(path: Path, source: SourceConfig) -> str:
    if source.delimiter is not None:
        return source.delimiter
    return "," if ".csv" in Path(source.member or path).suffixes else "\t"


def _has_header(source: SourceConfig, columns: dict[str, Column]) -> bool:
    if source.header is not None:
        return source.header
    return any(isinstance(column, str) for column in columns.values())


class _Row(NamedTuple):
    first_line: int  # counted from 1
    last_line: int  # a quoted cell may hold line ends
    cells: list[str]


def _rows(path: Path, source: SourceConfig) -> Iterator[_Row]:
    """Every row, blank lines too: the slow twin of the block parser."""
    delimiter = _delimiter(path, source)
    encoding = "utf-8-sig" if source.encoding.lower() in ("utf-8", "utf8") else source.encoding
    with (
        _bytes_of(path, source) as stream,
        # newline="": lines end where the block parser ends them, and not at U+2028 and its like.
        io.TextIOWrapper(cast(Any, stream), encoding, "replace", newline="") as lines,
    ):
        if delimiter == ",":
            csv.field_size_limit(sys.maxsize)
            reader, last = csv.reader(lines), 0
            for cells in reader:
                yield _Row(last + 1, reader.line_num, cells)
                last = reader.line_num
            return
        for number, line in enumerate(lines, start=1):
            yield _Row(number, number, line.rstrip("\r\n").split(delimiter))


def _is_blank(text: str) -> bool:
    return not text.strip(" \t")


def _text_columns(
    path: Path, source: SourceConfig, columns: dict[str, Column]
) -> tuple[dict[str, int], int, int]:
    """Column name -> position; how many columns the first row has; lines up to the header's end."""
    delimiter = _delimiter(path, source)
    rows = (row for row in _rows(path, source) if not _is_blank(delimiter.join(row.cells)))
    _, last_line, first = next(rows, _Row(0, 0, []))
    has_header = _has_header(source, columns)
    header = [cell.strip() for cell in first] if has_header else []
    positions = {}
    for name, column in columns.items():
        if isinstance(column, str):
            if first and column not in header:
                hint = did_you_mean(column, header)
                raise DataError(f"{path}:1: the header has no column {column}. {hint}")
            positions[name] = header.index(column) if first else 0
        else:
            positions[name] = column
    # Without a header the mapping itself says how wide a row must be at least: a first line that
    # lacks a column is the malformed one, not the measure of the others.
    width = max(len(first), max(positions.values()) + 1)
    return positions, width, last_line if has_header else 0


def _bad_line(path: Path, source: SourceConfig, columns: dict[str, Column]) -> DataError | None:
    """The sentence about the first malformed line, found by reading the file again."""
    _, width, header_lines = _text_columns(path, source, columns)
    delimiter = _delimiter(path, source)
    kind = {"\t": "tab", ",": "comma"}.get(delimiter, "delimiter")
    for first_line, last_line, cells in _rows(path, source):
        blank = last_line <= header_lines or _is_blank(delimiter.join(cells))
        if len(cells) != width and not blank:
            return DataError(
                f"{_line(path, source, first_line)}: expected {width} {kind}-separated columns "
                f"({', '.join(columns)}), found {len(cells)}. {_FIX}"
            )
    return None


def _bad_bytes(path: Path, source: SourceConfig, _: dict[str, Column]) -> DataError | None:
    """The sentence about the first line that is not in the source's encoding."""
    for first_line, _last_line, cells in _rows(path, source):
        if any("\ufffd" in cell for cell in cells):
            return DataError(
                f"{_line(path, source, first_line)}: the bytes are not {source.encoding}. "
                'Name the file\'s encoding beside its path, such as encoding = "latin-1".'
            )
    return None


_FIX = "Fix the line, or import with graph.skip_bad=true to count and skip such lines."


def _line(path: Path, source: SourceConfig, number: int) -> str:
    inside = f"!{source.member}" if source.member else ""
    return f"{path}{inside}:{number}"


# --- Parquet and Arrow ---------------------------------------------------------------------------


def _read_parquet(
    path: Path, source: SourceConfig, columns: dict[str, Column], *_: Any
) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        names = _named_columns(path, columns, file.schema_arrow.names)
        for batch in file.iter_batches(columns=list(names.values()), batch_size=1 << 18):
            yield pa.record_batch({name: batch.column(column) for name, column in names.items()})


def _read_arrow(
    path: Path, source: SourceConfig, columns: dict[str, Column], *_: Any
) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as file:
        try:
            reader = pa.ipc.open_file(file)
            batches: Iterator[pa.RecordBatch] = map(
                reader.get_batch, range(reader.num_record_batches)
            )
        except pa.ArrowInvalid:
            file.seek(0)
            reader = pa.ipc.open_stream(file)
            batches = _stream_batches(reader, file)
        names = _named_columns(path, columns, reader.schema.names)
        for batch in batches:
            yield pa.record_batch({name: batch.column(column) for name, column in names.items()})


def _stream_batches(reader: Any, file: Any) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow stream; an error where the mark at its end is missing: the reader
    itself takes a stream cut between two batches for a whole one."""
    yield from reader
    file.seek(file.tell() - len(_STREAM_END))
    if file.read(len(_STREAM_END)) != _STREAM_END:
        raise EOFError("the Arrow stream has no end mark, so it was truncated")


def _named_columns(path: Path, columns: dict[str, Column], known: list[str]) -> dict[str, str]:
    names = {}
    for name, column in columns.items():
        if isinstance(column, int):
            if column >= len(known):
                raise DataError(
                    f"{path} has {len(known)} columns, so there is no column {column} "
                    f"(counted from 0) for {name}. Known here: {', '.join(known)}."
                )
            column = known[column]
        if column not in known:
            raise DataError(f"{path} has no column {column}. {did_you_mean(column, known)}")
        if known.count(column) > 1:
            raise DataError(
                f"{path} has {known.count(column)} columns {column}. Rename all but one."
            )
        names[name] = column
    return names


_FORMATS = {"text": _read_text, "parquet": _read_parquet, "arrow": _read_arrow}


# --- checks that every format shares --------------------------------------------------------------


def _checked(
    batch: pa.RecordBatch,
    path: Path,
    source: SourceConfig,
    columns: dict[str, Column],
    skip_bad: bool,
    on_skipped: Callable[[int], None],
    floats: tuple[str, ...],
    times: tuple[str, ...],
    optional: tuple[str, ...],
) -> pa.RecordBatch:
    """The batch as non-empty strings, finite floats and times, bad rows refused or left out."""
    arrays, good = {}, None
    for name in batch.schema.names:
        column = batch.column(name)
        if name in floats:
            values = _as_floats(column)
            fine = pc.fill_null(pc.is_finite(values), False)
        elif name in times:
            values = _as_seconds(column)
            fine = pc.is_valid(values)
        else:
            values = _as_strings(column, path, columns[name])
            fine = pc.fill_null(pc.not_equal(pc.binary_length(values), 0), False)
        if name not in optional:
            good = fine if good is None else pc.and_(good, fine)
        else:
            values = pc.fill_null(values, "")
        arrays[name] = values
    checked = pa.record_batch(arrays)
    num_bad = len(good) - (pc.sum(good).as_py() or 0) if good is not None else 0
    if not num_bad:
        return checked
    if not skip_bad:
        raise _bad_value(path, source, columns, floats, times, optional)
    on_skipped(num_bad)
    return checked.filter(good)


def _as_floats(column: pa.Array) -> pa.Array:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        number = pc.match_substring_regex(column, r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$")
        column = pc.if_else(number, pc.utf8_trim_whitespace(column), None)
    return column.cast(pa.float32(), safe=False)


def _as_seconds(column: pa.Array) -> pa.Array:
    """int64 seconds since 1970 UTC of whole numbers (seconds already), timestamps, dates, or text
    that holds whole numbers or ISO 8601; null for anything else."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        text = pc.utf8_trim_whitespace(column)
        number = pc.match_substring_regex(text, r"^[-+]?\d{1,18}$")
        if pc.all(pc.fill_null(number, False)).as_py():
            return text.cast(pa.int64())
        moments = [_moment(value) for value in text.to_pylist()]
        return pa.array(moments, pa.int64())
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return column.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64())
    raise pa.ArrowInvalid(f"a time is of type {column.type}, expected seconds or a timestamp")


def _moment(text: str | None) -> int | None:
    try:
        if text is None or text.lstrip("+-").isdigit():
            return None if text is None else int(text)
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return math.floor((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _as_strings(column: pa.Array, path: Path, name: Column) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type) or pa.types.is_nested(column.type):
        raise DataError(
            f"{path}: column {name} is of type {column.type}, expected text or whole numbers. "
            "Export it as text."
        )
    return column.cast(pa.string())


def _bad_value(
    path: Path,
    source: SourceConfig,
    columns: dict[str, Column],
    floats: tuple[str, ...],
    times: tuple[str, ...],
    optional: tuple[str, ...],
) -> DataError:
    """The sentence about the first empty key or unreadable number, found by reading again."""
    if (source.format or _format_of(path, source)) != "text":
        return DataError(
            f"{path}: a value of {', '.join(columns)} is missing or empty. "
            "Fix the file, or import with graph.skip_bad=true to count and skip such rows."
        )
    positions, width, header_lines = _text_columns(path, source, columns)
    for first_line, last_line, cells in _rows(path, source):
        is_row = last_line > header_lines and len(cells) == width  # else header or blank
        for name, position in positions.items() if is_row else ():
            cell = cells[position]
            where = _line(path, source, first_line)
            if name in floats:
                try:
                    fine = bool(pc.is_finite(_as_floats(pa.array([cell])))[0].as_py())
                except pa.ArrowInvalid:
                    fine = False
                if not fine:
                    return DataError(f"{where}: {name} is {cell!r}, expected a number. {_FIX}")
            elif name in times:
                if _moment(cell.strip()) is None:
                    return DataError(
                        f"{where}: {name} is {cell!r}, expected seconds since 1970 or a date such "
                        f"as 2024-05-01T12:00:00Z. {_FIX}"
                    )
            elif not cell and name not in optional:
                return DataError(f"{where}: the {name} key is empty. {_FIX}")
    return DataError(f"{path} has an empty key or an unreadable number. {_FIX}")
