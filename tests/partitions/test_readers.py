"""partitions.readers: what is in the file comes out; what is wrong is named by file and line."""

import csv
import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions import columnar, delimited, readers, sources
from partitions.config import Column, SourceConfig
from partitions.errors import DataError

EDGE: dict[str, Column] = {"lhs": 0, "rel": 1, "rhs": 2}
WEIGHTED: dict[str, Column] = {"lhs": 0, "rhs": 1, "weight": 2}
NAMED: dict[str, Column] = {"lhs": "from", "rel": "by", "rhs": "to"}
FIX = "Fix the line, or import with graph.skip_bad=true to count and skip such lines."

# Any text a cell may hold; a key at the start of a file must not look like a byte order mark.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff")
KEY = st.text(CHARACTERS, min_size=1, max_size=8)


def rows_of(
    path: Path,
    columns: dict[str, Column] = EDGE,
    *,
    floats: tuple[str, ...] = (),
    times: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
    skip_bad: bool = False,
    skipped: list[int] | None = None,
    **source: Any,
) -> list[tuple[Any, ...]]:
    batches = readers.read(
        sources.local(path),
        SourceConfig(path=path.name, **source),
        columns,
        skip_bad=skip_bad,
        on_skipped=[].append if skipped is None else skipped.append,
        floats=floats,
        times=times,
        optional=optional,
    )
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def error_of(path: Path, *arguments: Any, **settings: Any) -> str:
    """The one-line message of the DataError, the folder left out."""
    with pytest.raises(DataError) as caught:
        rows_of(path, *arguments, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}"), message
    return message.removeprefix(f"{path.parent}/")


# --- text that is right ---------------------------------------------------------------------------


def test_tsv_is_read_by_position(tmp_path: Path) -> None:
    path = written(tmp_path / "e.tsv", "a\tlikes\tb\nc\thates\td\n")
    assert rows_of(path) == [("a", "likes", "b"), ("c", "hates", "d")]
    assert rows_of(path, {"rhs": 0, "lhs": 2}) == [("a", "b"), ("c", "d")]


def test_columns_may_be_named_in_any_order(tmp_path: Path) -> None:
    path = written(tmp_path / "e.csv", "to,when,from,by\nb,1999,a,likes\nd,2001,c,hates\n")
    assert rows_of(path, NAMED) == [("a", "likes", "b"), ("c", "hates", "d")]


def test_a_header_can_be_skipped_for_positions(tmp_path: Path) -> None:
    path = written(tmp_path / "e.tsv", "x\ty\tz\na\tr\tb\n")
    assert rows_of(path, header=True) == [("a", "r", "b")]
    assert rows_of(path) == [("x", "y", "z"), ("a", "r", "b")]


@pytest.mark.parametrize("before", ["", "\n\n", "  \n", "\r\n\t\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_header_is_found_after_blank_lines_and_a_byte_order_mark(
    tmp_path: Path, before: str, mark: str
) -> None:
    path = written(tmp_path / "e.tsv", f"{mark}{before}from\tby\tto\n\na\tr\tb\n")
    assert rows_of(path, NAMED) == [("a", "r", "b")]


def test_a_quoted_header_may_span_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "e.csv", '"fr\nom",by,to\na,r,b\nc,r\n')
    columns: dict[str, Column] = {"lhs": "fr\nom", "rhs": "to"}
    assert rows_of(path, columns, skip_bad=True) == [("a", "b")]
    assert error_of(path, columns).startswith("e.csv:4: expected 3 comma-separated")


def test_csv_cells_may_hold_quotes_commas_and_line_ends(tmp_path: Path) -> None:
    path = written(tmp_path / "e.csv", '"a ""q"", b","r\ns",c\r\nd,"e","f\r\ng"\n')
    assert rows_of(path) == [('a "q", b', "r\ns", "c"), ("d", "e", "f\r\ng")]


def test_a_quote_is_a_plain_character_in_tsv(tmp_path: Path) -> None:
    path = written(tmp_path / "e.tsv", '"a\tr"\tb\n12" disc\tr\t"x"\n')
    assert rows_of(path) == [('"a', 'r"', "b"), ('12" disc', "r", '"x"')]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_of_every_system_are_understood(tmp_path: Path, end: str, last: bool) -> None:
    text = end.join(["a\tr\tb", "c\tr\td"]) + (end if last else "")
    assert rows_of(written(tmp_path / "e.tsv", text)) == [("a", "r", "b"), ("c", "r", "d")]


@pytest.mark.parametrize("key", ["ключ", "東京", "🜁", "a\u2028b", "a\x85b\x0c", " a ", "x\x00y"])
@pytest.mark.parametrize("name", ["e.tsv", "e.csv"])
def test_unicode_keys_survive(tmp_path: Path, key: str, name: str) -> None:
    separator = "\t" if name == "e.tsv" else ","
    text = "".join(separator.join(row) + "\n" for row in [(key, "r", "b"), ("c", "r", key)])
    assert rows_of(written(tmp_path / name, text)) == [(key, "r", "b"), ("c", "r", key)]


@pytest.mark.parametrize("name", ["e.tsv", "e.csv"])
def test_very_long_keys_survive(tmp_path: Path, name: str) -> None:
    key = "k" * 300_000  # Python's csv module refuses more than 131,072 unless told otherwise
    separator = "\t" if name == "e.tsv" else ","
    path = written(tmp_path / name, f"{separator.join([key, 'r', 'b'])}\n")
    assert rows_of(path) == [(key, "r", "b")]


@pytest.mark.parametrize("text", ["", "\n", "\n  \n\n", "from\tby\tto\n", "from\tby\tto"])
def test_a_file_without_rows_gives_none(tmp_path: Path, text: str) -> None:
    path = written(tmp_path / "e.tsv", text)
    assert rows_of(path, NAMED if text.strip() else EDGE) == []


