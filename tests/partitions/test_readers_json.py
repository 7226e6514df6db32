"""partitions.json_lines by way of readers: what json.loads finds comes out, bad lines are named."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions import delimited, json_lines, readers, sources
from partitions.config import Column, SourceConfig
from partitions.errors import DataError

EDGE: dict[str, Column] = {"lhs": "l", "rhs": "r"}
FULL: dict[str, Column] = {"lhs": "l", "rhs": "r", "weight": "w", "timestamp": "t"}
FIX = "Fix the line, or import with graph.skip_bad=true to count and skip such lines."
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)


def rows_of(
    path: Path,
    columns: dict[str, Column] = EDGE,
    *,
    skip_bad: bool = False,
    skipped: list[int] | None = None,
    optional: tuple[str, ...] = (),
    **source: Any,
) -> list[tuple[Any, ...]]:
    count = [] if skipped is None else skipped
    batches = readers.read(
        sources.local(path),
        SourceConfig(path=path.name, **source),
        columns,
        skip_bad=skip_bad,
        on_skipped=count.append,
        floats=("weight",),
        times=("timestamp",),
        optional=optional,
    )
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


def written(path: Path, *lines: str) -> Path:
    path.write_bytes("".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass"))
    return path


def error_of(path: Path, *arguments: Any, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        rows_of(path, *arguments, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path.parent}/")


@pytest.mark.parametrize("name", ["e.jsonl", "e.ndjson", "e.json", "e.jsonl.gz", "e.json.zst"])
def test_objects_are_read_by_name(tmp_path: Path, name: str) -> None:
    path = written(
        tmp_path / name,
        '{"l": "a", "x": [1, {"y": 2}], "r": "b", "w": 0.5, "t": 7}',
        '{"t": 8, "w": 2, "r": "d\\u00e9\\n", "l": "c"}',
    )
    if name.endswith("gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    elif name.endswith("zst"):
        path.write_bytes(pa.compress(path.read_bytes(), codec="zstd", asbytes=True))
    assert rows_of(path, FULL) == [("a", "b", 0.5, 7), ("c", "dé\n", 2.0, 8)]


def test_the_format_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path / "part-0", '{"l": "a", "r": "b"}')
    assert rows_of(path, format="json") == [("a", "b")]


def test_fields_inside_objects_are_read_by_dotted_path(tmp_path: Path) -> None:
    path = written(
        tmp_path / "e.jsonl",
        '{"user": {"id": 7, "at": {"t": 1}}, "item": {"id": "x"}}',
        '{"item": {"id": "y"}, "user": {"at": {"t": 2}, "id": 8}}',
    )
    columns: dict[str, Column] = {"lhs": "user.id", "rhs": "item.id", "timestamp": "user.at.t"}
    assert rows_of(path, columns) == [("7", "x", 1), ("8", "y", 2)]
    written(path, '{"user": {"id": 7}, "item": {"id": "x"}}', '{"user": null, "item": {"id": 1}}')
    inner: dict[str, Column] = {"lhs": "user.id", "rhs": "item.id"}
    assert error_of(path, inner) == (
        f"e.jsonl:2: lhs is missing: user.id is null or not there. {FIX}"
    )


def test_a_name_with_a_dot_goes_before_a_path(tmp_path: Path) -> None:
    path = written(tmp_path / "e.jsonl", '{"a.b": "x", "a": {"b": "y"}, "r": "z"}')
    assert rows_of(path, {"lhs": "a.b", "rhs": "r"}) == [("x", "z")]


def test_keys_may_be_text_and_whole_numbers_mixed(tmp_path: Path) -> None:
    path = written(
        tmp_path / "e.jsonl", *(json.dumps({"l": k, "r": "x"}) for k in [1, "1", -2, 2**70, "ż"])
    )
    assert [lhs for lhs, _ in rows_of(path)] == ["1", "1", "-2", str(2**70), "ż"]


VALUES = st.one_of(TEXT, st.integers(-(2**70), 2**70))


@given(
    st.lists(st.tuples(VALUES, VALUES, st.floats(width=32, allow_nan=False, allow_infinity=False))),
    st.integers(8, 400),
    st.booleans(),
)
def test_what_json_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[Any, Any, float]],
    block_bytes: int,
    ascii_only: bool,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    names = ("l", "r", "w")
    lines = [json.dumps(dict(zip(names, r, strict=True)), ensure_ascii=ascii_only) for r in rows]
    written(path, *lines)
    wanted: dict[str, Column] = {"lhs": "l", "rhs": "r", "weight": "w"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "BLOCK_BYTES", block_bytes)
        found = rows_of(path, wanted)
    assert found == [(str(a), str(b), w) for a, b, w in rows]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "expected a JSON object, found something else (Expecting property name"),
        ("[", "expected a JSON object, found something else (Expecting value"),
        ('["a", "b"]', 'expected a JSON object, found ["a", "b"]'),
        ("7", "expected a JSON object, found 7"),
        ('{"l": "a", "r": "b"} {}', "expected a JSON object, found something else (Extra data"),
        ('{"l": "a"}', "rhs is missing: there is no r (Known here: l)"),
        ('{"l": "a", "rr": "b"}', "rhs is missing: there is no r (Did you mean rr?)"),
        ('{"l": null, "r": "b"}', "lhs is missing: l is null or not there"),
        ('{"l": "a", "r": ""}', "the rhs key is empty"),
        ('{"l": 1.5, "r": "b"}', "lhs is 1.5, expected text or a whole number"),
        ('{"l": true, "r": "b"}', "lhs is true, expected text or a whole number"),
        ('{"l": ["a"], "r": "b"}', 'lhs is ["a"], expected text or a whole number'),
        ('{"l": "\\ud800", "r": "b"}', "lhs holds half a surrogate pair, which is no text"),
        ('{"l": "\ud800", "r": "b"}', "the bytes are not utf-8"),
        ("[" * 100_000, "the object is nested too deep"),
    ],
)
@pytest.mark.parametrize("first", ['{"l": "a", "r": "b"}', '{"l": 1, "r": "b"}'])
def test_a_bad_line_is_named_and_can_be_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, what: str, first: str
) -> None:
    lines = [first] * 9 + ["", "  ", line] + [first] * 5
    path = written(tmp_path / "e.jsonl", *lines)
    for block_bytes in (40, 1 << 20):
        monkeypatch.setattr(delimited, "BLOCK_BYTES", block_bytes)
        message = error_of(path)
        assert message.startswith(f"e.jsonl:12: {what}"), message
        assert message.endswith(f". {FIX}")
        skipped: list[int] = []
        assert len(rows_of(path, skip_bad=True, skipped=skipped)) == 14
        assert skipped == [1]


@pytest.mark.parametrize(
    ("field", "what"),
    [
        ('"w": NaN', "weight is nan, expected a number"),
        ('"w": -Infinity', "weight is -inf, expected a number"),
        ('"w": 1e39', "weight is 1e+39, expected a number"),
        ('"w": "x"', 'weight is "x", expected a number'),
        ('"w": true', "weight is true, expected a number"),
        ('"w": null', "weight is missing: w is null or not there"),
        (
            '"w": 1, "t": 1.5',
            "timestamp is 1.5, expected whole seconds since 1970 or a date such as",
        ),
        ('"w": 1, "t": "noon"', 'timestamp is "noon", expected whole seconds since 1970 or a date'),
        ('"w": 1, "t": 9223372036854775808', "timestamp is 9223372036854775808, expected whole"),
    ],
)
def test_a_number_that_is_none_names_its_line(tmp_path: Path, field: str, what: str) -> None:
    good = '{"l": "a", "r": "b", "t": 1, "w": 2.5}'
    path = written(tmp_path / "e.jsonl", good, '{"l": "a", "r": "b", "t": 1, ' + field + "}", good)
    assert error_of(path, FULL).startswith(f"e.jsonl:2: {what}")
    skipped: list[int] = []
    assert len(rows_of(path, FULL, skip_bad=True, skipped=skipped)) == 2
    assert sum(skipped) == 1


def test_numbers_and_dates_may_be_text(tmp_path: Path) -> None:
    path = written(
        tmp_path / "e.jsonl",
        '{"l": "a", "r": "b", "w": "1.5", "t": "1970-01-02"}',
        '{"l": "a", "r": "b", "w": 3e38, "t": 5}',
        '{"l": "a", "r": "b", "w": 2, "t": "1970-01-01T00:00:07Z"}',
    )
    assert [row[2:] for row in rows_of(path, FULL)] == [
        (1.5, 86400),
        (float(np.float32(3e38)), 5),
        (2.0, 7),
    ]


def test_optional_fields_may_be_missing(tmp_path: Path) -> None:
    path = written(tmp_path / "e.jsonl", '{"k": "a"}', '{"k": "b", "t": "x"}', '{"k": 1, "t": 2}')
    columns: dict[str, Column] = {"key": "k", "title": "t"}
    found = rows_of(path, columns, optional=("title",))
    assert found == [("a", ""), ("b", "x"), ("1", "2")]


def test_positions_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "e.jsonl", '{"l": "a", "r": "b"}')
    assert error_of(path, {"lhs": 0, "rhs": 1}) == (
        "e.jsonl: the fields of JSON lines have names, no positions, found 0 for lhs. "
        'Name each, such as columns = {lhs = "user", rhs = "item.id"}.'
    )


def test_a_byte_order_mark_and_other_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"l": "a", "r": "b"}\r\n\r\n{"l": 1, "r": "\xc2\x85"}')
    assert rows_of(path) == [("a", "b"), ("1", "\x85")]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for content in (b"", b"\n", b" \n\n  "):
        (tmp_path / "e.jsonl").write_bytes(content)
        assert rows_of(tmp_path / "e.jsonl") == []


def test_a_truncated_archive_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "e.jsonl.gz", *['{"l": "a", "r": "b"}'] * 99)
    whole = gzip.compress(path.read_bytes())
    for length in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert error_of(path).startswith("e.jsonl.gz can't be read: ")


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_batches_do_not_depend_on_the_number_of_threads(tmp_path: Path, num_threads: int) -> None:
    lines = [json.dumps({"l": f"k{n}", "r": n * 7}) for n in range(4000)]
    lines[1234] = '{"l": 5, "r": "mixed"}'
    path = written(tmp_path / "e.jsonl", *lines)
    before = pa.cpu_count()
    pa.set_cpu_count(num_threads)
    try:
        with path.open("rb") as stream:
            found = list(json_lines.read(stream, json_lines.Fields({"l": "l"}), 4096))
    finally:
        pa.set_cpu_count(before)
    sizes = [len(batch) for batch in found]
    assert (sum(sizes), len(sizes)) == (4000, len(path.read_bytes()) // 4096 + 1)
    assert max(sizes) < 200
    texts = [str(value) for batch in found for value in batch.column("l").to_pylist()]
    assert texts == [f"k{n}" if n != 1234 else "5" for n in range(4000)]
