"""partitions.tensors: others' reader opens our files, ours opens theirs, and no damage passes."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from partitions import tensors
from partitions.errors import DataError

DTYPES = ["float16", "float32", "float64", "int32", "int64", "uint8", "uint32", "uint64"]
ARRAYS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0))
    ),
    max_size=4,
)
GOLDEN = {
    "vectors": np.arange(12, dtype=np.float32).reshape(4, 3),
    "none": np.empty((0, 7), np.float16),
    "scalar": np.array(2.5, np.float64),
    "bits": np.array([1, 255, 7], np.uint8),
}


def file_of(values: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    tensors.write(buffer, values, metadata)
    return buffer.getvalue()


def assert_same(found: Any, expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@given(ARRAYS, st.dictionaries(st.text("abc"), st.text(st.characters(exclude_categories=["Cs"]))))
def test_write_then_read_is_identity(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], metadata: dict[str, str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "identity.safetensors"
    path.write_bytes(file_of(values, metadata))
    found = tensors.read(path)
    assert_same(found.arrays, values)
    assert found.metadata == metadata


@given(ARRAYS)
def test_the_reference_reader_opens_our_files(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "ours.safetensors"
    path.write_bytes(file_of(values, {"format_version": "1"}))
    found = safetensors.numpy.load_file(path)
    assert_same({n: a for n, a in found.items() if not n.startswith("padding.")}, values)
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format_version": "1"}


@given(ARRAYS)
def test_we_open_the_files_of_the_reference_writer(values: dict[str, Any]) -> None:
    contiguous = {
        name: np.ascontiguousarray(array).reshape(array.shape) for name, array in values.items()
    }
    data = safetensors.numpy.save(contiguous, {"k": "v"})
    found = tensors.parse(data, "theirs")
    assert_same(found.arrays, values)
    assert found.metadata == {"k": "v"}


@pytest.mark.parametrize("name_length", [1, 3000, 3900, 5000])
def test_data_begin_at_a_page_and_each_array_at_64_bytes(name_length: int) -> None:
    data = file_of({"a" * name_length: np.ones(3, np.uint8), "b": np.ones(5, np.float32)})
    length = int.from_bytes(data[:8], "little")
    assert (8 + length) % 4096 == 0
    header = json.loads(data[8 : 8 + length])
    starts = [header[name]["data_offsets"][0] for name in ("a" * name_length, "b")]
    assert starts == [0, 64]
    assert data[8 + length + 64 :][:20] == np.ones(5, np.float32).tobytes()
    assert len(data) == 8 + length + 128


def test_arrays_in_other_orders_are_written_in_c_order_and_little_endian() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = file_of(
        {"f": np.asfortranarray(values), "s": values[:, ::2], "big": values.astype(">f4")}
    )
    assert_same(tensors.parse(data, "x").arrays, {"f": values, "s": values[:, ::2], "big": values})


def test_reading_maps_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of(GOLDEN))
    array = tensors.read(path).arrays["vectors"]
    assert not array.flags.owndata and not array.flags.writeable
    assert array.ctypes.data % 4096 == 0


def test_a_truncated_file_is_an_error_or_whole_never_garbage(tmp_path: Path) -> None:
    whole = file_of(GOLDEN, {"rows": "4"})
    path = tmp_path / "x.safetensors"
    data_at = 8 + int.from_bytes(whole[:8], "little")
    # The last array begins at 128 and has 3 bytes; what follows would align the next.
    last = data_at + 128 + 3
    for length in {*range(20), *range(20, data_at, 97), *range(data_at - 9, len(whole) + 1)}:
        path.write_bytes(whole[:length])
        if length >= last:
            assert_same(tensors.read(path).arrays, GOLDEN)
        else:
            with pytest.raises(DataError, match="is not a safetensors file") as caught:
                tensors.read(path)
            assert str(caught.value).startswith(str(path))


def header_file(header: Any, data: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(8),
        (1 << 40).to_bytes(8, "little") + b"{}",
        header_file(b"not json at all"),
        header_file(b"\xff\xfe"),
        header_file([1, 2]),
        header_file({"a": 3}),
        header_file({"a": {"dtype": "F32", "shape": [2]}}),
        header_file({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}),
        header_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}),
        header_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}}),
        header_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}),
        header_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": ["0", "8"]}}),
        header_file({"a": {"dtype": "F32", "shape": "xy", "data_offsets": [0, 8]}}),
        header_file({"a": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}}),
        header_file({"a": {"dtype": "F32", "shape": [0.5, 4], "data_offsets": [0, 8]}}),
    ],
)
def test_a_header_that_lies_is_an_error(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^the file is not a safetensors file: .*\.$"):
        tensors.parse(data, "the file")