OPEN_QUOTE = (
    "a quoted cell begins here and holds whole rows ({} lines): is a quote never closed? Double it "
    '("") or remove it.'
)


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("last", ["", 'u2600,"i2600\n', 'u2600,i"2600\n', '"u2600,i2600\n'])
def test_a_quote_that_is_never_closed_is_an_error_wherever_the_next_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip_bad: bool, column: int, last: str
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 1 << 14)
    lines = [f"u{n},i{n}\n" for n in range(1, 3001)]
    lines[1000] = 'u1001,"i1001\n' if column else '"u1001,i1001\n'
    if last:
        lines[2599] = last
    path = written(tmp_path / "e.csv", "".join(lines))
    found = error_of(path, {"lhs": 0, "rhs": 1}, skip_bad=skip_bad)
    assert found == f"e.csv:1001: {OPEN_QUOTE.format('1,599' if last else '1,999')}"


def test_a_quote_that_is_open_over_more_than_a_block_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 1 << 10)
    path = written(tmp_path / "e.csv", 'a,"r,b\n' + "c,r,d\n" * 5000)
    assert error_of(path, skip_bad=True) == f"e.csv:1: {OPEN_QUOTE.format('5,000')}"


def test_rows_between_two_cells_that_seem_quoted_are_no_key(tmp_path: Path) -> None:
    path = written(tmp_path / "e.csv", 'a,"b\nc,d\ne,f"\ng,h\n')
    assert error_of(path, {"lhs": 0, "rhs": 1}) == f"e.csv:1: {OPEN_QUOTE.format('2')}"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_of_several_lines_beside_a_key_stays(tmp_path: Path, end: str) -> None:
    texts = [
        f"soft, warm{end}made in Peru, by hand{end}wash cold, or don't{end}",
        f"{end}{end}, {end}",
        end.join(["one, two"] * 9 + ["three"] * 30),
        f'a "quoted" word, and{end}another "one"',
    ]
    rows = [(f"k{n}", text) for n, text in enumerate(texts)]
    with (tmp_path / "e.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    columns: dict[str, Column] = {"key": 0, "title": 1}
    assert rows_of(tmp_path / "e.csv", columns, optional=("title",)) == rows


def test_a_quote_is_found_open_in_text_beside_a_key_too(tmp_path: Path) -> None:
    lines = [f"k{n},one, two\n" for n in range(40)]
    lines[7], lines[30] = 'k7,"one, two\n', 'k30,one, two"\n'
    path = written(tmp_path / "e.csv", "".join(lines))
    columns: dict[str, Column] = {"key": 0, "title": 1}
    found = error_of(path, columns, optional=("title",), skip_bad=True)
    assert found == f"e.csv:8: {OPEN_QUOTE.format('23')}"


# Cells that look like whole rows are taken for a quote that was never closed.
@given(st.lists(st.tuples(*[KEY.filter(lambda key: key.count(",") < 2)] * 3)))
def test_csv_reads_what_the_standard_library_writes(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "written-by-csv.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    assert rows_of(path) == rows


@given(
    st.lists(st.tuples(*[st.text(CHARACTERS.filter(lambda c: c not in "\t\r\n"), min_size=1)] * 3))
)
def test_tsv_reads_any_text_without_tabs_and_line_ends(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.tsv"
    written(path, "".join("\t".join(row) + "\n" for row in rows))
    assert rows_of(path) == rows


@pytest.mark.parametrize("name", ["e.tsv", "e.csv"])
def test_blocks_of_the_parser_leave_no_seam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 64)
    rows = [
        (f"key {n}", f"rel\n{n}" if name == "e.csv" else "rel", "x" * (n % 9 + 1))
        for n in range(99)
    ]
    with (tmp_path / name).open("w", newline="") as file:
        csv.writer(file, delimiter="\t" if name == "e.tsv" else ",").writerows(rows)
    assert rows_of(tmp_path / name) == rows


# --- encodings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8-sig", "shift-jis"])
def test_other_encodings_are_decoded(tmp_path: Path, encoding: str) -> None:
    key = "かな" if encoding == "shift-jis" else "é"
    path = written(tmp_path / "e.tsv", f"{key}\tr\tb\nc\tr\t{key}\n".encode(encoding))
    assert rows_of(path, encoding=encoding) == [(key, "r", "b"), ("c", "r", key)]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_bytes_of_another_encoding_are_named_by_line(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path / "e.tsv", "a\tr\tb\n\nc\tr\té\n".encode("latin-1"))
    skip = ", or import with graph.skip_bad=true to count and skip such lines"
    assert error_of(path, encoding=encoding) == (
        f"e.tsv:3: the bytes are not {encoding}. Name the file's encoding beside its path, "
        f'such as encoding = "latin-1"{skip if encoding == "utf-8" else ""}.'
    )


@pytest.mark.parametrize("delimiter", ["\t", ",", "::"])
def test_a_malformed_line_that_is_not_utf8_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delimiter: str
) -> None:
    ignored: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", ignored.append)
    lines = [delimiter.join(cells).encode("latin-1") for cells in [("a", "r", "b"), ("a", "é")]]
    path = written(tmp_path / "e.tsv", b"\n".join(lines))
    assert "e.tsv:2: the bytes are not utf-8" in error_of(path, delimiter=delimiter)
    assert not ignored


@pytest.mark.parametrize("delimiter", ["\t", ",", "::"])
def test_lines_that_are_not_utf8_are_left_out_where_bad_rows_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delimiter: str
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 64)
    rows = [(f"kü{n}", "r", f"v{n}") for n in range(60)]
    lines = [delimiter.join(row).encode() + b"\n" for row in rows]
    lines[20] = delimiter.join(("kü", "r", "bad")).encode("latin-1") + b"\n"
    lines[40] = delimiter.join(("bad", "é")).encode("latin-1") + b"\n"
    path = written(tmp_path / "e.txt", b"".join(lines))
    source = SourceConfig(path="e.txt", delimiter=delimiter)
    pieces = list(readers.read_pieces(sources.local(path), source, EDGE, skip_bad=True))
    found = [tuple(row.values()) for piece in pieces for row in piece.rows.to_pylist()]
    assert found == rows[:20] + rows[21:40] + rows[41:]
    assert [row for piece in pieces for row in piece.bad] == [
        readers.BadRow("the bytes are not utf-8", delimiter.join(cells), False)
        for cells in [("k\ufffd", "r", "bad"), ("bad", "\ufffd")]
    ]


