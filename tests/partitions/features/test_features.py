"""partitions.features: equals plain loops; training, a load and serving encode alike."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings

from partitions.errors import ConfigError, DataError
from partitions.features import Encoded, Features, FeaturesConfig, columns, vocabulary
from tests.partitions.features import plain

INT64 = st.integers(-(2**63), 2**63 - 1)
IDS = st.none() | INT64 | st.sampled_from([0, 1, -1, 2**24, 2**24 + 1, 2**31, 2**31 + 1])
TEXTS = st.none() | st.text(max_size=30) | st.sampled_from(["", "a", "日本", "x" * 700, "12345678"])
LISTS = st.none() | st.lists(st.sampled_from(["a", "b", "ä", "c c", "d"]), max_size=4)
FLOATS = st.none() | st.floats(width=64) | st.sampled_from([0.0, 1.0, 1.5, math.inf, -math.inf])
TIMES = st.none() | st.integers(-(10**10), 10**10)
ROW = st.fixed_dictionaries(
    {"id": IDS, "word": TEXTS, "tags": LISTS, "age": FLOATS, "ts": TIMES, "more": LISTS}
)
TYPES = {
    "id": pa.int64(),
    "word": pa.string(),
    "tags": pa.list_(pa.string()),
    "age": pa.float64(),
    "ts": pa.int64(),
    "more": pa.large_list(pa.large_string()),
}
Rows = list[dict[str, Any]]
SCALES = ("quantile", "log", "standard", "raw")
ALL = {
    "features": {
        "id": {"kind": "category"},
        "rare": {"kind": "category", "column": "word", "min_count": 2, "max_size": 5},
        "word": {"kind": "hash", "buckets": 50},
        "tags": {"kind": "category", "list": True},
        "more": {"kind": "hash", "list": True, "buckets": 9},
        "age": {"kind": "number", "quantiles": 5, "buckets": 3},
        "log": {"kind": "number", "column": "age", "scale": "log"},
        "standard": {"kind": "number", "column": "age", "scale": "standard"},
        "raw": {"kind": "number", "column": "age", "scale": "raw"},
        "hour": {"kind": "time", "column": "ts", "part": "hour"},
        "weekday": {"kind": "time", "column": "ts", "part": "weekday"},
        "day": {"kind": "time", "column": "ts", "part": "day"},
        "month": {"kind": "time", "column": "ts", "part": "month"},
    },
    "crosses": {
        "two": {"of": ["id", "rare"], "buckets": 1000},
        "lists": {"of": ["tags", "hour", "more"], "buckets": 500},
        "three": {"of": ["age", "weekday", "word"], "buckets": 77},
    },
}


def config(**tables: Any) -> FeaturesConfig:
    return FeaturesConfig.model_validate(tables)


def batch(rows: Rows, types: dict[str, pa.DataType] = TYPES) -> pa.RecordBatch:
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()}
    return pa.record_batch(columns)


def lists(rows: Rows) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in TYPES}


def ids(features: Features, found: Encoded, name: str) -> list[Any]:
    """Of a slot: a number a row, or a list of them."""
    slot = next(slot for slot in features.layout.slots if slot.name == name)
    if not slot.bag:
        return found.single[:, slot.column].tolist()
    values, offsets = found.bags[slot.column]
    return [values[a:b].tolist() for a, b in pairwise(offsets)]


def dense(features: Features, found: Encoded, name: str) -> list[float]:
    return found.dense[:, features.layout.dense.index(name)].tolist()


def assert_same(a: Encoded, b: Encoded) -> None:
    assert a.single.dtype == b.single.dtype == np.int32 and a.dense.dtype == np.float32
    np.testing.assert_array_equal(a.single, b.single)
    np.testing.assert_array_equal(a.dense, b.dense)
    for (values, offsets), (others, places) in zip(a.bags, b.bags, strict=True):
        np.testing.assert_array_equal(values, others)
        np.testing.assert_array_equal(offsets, places)


DEFAULTS = {"id": [5, "6"], "word": ["z", 7], "tags": ["a", ["q", "a"]], "age": [1.5], "ts": [0]}


@st.composite
def spec_of(draw: st.DrawFn, column: str) -> dict[str, Any]:
    if column == "age":
        spec: dict[str, Any] = {"kind": "number", "scale": draw(st.sampled_from(SCALES))}
        spec |= {
            "quantiles": draw(st.integers(2, 9)),
            "buckets": draw(st.none() | st.integers(2, 6)),
        }
    elif column == "ts":
        parts = st.sampled_from(["hour", "weekday", "day", "month"])
        spec = {"kind": "time", "part": draw(parts)}
    else:
        spec = {"kind": "category", "min_count": draw(st.integers(1, 3))}
        if draw(st.booleans()):
            spec = {"kind": "hash", "buckets": draw(st.sampled_from([2, 10, 2**31 - 1]))}
        spec["list"] = column in ("tags", "more")
    choices = [None, *DEFAULTS.get(column, [])]
    return spec | {"default": draw(st.sampled_from(choices))}


@st.composite
def tables(draw: st.DrawFn) -> FeaturesConfig:
    """Any schema over the columns of ROW."""
    columns = draw(st.lists(st.sampled_from(sorted(TYPES)), min_size=1, unique=True))
    found = config(features={column: draw(spec_of(column)) for column in columns})
    crossable = [name for name, spec in found.features.items() if spec.has_ids]
    crosses = {}
    for n in range(draw(st.integers(0, 2)) if len(crossable) > 1 else 0):
        of = draw(st.lists(st.sampled_from(crossable), min_size=2, max_size=4, unique=True))
        crosses[f"cross{n}"] = {"of": of, "buckets": draw(st.integers(1, 1000))}
    return config(features=found.model_dump()["features"], crosses=crosses)


@given(
    table=tables() | st.just(FeaturesConfig.model_validate(ALL)),
    seen=st.lists(ROW, min_size=1, max_size=12),
    new=st.lists(ROW, max_size=12),
    size=st.integers(1, 5),
)
@settings(max_examples=60)
def test_training_a_load_and_serving_encode_alike(
    tmp_path_factory: pytest.TempPathFactory,
    table: FeaturesConfig,
    seen: Rows,
    new: Rows,
    size: int,
) -> None:
    batches = [batch(seen[at : at + size]) for at in range(0, len(seen), size)]
    features = Features.fit(table, batches)
    folder = tmp_path_factory.mktemp("features")
    features.save(folder)
    loaded = Features.load(folder)
    assert loaded.layout == features.layout and loaded.config == features.config
    assert loaded.digest == features.digest == Features.fit(table, batches).digest
    rows = seen + new
    whole = features.encode(batch(rows))
    assert len(whole) == len(rows) and np.isfinite(whole.dense).all()
    for slot in features.layout.slots:
        given_ids = whole.bags[slot.column][0] if slot.bag else whole.single[:, slot.column]
        assert ((given_ids >= 0) & (given_ids < slot.size)).all()
    assert_same(whole, loaded.encode(batch(rows)))
    assert_same(whole, loaded.encode(lists(rows)))
    assert_same(whole, loaded.encode(pa.Table.from_batches([batch(seen), batch(new)])))
    for at, row in enumerate(rows):
        one = loaded.encode(batch([row]))
        assert_same(one, whole.slice(at, at + 1))
        assert_same(one, whole.take(np.array([at])))
    order = np.arange(len(rows))[::-1]
    assert_same(whole.take(order), features.encode(batch(rows[::-1])))
    assert_same(whole.slice(1, len(rows)), features.encode(batch(rows).slice(1)))


@given(st.lists(ROW, min_size=1, max_size=12), st.lists(ROW, max_size=8), st.booleans())
@settings(max_examples=60)
def test_ids_and_crosses_equal_plain_loops(seen: Rows, new: Rows, many: bool) -> None:
    features = Features.fit(config(**ALL), [batch(seen)])
    rows = seen + new
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "MANY", 1 if many else 1000)
        found = features.encode(batch(rows))
    known = plain.vocabulary([row["id"] for row in seen])
    rare = plain.vocabulary([row["word"] for row in seen], 2, 5)
    tags = plain.vocabulary([tag for row in seen for tag in row["tags"] or []])
    edges = plain.cuts([row["age"] for row in seen if row["age"] is not None], 3)
    for at, row in enumerate(rows):
        hour = None if row["ts"] is None else row["ts"] // 3600 % 24 + 1
        weekday = None if row["ts"] is None else (row["ts"] // 86400 + 3) % 7 + 1
        missing = row["age"] is None or math.isnan(row["age"])
        bucket = None if missing else plain.quantile_of(row["age"], edges)
        expected = {
            "id": plain.category(row["id"], known),
            "rare": plain.category(row["word"], rare),
            "word": plain.hashed(row["word"], 50),
            "tags": [plain.category(tag, tags) for tag in row["tags"] or []],
            "more": [plain.hashed(tag, 9) for tag in row["more"] or []],
            "age": bucket or 0,
            "hour": hour or 0,
            "weekday": weekday or 0,
            "two": plain.cross([[plain.fingerprint(row[p])] for p in ("id", "word")], 1000)[0],
            "lists": plain.cross(
                [
                    [plain.fingerprint(tag) for tag in row["tags"] or []],
                    [plain.fingerprint(hour)],
                    [plain.fingerprint(tag) for tag in row["more"] or []],
                ],
                500,
            ),
            "three": plain.cross(
                [[plain.fingerprint(part)] for part in (bucket, weekday, row["word"])], 77
            )[0],
        }
        assert {name: ids(features, found, name)[at] for name in expected} == expected


PLAIN = st.integers(-(10**9), 10**9).map(lambda n: n / 1000)  # deviations of which are exact enough
SCALED = st.none() | PLAIN | st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf])


@example([1.137, 1.137, 1.137], [])  # whose rounded sum is no multiple
@given(st.lists(SCALED, min_size=1, max_size=30), st.lists(SCALED, max_size=5))
def test_dense_numbers_equal_plain_loops(
    seen: Sequence[float | None], new: Sequence[float | None]
) -> None:
    scales = {name: {"kind": "number", "column": "x", "scale": name} for name in SCALES}
    features = Features.fit(config(features=scales), [{"x": seen}])
    found = features.encode({"x": [*seen, *new]})
    for name in SCALES:
        expected = plain.dense(name, seen, [*seen, *new])
        np.testing.assert_allclose(dense(features, found, name), expected, rtol=2e-6, atol=1e-9)
        if any(x is None or math.isnan(x) for x in seen):
            flags = [float(x is None or math.isnan(x)) for x in [*seen, *new]]
            assert dense(features, found, f"{name}:missing") == flags
        else:
            assert f"{name}:missing" not in features.layout.dense


@pytest.mark.parametrize("seen", [[None, None], [math.inf, -math.inf]])
def test_a_number_that_training_never_saw_is_zero(seen: list[float | None], tmp_path: Path) -> None:
    scales = {name: {"kind": "number", "column": "x", "scale": name} for name in SCALES}
    Features.fit(config(features=scales), [{"x": seen}]).save(tmp_path)
    features = Features.load(tmp_path)
    found = features.encode({"x": [3.0, -2.0, math.inf]})
    for name in SCALES:
        assert dense(features, found, name) == [0, 0, 0]


@given(st.lists(FLOATS, min_size=1, max_size=30), st.lists(FLOATS, max_size=5))
def test_dense_numbers_are_finite_whatever_came(
    seen: Sequence[float | None], new: Sequence[float | None]
) -> None:
    scales = {name: {"kind": "number", "column": "x", "scale": name} for name in SCALES}
    features = Features.fit(config(features=scales), [{"x": seen}])
    assert np.isfinite(features.encode({"x": [*seen, *new]}).dense).all()


@given(st.integers(-(10**11), 10**11))
def test_parts_of_times_are_those_of_the_calendar(seconds: int) -> None:
    from datetime import UTC, datetime, timedelta

    if not -62_000_000_000 < seconds < 250_000_000_000:
        seconds %= 10**9
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    parts = ("hour", "weekday", "day", "month")
    table = {part: {"kind": "time", "column": "t", "part": part} for part in parts}
    features = Features.fit(config(features=table), [{"t": [0]}])
    stamp = pa.array([seconds * 1000 + 999], pa.timestamp("ms", "UTC"))
    for form in ([seconds], [float(seconds) + 0.5], [moment.isoformat()], stamp, [str(seconds)]):
        found = features.encode({"t": form})
        expected = [moment.hour + 1, moment.weekday() + 1, moment.day, moment.month]
        assert found.single.tolist() == [expected]


def test_large_ids_never_share_an_id() -> None:
    values = [2**24, 2**24 + 1, 2**31, 2**31 + 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63 - 2, -(2**63)]
    features = Features.fit(config(features={"x": {"kind": "category"}}), [{"x": values}])
    found = features.encode({"x": values})
    assert sorted(found.single[:, 0].tolist()) == list(range(2, 2 + len(values)))


@pytest.mark.parametrize("weak", [0, 3])
def test_texts_of_one_fingerprint_are_told_apart(
    weak: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = vocabulary.Fingerprints.of
    monkeypatch.setattr(
        vocabulary.Fingerprints, "of", lambda self, values: real(self, values) & np.uint64(weak)
    )
    values = [f"value {n}" for n in range(40)]
    features = Features.fit(config(features={"x": {"kind": "category"}}), [{"x": values}])
    found = features.encode({"x": [*values, "unseen", None, "other"]})
    order = sorted(values)
    assert found.single[:, 0].tolist() == [order.index(v) + 2 for v in values] + [1, 0, 1]


def test_the_order_of_batches_does_not_move_a_category() -> None:
    rows = [["b", "a", "c"], ["c", "d", None], ["c", "b", "é"]]
    table = config(features={"x": {"kind": "category"}})
    digests = {
        Features.fit(table, [{"x": rows[n]} for n in order]).digest
        for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2])
    }
    assert len(digests) == 1
    found = Features.fit(table, [{"x": r} for r in rows]).encode({"x": ["c", "b", "a", "d", "é"]})
    assert found.single[:, 0].tolist() == [2, 3, 4, 5, 6]


def test_the_sample_of_a_number_does_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from partitions.features import numbers

    values = np.random.default_rng(5).normal(size=5000)
    found = set()
    for size in (1, 7, 100, 5000):
        sample = numbers.Sample(300)
        for at in range(0, len(values), size):
            sample.add(values[at : at + size])
        found.add(sample.sorted().tobytes())
        assert len(sample.sorted()) == 300
    assert len(found) == 1
    drawn = np.frombuffer(found.pop())
    assert abs(np.median(drawn) - np.median(values)) < 0.2  # 2.8 deviations of such a median


def test_a_default_takes_the_place_of_what_is_missing() -> None:
    table = config(
        features={
            "user": {"kind": "category", "default": 7},
            "word": {"kind": "hash", "buckets": 99, "default": "none"},
            "tags": {"kind": "category", "list": True, "separator": "|", "default": "a|b"},
            "age": {"kind": "number", "scale": "raw", "default": 40},
            "hour": {"kind": "time", "part": "hour", "column": "ts", "default": "1970-01-01T05:00"},
        }
    )
    rows = {"user": [7, 8], "word": ["none", "x"], "tags": ["a|b", "c"], "age": [40, 1]}
    rows |= {"ts": [5 * 3600, 0]}
    features = Features.fit(table, [rows])
    given_ones = features.encode(rows)
    assert features.missing == {}
    for name in rows:
        rest = {key: column for key, column in rows.items() if key != name}
        assert_same(features.encode(rest).slice(0, 1), given_ones.slice(0, 1))
        nulls = rest | {name: [None, rows[name][1]]}
        assert_same(features.encode(nulls), given_ones)
    assert features.missing == dict.fromkeys(("user", "word", "tags", "age", "hour"), 3)


def test_missing_columns_are_missing_values_and_others_are_ignored() -> None:
    table = config(
        features={
            "user": {"kind": "category"},
            "tags": {"kind": "category", "list": True},
            "age": {"kind": "number"},
        },
        crosses={"both": {"of": ["user", "tags"], "buckets": 10}},
    )
    rows = {"user": ["a", "b", None], "tags": [["x"], [], None], "age": [3, None, 5]}
    features = Features.fit(table, [rows])
    found = features.encode({"color": ["red", "blue"]})
    assert features.missing == {"user": 2, "tags": 2, "age": 2}
    nothing = {"user": [None] * 2, "tags": [None] * 2, "age": [None] * 2}
    assert_same(found, features.encode(nothing))
    assert found.single.tolist() == [[0], [0]] and not len(found.bags[0][0])


def test_types_are_fixed_by_training_and_serving_casts() -> None:
    table = config(features={"id": {"kind": "category"}, "word": {"kind": "category"}})
    features = Features.fit(table, [{"id": [5, 6, 6], "word": ["5", "6", "6"]}])
    expected = features.encode({"id": [5, 6], "word": ["5", "6"]}).single.tolist()
    assert expected == [[3, 3], [2, 2]]
    forms: list[Any] = [["5", "6"], [5.0, 6.0], pa.array([5, 6], pa.uint8()), np.array([5, 6])]
    forms.append(pa.array(["5", "6"]).dictionary_encode())
    for form in forms:
        assert features.encode({"id": form, "word": form}).single.tolist() == expected


@pytest.mark.parametrize(
    ("spec", "column", "sentence"),
    [
        ({"kind": "number"}, [1, "abc"], "feature x, row 2: found 'abc', expected a number"),
        ({"kind": "number"}, [[1.0]], "feature x: its column is of type large_list"),
        ({"kind": "number"}, [1, {"a": 2}], "feature x, row 2: found {'a': 2}, expected one value"),
        ({"kind": "category"}, [1, 2.5], "feature x, row 2: found 2.5, expected a whole number"),
        ({"kind": "category"}, [["a"]], "feature x: its column is of type large_list"),
        ({"kind": "category"}, ["\ud800"], "feature x, row 1: found '\\ud800', expected text in"),
        ({"kind": "category", "type": "integer"}, ["1", "0x1"], "feature x, row 2: found '0x1'"),
        ({"kind": "category", "type": "integer"}, [2**63], f"found '{2**63}', expected a whole"),
        ({"kind": "category", "list": True}, ["a|b"], "large_string, expected lists. Set its sep"),
        (
            {"kind": "category", "list": True, "type": "integer"},
            [["1", "2"], [], ["3", "x"]],
            "feature x, row 3: found 'x', expected a whole number",
        ),
        (
            {"kind": "category"},
            pa.array([1.0, 2.0**25], pa.float32()),
            "row 2: found 33554432.0, expec",
        ),
        ({"kind": "category"}, [1, 2.0**54], "at most 9,007,199,254,740,992. Its float has lost"),
        ({"kind": "category"}, pa.array([b"a"]), "its column is of type binary, expected text"),
        ({"kind": "category"}, "abc", "the column x is 'abc': give a list with a value for each"),
        ({"kind": "category"}, None, "the column x is None: give a list"),
        ({"kind": "time", "part": "hour"}, pa.array([2**63], pa.uint64()), "row 1: found 9223372"),
        ({"kind": "time", "part": "hour"}, ["0", "noon"], "feature x, row 2: found 'noon', expec"),
        ({"kind": "time", "part": "hour"}, [True], "feature x: its column is of type bool"),
    ],
)
def test_what_can_not_be_read_is_named(spec: dict[str, Any], column: Any, sentence: str) -> None:
    with pytest.raises(DataError) as error:
        Features.fit(config(features={"x": spec}), [{"x": column}])
    assert sentence in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize("is_list", [False, True])
def test_a_fraction_is_never_cut_to_an_integer(is_list: bool) -> None:
    spec = {"kind": "category", "list": is_list}
    wrap = (lambda value: [value]) if is_list else (lambda value: value)
    features = Features.fit(config(features={"x": spec}), [{"x": [wrap(2), wrap(3)]}])
    for values in ([2, 2.5], [2.0, 2.5], [2, "2.5"], pa.array([wrap(2.0), wrap(2.5)])):
        given_rows = values if isinstance(values, pa.Array) else [wrap(value) for value in values]
        with pytest.raises(DataError, match=r"feature x, row 2: found '?2\.5'?, expected a whole"):
            features.encode({"x": given_rows})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, None, 2**63 - 1], None),
        ([1, 2.5, None], None),
        (["a", None], None),
        ([True, None], None),
        ([None, None], None),
        ([[1, None], None, []], None),
        ([(1, 2.5), [3]], [[1.0, 2.5], [3.0]]),
        ([[], None], None),
        (["a", 1, 2.0, True, math.nan, None], ["a", "1", "2", "1", None, None]),
        ([2**60 + 1, 0.5], [str(2**60 + 1), "0.5"]),
        ([["a"], [1, None]], [["a"], ["1", None]]),
        ([2**70], [str(2**70)]),
    ],
)
def test_python_values_keep_their_sense(values: list[Any], expected: list[Any] | None) -> None:
    found = columns.column_of({"x": values}, "x", columns.Where("x"))
    assert found is not None and found.to_pylist() == (expected or values)


def test_text_for_a_list_is_not_taken_for_its_letters() -> None:
    spec = {"kind": "category", "list": True}
    features = Features.fit(config(features={"x": spec}), [{"x": [["a"], ["b"]]}])
    with pytest.raises(DataError, match="its column is of type large_string, expected lists"):
        features.encode({"x": ["ab", None]})


@pytest.mark.parametrize(
    "column",
    [
        pa.array([["a", None, "b"], None, [], ["", "a"]]),
        pa.array([["x"], ["a", "b"], None, [], ["a"]]).slice(1),
        pa.array(["x", "a|b", None, "", "|a"]).slice(1),
        pa.array([["a", "b"], None, [], ["a"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        [["a", "b"], None, [], ("a",)],
        pa.chunked_array([[["a", "b"], None], [[], ["a"]]]),
    ],
)
def test_lists_come_in_many_forms(column: Any) -> None:
    separated = isinstance(column, pa.StringArray)
    spec = {"kind": "category", "list": True, "separator": "|" if separated else None}
    features = Features.fit(config(features={"x": spec}), [{"x": column}])
    [(values, offsets)] = features.encode({"x": column}).bags
    assert values.tolist() == [2, 3, 2] and offsets.tolist() == [0, 2, 2, 2, 3]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([7, None, 5, 7, 0]).slice(0, 4),
        pa.array([7, None, 5, 7], pa.uint8()),
        pa.array([7, math.nan, 5, 7], pa.float16()),
        pa.array([7, None, 5, 7], pa.decimal128(9, 2)),
        pa.array([7, None, 5, 7]).dictionary_encode(),
        pa.chunked_array([[7, None], [5, 7]]),
        np.array([7, np.nan, 5, 7]),
        [7, None, 5.0, "7"],
    ],
)
def test_integers_come_in_many_forms(column: Any) -> None:
    spec = {"kind": "category", "type": "integer"}
    features = Features.fit(config(features={"x": spec}), [{"x": column}])
    assert features.encode({"x": column}).single[:, 0].tolist() == [2, 0, 3, 2]
    assert features.missing == {"x": 1}


def test_training_names_the_row_of_the_whole_stream_and_the_nearest_column() -> None:
    table = config(features={"age": {"kind": "number"}})
    with pytest.raises(DataError, match=r"feature age, row 1,002: found 'old'"):
        Features.fit(table, [{"age": [1] * 1000}, {"age": ["2", "old"]}])
    with pytest.raises(DataError, match=r"no column age\. Did you mean ages\?"):
        Features.fit(table, [{"ages": [1], "name": ["x"]}])
    with pytest.raises(DataError, match="no rows to fit features on"):
        Features.fit(table, [])
    with pytest.raises(DataError, match="not of one length: a 1, age 2"):
        Features.fit(table, [{"a": [1], "age": [1, 2]}])


def test_a_warm_start_keeps_ids_and_appends_new_values() -> None:
    table = config(
        features={
            "x": {"kind": "category", "min_count": 2},
            "n": {"kind": "number", "quantiles": 4, "buckets": 3},
            "new": {"kind": "category", "column": "x"},
        }
    )
    old = FeaturesConfig(features={name: table.features[name] for name in ("x", "n")})
    start = Features.fit(old, [{"x": ["b", "b", "a", "a", "c"], "n": [1, 2, 3, 4, 5]}])
    rows = {"x": ["d", "d", "d", "a", "a", "a", "a", "e"], "n": [10, 20, 30, 40, 50, 60, 70, 80]}
    grown = Features.fit(table, [rows], start)
    asked = {"x": ["a", "b", "d", "c", "e"], "n": [1, 2, 3, 4, 5]}
    assert ids(grown, grown.encode(asked), "x") == [2, 3, 4, 1, 1]
    assert ids(grown, grown.encode(asked), "new") == [2, 1, 3, 1, 4]
    for name in ("n",):
        before, after = start.encode(asked), grown.encode(asked)
        assert dense(start, before, name) == dense(grown, after, name)
        assert ids(start, before, name) == ids(grown, after, name)
    bounded = config(features={"x": {"kind": "category", "max_size": 3}})
    assert Features.fit(bounded, [rows], start).layout.slots[0].size == 2 + 3


@pytest.mark.parametrize("name", ["features.json", "features.arrow"])
@pytest.mark.parametrize("how", ["cut", "flip", "gone"])
def test_a_damaged_file_is_named(name: str, how: str, tmp_path: Path) -> None:
    features = Features.fit(config(features={"x": {"kind": "category"}}), [{"x": ["a", "b"]}])
    features.save(tmp_path)
    path = tmp_path / name
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif name.endswith("json"):
        changed = json.loads(data)
        changed["features"]["x"]["settings"]["min_count"] = 9
        path.write_text(json.dumps(changed))
    else:
        path.write_bytes(data.replace(b"ab", b"ba"))
    with pytest.raises(DataError) as error:
        Features.load(tmp_path)
    assert str(path) in str(error.value)


def test_vectors_of_an_export_become_dense_columns(tmp_path: Path) -> None:
    from partitions import embeddings

    path = tmp_path / "vectors.parquet"
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    with embeddings.writing(path, "parquet", 3, 2, {}) as write:
        write(pa.array(["7", "8", "é"]), vectors)
    spec = {"kind": "vector", "column": "user", "file": str(path)}
    features = Features.fit(config(features={"taste": spec}), [{"user": [8, 9]}])
    assert features.layout.dense == ("taste:0", "taste:1", "taste:missing")
    features.save(tmp_path / "saved")
    path.unlink()
    for rows in ({"user": ["8", "é", "9", None]}, {"user": pa.array(["8", "é", "9", None])}):
        found = Features.load(tmp_path / "saved").encode(rows)
        assert found.dense.tolist() == [[2, 3, 0], [4, 5, 0], [0, 0, 1], [0, 0, 1]]
    path.write_text("not vectors")
    with pytest.raises(DataError, match=r"vectors\.parquet is no file of embeddings"):
        Features.fit(config(features={"taste": spec}), [{"user": [8, 9]}])


def test_a_default_of_the_wrong_type_is_an_error_of_the_settings() -> None:
    spec = {"kind": "category", "type": "integer", "default": "none"}
    with pytest.raises(ConfigError, match="default = 'none' is not of its type, which is integer"):
        Features.fit(config(features={"x": spec}), [{"x": [1]}])


def test_serving_needs_neither_numba_nor_scipy_for_features() -> None:
    code = "import partitions.features, sys; print(*{'numba', 'scipy', 'torch'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout.split()) == (0, []), run.stderr
