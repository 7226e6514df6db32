"""What is written is read back, by us and by the libraries whose formats these are."""

import json
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from partitions import embeddings
from partitions.embeddings import SUFFIXES
from partitions.errors import ConfigError, DataError

KEYS = ["a", "two words", "50%", "%20", "tab\tkey", "née", "日本", "a\u00a0b", "\u2028", "x" * 300]


def write(
    path: Path, format: str, keys: list[str], vectors: NDArray[np.float32], piece: int = 3
) -> Path:
    with embeddings.writing(path, format, len(keys), vectors.shape[1], {"entity_type": "t"}) as add:
        for at in range(0, len(keys), piece):
            add(pa.array(keys[at : at + piece], pa.large_string()), vectors[at : at + piece])
    return path


def numbers(rows: int, dim: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(rows)
    scale = 10.0 ** rng.integers(-30, 30, (rows, dim))
    return (rng.standard_normal((rows, dim)) * scale).astype(np.float32)


@pytest.mark.parametrize("dim", [1, 5])
@pytest.mark.parametrize("format", list(SUFFIXES))
def test_what_is_written_is_read_back_bit_by_bit(
    format: str, dim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = numbers(len(KEYS), dim)
    path = write(tmp_path / f"e{SUFFIXES[format]}", format, KEYS, vectors)
    keys, found = embeddings.read(path)
    assert keys.to_pylist() == KEYS and keys.type == pa.large_string()
    assert found.dtype == np.float32 and np.array_equal(found, vectors)
    monkeypatch.setattr(embeddings, "_PIECE_NUMBERS", 4 * dim)
    pieces = list(embeddings.read_pieces(path))
    assert len(pieces) > 1 and max(len(piece.keys) for piece in pieces) <= 4
    assert [key for piece in pieces for key in piece.keys.to_pylist()] == KEYS
    assert np.array_equal(np.concatenate([piece.vectors for piece in pieces]), vectors)


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_no_rows_are_a_file_too(format: str, tmp_path: Path) -> None:
    path = write(tmp_path / "e", format, [], np.empty((0, 3), np.float32))
    keys, vectors = embeddings.read(path)
    assert len(keys) == len(vectors) == 0


@settings(max_examples=60)
@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_key_survives_word2vec_text(key: str) -> None:
    escaped = embeddings._ESCAPED.sub(embeddings._escape, key)
    assert len(f"{escaped} 1.5".split()) == 2 and "\n" not in escaped
    assert embeddings.unquote(escaped) == key


def test_word2vec_text_is_what_other_readers_expect(tmp_path: Path) -> None:
    vectors = np.array([[0.1, -2.0], [1e-20, 3.0]], np.float32)
    path = write(tmp_path / "e.txt", "word2vec", ["a b", "c%"], vectors)
    lines = path.read_text().split("\n")
    assert lines[0] == "2 2" and lines[1] == "a%20b 0.1 -2" and lines[3:] == [""]
    assert lines[2].split(" ")[0] == "c%25"
    assert np.float32(lines[2].split(" ")[1]) == np.float32(1e-20)


def test_word2vec_text_of_others_is_read(tmp_path: Path) -> None:
    """The original program ends each line with a space."""
    (tmp_path / "e.txt").write_text("2 3\nking 1 2 3 \nqueen -1e-3 .5 0 \n")
    keys, vectors = embeddings.read(tmp_path / "e.txt")
    assert keys.to_pylist() == ["king", "queen"]
    np.testing.assert_array_equal(vectors, np.array([[1, 2, 3], [-1e-3, 0.5, 0]], np.float32))


def test_parquet_and_arrow_open_with_their_own_libraries(tmp_path: Path) -> None:
    vectors = numbers(len(KEYS), 4)
    tables = [pq.read_table(write(tmp_path / "e.parquet", "parquet", KEYS, vectors))]
    with pa.memory_map(str(write(tmp_path / "e.arrow", "arrow", KEYS, vectors))) as file:
        tables.append(pa.ipc.open_file(file).read_all())
    for table in tables:
        assert table.schema.field("vector").type == pa.list_(pa.float32(), 4)
        assert table.column("key").to_pylist() == KEYS
        assert table.column("vector").to_pylist() == vectors.tolist()
        about = json.loads(table.schema.metadata[b"embedsvc"])
        assert about == {"format_version": 1, "dim": 4, "entity_type": "t"}


def test_npy_is_memory_mapped_and_has_its_keys_beside_it(tmp_path: Path) -> None:
    vectors = numbers(4, 2)
    write(tmp_path / "e.npy", "npy", ["a", "", "c d", "e"], vectors)
    assert np.array_equal(np.load(tmp_path / "e.npy"), vectors)
    assert (tmp_path / "e.keys.txt").read_text() == "a\n\nc d\ne\n"
    assert isinstance(embeddings.read(tmp_path / "e.npy").vectors, np.memmap)


@pytest.mark.parametrize("type", [pa.list_(pa.float64()), pa.list_(pa.float16(), 2)], ids=str)
def test_lists_of_other_floats_are_read(type: pa.DataType, tmp_path: Path) -> None:
    rows = np.array([[1.0, 0.5], [0.25, -3.0]])
    values = pa.array([list(row.astype(np.float16)) for row in rows], type)
    table = pa.table({"extra": [1, 2], "key": ["a", "b"], "vector": values})
    with pa.ipc.new_file(str(tmp_path / "e"), table.schema) as writer:
        writer.write_table(table)
    keys, vectors = embeddings.read(tmp_path / "e")
    assert keys.to_pylist() == ["a", "b"] and vectors.dtype == np.float32
    assert vectors.tolist() == rows.tolist()


# --- what can't be held --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "key", "sentence"),
    [
        ("word2vec", "", r"key is empty, which the word2vec text e can't hold\. Export as"),
        ("npy", "a\nb", r"The key 'a\\nb' has a line break, which e.keys.txt can't hold\. Export"),
    ],
)
def test_a_key_that_a_format_cannot_hold_is_refused_and_the_old_file_stays(
    format: str, key: str, sentence: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "e", format, ["a", "b"], numbers(2, 2))
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(DataError, match=sentence):
        write(path, format, ["a", "b", "c", key], numbers(4, 2))
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_an_unknown_format_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no embedding format named x\. Known here: arrow, npy"):
        write(tmp_path / "e", "x", [], np.empty((0, 1), np.float32))


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_a_truncated_file_is_named(format: str, tmp_path: Path) -> None:
    path = write(tmp_path / "e", format, KEYS, numbers(len(KEYS), 4))
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 7, 3, 0):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf"^{path}"):
            embeddings.read(path)


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="e is missing"):
        embeddings.read(tmp_path / "e")
    with pytest.raises(DataError, match="is a folder"):
        list(embeddings.read_pieces(tmp_path))