# --- delimiters -----------------------------------------------------------------------------------


class Trickle(io.BytesIO):
    """A stream that gives at most the next of `sizes` bytes a read, like a slow pipe."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        super().__init__(data)
        self.sizes, self.reads = sizes, 0

    def read(self, size: int | None = -1) -> bytes:
        most = self.sizes[self.reads % len(self.sizes)]
        self.reads += 1
        return super().read(most if size is None or size < 0 else min(size, most))


@given(
    data=st.lists(st.sampled_from([b":", b"|", b"a", b"::", b":|:", b"aab"])).map(b"".join),
    delimiter=st.sampled_from([b"::", b":|:", b"aab", b":::", b"|"]),
    reads=st.lists(st.integers(1, 5), min_size=1),
    buffers=st.lists(st.integers(1, 5), min_size=1),
)
def test_a_long_delimiter_is_replaced_as_if_the_text_came_whole(
    data: bytes, delimiter: bytes, reads: list[int], buffers: list[int]
) -> None:
    stream = delimited._OneDelimiter(Trickle(data, reads), delimiter, b"\x1f")
    found, turns = b"", 0
    while True:
        buffer = bytearray(buffers[turns % len(buffers)])
        turns += 1
        count = stream.readinto(buffer)
        if not count:
            break
        found += buffer[:count]
    assert found == data.replace(delimiter, b"\x1f")


@pytest.mark.parametrize("delimiter", ["::", " | ", "->", "¦", "|", ";"])
def test_delimiters_of_any_length_are_split_also_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delimiter: str
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 37)
    rows = [(f"l{'x' * (n % 7)}", f"r:{n}", f"{'y' * (n % 5)}z") for n in range(500)]
    path = written(tmp_path / "e.dat", "".join(delimiter.join(row) + "\n" for row in rows))
    assert rows_of(path, delimiter=delimiter) == rows


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "shift-jis", "utf-8-sig", "latin-1"])
def test_a_long_delimiter_is_found_in_any_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 37)
    name = "é" if encoding == "latin-1" else "表"  # whose second byte is 0x5C, in Shift-JIS
    rows = [(f"{name}{n}", "r", f"v{n}") for n in range(300)]
    text = "".join("\\\\".join(row) + "\n" for row in rows)
    path = written(tmp_path / "e.dat", text.encode(encoding))
    assert rows_of(path, delimiter="\\\\", encoding=encoding) == rows


@pytest.mark.parametrize("skip_bad", [False, True])
def test_the_character_that_stands_in_for_a_long_delimiter_is_named(
    tmp_path: Path, skip_bad: bool
) -> None:
    path = written(tmp_path / "e.dat", "a::b\nc\x1fd::e\n")
    assert error_of(path, {"lhs": 0, "rhs": 1}, delimiter="::", skip_bad=skip_bad) == (
        "e.dat:2: the line holds the character U+001F, which can't stand beside a delimiter of "
        "several characters. Remove it."
    )


@pytest.mark.parametrize("name", ["e.tsv", "e.csv"])
def test_a_header_that_names_a_column_twice_is_refused(tmp_path: Path, name: str) -> None:
    separator = "\t" if name == "e.tsv" else ","
    path = written(tmp_path / name, separator.join(["u", "u", "i"]) + "\n" + separator.join("abc"))
    assert error_of(path, {"lhs": "u", "rhs": "i"}) == (
        f"{name}:1: the header has 2 columns u. Rename all but one, or name columns by their "
        "positions."
    )
    assert rows_of(path, {"lhs": 1, "rhs": "i"}) == [("b", "c")]


def test_a_column_far_beyond_the_first_row_is_an_error_at_once(tmp_path: Path) -> None:
    path = written(tmp_path / "e.tsv", "a\tb\n")
    assert error_of(path, {"lhs": 0, "rhs": 100_000_000}, skip_bad=True) == (
        "e.tsv:1 has 2 columns, so there is no column 100000000 (counted from 0) for rhs. "
        "Mend columns."
    )


def test_a_long_delimiter_survives_a_file_of_many_buffers(tmp_path: Path) -> None:
    # 8 KiB is the buffer of io.BufferedReader, which asks for what is left of it: once 1 byte.
    rows = [(f"{n % 1000}", f"{n % 7}", "" if n % 3 else ":") for n in range(150_000)]
    path = written(tmp_path / "e.dat", "".join(f"{a}::{b}::v{c}\n" for a, b, c in rows))
    assert rows_of(path, delimiter="::") == [(a, b, f"v{c}") for a, b, c in rows]


def test_a_wrong_number_of_columns_is_named_for_a_long_delimiter(tmp_path: Path) -> None:
    path = written(tmp_path / "e.dat", "a::r::b\nc:r::d\n")
    assert error_of(path, delimiter="::") == (
        f"e.dat:2: expected 3 delimiter-separated columns (lhs, rel, rhs), found 2. {FIX}"
    )


# --- compressed files and archives ----------------------------------------------------------------

LINES = "".join(f"l{n}\tr\tv{n * 7919 % 1000}\n" for n in range(300))
ROWS = [tuple(line.split("\t")) for line in LINES.splitlines()]


def compressed(path: Path) -> Path:
    """LINES in the format that the file's name tells; in an archive, as the member `in/e.tsv`."""
    data = LINES.encode()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("in/other.tsv", "x\ty\tz\n")
            archive.writestr("in/e.tsv", data)
    elif ".tar" in path.suffixes:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
            for name, content in [("in/other.tsv", b"x\ty\tz\n"), ("in/e.tsv", data)]:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    elif path.suffix == ".zst":
        path.write_bytes(pa.compress(data, codec="zstd", asbytes=True))
    else:
        path.write_bytes(gzip.compress(data))
    return path


