"""Delimited text, such as TSV and CSV -> record batches of the columns that are wanted, as text.

Arrow's block parser reads it. Where that meets a malformed line it can't say which, so the file is
read once more, line by line, only to name the line: the fast path stays free of counting.
"""

import codecs
import csv
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from partitions import sources
from partitions.config import Column, SourceConfig
from partitions.errors import DataError, did_you_mean
from partitions.sources import InputFile, broken, line_of

BLOCK_BYTES = 8 << 20  # of text; the batches of a file depend on it, not on the number of threads
FIX = "Fix the line, or import with graph.skip_bad=true to count and skip such lines."
_MOST_BYTES = 32 << 20  # of malformed lines of a text file that are kept to be shown
_KEYS = ("lhs", "rel", "rhs", "weight", "timestamp", "key")  # columns that hold no prose
_WIDEST = 10_000  # columns, where the first row has fewer: each costs memory
_PROSE_LINES = 10  # lines of text that all have as many commas as rows are rather rows
_COLUMN_SEPARATOR = "\x1f"  # stands in for a delimiter of several characters
_HEADERS = {  # names of lhs and rhs, without what parts their words; user0, item0 are keys
    ("lhs", "rhs"),
    ("source", "target"),
    ("sourceid", "targetid"),
    ("src", "dst"),
    ("srcid", "dstid"),
    ("head", "tail"),
    ("headid", "tailid"),
    ("from", "to"),
    ("fromid", "toid"),
    ("fromnodeid", "tonodeid"),
    ("subject", "object"),
    ("user", "item"),
    ("userid", "itemid"),
    ("follower", "followee"),
}

OnBad = Callable[[str, str], None]  # why a line is no row, and the line


class _BadLines:
    """Lines of a text file that are no rows; text is kept of as many as memory allows."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, str]] = []
        self._count = self._bytes = 0

    def add(self, why: str, text: str) -> None:
        self._count += 1
        self._bytes += len(text) + 200  # what Python adds
        if self._bytes <= _MOST_BYTES:
            self._kept.append((why, text))

    def hand_over(self, on_bad: OnBad) -> None:
        for why, text in self._kept:
            on_bad(why, text)
        for _ in range(self._count - len(self._kept)):
            on_bad("one of too many lines that are no rows to be kept", "")


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


class _Utf8Only(io.RawIOBase):
    """A byte stream that raises UnicodeDecodeError where it is not UTF-8. The block parser would
    say so too, but not of a malformed line, which it can't hand over then and prints a traceback.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._decoder = stream, codecs.getincrementaldecoder("utf-8")()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._stream.read(len(buffer))
        self._decoder.decode(block, not block)
        buffer[: len(block)] = block
        return len(block)


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


def read(
    file: InputFile,
    source: SourceConfig,
    columns: Mapping[str, Column],
    skip_bad: bool,
    skip_garbled: bool,
    on_bad: OnBad,
) -> Iterator[pa.RecordBatch]:
    """Lines that are no rows are refused or, with skip_bad, left out; those that are not UTF-8 only
    where skip_garbled says so too."""
    names, width, header_lines = _columns(file, source, columns)
    delimiter = _delimiter(file, source)
    # The block parser knows only delimiters of one ASCII character.
    stand_in = len(delimiter) > 1 or not delimiter.isascii()
    bad = _BadLines()
    quotes = _Quotes(file, source, columns)

    def on_invalid(row: Any) -> str:
        if _is_blank(row.text):
            return "skip"  # which is no row
        quotes.look_into(row.text)
        bad.add(f"expected {width} columns, found {row.actual_columns}", row.text)
        return "skip" if skip_bad else "error"

    # Lines that are not UTF-8; other encodings are all or nothing.
    leave_out = skip_bad and skip_garbled and _is_utf8(source)

    def on_garbled(line: str) -> None:
        bad.add(f"the bytes are not {source.encoding}", line)

    with sources.opened(file, source.member) as stream:
        if leave_out:
            stream = io.BufferedReader(_Utf8Lines(stream, header_lines, on_garbled))
        elif _is_utf8(source):
            stream = io.BufferedReader(_Utf8Only(stream), BLOCK_BYTES)
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
            if (flaw := _flaw(file, source, columns, quotes, error)) is None:
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


def _flaw(
    file: InputFile,
    source: SourceConfig,
    columns: Mapping[str, Column],
    quotes: "_Quotes",
    error: Exception,
) -> DataError | None:
    """The sentence about what the block parser met; None where that is a file without rows."""
    _, _, header_lines = _columns(file, source, columns)
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


def _has_header(source: SourceConfig, columns: Mapping[str, Column]) -> bool:
    if source.header is not None:
        return source.header
    return any(isinstance(column, str) for column in columns.values())