def test_keys_that_do_not_fit_their_vectors_are_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "e.npy", "npy", ["a", "b"], numbers(2, 2))
    for text in ("a\n", "a\nb\nc\n", "a\nb\nc", ""):
        (tmp_path / "e.keys.txt").write_text(text)
        with pytest.raises(DataError, match=r"e.keys.txt has \d whole lines where e.npy has 2"):
            embeddings.read(path)
    (tmp_path / "e.keys.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        embeddings.read(path)
    (tmp_path / "e.keys.txt").unlink()
    with pytest.raises(DataError, match=r"e.keys.txt is missing"):
        embeddings.read(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hello\n", "is no file of embeddings"),
        ("2 2\na 1 2\nb 1\n", r":3: expected a key and 2 numbers, found 1"),
        ("2 2\na 1 2\nb 1 2 3\n", r":3: expected a key and 2 numbers, found 3"),
        ("2 2\na 1 2\nb 1 x\n", r":2 and further: .*x"),
        ("1 2\na 1 2\nb 1 2\n", "has not the 1 rows of its first line"),
        ("3 2\na 1 2\nb 1 2\n", "has not the 3 rows of its first line"),
    ],
)
def test_malformed_text_is_named_by_its_line(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "e.txt").write_text(text)
    with pytest.raises(DataError, match=sentence):
        embeddings.read(tmp_path / "e.txt")


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"name": ["a"], "vector": [[1.0]]}, r"has the columns name \(string\), vector"),
        ({"key": ["a"], "vector": [1.0]}, r"`vector` \(lists of float\)"),
        ({"key": [1], "vector": [[1.0]]}, r"`key` \(text\)"),
        ({"key": ["a"], "vector": [[1]]}, "lists of float"),
        ({"key": ["a", None], "vector": [[1.0], [2.0]]}, "rows without a key or a number"),
        ({"key": ["a"], "vector": [[None, 1.0]]}, "rows without a key or a number"),
        ({"key": ["a", "b"], "vector": [[1.0], [2.0, 3.0]]}, "of 1 and of 2 numbers"),
    ],
    ids=str,
)
@pytest.mark.parametrize("write_table", [pq.write_table, None], ids=["parquet", "arrow"])
def test_tables_of_other_content_are_refused(
    write_table: Callable[..., None] | None, columns: object, sentence: str, tmp_path: Path
) -> None:
    table = pa.table(columns)
    if write_table is not None:
        write_table(table, tmp_path / "e")
    else:
        with pa.ipc.new_file(str(tmp_path / "e"), table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(DataError, match=sentence):
        embeddings.read(tmp_path / "e")
