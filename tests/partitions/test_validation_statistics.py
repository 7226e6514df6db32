"""partitions.gate.statistics: what is counted, and that halves merged equal the whole."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions.errors import DataError
from partitions.gate import statistics
from partitions.gate.columns import NO_TIME, kinds_of, typed
from partitions.gate.statistics import Statistics

Row = tuple[str | None, str | None, str | None, float | None, int | None, str | None]
NAMES = ["lhs", "rel", "rhs", "weight", "timestamp", "device"]
TYPES = [pa.string(), pa.string(), pa.string(), pa.float32(), pa.int64(), pa.string()]
KINDS = kinds_of(pa.record_batch([pa.array([], t) for t in TYPES[:5]], NAMES[:5]))
KINDS["device"] = "category"

key = st.none() | st.text("abé1", max_size=2)
row = st.tuples(
    key,
    st.none() | st.sampled_from(["", *"abcdefg"]),
    key,
    st.none() | st.floats(allow_infinity=False, width=32),
    st.none() | st.integers(-(10**12), 10**12),
    st.none() | st.text(max_size=2),
)
rows = st.lists(row, max_size=40)


def batch_of(found: list[Row]) -> pa.RecordBatch:
    columns = list(zip(*found, strict=True)) if found else [()] * len(NAMES)
    arrays = [pa.array(c, t) for c, t in zip(columns, TYPES, strict=True)]
    return pa.record_batch(arrays, NAMES)


def statistics_of(found: list[Row], step: int = 1000) -> Statistics:
    made = Statistics(KINDS)
    for start in range(0, len(found), step):
        made.add(typed(batch_of(found[start : start + step]), KINDS, None))
    return made


@given(rows, st.integers(0, 40), st.integers(1, 40))
@settings(max_examples=60)
def test_halves_merge_to_the_whole_for_any_cuts(found: list[Row], cut: int, step: int) -> None:
    whole = statistics_of(found)
    left, right = statistics_of(found[:cut], step), statistics_of(found[cut:])
    right.merge(left)
    assert right == whole
    assert statistics_of(found[::-1], step) == whole


@given(st.lists(row, max_size=40), st.integers(0, 40))
@settings(max_examples=60)
def test_relations_beyond_the_limit_share_their_statistics(found: list[Row], cut: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "MAX_RELATIONS", 3)
        whole = statistics_of(found, 7)
        left, right = statistics_of(found[:cut], 5), statistics_of(found[cut:])
        left.merge(right)
        assert left == whole
        assert Statistics.from_json(json.loads(json.dumps(whole.as_json()))) == whole
    assert len(whole.relations) <= 3
    complete = [r for r in found if all(r[:3])]
    others = whole.others.rows if whole.others else 0
    assert sum(r.rows for r in whole.relations.values()) + others == len(complete)


@given(st.lists(row, max_size=40), st.integers(0, 40), st.sampled_from([1, 2, 3]))
@settings(max_examples=60)
def test_many_relations_keep_fewer_keys_in_any_order(found: list[Row], cut: int, many: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "MAX_RELATIONS", 3)
        patch.setattr(statistics, "MANY_RELATIONS", many)
        patch.setattr(statistics, "_FEWER_KEYS", 2)
        whole = statistics_of(found, 7)
        left, right = statistics_of(found[:cut], 5), statistics_of(found[cut:])
        right.merge(left)
        assert right == whole
        assert statistics_of(found[::-1], 3) == whole
        again = Statistics.from_json(json.loads(json.dumps(left.as_json())))
        again.merge(statistics_of(found[cut:], 2))
        assert again == whole
    names = {r[1] for r in found if all(r[:3])}
    kept = [len(s.sample.kept[0]) for r in whole.relations.values() for s in r.sides.values()]
    assert len(names) <= many or max(kept) <= 2


def test_ten_thousand_relations_are_bounded_and_quick() -> None:
    names = pa.array([f"r{i % 10_000}" for i in range(20_000)])
    keys = pa.array([f"k{i}" for i in range(20_000)])
    batch = pa.record_batch([keys, names, keys], ["lhs", "rel", "rhs"])
    made = Statistics({})
    for name, kind in kinds_of(batch).items():
        made.meet(name, kind)
    made.add(typed(batch, made.kinds, None))
    assert len(made.relations) == statistics.MAX_RELATIONS
    assert made.others is not None
    assert made.others.rows == 20_000 - 2 * statistics.MAX_RELATIONS


@given(rows)
@settings(max_examples=60)
def test_counts_equal_plain_loops(found: list[Row]) -> None:
    made = statistics_of(found)
    columns: list[list[Any]] = [[r[at] for r in found] for at in range(6)]
    empty = [None, ""]
    for at, name in enumerate(NAMES):
        missing = [v for v in columns[at] if v in empty or v != v]
        assert made.missing[name] == len(missing), name
    whole = [r for r in found if all(r[:3])]
    found_relations = made.categories["rel"].counts if found else {}
    assert found_relations == {
        name: sum(r[1] == name for r in whole) for name in {r[1] for r in whole}
    }
    number = made.number("weight")
    weights = [r[3] + 0.0 for r in whole if r[3] is not None and r[3] == r[3]]
    assert number.count == len(weights)
    assert number.distinct() == {v: weights.count(v) for v in sorted(set(weights))}
    if weights:
        assert (number.lowest, number.highest) == (min(weights), max(weights))
    for name, relation in made.relations.items():
        own = [r for r in whole if r[1] == name]
        assert relation.self_loops == sum(r[0] == r[2] for r in own)
        kept = relation.sides["lhs"].sample.kept[1]
        assert sorted(kept.tolist()) == sorted(
            sum(r[0] == k for r in own) for k in {r[0] for r in own}
        )
        assert relation.sides["rhs"].rows == len(own)


def test_days_and_hours_are_utc() -> None:
    moments = [datetime(2026, 1, 2, 3, 59, tzinfo=UTC), datetime(1969, 12, 31, 23, 0, tzinfo=UTC)]
    made = statistics_of([("a", "r", "b", 1.0, int(m.timestamp()), "x") for m in moments])
    times = made.times("timestamp")
    assert times.days == {20_455: 1, -1: 1}
    assert np.flatnonzero(times.hours).tolist() == [3, 23]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_of_any_unit_and_dates_are_seconds(unit: str) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    batch = pa.record_batch([pa.array([moment, None], pa.timestamp(unit, "UTC"))], ["at"])
    chunk = typed(batch, kinds_of(batch), None)
    assert chunk.timestamps["at"].tolist() == [int(moment.timestamp()), NO_TIME]
    assert chunk.missing["at"].tolist() == [False, True]


def test_text_is_read_as_its_kind_and_the_rest_is_counted() -> None:
    weights = ["1.5", " +2 ", "", "n/a", "1e3", "1,5", None, "inf"]
    times = ["1700000000", "2023-11-14T22:13:20Z", "2023-11-14", "", None, "soon", "1.7e9", "-1"]
    batch = pa.record_batch([pa.array(weights), pa.array(times)], ["weight", "timestamp"])
    chunk = typed(batch, kinds_of(batch), None)
    assert [v for v in chunk.numbers["weight"].tolist() if v == v] == [1.5, 2.0, 1000.0]
    assert np.flatnonzero(chunk.missing["weight"]).tolist() == [2, 6]
    assert np.flatnonzero(chunk.mistyped["weight"]).tolist() == [3, 5, 7]
    seconds = chunk.timestamps["timestamp"].tolist()
    assert seconds[:3] == [1_700_000_000, 1_700_000_000, 1_699_920_000]
    assert seconds[6:] == [1_700_000_000, -1]
    assert np.flatnonzero(chunk.missing["timestamp"]).tolist() == [3, 4]
    assert np.flatnonzero(chunk.mistyped["timestamp"]).tolist() == [5]


def test_keys_that_are_floats_are_mistyped() -> None:
    batch = pa.record_batch([pa.array([1.0, None]), pa.array([1, 2])], ["lhs", "rhs"])
    chunk = typed(batch, kinds_of(batch), "r")
    assert chunk.mistyped["lhs"].tolist() == [True, False]
    assert chunk.groups == []
    assert chunk.keys["rhs"].text.to_pylist() == ["1", "2"]


def test_other_columns_go_by_their_type() -> None:
    batch = pa.record_batch(
        {
            "text": pa.array(["a", "b"]),
            "digits": pa.array(["1", "2.5"]),
            "integers": pa.array([1, 2]),
            "flags": pa.array([True, None]),
            "coded": pa.array(["x", "x"]).dictionary_encode(),
            "days": pa.array([0, 1], pa.date32()),
        }
    )
    assert kinds_of(batch) == {
        "text": "category",
        "digits": "number",
        "integers": "number",
        "flags": "category",
        "coded": "category",
        "days": "timestamp",
    }
    chunk = typed(batch, kinds_of(batch), None)
    assert chunk.categories["flags"].words.to_pylist() == ["true"]
    assert chunk.categories["coded"].codes.tolist() == [0, 0]
    with pytest.raises(DataError, match="The column lists is of type list"):
        kinds_of(pa.record_batch({"lists": pa.array([[1]])}))


def test_a_flipped_bit_in_the_file_of_statistics_is_found(tmp_path: Path) -> None:
    made = statistics_of([(f"a{i}", "r", f"b{i % 7}", 0.1, 5, "x") for i in range(20)])
    path = tmp_path / "statistics.json"
    path.write_bytes(statistics.as_bytes(made))
    whole = path.read_bytes()
    for at in range(0, len(whole) - 1, 13):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            assert statistics.read(path) == made  # a blank between two values may change
        except DataError as error:
            assert "statistics.json" in str(error) and "Delete it" in str(error)


def test_a_file_of_statistics_from_before_digests_is_read(tmp_path: Path) -> None:
    made = statistics_of([("a", "r", "b", 0.1, 5, "x")])
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps(made.as_json()))
    assert statistics.read(path) == made
    path.write_text(json.dumps({**made.as_json(), "dihest": "a"}))
    with pytest.raises(DataError, match="was altered"):
        statistics.read(path)


def test_file_of_statistics_reads_back_and_says_when_it_is_broken(tmp_path: Path) -> None:
    made = statistics_of([("a", "r", "b", 0.1, 5, "x"), ("a", "s", "é", None, None, None)])
    made.as_of = 7
    path = tmp_path / "statistics.json"
    path.write_bytes(statistics.as_bytes(made))
    assert statistics.read(path) == made
    path.write_text(path.read_text()[:-100])
    with pytest.raises(DataError, match=r"statistics\.json is not valid JSON: it was truncated"):
        statistics.read(path)
    path.write_text('{"format_version": 99}')
    with pytest.raises(DataError, match="is of format 99, this program reads 1"):
        statistics.read(path)
    path.write_text('{"format_version": 1}')
    with pytest.raises(DataError, match="was altered"):
        statistics.read(path)