@pytest.mark.parametrize("name", ["e.tsv.gz", "e.tsv.zst", "e.tar.gz", "e.tar", "e.zip"])
def test_compressed_files_and_members_are_read(tmp_path: Path, name: str) -> None:
    member = None if ".tsv" in name else "in/e.tsv"
    assert rows_of(compressed(tmp_path / name), member=member) == ROWS


@pytest.mark.parametrize("name", ["e.tsv.gz", "e.jsonl.zst"])
def test_a_compressed_file_of_no_bytes_was_truncated(tmp_path: Path, name: str) -> None:
    columns: dict[str, Column] = {"lhs": "a", "rhs": "b"}
    assert error_of(written(tmp_path / name, b""), columns).startswith(f"{name} can't be read: ")


@pytest.mark.parametrize("name", ["e.tar.gz", "e.tar", "e.zip", "e.tsv.zip"])
def test_an_archive_without_a_member_lists_its_members(tmp_path: Path, name: str) -> None:
    path = compressed(tmp_path / name)
    assert error_of(path) == (
        f'{name} is an archive: name one of its files as member, such as member = "in/other.tsv". '
        "It holds in/other.tsv, in/e.tsv."
    )


def test_gzip_members_laid_end_to_end_are_one_file(tmp_path: Path) -> None:
    path = written(tmp_path / "e.tsv.gz", gzip.compress(b"a\tr\tb\n") + gzip.compress(b"c\tr\td\n"))
    assert rows_of(path) == [("a", "r", "b"), ("c", "r", "d")]


def test_a_bad_line_of_a_member_is_named(tmp_path: Path) -> None:
    path = tmp_path / "e.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("in/e.tsv", "a\tr\tb\na\tr\n")
    assert error_of(path, member="in/e.tsv") == (
        f"e.zip!in/e.tsv:2: expected 3 tab-separated columns (lhs, rel, rhs), found 2. {FIX}"
    )


@pytest.mark.parametrize("name", ["e.tar.gz", "e.zip"])
def test_an_unknown_member_names_the_nearest(tmp_path: Path, name: str) -> None:
    path = compressed(tmp_path / name)
    assert (
        error_of(path, member="in/f.tsv")
        == f"{name} has no member in/f.tsv. Did you mean in/e.tsv?"
    )


@pytest.mark.parametrize("name", ["e.tsv.gz", "e.tsv.zst", "e.tar.gz", "e.zip"])
def test_a_truncated_archive_is_an_error(tmp_path: Path, name: str) -> None:
    path = compressed(tmp_path / name)
    whole = path.read_bytes()
    member = None if ".tsv" in name else "in/e.tsv"
    for length in sorted({*range(1, len(whole), 37), *range(len(whole) - 9, len(whole))}):
        path.write_bytes(whole[:length])
        message = error_of(path, member=member)
        assert message.startswith(f"{name} can't be read: "), length


@pytest.mark.parametrize("name", ["e.tsv.gz", "e.tar.gz", "e.zip"])
def test_a_flipped_bit_of_a_checksummed_file_never_gives_other_rows(
    tmp_path: Path, name: str
) -> None:
    path = compressed(tmp_path / name)
    whole = path.read_bytes()
    member = None if ".tsv" in name else "in/e.tsv"
    places = range(0, len(whole), 5)
    num_errors = 0
    for at in places:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            assert rows_of(path, member=member) == ROWS, at
        except DataError as error:
            num_errors += 1
            assert str(error).startswith(str(path))
    assert num_errors > 0.7 * len(places)  # the headers hold dates and the like


def test_a_file_that_is_not_what_its_name_says_is_an_error(tmp_path: Path) -> None:
    for name in ["e.tsv.gz", "e.tsv.zst", "e.parquet", "e.arrow", "e.zip", "e.tar.gz"]:
        path = written(tmp_path / name, "a\tr\tb\n" * 99)
        member = "in/e.tsv" if name in ("e.zip", "e.tar.gz") else None
        assert error_of(path, member=member).startswith(f"{name} can't be read: ")


def test_a_checksum_that_is_wrong_is_found_at_the_end(tmp_path: Path) -> None:
    data = LINES.encode()
    body = zlib.compressobj(wbits=-15)
    raw = body.compress(data) + body.flush()
    head = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    right = head + raw + struct.pack("<II", zlib.crc32(data), len(data))
    assert rows_of(written(tmp_path / "e.tsv.gz", right)) == ROWS
    wrong = head + raw + struct.pack("<II", zlib.crc32(data) ^ 1, len(data))
    assert "CRC check failed" in error_of(written(tmp_path / "e.tsv.gz", wrong))


