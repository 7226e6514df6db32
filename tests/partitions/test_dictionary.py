"""partitions.dictionary: a key's place is fixed at first sight and never moves."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions import dictionary
from partitions.dictionary import PARTITION_SHIFT, Dictionary
from partitions.errors import DataError
from partitions.hashing import hash_keys

KEYS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4))


def places(dictionary: Dictionary, keys: list[str]) -> list[tuple[int, int]]:
    found, hashes = dictionary.encode(pa.array(keys, pa.string()))
    assert hashes.tolist() == hash_keys(pa.array(keys, pa.string())).tolist()
    return [divmod(place, 1 << PARTITION_SHIFT) for place in found.tolist()]


@given(st.lists(KEYS, max_size=4), st.integers(1, 5))
def test_places_are_dense_final_and_by_hash(batches: list[list[str]], num_partitions: int) -> None:
    grown = Dictionary(num_partitions)
    expected: dict[str, tuple[int, int]] = {}
    in_order: list[list[str]] = [[] for _ in range(num_partitions)]
    for keys in batches:
        found = places(grown, keys)
        for key in keys:
            if key not in expected:
                partition = int(hash_keys(pa.array([key]))[0]) % num_partitions
                expected[key] = (partition, len(in_order[partition]))
                in_order[partition].append(key)
        assert found == [expected[key] for key in keys]
        assert [grown.keys(part).to_pylist() for part in range(num_partitions)] == in_order
    assert len(grown) == len(expected)
    assert grown.num_rows == [len(keys) for keys in in_order]
    found = grown.find(pa.array(list(expected), pa.string()))
    assert [divmod(place, 1 << PARTITION_SHIFT) for place in found.tolist()] == [*expected.values()]


def test_an_unknown_key_is_not_found_and_not_added() -> None:
    known = Dictionary(2)
    places(known, ["a", "b"])
    assert known.find(pa.array(["c"])).tolist() == [-1]
    assert len(known) == 2


def test_a_slice_is_encoded_like_its_own_keys() -> None:
    keys = pa.array(["x", "a", "b", "a", "y"]).slice(1, 3)
    sliced, _ = Dictionary(3).encode(keys)
    whole, _ = Dictionary(3).encode(pa.array(keys.to_pylist()))
    assert sliced.tolist() == whole.tolist()


@given(KEYS)
def test_write_then_read_is_identity(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "keys.arrow"
    dictionary.write(path, pa.array(keys, pa.string()))
    found = dictionary.read(path)
    assert found.type == pa.large_string()
    assert found.to_pylist() == keys


def test_reading_maps_the_file(tmp_path: Path) -> None:
    dictionary.write(tmp_path / "keys.arrow", pa.array([f"key{n}" for n in range(200_000)]))
    before = pa.total_allocated_bytes()
    keys = dictionary.read(tmp_path / "keys.arrow")
    assert pa.total_allocated_bytes() - before < 100_000
    assert (len(keys), keys[199_999].as_py()) == (200_000, "key199999")


@pytest.mark.parametrize(
    "table",
    [pa.table({"name": ["a"]}), pa.table({"key": ["a"]}), pa.table({"key": pa.array([1])})],
    ids=lambda table: str(table.schema),
)
def test_a_table_of_another_schema_is_refused(tmp_path: Path, table: pa.Table) -> None:
    path = tmp_path / "keys.arrow"
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError) as caught:
        dictionary.read(path)
    assert str(caught.value) == f"{path} is not a dictionary of format 1. Import again."
