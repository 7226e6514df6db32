"""partitions.edges: what is written to a bucket file is read, in few bytes, without copies."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from partitions import edges
from partitions.edges import Edges, relation_dtype
from partitions.errors import DataError


@given(st.data(), st.integers(1, 300), st.booleans(), st.integers(0, 20))
def test_write_then_read_is_identity(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    num_relations: int,
    weighted: bool,
    num_edges: int,
) -> None:
    offsets = arrays.arrays(np.uint32, num_edges)
    weights = arrays.arrays(np.float32, num_edges, elements=st.floats(width=32, allow_nan=False))
    written = Edges(
        lhs=data.draw(offsets),
        rel=np.array(
            data.draw(
                st.lists(st.integers(0, num_relations - 1), min_size=num_edges, max_size=num_edges)
            ),
            np.uint32,
        ),
        rhs=data.draw(offsets),
        weight=data.draw(weights) if weighted else None,
    )
    path = tmp_path_factory.getbasetemp() / "bucket.arrow"
    edges.write(path, written, num_relations)
    found = edges.read(path)
    assert len(found) == num_edges
    np.testing.assert_array_equal(found.lhs, written.lhs, strict=True)
    np.testing.assert_array_equal(found.rhs, written.rhs, strict=True)
    assert found.rel.tolist() == written.rel.tolist()
    if weighted:
        np.testing.assert_array_equal(found.weight, written.weight, strict=True)
    else:
        assert found.weight is None


@pytest.mark.parametrize(
    ("num_relations", "dtype"),
    [
        (1, "uint8"),
        (2, "uint8"),
        (256, "uint8"),
        (257, "uint16"),
        (65_536, "uint16"),
        (65_537, "uint32"),
    ],
)
def test_a_relation_takes_the_smallest_integer_that_fits(num_relations: int, dtype: str) -> None:
    assert relation_dtype(num_relations) == np.dtype(dtype)


@pytest.mark.parametrize(
    ("num_relations", "weighted", "bytes_per_edge"),
    [(1, False, 8), (1, True, 12), (2, False, 9), (256, True, 13), (257, False, 10)],
)
def test_an_edge_costs_only_the_columns_it_needs(
    tmp_path: Path, num_relations: int, weighted: bool, bytes_per_edge: int
) -> None:
    num_edges = 10_000
    offsets = np.arange(num_edges, dtype=np.uint32)
    weight = np.ones(num_edges, np.float32) if weighted else None
    edges.write(
        tmp_path / "b.arrow",
        Edges(offsets, offsets % num_relations, offsets, weight),
        num_relations,
    )
    size = (tmp_path / "b.arrow").stat().st_size
    assert bytes_per_edge * num_edges <= size < bytes_per_edge * num_edges + 2_000


def test_reading_maps_the_file_and_copies_nothing(tmp_path: Path) -> None:
    num_edges = 1_000_000
    offsets = np.arange(num_edges, dtype=np.uint32)
    edges.write(tmp_path / "b.arrow", Edges(offsets, offsets % 2, offsets), 2)
    before = pa.total_allocated_bytes()
    found = edges.read(tmp_path / "b.arrow")
    assert pa.total_allocated_bytes() - before < 100_000
    for column in (found.lhs, found.rel, found.rhs):
        assert not column.flags.owndata and not column.flags.writeable


def test_one_relation_costs_no_memory_either(tmp_path: Path) -> None:
    offsets = np.arange(1000, dtype=np.uint32)
    edges.write(tmp_path / "b.arrow", Edges(offsets, np.zeros(1000, np.uint8), offsets), 1)
    found = edges.read(tmp_path / "b.arrow")
    assert found.rel.shape == (1000,) and not found.rel.any() and found.rel.strides == (0,)


def test_a_table_of_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.arrow"
    table = pa.table({"lhs": pa.array([1], pa.uint32()), "to": pa.array([1], pa.uint32())})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError) as caught:
        edges.read(path)
    assert str(caught.value) == f"{path} is not a bucket file of format 1. Import again."
