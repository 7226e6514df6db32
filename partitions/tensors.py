"""Named arrays in one file, in the safetensors layout (any safetensors reader opens it).

    8 bytes    little-endian length of the header
    header     JSON: {name: {dtype, shape, data_offsets}, "__metadata__": {str: str}},
               padded with spaces so that the data begin at a multiple of 4096 bytes
    data       the arrays, C order, little-endian, each at a multiple of 64 bytes

The alignment lets a table be memory-mapped, and read past the page cache. What is too large to be
in memory twice goes through `Rows` into the file and through `Layout` out of it.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from partitions.errors import DataError
from partitions.streams import Incoming

_PAGE = 4096
_ALIGN = 64
_MAX_HEADER_BYTES = 100 << 20  # what the reference reader accepts
_NAMES = {"float32": "F32", "float16": "F16", "float64": "F64", "uint8": "U8", "uint32": "U32"}
_NAMES |= {"int64": "I64", "uint64": "U64", "int32": "I32"}
_NAMES |= {"uint16": "BF16"}  # numpy has no bfloat16, see precision.py
_DTYPES = {name: np.dtype(dtype) for dtype, name in _NAMES.items()}


@dataclass(frozen=True)
class TensorFile:
    arrays: Mapping[str, NDArray[Any]]
    metadata: Mapping[str, str]


class Writable(Protocol):
    def write(self, data: Any, /) -> Any: ...


class Source(Protocol):
    """Rows to be written: an array, or what makes them as they are asked for."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Rows:
    """Some rows of a source, copied block by block when they are written, never all at once."""

    array: Source
    rows: NDArray[np.int64]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.array.shape[1:])

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def blocks(self) -> Iterator[NDArray[Any]]:
        per_block = rows_per_block(self.array)
        for start in range(0, len(self.rows), per_block):
            yield self.array[self.rows[start : start + per_block]]


def rows_per_block(array: Source) -> int:
    """Rows of 1 MiB, to go through what must not be copied as a whole."""
    return max(1, (1 << 20) // max(math.prod(array.shape[1:]) * array.dtype.itemsize, 1))


def write(
    file: Writable,
    arrays: Mapping[str, NDArray[Any] | Rows],
    metadata: Mapping[str, str] | None = None,
) -> None:
    header: dict[str, Any] = {"__metadata__": dict(metadata or {})}
    at = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        # The layout allows no holes between arrays, so each is followed by what aligns the next.
        at += array.nbytes
        if hole := -at % _ALIGN:
            header[f"padding.{name}"] = {
                "dtype": "U8",
                "shape": [hole],
                "data_offsets": [at, at + hole],
            }
            at += hole
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _PAGE)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for array in arrays.values():
        for block in array.blocks() if isinstance(array, Rows) else [array]:
            plain = np.ascontiguousarray(block, block.dtype.newbyteorder("<"))
            file.write(plain.data.cast("B") if block.size else b"")
        file.write(bytes(-array.nbytes % _ALIGN))


def read(path: Path) -> TensorFile:
    """Arrays memory-mapped, read-only."""
    size = path.stat().st_size
    data = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
    return parse(data, str(path))


def parse(data: Any, name: str) -> TensorFile:
    """The same from bytes or any buffer; `name` says in errors what was read."""
    raw = np.frombuffer(data, np.uint8)
    length = int.from_bytes(raw[:8].tobytes(), "little") if len(raw) >= 8 else -1
    if not 0 < length <= min(_MAX_HEADER_BYTES, len(raw) - 8):
        raise DataError(f"{name} is not a safetensors file: it was truncated or altered.")
    try:
        header = json.loads(raw[8 : 8 + length].tobytes())
        metadata = header.pop("__metadata__", {})
        arrays = {
            key: _array(raw[8 + length :], value)
            for key, value in header.items()
            if not key.startswith("padding.")
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{name} is not a safetensors file: {error}.") from None
    return TensorFile(arrays, metadata)


@dataclass(frozen=True)
class Extent:
    """Where an array lies in the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Layout:
    """Where the arrays of a file lie: what its header says."""

    extents: Mapping[str, Extent]  # in the order of the file
    metadata: Mapping[str, str]


def read_layout(file: Incoming) -> Layout:
    """The header of a file that is read from its start."""
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(_MAX_HEADER_BYTES, file.path.stat().st_size - 8):
        raise DataError(f"{file.path} is not a safetensors file: it was truncated or altered.")
    try:
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        begin = 8 + length
        extents = {
            name: Extent(
                _DTYPES[value["dtype"]],
                tuple(value["shape"]),
                begin + value["data_offsets"][0],
                begin + value["data_offsets"][1],
            )
            for name, value in header.items()
            if not name.startswith("padding.")
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file.path} is not a safetensors file: {error}.") from None
    return Layout(dict(sorted(extents.items(), key=lambda item: item[1].start)), metadata)


def read_into(file: Incoming, extent: Extent, array: NDArray[Any]) -> None:
    """Read the array at `extent`, from where the file stands to its end, into one like it."""
    matches = (array.dtype, array.shape) == (extent.dtype, extent.shape)
    if not matches or extent.end - extent.start != array.nbytes or extent.start < file.at:
        raise DataError(f"{file.path} was altered: an array is not where or what it should be.")
    file.read(extent.start - file.at)
    file.read_into(array.data)


def _array(data: NDArray[np.uint8], value: Mapping[str, Any]) -> NDArray[Any]:
    start, end = value["data_offsets"]
    dtype, shape = _DTYPES[value["dtype"]], tuple(value["shape"])
    if end > len(data) or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array reaches past the end of the file")
    return data[start:end].view(dtype).reshape(shape)