# --- lines that are wrong -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("a\tr\tb\nc\tr\n", 2, 2),
        ("a\tr\tb\nc\tr\td\te\n", 2, 4),
        ("a\tr\tb\nc\tr", 2, 2),
        ("\n\na\tr\tb\n\nc\n", 5, 1),
        ("a\tr\tb\r\nc\tr\r\n", 2, 2),
        ("a\tr\tb\rc\tr\r", 2, 2),
        ("a\tr\nc\tr\td\n", 1, 2),
        ("a\u2028\tr\tb\x85\nc\tr\n", 2, 2),
    ],
)
def test_a_wrong_number_of_columns_names_the_line(
    tmp_path: Path, text: str, line: int, found: int
) -> None:
    assert error_of(written(tmp_path / "e.tsv", text)) == (
        f"e.tsv:{line}: expected 3 tab-separated columns (lhs, rel, rhs), found {found}. {FIX}"
    )


def test_header_and_blank_lines_do_not_shift_the_line_number(tmp_path: Path) -> None:
    path = written(tmp_path / "e.tsv", "\nfrom\tby\tto\n\n  \na\tr\tb\n\nc\tr\n")
    assert error_of(path, NAMED).startswith("e.tsv:7: expected 3 ")
    path = written(tmp_path / "e.tsv", "\nfrom\tby\tto\n\n  \na\tr\tb\n\nc\t\td\n")
    assert error_of(path, NAMED) == f"e.tsv:7: the rel key is empty. {FIX}"


def test_a_csv_row_is_named_by_its_first_line(tmp_path: Path) -> None:
    path = written(tmp_path / "e.csv", '"a\n\nb",r,c\n\n"d\ne",f\n')
    assert error_of(path) == (
        f"e.csv:5: expected 3 comma-separated columns (lhs, rel, rhs), found 2. {FIX}"
    )


def test_separators_of_unicode_are_no_line_ends_in_csv(tmp_path: Path) -> None:
    path = written(tmp_path / "e.csv", "a\u2028b,r,c\x85\nd\x0c,,e\n")
    assert error_of(path) == f"e.csv:2: the rel key is empty. {FIX}"


@pytest.mark.parametrize("blank", ["\t\t", "a\t\tb", "a\tr\t", "\tr\tb"])
def test_an_empty_key_names_its_line(tmp_path: Path, blank: str) -> None:
    path = written(tmp_path / "e.tsv", f"a\tr\tb\n\n{blank}\n")
    name = ("lhs", "rel", "rhs")[blank.split("\t").index("")]
    assert error_of(path) == f"e.tsv:3: the {name} key is empty. {FIX}"


@pytest.mark.parametrize(
    "cell", ["x", "", "nan", "NaN", "inf", "-Infinity", "1e39", "0x10", "1_0", "1,5"]
)
def test_a_weight_that_is_no_number_names_its_line(tmp_path: Path, cell: str) -> None:
    path = written(tmp_path / "e.tsv", f"a\tb\t1\n\nc\td\t{cell}\n")
    assert error_of(path, WEIGHTED, floats=("weight",)) == (
        f"e.tsv:3: weight is {cell!r}, expected a number. {FIX}"
    )


@pytest.mark.parametrize(
    ("cell", "weight"),
    [
        ("1", 1.0),
        ("+1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        (" 2 ", 2.0),
        ("-1e-3", -1e-3),
        ("3e38", 3e38),
    ],
)
def test_a_weight_is_read_as_float32(tmp_path: Path, cell: str, weight: float) -> None:
    path = written(tmp_path / "e.tsv", f"a\tb\t{cell}\n")
    assert rows_of(path, WEIGHTED, floats=("weight",)) == [("a", "b", float(np.float32(weight)))]


def test_bad_rows_are_skipped_and_counted_exactly(tmp_path: Path) -> None:
    lines = [
        "a\tb\t1",
        "c\td",
        "",
        "\te\t1",
        "f\tg\t1\t2",
        "h\ti\tnan",
        "  ",
        "\tj\tx",
        "k\tl\t2",
        "m",
    ]
    path = written(tmp_path / "e.tsv", "\n".join(lines))
    skipped: list[int] = []
    rows = rows_of(path, WEIGHTED, floats=("weight",), skip_bad=True, skipped=skipped)
    assert rows == [("a", "b", 1.0), ("k", "l", 2.0)]
    assert sum(skipped) == 6  # the blank lines are no rows, and a row bad twice counts once


@pytest.mark.parametrize("bad", ["k\tr", "k\t\tv", "k\tr\tv\tw"])
def test_a_bad_line_in_a_later_block_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 64)
    lines = [f"key{n}\tr\tv" for n in range(50)]
    lines[40] = bad
    path = written(tmp_path / "e.tsv", "\n".join(lines) + "\n")
    assert error_of(path).startswith("e.tsv:41: ")
    skipped: list[int] = []
    rows = rows_of(path, skip_bad=True, skipped=skipped)
    assert rows == [(f"key{n}", "r", "v") for n in range(50) if n != 40]
    assert sum(skipped) == 1


def test_only_optional_columns_may_be_empty(tmp_path: Path) -> None:
    path = written(tmp_path / "e.tsv", "a\t\nb\ttitle\n")
    columns: dict[str, Column] = {"key": 0, "title": 1}
    assert rows_of(path, columns, optional=("title",)) == [("a", ""), ("b", "title")]
    assert error_of(path, columns) == f"e.tsv:1: the title key is empty. {FIX}"


