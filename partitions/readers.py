"""Raw files -> Arrow record batches of string columns.

Text goes through Arrow's block parser. Where it meets a malformed line it can't say which, so the
file is read once more, line by line, only to name the line: the fast file stays free of counting.
"""

import codecs
import csv
import gzip
import io
import json
import re
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from partitions import columnar, json_lines, sources
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
from partitions.errors import DataError, did_you_mean
from partitions.sources import InputFile, broken

BLOCK_BYTES = 8 << 20  # of text; the batches of a file depend on it, not on the number of threads
_MOST_BYTES = 32 << 20  # of malformed lines of a text file that are kept to be shown
_KEYS = ("lhs", "rel", "rhs", "weight", "timestamp", "key")  # columns that hold no prose
_WIDEST = 10_000  # columns, where the first row has fewer: each costs memory
_PROSE_LINES = 10  # lines of text that all have as many commas as rows are rather rows
_COLUMN_SEPARATOR = "\x1f"  # stands in for a delimiter of several characters


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


class _BadLines:
    """Lines of a text file that are no rows; text is kept of as many as memory allows."""

    def __init__(self) -> None:
        self._kept: list[BadRow] = []
        self._count = self._bytes = 0

    def add(self, why: str, text: str) -> None:
        self._count += 1
        self._bytes += len(text) + 200  # what Python adds
        if self._bytes <= _MOST_BYTES:
            self._kept.append(BadRow(why, text, False))

    def hand_over(self, on_bad: OnBad) -> None:
        for line in self._kept:
            on_bad(line)
        for _ in range(self._count - len(self._kept)):
            on_bad(BadRow("one of too many lines that are no rows to be kept", "", False))


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
    with _named(file):
        yield from _COLUMNAR[sources.format_of(file, source)](file, columns)


def _pieces(
    file: InputFile, source: SourceConfig, wanted: _Wanted, skip_bad: bool
) -> Iterator[Piece]:
    reader = _FORMATS[sources.format_of(file, source)]
    bad: list[BadRow] = []
    num_rows = 0
    with _named(file):
        for cells in reader(file, source, wanted, skip_bad, bad.append):
            rows = _checked(cells, file, source, wanted, skip_bad, bad.append, num_rows)
            num_rows += len(cells)
            yield Piece(cells, rows, bad.copy())
            bad.clear()
        if bad:
            nothing = pa.record_batch({})
            yield Piece(nothing, nothing, bad)


@contextmanager
def _named(file: InputFile) -> Iterator[None]:
    """What the libraries raise, as sentences that name the file."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.ReadError, zipfile.BadZipFile) as error:
        raise broken(file, error) from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise sources.cant_read(file, error) from None
        raise broken(file, error) from None


# --- text ----------------------------------------------------------------------------------------


class _StandsThere(Exception):
    """The text holds the character that is to stand in for its delimiter."""


class _Utf8:
    """A stream in another encoding, read as UTF-8: there a delimiter's bytes are nothing else."""

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        self._stream, self._decoder = stream, codecs.getincrementaldecoder(encoding)()

    def read(self, size: int) -> bytes:
        while block := self._stream.read(size):
            if text := self._decoder.decode(block):
                return text.encode()
        return self._decoder.decode(b"", True).encode()


class _Utf8Lines(io.RawIOBase):
    """A byte stream without the lines that are not UTF-8; those of the header are mended."""

    def __init__(
        self, stream: IO[bytes], header_lines: int, on_garbled: Callable[[str], None]
    ) -> None:
        self._stream, self._header_lines, self._on_garbled = stream, header_lines, on_garbled
        self._kept: list[bytes] = []  # the beginning of a line
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._stream.read(BLOCK_BYTES)
            end = max(block.rfind(b"\n"), block.rfind(b"\r")) + 1
            if block and not end:
                self._kept.append(block)
                continue
            self._ready = self._good(b"".join([*self._kept, block[:end]]))
            self._kept = [block[end:]]
            if not block:
                break
        taken, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def _good(self, lines: bytes) -> bytes:
        header, self._header_lines = self._header_lines, 0
        try:
            lines.decode()
            return lines
        except UnicodeDecodeError:
            pass
        good = []
        for at, line in enumerate(lines.splitlines(keepends=True)):
            text = line.decode("utf-8", "replace")
            if at < header or text.encode() == line:
                good.append(text.encode())
            else:
                self._on_garbled(text.rstrip("\r\n"))
        return b"".join(good)


