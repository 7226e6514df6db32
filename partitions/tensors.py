"""Named arrays in one file, in the safetensors layout (any safetensors reader opens it).

    8 bytes    little-endian length of the header
    header     JSON: {name: {dtype, shape, data_offsets}, "__metadata__": {str: str}},
               padded with spaces so that the data begin at a multiple of 4096 bytes
    data       the arrays, C order, little-endian, each at a multiple of 64 bytes

The alignment lets a table be memory-mapped, and read past the page cache.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from partitions.errors import DataError

_PAGE = 4096
_ALIGN = 64
_MAX_HEADER_BYTES = 100 << 20  # what the reference reader accepts
_NAMES = {"float32": "F32", "float16": "F16", "float64": "F64", "uint8": "U8", "uint32": "U32"}
_NAMES |= {"int64": "I64", "uint64": "U64", "int32": "I32"}
_DTYPES = {name: np.dtype(dtype) for dtype, name in _NAMES.items()}


@dataclass(frozen=True)
class TensorFile:
    arrays: Mapping[str, NDArray[Any]]
    metadata: Mapping[str, str]


def write(
    file: BinaryIO, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
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
        plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        file.write(plain.data.cast("B") if array.size else b"")
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


def _array(data: NDArray[np.uint8], value: Mapping[str, Any]) -> NDArray[Any]:
    start, end = value["data_offsets"]
    dtype, shape = _DTYPES[value["dtype"]], tuple(value["shape"])
    if end > len(data) or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array reaches past the end of the file")
    return data[start:end].view(dtype).reshape(shape)