def test_an_unknown_column_names_the_nearest(tmp_path: Path) -> None:
    path = written(tmp_path / "e.csv", "from,by,too\na,r,b\n")
    assert error_of(path, NAMED) == "e.csv:1: the header has no column to. Did you mean too?"


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("e.csv", "source,relation,target"),
        ("e.tsv", "User_ID\tevent\tItem ID"),
        ("e.tsv", "lhs\trel\trhs"),
    ],
)
def test_a_header_that_nobody_named_is_not_an_edge(tmp_path: Path, name: str, header: str) -> None:
    delimiter = "," if name == "e.csv" else "\t"
    path = written(tmp_path / name, f"{header}\n{delimiter.join('arb')}\n")
    lhs, rel, rhs = header.split(delimiter)
    assert error_of(path) == (
        f"{name}:1: the line reads like names of columns ({lhs}, {rhs}). Set header = true beside "
        "the file's path to pass it over, or header = false where it is an edge."
    )
    assert rows_of(path, header=True) == [("a", "r", "b")]
    assert rows_of(path, header=False) == [(lhs, rel, rhs), ("a", "r", "b")]


@pytest.mark.parametrize("first", ["user0\tbuys\titem0", "u:user\tbuys\ti:item", "from\tto\tuser"])
def test_keys_that_remind_of_a_header_are_an_edge(tmp_path: Path, first: str) -> None:
    path = written(tmp_path / "e.tsv", f"{first}\na\tr\tb\n")
    assert rows_of(path) == [tuple(first.split("\t")), ("a", "r", "b")]


# --- Parquet and Arrow ----------------------------------------------------------------------------

BINARY = ["e.parquet", "e.arrow", "e.feather", "stream.arrow"]


def stored(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        new = pa.ipc.new_stream if path.stem == "stream" else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("name", BINARY)
def test_whole_numbers_become_text(tmp_path: Path, name: str) -> None:
    table = pa.table(
        {
            "l": pa.array([1, 20, -3, 2**63 - 1], pa.int64()),
            "r": pa.array(["x", "y", "x", "ż"]).dictionary_encode(),
            "unused": [1.5, None, 2.5, 3.5],
            "w": pa.array([0.5, 1, 2, 3], pa.float64()),
        }
    )
    path = stored(tmp_path / name, table)
    rows = [("1", "x", 0.5), ("20", "y", 1.0), ("-3", "x", 2.0), (str(2**63 - 1), "ż", 3.0)]
    for columns in ({"lhs": "l", "rhs": "r", "weight": "w"}, {"lhs": 0, "rhs": 1, "weight": 3}):
        assert rows_of(path, columns, floats=("weight",)) == rows


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize(
    "weights",
    [
        pa.array([1, 2], pa.int8()),
        pa.array(["1", "2"]),
        pa.array([1.0, 2.0]).dictionary_encode(),
        pa.array(["1", "2"]).dictionary_encode(),
    ],
    ids=str,
)
def test_weights_of_other_types_are_converted(tmp_path: Path, name: str, weights: pa.Array) -> None:
    if name == "e.parquet" and weights.type == pa.dictionary(pa.int32(), pa.float64()):
        weights = weights.cast(pa.float64())  # a type that Parquet gives back as plain float64
    path = stored(tmp_path / name, pa.table({"l": ["a", "b"], "r": ["c", "d"], "w": weights}))
    assert rows_of(path, WEIGHTED, floats=("weight",)) == [("a", "c", 1.0), ("b", "d", 2.0)]


@pytest.mark.parametrize("name", BINARY)
def test_missing_values_are_refused_or_counted(tmp_path: Path, name: str) -> None:
    table = pa.table({"l": ["a", None, "", "d"], "r": ["x"] * 4, "w": [1.0, 1.0, 1.0, np.nan]})
    path = stored(tmp_path / name, table)
    assert error_of(path, WEIGHTED, floats=("weight",)) == (
        f"{name} row 2: lhs is missing or empty. "
        "Fix the row, or import with graph.skip_bad=true to count and skip such rows."
    )
    skipped: list[int] = []
    rows = rows_of(path, WEIGHTED, floats=("weight",), skip_bad=True, skipped=skipped)
    assert (rows, sum(skipped)) == ([("a", "x", 1.0)], 3)


@pytest.mark.parametrize("name", BINARY)
def test_columns_that_are_not_there_are_named(tmp_path: Path, name: str) -> None:
    path = stored(tmp_path / name, pa.table({"from": ["a"], "too": ["b"]}))
    assert error_of(path, {"lhs": "from", "rhs": "to"}) == (
        f"{name} has no column to. Did you mean too?"
    )
    assert error_of(path) == (
        f"{name} has 2 columns, so there is no column 2 (counted from 0) for rhs. "
        "Known here: from, too."
    )


@pytest.mark.parametrize("name", BINARY)
def test_columns_of_the_same_name_are_refused(tmp_path: Path, name: str) -> None:
    table = pa.table([["a"], ["b"]], names=["x", "x"])
    path = stored(tmp_path / name, table)
    assert error_of(path, {"lhs": "x", "rhs": 1}) == f"{name} has 2 columns x. Rename all but one."


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize(
    ("keys", "type_name"),
    [(pa.array([1.5, 2.0]), "double"), (pa.array([[1], [2]]), "list<")],
    ids=["floats", "lists"],
)
def test_keys_of_unfit_types_are_refused(
    tmp_path: Path, name: str, keys: pa.Array, type_name: str
) -> None:
    path = stored(tmp_path / name, pa.table({"l": keys, "r": ["x", "y"]}))
    message = error_of(path, {"lhs": "l", "rhs": "r"})
    assert message.startswith(f"{name}: column l is of type {type_name}")
    assert message.endswith("expected text or whole numbers. Export it as text.")


def test_weights_of_unfit_types_are_refused(tmp_path: Path) -> None:
    table = pa.table({"l": ["a"], "r": ["b"], "w": pa.array([[1.0]])})
    path = stored(tmp_path / "e.parquet", table)
    found = error_of(path, WEIGHTED, floats=("weight",))
    assert found.startswith("e.parquet: column 2 is of type list<")
    assert found.endswith(", expected numbers. Cast the column, or leave it out.")


@pytest.mark.parametrize(
    ("column", "names", "sentence"),
    [
        (
            pa.array([1, 2], pa.date32()),
            {"floats": ("x",)},
            "column x is of type date32[day], expected numbers",
        ),
        (
            pa.array([1.5, 2.0]),
            {"times": ("x",)},
            "column x is of type double, expected whole seconds, a timestamp or a date",
        ),
        (pa.array([b"a", b"\xff"]), {}, "column x holds bytes that are not utf-8"),
    ],
)
def test_a_column_of_an_unfit_type_is_named(
    tmp_path: Path, column: pa.Array, names: dict[str, Any], sentence: str
) -> None:
    path = stored(tmp_path / "e.parquet", pa.table({"l": ["a", "b"], "x": column}))
    columns: dict[str, Column] = {"lhs": "l", "x": "x"}
    assert error_of(path, columns, skip_bad=True, **names).startswith(f"e.parquet: {sentence}. ")


EXTREMES = {
    "ns": pa.array([1, None, -(2**63)], pa.timestamp("ns")),
    "us": pa.array([2**63 - 1, None, -(2**63)], pa.timestamp("us")),
    "utc": pa.array([2**62, None, 1], pa.timestamp("us", "UTC")),
    "date": pa.array([2**31 - 1, None, -(2**31)], pa.date32()),
    "coded": pa.array([1, None, 2], pa.timestamp("ns")).dictionary_encode(),
}


@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("name", ["e.parquet", "e.arrow"])
def test_times_that_python_can_not_hold_are_read_and_left_out(
    tmp_path: Path, name: str, kind: str
) -> None:
    table = pa.table({"l": ["a", "b", ""], "r": ["x", "y", "z"], "t": EXTREMES[kind]})
    path = stored(tmp_path / name, table)
    columns: dict[str, Column] = {"lhs": "l", "rhs": "r", "timestamp": "t"}
    skipped: list[int] = []
    rows = rows_of(path, columns, times=("timestamp",), skip_bad=True, skipped=skipped)
    assert [row[:2] for row in rows] == [("a", "x")] and sum(skipped) == 2
    assert error_of(path, columns, times=("timestamp",)).startswith(
        f"{name} row 2: timestamp is missing or empty. Fix the row, or import with"
    )


def test_decimals_and_bytes_of_a_bad_row_are_shown(tmp_path: Path) -> None:
    from decimal import Decimal

    table = pa.table({"l": [b"a", b""], "r": [b"x", b"y"], "w": [Decimal("1.5"), Decimal("2.5")]})
    path = stored(tmp_path / "e.parquet", table)
    assert rows_of(path, WEIGHTED, floats=("weight",), skip_bad=True) == [("a", "x", 1.5)]


@pytest.mark.parametrize(
    ("weight", "found"), [(np.nan, "nan"), (np.inf, "inf"), (1e300, "1e+300"), ("0x10", "'0x10'")]
)
@pytest.mark.parametrize("name", ["e.parquet", "e.arrow"])
def test_a_bad_value_of_a_table_names_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, weight: Any, found: str
) -> None:
    monkeypatch.setattr(columnar, "_BATCH_ROWS", 10)
    good = "1" if isinstance(weight, str) else 1.0
    weights = [good] * 25 + [weight] + [good] * 4
    path = stored(tmp_path / name, pa.table({"l": ["a"] * 30, "r": ["b"] * 30, "w": weights}))
    assert error_of(path, WEIGHTED, floats=("weight",)) == (
        f"{name} row 26: weight is {found}, expected a number. Fix the row, or import with "
        "graph.skip_bad=true to count and skip such rows."
    )


