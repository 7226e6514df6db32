"""partitions.encoded: what is read is what was encoded, whatever the batches and the blocks."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from partitions import encoded
from partitions.encoded import EncodedFile
from partitions.errors import DataError
from partitions.features import Encoded, Features, FeaturesConfig

TABLES: list[dict[str, Any]] = [
    {
        "features": {
            "user": {"kind": "category"},
            "tags": {"kind": "category", "list": True},
            "age": {"kind": "number", "buckets": 3},
        },
        "crosses": {"both": {"of": ["user", "tags"], "buckets": 50}},
    },
    {"features": {"user": {"kind": "category"}}},
    {"features": {"tags": {"kind": "hash", "buckets": 5, "list": True}}},
    {"features": {"age": {"kind": "number"}}},
]


def rows_of(count: int) -> pa.RecordBatch:
    rng = np.random.default_rng(count)
    tags = [[f"t{n}" for n in rng.integers(0, 5, rng.integers(0, 4))] for _ in range(count)]
    return pa.record_batch(
        {
            "user": pa.array(rng.integers(0, 6, count)),
            "tags": pa.array(tags, pa.list_(pa.string())),
            "age": pa.array(rng.normal(size=count)),
        }
    )


def assert_same(a: Encoded, b: Encoded) -> None:
    np.testing.assert_array_equal(a.single, b.single)
    np.testing.assert_array_equal(a.dense, b.dense)
    assert (a.single.dtype, a.dense.dtype) == (np.int32, np.float32)
    for (values, offsets), (others, places) in zip(a.bags, b.bags, strict=True):
        np.testing.assert_array_equal(values, others)
        np.testing.assert_array_equal(offsets, places)
        assert (values.dtype, offsets.dtype) == (np.int32, np.int64)


def labels_of(count: int, num_labels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(count + 1)
    return rng.random((count, num_labels), np.float32), rng.random(count, np.float32)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("num_labels", [0, 1, 3])
@given(count=st.integers(1, 40), size=st.integers(1, 40), block=st.integers(1, 17))
@settings(max_examples=12)
def test_what_is_read_is_what_was_encoded(
    tmp_path_factory: pytest.TempPathFactory,
    table: dict[str, Any],
    num_labels: int,
    count: int,
    size: int,
    block: int,
) -> None:
    rows, (labels, weight) = rows_of(count), labels_of(count, num_labels)
    features = Features.fit(FeaturesConfig.model_validate(table), [rows])
    cuts = [slice(at, at + size) for at in range(0, count, size)]
    batches = [(rows.slice(at.start, size), labels[at], weight[at]) for at in cuts]
    path = tmp_path_factory.mktemp("encoded") / "train.arrow"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded, "BLOCK_ROWS", block)
        assert encoded.write(path, features, batches) == count
        file = EncodedFile(path, features)
        assert (len(file), file.num_labels) == (count, num_labels)
        whole = features.encode(rows)
        for first, last in [(0, count), (count // 3, count), (1, 1), (0, 1), (block, 3 * block)]:
            found, some_labels, some_weight = file.read(first, last)
            assert_same(found, whole.slice(first, last))
            np.testing.assert_array_equal(some_labels, labels[first:last])
            np.testing.assert_array_equal(some_weight, weight[first:last])


def test_a_block_is_read_without_a_copy(tmp_path: Path) -> None:
    rows, (labels, weight) = rows_of(1000), labels_of(1000, 1)
    features = Features.fit(FeaturesConfig.model_validate(TABLES[0]), [rows])
    encoded.write(tmp_path / "train.arrow", features, [(rows, labels, weight)])
    file = EncodedFile(tmp_path / "train.arrow", features)
    (a, first_labels, first_weight), (b, *_) = file.read(0, 600), file.read(300, 900)
    for one in (a.single, a.dense, a.bags[0][0], first_labels, first_weight):
        assert not one.flags.owndata and not one.flags.writeable
    assert np.shares_memory(a.single, b.single) and np.shares_memory(a.dense, b.dense)
    assert np.shares_memory(a.bags[0][0], b.bags[0][0])


def test_a_file_that_is_not_of_these_features_is_named(tmp_path: Path) -> None:
    rows, (labels, weight) = rows_of(30), labels_of(30, 1)
    first, second = (
        Features.fit(FeaturesConfig.model_validate(table), [rows]) for table in TABLES[:2]
    )
    path = tmp_path / "train.arrow"
    with pytest.raises(DataError, match=r"train\.arrow is missing"):
        EncodedFile(path, first)
    with pytest.raises(DataError, match="there are no rows to encode"):
        encoded.write(path, first, [])
    assert list(tmp_path.iterdir()) == []
    encoded.write(path, first, [(rows, labels, weight)])
    with pytest.raises(DataError, match=r"train\.arrow was encoded by other features"):
        EncodedFile(path, second)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train\.arrow can't be read: it was truncated"):
        EncodedFile(path, first)
    with pa.ipc.new_file(str(path), rows.schema) as writer:
        writer.write_batch(rows)
    with pytest.raises(DataError, match="holds no encoded rows of format 1"):
        EncodedFile(path, first)
