"""partitions.attributes: equals a plain dictionary of the last row of each key."""

import hypothesis.strategies as st
import pyarrow as pa
from hypothesis import given

from partitions.attributes import Attributes
from partitions.dictionary import Dictionary

KEYS = st.sampled_from(["a", "b", "ä", "c" * 40, "d", "e", "never seen"])
ROWS = st.lists(st.tuples(KEYS, st.text(max_size=5), st.sampled_from(["", "x"])), max_size=30)


@given(st.lists(ROWS, max_size=4), st.integers(1, 3), st.integers(0, 6))
def test_the_last_row_of_a_new_key_counts_and_what_is_known_stays(
    batches: list[list[tuple[str, str, str]]], num_partitions: int, num_old: int
) -> None:
    keys = Dictionary(num_partitions)
    everyone = ["a", "b", "ä", "c" * 40, "d", "e"]
    keys.encode(pa.array(everyone[:num_old], pa.string()))
    known = list(keys.num_rows)
    keys.encode(pa.array(everyone, pa.string()))
    found = Attributes(["title", "kind"], keys, known)
    last: dict[str, tuple[str, str]] = {}
    for rows in batches:
        columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        if columns:
            found.add(pa.record_batch(columns, ["key", "title", "kind"]))
        last |= {key: (title, kind) for key, title, kind in rows}
    assert found.unmatched == sum(row[0] == "never seen" for rows in batches for row in rows)
    for partition in range(num_partitions):
        table = found.take(partition)
        new = keys.keys(partition, known[partition]).to_pylist()
        expected = [last.get(key, ("", "")) for key in new]
        assert list(zip(*table.to_pydict().values(), strict=True)) == expected
        assert all(field.type == pa.large_string() for field in table.schema)