@pytest.mark.parametrize("unit", ["ms", "us", "ns", "s"])
def test_a_time_before_1970_is_rounded_down(tmp_path: Path, unit: str) -> None:
    ticks = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    times = pa.array([-ticks, -ticks // 2, -1, 0, ticks // 2, ticks], pa.timestamp(unit, "UTC"))
    path = stored(tmp_path / "e.parquet", pa.table({"l": ["a"] * 6, "r": ["b"] * 6, "t": times}))
    columns: dict[str, Column] = {"lhs": "l", "rhs": "r", "timestamp": "t"}
    source = SourceConfig(path="e.parquet")
    (batch,) = readers.read(sources.local(path), source, columns, times=("timestamp",))
    assert batch.column("timestamp").to_pylist() == [-1, -1, -1, 0, ticks // 2 // ticks, 1]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_an_arrow_file_is_not_mapped_for_it_may_be_cut_while_it_is_read(tmp_path: Path) -> None:
    table = pa.table({"l": ["a"] * 999, "r": ["b"] * 999})
    path = stored(tmp_path / "e.arrow", table)
    batches = readers.read(sources.local(path), SourceConfig(path="e.arrow"), {"lhs": 0, "rhs": 1})
    next(batches)
    assert str(path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("name", BINARY)
def test_a_truncated_table_file_is_an_error_or_is_whole(tmp_path: Path, name: str) -> None:
    table = pa.table({"l": [f"k{n}" for n in range(9)], "r": ["x"] * 9})
    path = stored(tmp_path / name, table)
    rows = rows_of(path, {"lhs": 0, "rhs": 1})
    whole = path.read_bytes()
    # In steps of 8: an Arrow stream cut between two messages is the case that looks whole.
    for length in range(0, len(whole) - 8, 8):
        path.write_bytes(whole[:length])
        assert error_of(path, {"lhs": 0, "rhs": 1}).startswith(f"{name} can't be read: "), length
    path.write_bytes(whole)
    assert rows_of(path, {"lhs": 0, "rhs": 1}) == rows == [(f"k{n}", "x") for n in range(9)]


def test_the_format_can_be_named_where_the_ending_does_not_tell(tmp_path: Path) -> None:
    path = stored(tmp_path / "e.parquet", pa.table({"l": [1], "r": ["x"]}))
    renamed = path.rename(tmp_path / "part-0000")
    assert rows_of(renamed, {"lhs": 0, "rhs": 1}, format="parquet") == [("1", "x")]


@pytest.mark.parametrize("codec", ["zstd", "lz4", None])
@pytest.mark.parametrize("name", ["e.arrow", "e.feather", "stream.arrow"])
def test_compressed_arrow_files_are_read(tmp_path: Path, name: str, codec: str | None) -> None:
    table = pa.table({"l": [f"key {n}" for n in range(999)], "r": list(range(999))})
    new = pa.ipc.new_stream if name == "stream.arrow" else pa.ipc.new_file
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with new(str(tmp_path / name), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=100)
    rows = rows_of(tmp_path / name, {"lhs": "l", "rhs": "r"})
    assert rows == [(f"key {n}", str(n)) for n in range(999)]


@pytest.mark.parametrize("codec", ["zstd", "snappy", "gzip", "lz4", "brotli", "none"])
def test_compressed_parquet_files_are_read(tmp_path: Path, codec: str) -> None:
    table = pa.table({"l": [f"key {n}" for n in range(999)], "r": list(range(999))})
    pq.write_table(table, tmp_path / "e.parquet", compression=codec, row_group_size=100)
    rows = rows_of(tmp_path / "e.parquet", {"lhs": "l", "rhs": "r"})
    assert rows == [(f"key {n}", str(n)) for n in range(999)]


@pytest.mark.parametrize("name", ["e.tsv", "e.parquet", "e.arrow"])
def test_batches_do_not_depend_on_the_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(columnar, "_BATCH_ROWS", 300)
    table = pa.table({"l": [f"key {n}" for n in range(4000)], "r": ["x"] * 4000})
    if name == "e.tsv":
        written(tmp_path / name, "".join(f"key {n}\tx\n" for n in range(4000)))
    elif name == "e.parquet":
        pq.write_table(table, tmp_path / name, row_group_size=1000)
    else:
        with pa.ipc.new_file(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)  # one batch of all rows
    found = []
    before = pa.cpu_count()
    try:
        for num_threads in (1, 2, 7):
            pa.set_cpu_count(num_threads)
            file, source = sources.local(tmp_path / name), SourceConfig(path=name)
            batches = list(readers.read(file, source, {"lhs": 0, "rhs": 1}))
            found.append([batch.to_pydict() for batch in batches])
    finally:
        pa.set_cpu_count(before)
    assert found[0] == found[1] == found[2]
    assert sum(len(batch["lhs"]) for batch in found[0]) == 4000
    assert 1 < max(len(batch["lhs"]) for batch in found[0]) < 1000


@pytest.mark.parametrize(
    ("cell", "seconds"),
    [
        ("7", 7),
        ("-7", -7),
        ("+7", 7),
        (" 7 ", 7),
        ("1970-01-02", 86400),
        ("1970-01-01T00:00:01.9Z", 1),
        ("0x10", None),
        ("1e3", None),
        ("", None),
        ("noon", None),
    ],
)
@pytest.mark.parametrize("beside", ["5", "1970-01-01T00:00:05+00:00"])
def test_a_time_is_read_as_seconds(
    tmp_path: Path, cell: str, seconds: int | None, beside: str
) -> None:
    path = written(tmp_path / "e.tsv", f"a\tb\t{beside}\nc\td\t{cell}\n")
    columns: dict[str, Column] = {"lhs": 0, "rhs": 1, "timestamp": 2}
    file, source = sources.local(path), SourceConfig(path="e.tsv")
    if seconds is None:
        with pytest.raises(DataError, match=rf"e\.tsv:2: timestamp is '{cell}', expected whole"):
            list(readers.read(file, source, columns, times=("timestamp",)))
    else:
        (batch,) = readers.read(file, source, columns, times=("timestamp",))
        assert batch.column("timestamp").to_pylist() == [5, seconds]


def test_a_time_beyond_64_bits_names_its_line(tmp_path: Path) -> None:
    path = written(tmp_path / "e.tsv", f"a\tb\t1\nc\td\t{2**63}\n")
    columns: dict[str, Column] = {"lhs": 0, "rhs": 1, "timestamp": 2}
    with pytest.raises(DataError, match=r"e\.tsv:2: timestamp is '9223372036854775808'"):
        source = SourceConfig(path="e.tsv")
        list(readers.read(sources.local(path), source, columns, times=("timestamp",)))


# --- finding files --------------------------------------------------------------------------------


def test_a_glob_names_its_files_in_order(tmp_path: Path) -> None:
    for name in ["b.tsv", "a.tsv", "c.csv", "sub/d.tsv"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.base_name for path in sources.expand(tmp_path, SourceConfig(path="*.tsv"))]
    assert names == ["a.tsv", "b.tsv"]
    deep = sources.expand(tmp_path / "elsewhere", SourceConfig(path=f"{tmp_path}/**/*.tsv"))
    assert [path.base_name for path in deep] == ["a.tsv", "b.tsv", "d.tsv"]


@pytest.mark.parametrize("pattern", ["e.tsv", "*.tsv", "su*", "sub/e.tsv"])
def test_a_missing_file_is_an_error(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "sub").mkdir()  # a folder is no file of a glob
    with pytest.raises(DataError) as caught:
        sources.expand(tmp_path, SourceConfig(path=pattern))
    assert str(caught.value) == (
        f"{tmp_path / pattern} is missing: no such file. Mend the path (it starts from graph.data)."
    )