class _Quotes:
    """Finds the quote of a .csv that nobody closed: to the parser all that follows, up to the next
    quote or the end of the file, is one cell. It also finds no fault with text of several lines,
    so once a cell holds a line end, the slow twin reads the file to tell one from the other.
    """

    def __init__(
        self, file: InputFile, source: SourceConfig, columns: Mapping[str, Column]
    ) -> None:
        self._of = file, source, columns
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


def _open_quote(
    file: InputFile, source: SourceConfig, columns: Mapping[str, Column]
) -> DataError | None:
    """The sentence about the first quoted cell that swallowed rows."""
    keys: set[int] = set()
    width = 0
    for first_line, last_line, cells, text in _rows(file, source):
        if not width and not _is_blank("".join(cells)):
            positions, width, _ = _columns(file, source, columns)
            keys = {at for name, at in positions.items() if name in _KEYS}
        if last_line > first_line and _swallows_rows(cells, text, keys, width):
            count = last_line - first_line
            return DataError(
                f"{line_of(file, source, first_line)}: a quoted cell begins here and holds whole "
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


def _columns(
    file: InputFile, source: SourceConfig, columns: Mapping[str, Column]
) -> tuple[dict[str, int], int, int]:
    """Column name -> position; how many columns the first row has; lines up to the header's end."""
    delimiter = _delimiter(file, source)
    rows = (row for row in _rows(file, source) if not _is_blank(delimiter.join(row.cells)))
    row = next(rows, _Row(0, 0, []))
    first, last_line = row.cells, row.last_line
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
    if source.header is None and not has_header and len(first) == width:
        _check_no_header(file, source, positions, row)
    return positions, width, last_line if has_header else 0


def _check_no_header(
    file: InputFile, source: SourceConfig, positions: Mapping[str, int], first: _Row
) -> None:
    """A first line that names its columns is no edge, unless somebody said that it is."""
    found = [first.cells[at] for at in map(positions.get, ("lhs", "rhs")) if at is not None]
    if tuple(re.sub(r"[\s_#-]", "", cell.lower()) for cell in found) in _HEADERS:
        raise DataError(
            f"{line_of(file, source, first.first_line)}: the line reads like names of columns "
            f"({', '.join(found)}). Set header = true beside the file's path to pass it over, or "
            "header = false where it is an edge."
        )


def _bad_line(
    file: InputFile, source: SourceConfig, columns: Mapping[str, Column]
) -> DataError | None:
    """The sentence about the first malformed line, found by reading the file again."""
    _, width, header_lines = _columns(file, source, columns)
    delimiter = _delimiter(file, source)
    kind = {"\t": "tab", ",": "comma"}.get(delimiter, "delimiter")
    for first_line, last_line, cells, _ in _rows(file, source):
        blank = last_line <= header_lines or _is_blank(delimiter.join(cells))
        if len(cells) != width and not blank:
            return DataError(
                f"{line_of(file, source, first_line)}: expected {width} {kind}-separated columns "
                f"({', '.join(columns)}), found {len(cells)}. {FIX}"
            )
    return None


def _bad_bytes(
    file: InputFile, source: SourceConfig, columns: Mapping[str, Column]
) -> DataError | None:
    """The sentence about the first line that is not in the source's encoding."""
    skip = ", or import with graph.skip_bad=true to count and skip such lines"
    skip = skip if _is_utf8(source) else ""
    for row in _rows(file, source):
        if any("\ufffd" in cell for cell in row.cells):
            return DataError(
                f"{line_of(file, source, row.first_line)}: the bytes are not {source.encoding}. "
                f'Name the file\'s encoding beside its path, such as encoding = "latin-1"{skip}.'
            )
    return None


def _stand_in_line(file: InputFile, source: SourceConfig) -> DataError:
    """The sentence about the first line that holds the character U+001F."""
    rows = (
        row.first_line for row in _rows(file, source) if _COLUMN_SEPARATOR in "".join(row.cells)
    )
    return DataError(
        f"{line_of(file, source, next(rows, 0))}: the line holds the character U+001F, which can't "
        "stand beside a delimiter of several characters. Remove it."
    )


def cells_of(
    file: InputFile, source: SourceConfig, columns: Mapping[str, Column]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Of each row, where it begins, for people, and the cells that are wanted: slowly."""
    positions, width, header_lines = _columns(file, source, columns)
    for first_line, last_line, cells, _ in _rows(file, source):
        if last_line > header_lines and len(cells) == width:  # else header or blank
            found = {name: cells[position] for name, position in positions.items()}
            yield line_of(file, source, first_line), found
