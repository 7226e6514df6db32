"""Embedding files for other programs: keys with their vectors. What is written here is read here.

    parquet   columns `key` (string) and `vector` (fixed-size list of float32), in row groups
    arrow     the same columns, an Arrow IPC file, in record batches
    npy       NAME.npy: float32 [rows, dim]; beside it NAME.keys.txt: a key a line, UTF-8
    word2vec  text: "rows dim", then a line a row: the key, then dim numbers, a space before each.
              White space and % within a key are written as % and the hexadecimal digits of their
              UTF-8 bytes (a space is %20), so that every reader splits the line where it should.

Parquet and Arrow files carry {"format_version": 1, ...} as JSON under the metadata key `embedsvc`.
Numbers in word2vec text are the shortest that give the same float32 back.

Reading tells the format by the first bytes, not by the name, and asks for less than is written
above: lists of any float type, also of variable size where all are of one length.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from partitions import durable
from partitions.errors import ConfigError, DataError, did_you_mean

FORMAT_VERSION = 1
SUFFIXES = {"parquet": ".parquet", "arrow": ".arrow", "npy": ".npy", "word2vec": ".txt"}
_PIECE_NUMBERS = 1 << 22  # written and read at once: 16 MiB
_ESCAPED = re.compile(r"[\s%]")


class Embeddings(NamedTuple):
    """keys: large_string [rows] (pyarrow; to_pylist() gives str). vectors: float32 [rows, dim]."""

    keys: pa.Array
    vectors: NDArray[np.float32]


Write = Callable[[pa.Array, NDArray[np.float32]], None]  # keys [n], float32 [n, dim]


@contextmanager
def writing(
    path: Path, format: str, num_rows: int, dim: int, about: Mapping[str, Any]
) -> Iterator[Write]:
    """A function to write `num_rows` rows with, piece by piece. `path` appears when all is written.

    about: what else the metadata should say. Raises DataError for a key that the format can't hold.
    """
    if format not in _WRITERS:
        hint = did_you_mean(format, list(_WRITERS))
        raise ConfigError(f"There is no embedding format named {format}. {hint}")
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with _WRITERS[format](path, num_rows, dim, about) as write:

        def write_pieces(keys: pa.Array, vectors: NDArray[np.float32]) -> None:
            nonlocal written
            size = _piece_rows(dim)
            for at in range(0, len(keys), size):
                write(keys.slice(at, size), vectors[at : at + size])
            written += len(keys)

        yield write_pieces
        assert written == num_rows


def _piece_rows(dim: int) -> int:
    return max(1, _PIECE_NUMBERS // max(dim, 1))


def _schema(dim: int, about: Mapping[str, Any]) -> pa.Schema:
    text = json.dumps({"format_version": FORMAT_VERSION, "dim": dim, **about}, sort_keys=True)
    vector = pa.list_(pa.float32(), dim)
    return pa.schema([("key", pa.string()), ("vector", vector)], metadata={"embedsvc": text})


def _batch(schema: pa.Schema, keys: pa.Array, vectors: NDArray[np.float32]) -> pa.RecordBatch:
    values = pa.array(np.ascontiguousarray(vectors).ravel())
    lists = pa.FixedSizeListArray.from_arrays(values, type=schema.field("vector").type)
    return pa.record_batch([keys.cast(pa.string()), lists], schema=schema)


@contextmanager
def _parquet(path: Path, num_rows: int, dim: int, about: Mapping[str, Any]) -> Iterator[Write]:
    schema = _schema(dim, about)
    with (
        durable.replacing(path) as file,
        pq.ParquetWriter(file, schema, use_dictionary=False) as writer,
    ):
        yield lambda keys, vectors: writer.write_batch(_batch(schema, keys, vectors))


@contextmanager
def _arrow(path: Path, num_rows: int, dim: int, about: Mapping[str, Any]) -> Iterator[Write]:
    schema = _schema(dim, about)
    with durable.replacing(path) as file, pa.ipc.new_file(file, schema) as writer:
        yield lambda keys, vectors: writer.write_batch(_batch(schema, keys, vectors))


@contextmanager
def _npy(path: Path, num_rows: int, dim: int, about: Mapping[str, Any]) -> Iterator[Write]:
    names = _keys_beside(path)
    with ExitStack() as stack:
        vectors_file = stack.enter_context(durable.replacing(path))
        keys_file = stack.enter_context(durable.replacing(names))
        header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, dim)}
        np.lib.format.write_array_header_1_0(vectors_file, header)

        def write(keys: pa.Array, vectors: NDArray[np.float32]) -> None:
            broken = pc.match_substring(keys, "\n")
            if pc.any(broken).as_py():
                key = keys.filter(broken)[0].as_py()
                raise DataError(
                    f"The key {key!r} has a line break, which {names.name} can't hold. "
                    "Export as parquet or arrow."
                )
            vectors_file.write(np.ascontiguousarray(vectors, "<f4").data.cast("B"))
            keys_file.write("".join(f"{key}\n" for key in keys.to_pylist()).encode())

        yield write


def _keys_beside(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".npy") + ".keys.txt")


@contextmanager
def _word2vec(path: Path, num_rows: int, dim: int, about: Mapping[str, Any]) -> Iterator[Write]:
    with durable.replacing(path) as file:
        file.write(f"{num_rows} {dim}\n".encode())

        def write(keys: pa.Array, vectors: NDArray[np.float32]) -> None:
            if pc.any(pc.equal(keys, "")).as_py():
                raise DataError(
                    f"An entity's key is empty, which the word2vec text {path.name} can't hold. "
                    "Export as parquet, arrow or npy."
                )
            numbers = pa.array(np.ascontiguousarray(vectors).ravel()).cast(pa.string())
            starts = np.arange(len(vectors) + 1, dtype=np.int32) * dim
            rows = pc.binary_join(pa.ListArray.from_arrays(pa.array(starts), numbers), " ")
            names = pa.array([_ESCAPED.sub(_escape, key) for key in keys.to_pylist()], pa.string())
            lines = pc.binary_join_element_wise(names, rows, " ").to_pylist()
            file.write("".join(f"{line}\n" for line in lines).encode())

        yield write


def _escape(match: re.Match[str]) -> str:
    return quote(match[0], safe="")


_WRITERS = {"parquet": _parquet, "arrow": _arrow, "npy": _npy, "word2vec": _word2vec}


def read(path: Path) -> Embeddings:
    """All of a file. Vectors of an npy file stay on disk, memory-mapped; others are in memory.

    Raises DataError for a file that is missing, truncated or of another kind.
    """
    if _format(path) == "npy":
        return _read_npy(path)
    parts = list(read_pieces(path))
    if not parts:
        return Embeddings(pa.array([], pa.large_string()), np.empty((0, 0), np.float32))
    if len(parts) == 1:
        return parts[0]
    return Embeddings(
        pa.concat_arrays([part.keys for part in parts]),
        np.concatenate([part.vectors for part in parts]),
    )


def read_pieces(path: Path) -> Iterator[Embeddings]:
    """The same in pieces of bounded size, in the order of the file."""
    readers = {
        "parquet": _parquet_pieces,
        "arrow": _arrow_pieces,
        "npy": _npy_pieces,
        "word2vec": _word2vec_pieces,
    }
    try:
        yield from readers[_format(path)](path)
    except pa.ArrowException as error:
        raise DataError(f"{path} can't be read: {error}. Export it again.") from None


def _format(path: Path) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(6)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: name a file of embeddings.") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder: name a file of embeddings in it.") from None
    for magic, name in ((b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"\x93NUMPY", "npy")):
        if start.startswith(magic):
            return name
    return "word2vec"


def _parquet_pieces(path: Path) -> Iterator[Embeddings]:
    with pq.ParquetFile(path) as file:
        _check_columns(path, file.schema_arrow)
        dim = getattr(file.schema_arrow.field("vector").type, "list_size", 100)
        for batch in file.iter_batches(_piece_rows(dim), columns=["key", "vector"]):
            yield _piece(path, batch)


def _arrow_pieces(path: Path) -> Iterator[Embeddings]:
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        _check_columns(path, reader.schema)
        for at in range(reader.num_record_batches):
            yield _piece(path, reader.get_batch(at))


def _check_columns(path: Path, schema: pa.Schema) -> None:
    fields = {field.name: field.type for field in schema}
    key, vector = fields.get("key"), fields.get("vector")
    text = key in (pa.string(), pa.large_string())
    lists = isinstance(vector, pa.FixedSizeListType | pa.ListType | pa.LargeListType)
    if not text or not lists or not pa.types.is_floating(vector.value_type):  # type: ignore[union-attr]
        found = ", ".join(f"{name} ({type})" for name, type in fields.items())
        raise DataError(
            f"{path} has the columns {found}: embeddings have `key` (text) and `vector` "
            "(lists of float)."
        )


def _piece(path: Path, batch: pa.RecordBatch) -> Embeddings:
    keys, lists = batch.column("key"), batch.column("vector")
    values = lists.flatten()
    if keys.null_count or lists.null_count or values.null_count:
        raise DataError(f"{path} has rows without a key or a number: remove them.")
    lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
    if len(lengths) > 1:
        raise DataError(f"{path} has vectors of {min(lengths)} and of {max(lengths)} numbers.")
    numbers = values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    dim = lengths[0] if lengths else getattr(lists.type, "list_size", 0)
    return Embeddings(keys.cast(pa.large_string()), numbers.reshape(len(keys), dim))


def _read_npy(path: Path) -> Embeddings:
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{path} can't be read: {error}. Export it again.") from None
    if vectors.dtype != np.float32 or vectors.ndim != 2:
        raise DataError(f"{path} is {vectors.dtype} {vectors.shape}, not float32 [rows, dim].")
    names = _keys_beside(path)
    if not names.exists():
        raise DataError(f"{names} is missing: it holds the keys of {path.name}, one a line.")
    text = np.fromfile(names, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    if len(ends) != len(vectors) or len(text) != (ends[-1] + 1 if len(ends) else 0):
        raise DataError(
            f"{names} has {len(ends):,} whole lines where {path.name} has {len(vectors):,} rows. "
            "Export it again."
        )
    offsets = np.concatenate([[0], ends - np.arange(len(ends))]).astype(np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text[text != ord("\n")])]
    keys = pa.Array.from_buffers(pa.large_string(), len(ends), buffers)
    try:
        keys.validate(full=True)
    except pa.ArrowInvalid:
        raise DataError(f"{names} is not UTF-8 text. Export it again.") from None
    return Embeddings(keys, vectors)


def _npy_pieces(path: Path) -> Iterator[Embeddings]:
    keys, vectors = _read_npy(path)
    size = _piece_rows(vectors.shape[1])
    for at in range(0, len(keys), size):
        yield Embeddings(keys.slice(at, size), np.array(vectors[at : at + size]))


def _word2vec_pieces(path: Path) -> Iterator[Embeddings]:
    with path.open("rb") as file:
        header = file.readline(64).split()
        if len(header) != 2 or not all(word.isdigit() for word in header):
            raise DataError(
                f"{path} is no file of embeddings: it is neither Parquet, Arrow nor NumPy, and as "
                'word2vec text its first line would be "rows dim".'
            )
        num_rows, dim = map(int, header)
        done = 0
        while lines := _some_lines(file, min(_piece_rows(dim), num_rows - done)):
            yield _parsed(path, lines, dim, first_line=done + 2)
            done += len(lines)
        if done != num_rows or file.read(1):
            raise DataError(f"{path} has not the {num_rows:,} rows of its first line.")


def _some_lines(file: BinaryIO, count: int) -> list[bytes]:
    lines = []
    for _ in range(count):
        line = file.readline()
        if not line:
            break
        lines.append(line)
    return lines


def _parsed(path: Path, lines: list[bytes], dim: int, first_line: int) -> Embeddings:
    keys, numbers = [], []
    for at, line in enumerate(lines):
        key, _, rest = line.partition(b" ")
        words = rest.split()
        if len(words) != dim or not line.endswith(b"\n"):
            raise DataError(
                f"{path}:{first_line + at}: expected a key and {dim} numbers, found {len(words)}."
            )
        keys.append(key)
        numbers += words
    try:
        names = [unquote(key.decode()) for key in keys]
        values = pa.array([word.decode() for word in numbers], pa.string()).cast(pa.float32())
    except (UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}:{first_line} and further: {error}.") from None
    vectors = values.to_numpy(zero_copy_only=False).reshape(len(lines), dim)
    return Embeddings(pa.array(names, pa.large_string()), vectors)