class _OneDelimiter(io.RawIOBase):
    """A byte stream with a long delimiter replaced by a short one, for the block parser."""

    def __init__(self, stream: IO[bytes] | _Utf8, old: bytes, new: bytes) -> None:
        self._stream, self._old, self._new = stream, old, new
        self._kept = b""  # a possible first half of a delimiter at the end of the last block
        self._ready = b""  # replaced already, more than the last buffer could take

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._stream.read(len(buffer))
            if self._new in block:
                raise _StandsThere
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
    file: InputFile,
    source: SourceConfig,
    wanted: _Wanted,
    skip_bad: bool,
    on_bad: OnBad,
) -> Iterator[pa.RecordBatch]:
    columns = wanted.columns
    names, width, header_lines = _text_columns(file, source, columns)
    delimiter = _delimiter(file, source)
    # The block parser knows only delimiters of one ASCII character.
    stand_in = len(delimiter) > 1 or not delimiter.isascii()
    bad = _BadLines()
    quotes = _Quotes(file, source, wanted)

    def on_invalid(row: Any) -> str:
        if _is_blank(row.text):
            return "skip"  # which is no row
        quotes.look_into(row.text)
        bad.add(f"expected {width} columns, found {row.actual_columns}", row.text)
        return "skip" if skip_bad else "error"

    # Lines that are not UTF-8; other encodings are all or nothing.
    leave_out = skip_bad and wanted.skip_garbled and _is_utf8(source)

    def on_garbled(line: str) -> None:
        bad.add(f"the bytes are not {source.encoding}", line)

    with sources.opened(file, source.member) as stream:
        if leave_out:
            stream = io.BufferedReader(_Utf8Lines(stream, header_lines, on_garbled))
        if stand_in:
            stream = _with_one_delimiter(stream, delimiter, source)
        try:
            batches = pyarrow.csv.open_csv(
                stream,
                read_options=pyarrow.csv.ReadOptions(
                    column_names=[str(i) for i in range(width)],
                    skip_rows=header_lines,
                    block_size=BLOCK_BYTES,
                    encoding="utf8" if stand_in else source.encoding,
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
                quotes.check(batch)
                yield pa.record_batch(
                    {name: batch.column(position) for name, position in names.items()}
                )
        except (pa.ArrowInvalid, UnicodeDecodeError, _StandsThere) as error:
            if (flaw := _text_flaw(file, source, columns, quotes, error)) is None:
                return
            raise flaw from None
    quotes.check()
    # Only now: the parser is ahead of the batches, by how much is chance.
    bad.hand_over(on_bad)


def _is_utf8(source: SourceConfig) -> bool:
    return codecs.lookup(source.encoding).name in ("utf-8", "utf-8-sig")


def _with_one_delimiter(stream: IO[bytes], delimiter: str, source: SourceConfig) -> IO[bytes]:
    utf8 = stream if _is_utf8(source) else _Utf8(stream, source.encoding)
    return io.BufferedReader(_OneDelimiter(utf8, delimiter.encode(), _COLUMN_SEPARATOR.encode()))


def _text_flaw(
    file: InputFile,
    source: SourceConfig,
    columns: dict[str, Column],
    quotes: "_Quotes",
    error: Exception,
) -> DataError | None:
    """The sentence about what the block parser met; None where that is a file without rows."""
    _, _, header_lines = _text_columns(file, source, columns)
    rows = (row.last_line for row in _rows(file, source) if row.last_line > header_lines)
    if "Empty CSV file" in str(error) or next(rows, None) is None:
        return None
    quotes.check_all()
    if isinstance(error, _StandsThere):
        return _stand_in_line(file, source)
    garbled = isinstance(error, UnicodeDecodeError) or "invalid UTF8" in str(error)
    find = _bad_bytes if garbled else _bad_line
    return find(file, source, columns) or broken(file, error)


def _delimiter(file: InputFile, source: SourceConfig) -> str:
    if source.delimiter is not None:
        return source.delimiter
    endings = PurePosixPath(source.member).suffixes if source.member else file.suffixes
    return "," if ".csv" in endings else "\t"


def _has_header(source: SourceConfig, columns: dict[str, Column]) -> bool:
    if source.header is not None:
        return source.header
    return any(isinstance(column, str) for column in columns.values())


class _Quotes:
    """Finds the quote of a .csv that nobody closed: to the parser all that follows, up to the next
    quote or the end of the file, is one cell. It also finds no fault with text of several lines,
    so once a cell holds a line end, the slow twin reads the file to tell one from the other.
    """

    def __init__(self, file: InputFile, source: SourceConfig, wanted: "_Wanted") -> None:
        self._of = file, source, wanted
        self._known = _delimiter(file, source) != ","  # whether all quotes are known to be right
        self._suspect = False

    def look_into(self, line: str) -> None:
        """A malformed line: in the parser's threads, where no error may be raised."""
        self._suspect = self._suspect or "\n" in line or "\r" in line

    def check(self, batch: pa.RecordBatch | None = None) -> None:
        if self._known:
            return
        if self._suspect or (batch is not None and any(map(_has_line_end, batch.columns))):
            self.check_all()

    def check_all(self) -> None:
        """Raises DataError naming the line where the first such cell begins."""
        if not self._known and (found := _open_quote(*self._of)) is not None:
            raise found
        self._known = True


def _has_line_end(column: pa.Array) -> bool:
    data = column.buffers()[2]
    # The smallest byte first: a search for two of them takes six times as long.
    if data is None or not data.size or np.frombuffer(data, np.uint8).min() > ord("\r"):
        return False
    return bool(pc.any(pc.match_substring_regex(column, "[\r\n]")).as_py())


class _Row(NamedTuple):
    first_line: int  # counted from 1
    last_line: int  # a quoted cell may hold line ends
    cells: list[str]
    text: str = ""  # of a row of several lines: as it stands


def _rows(file: InputFile, source: SourceConfig) -> Iterator[_Row]:
    """Every row, blank lines too: the slow twin of the block parser."""
    delimiter = _delimiter(file, source)
    encoding = "utf-8-sig" if source.encoding.lower() in ("utf-8", "utf8") else source.encoding
    with (
        sources.opened(file, source.member) as stream,
        # newline="": lines end where the block parser ends them, and not at U+2028 and its like.
        io.TextIOWrapper(cast(Any, stream), encoding, "replace", newline="") as lines,
    ):
        if delimiter == ",":
            csv.field_size_limit(sys.maxsize)
            held: list[str] = []  # the lines of the row at hand
            reader, last = csv.reader(_noted(lines, held)), 0
            for cells in reader:
                text = "".join(held) if len(held) > 1 else ""
                yield _Row(last + 1, reader.line_num, cells, text)
                last = reader.line_num
                held.clear()
            return
        for number, line in enumerate(lines, start=1):
            yield _Row(number, number, line.rstrip("\r\n").split(delimiter))


def _noted(lines: Iterable[str], held: list[str]) -> Iterator[str]:
    for line in lines:
        held.append(line)
        yield line


def _open_quote(file: InputFile, source: SourceConfig, wanted: "_Wanted") -> DataError | None:
    """The sentence about the first quoted cell that swallowed rows."""
    keys: set[int] = set()
    width = 0
    for first_line, last_line, cells, text in _rows(file, source):
        if not width and not _is_blank("".join(cells)):
            positions, width, _ = _text_columns(file, source, wanted.columns)
            keys = {at for name, at in positions.items() if name in _KEYS}
        if last_line > first_line and _swallows_rows(cells, text, keys, width):
            count = last_line - first_line
            return DataError(
                f"{_line(file, source, first_line)}: a quoted cell begins here and holds whole "
                f"rows ({count:,} line{'s' * (count != 1)}): is a quote never closed? Double it "
                '("") or remove it.'
            )
    return None


def _swallows_rows(cells: list[str], text: str, keys: set[int], width: int) -> bool:
    """Whether a row of several lines is rather several rows; text: its lines as they stand."""
    try:
        next(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error:  # the quote that should close the cell is not there, or not at its end
        return True
    for at, cell in enumerate(cells):
        inside = [line for line in re.split(r"\r\n|\r|\n", cell)[1:-1] if line.strip()]
        if len(cells) != width or at in keys:
            if any(line.count(",") >= width - 1 and all(line.split(",")) for line in inside):
                return True
        elif len(inside) >= _PROSE_LINES and all(line.count(",") == width - 1 for line in inside):
            return True
    return False


def _is_blank(text: str) -> bool:
    return not text.strip(" \t")


def _text_columns(
    file: InputFile, source: SourceConfig, columns: dict[str, Column]
) -> tuple[dict[str, int], int, int]:
    """Column name -> position; how many columns the first row has; lines up to the header's end."""
    delimiter = _delimiter(file, source)
    rows = (row for row in _rows(file, source) if not _is_blank(delimiter.join(row.cells)))
    _, last_line, first, _ = next(rows, _Row(0, 0, []))
    has_header = _has_header(source, columns)
    header = [cell.strip() for cell in first] if has_header else []
    positions = {}
    for name, column in columns.items():
        if isinstance(column, str):
            if first and column not in header:
                hint = did_you_mean(column, header)
                raise DataError(f"{file}:1: the header has no column {column}. {hint}")
            if header.count(column) > 1:
                raise DataError(
                    f"{file}:1: the header has {header.count(column)} columns {column}. Rename all "
                    "but one, or name columns by their positions."
                )
            positions[name] = header.index(column) if first else 0
        else:
            positions[name] = column
    # Without a header the mapping itself says how wide a row must be at least: a first line that
    # lacks a column is the malformed one, not the measure of the others.
    width = max(len(first), max(positions.values()) + 1)
    if width > max(len(first), _WIDEST):
        name = max(positions, key=lambda name: positions[name])
        raise DataError(
            f"{file}:{last_line} has {len(first)} columns, so there is no column {width - 1} "
            f"(counted from 0) for {name}. Mend columns."
        )
    return positions, width, last_line if has_header else 0


def _bad_line(
    file: InputFile, source: SourceConfig, columns: dict[str, Column]
) -> DataError | None:
    """The sentence about the first malformed line, found by reading the file again."""
    _, width, header_lines = _text_columns(file, source, columns)
    delimiter = _delimiter(file, source)
    kind = {"\t": "tab", ",": "comma"}.get(delimiter, "delimiter")
    for first_line, last_line, cells, _ in _rows(file, source):
        blank = last_line <= header_lines or _is_blank(delimiter.join(cells))
        if len(cells) != width and not blank:
            return DataError(
                f"{_line(file, source, first_line)}: expected {width} {kind}-separated columns "
                f"({', '.join(columns)}), found {len(cells)}. {_FIX}"
            )
    return None


def _bad_bytes(
    file: InputFile, source: SourceConfig, columns: dict[str, Column]
) -> DataError | None:
    """The sentence about the first line that is not in the source's encoding."""
    skip = ", or import with graph.skip_bad=true to count and skip such lines"
    skip = skip if _is_utf8(source) else ""
    for row in _rows(file, source):
        if any("\ufffd" in cell for cell in row.cells):
            return DataError(
                f"{_line(file, source, row.first_line)}: the bytes are not {source.encoding}. "
                f'Name the file\'s encoding beside its path, such as encoding = "latin-1"{skip}.'
            )
    return None


def _stand_in_line(file: InputFile, source: SourceConfig) -> DataError:
    """The sentence about the first line that holds the character U+001F."""
    rows = (
        row.first_line for row in _rows(file, source) if _COLUMN_SEPARATOR in "".join(row.cells)
    )
    return DataError(
        f"{_line(file, source, next(rows, 0))}: the line holds the character U+001F, which can't "
        "stand beside a delimiter of several characters. Remove it."
    )


_A_TIME = "whole seconds since 1970 or a date"
_FIX = "Fix the line, or import with graph.skip_bad=true to count and skip such lines."


def _line(file: InputFile, source: SourceConfig, number: int) -> str:
    inside = f"!{source.member}" if source.member else ""
    return f"{file}{inside}:{number}"


# --- JSON lines ----------------------------------------------------------------------------------


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

            yield from json_lines.read(stream, fields, BLOCK_BYTES, skip_bad=skip_bad, on_bad=bad)
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
    return DataError(f"{_line(file, source, flaw.line)}: {flaw.what}. {_FIX}")


# --- every format --------------------------------------------------------------------------------


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
            flaw = json_lines.first_flaw(stream, _json_fields(file, wanted), BLOCK_BYTES)
        if flaw is not None:
            return _flawed(file, source, flaw)
    if form != "text":
        return DataError(
            f"{file} row {row + 1:,}: {why}. Fix the row, or import with graph.skip_bad=true to "
            "count and skip such rows."
        )
    positions, width, header_lines = _text_columns(file, source, wanted.columns)
    for first_line, last_line, cells, _ in _rows(file, source):
        is_row = last_line > header_lines and len(cells) == width  # else header or blank
        for name, position in positions.items() if is_row else ():
            cell = cells[position]
            where = _line(file, source, first_line)
            if name in wanted.floats:
                alone = as_floats(pa.array([cell]), file, name)
                if not pc.fill_null(pc.is_finite(alone), False)[0].as_py():
                    return DataError(f"{where}: {name} is {cell!r}, expected a number. {_FIX}")
            elif name in wanted.times:
                if seconds_of(cell.strip()) is None:
                    return DataError(
                        f"{where}: {name} is {cell!r}, expected {_A_TIME} such as "
                        f"2024-05-01T12:00:00Z. {_FIX}"
                    )
            elif not cell and name not in wanted.optional:
                return DataError(f"{where}: the {name} key is empty. {_FIX}")
    return DataError(f"{file} has an empty key or an unreadable number. {_FIX}")
