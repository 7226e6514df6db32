"""Skew between the features of training and those that serving logged."""

import numpy as np
import pyarrow as pa
import pytest

from partitions.errors import DataError
from partitions.gate import skew
from partitions.gate.columns import kinds_of, typed
from partitions.gate.statistics import Statistics

ROWS = 20_000


def features(seed: int, rows: int = ROWS) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    return pa.record_batch(
        {
            "age": rng.integers(18, 80, rows),
            "price": np.exp(rng.normal(3, 1, rows)).astype(np.float32),
            "country": pa.array(["de", "fr", "it"]).take(pa.array(rng.choice(3, rows))),
            "query": pa.array([f"q{i}" for i in rng.zipf(1.2, rows) % 50_000]),
        }
    )


def statistics_of(batch: pa.RecordBatch) -> Statistics:
    made = Statistics(kinds_of(batch))
    made.add(typed(batch, made.kinds, None))
    return made


def changed(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    return batch.set_column(batch.schema.names.index(name), name, values)


def test_equal_distributions_of_any_size_have_no_skew() -> None:
    training = statistics_of(features(1))
    for seed, rows in enumerate([200, 1_000, 5_000, 50_000], start=2):
        found = skew.compare(training, statistics_of(features(seed, rows)))
        assert [anomaly.what for anomaly in found.anomalies] == []
        assert found.distances


def test_a_feature_computed_otherwise_in_serving_is_named() -> None:
    training, batch = statistics_of(features(1)), features(2)
    some = pa.array(np.arange(ROWS) % 5 > 0)
    cases = {
        "wrong_unit": changed(batch, "price", pa.compute.multiply(batch["price"], 100.0)),
        "constant_column": changed(batch, "age", pa.array(np.full(ROWS, 30))),
        "category_drift": changed(
            batch, "country", pa.compute.if_else(some, "de", batch["country"])
        ),
        "missing_share": changed(
            batch, "age", pa.compute.if_else(some, batch["age"], pa.scalar(None, pa.int64()))
        ),
        "number_drift": changed(batch, "price", pa.compute.sqrt(batch["price"])),
        "missing_column": batch.select(["age", "price", "query"]),
    }
    for name, serving in cases.items():
        found = skew.compare(training, statistics_of(serving))
        assert [anomaly.name for anomaly in found.anomalies] == [name]


def test_values_too_many_to_list_are_compared_too() -> None:
    training, batch = statistics_of(features(1)), features(2)
    assert not training.categories["query"].exact
    some = pa.array(np.arange(ROWS) % 4 == 0)
    serving = changed(batch, "query", pa.compute.if_else(some, "robot", batch["query"]))
    found = skew.compare(training, statistics_of(serving))
    assert [anomaly.name for anomaly in found.anomalies] == ["category_drift"]


def test_rows_of_the_same_key_are_compared_cell_by_cell() -> None:
    training = pa.record_batch(
        {
            "event": ["a", "b", "c", "d", "e"],
            "score": [1.0, 2.0, None, 4.0, float("nan")],
            "colour": ["red", "blue", None, "red", "red"],
            "unlogged": [1, 2, 3, 4, 5],
        }
    )
    serving = pa.table(
        {
            "event": ["e", "d", "c", "b", "z"],
            "score": [float("nan"), 4.4, None, 2.0, 9.0],
            "colour": ["red", None, None, "BLUE", "red"],
            "only here": [1, 2, 3, 4, 5],
        }
    )
    found = skew.differing([training.slice(0, 2), training.slice(2)], serving, "event")
    assert set(found) == {"score", "colour", "only here"}
    assert (found["score"].joined, found["score"].differing) == (4, 1)
    assert found["score"].examples == [("d", 4.0, 4.4)]
    assert found["score"].share == 0.25
    assert found["colour"].differing == 2
    assert found["only here"].joined == 0
    close = skew.differing([training], serving, "event", tolerance=0.1)
    assert close["score"].differing == 0


def test_rows_may_be_a_table_a_batch_or_batches() -> None:
    batch = pa.record_batch({"event": ["a", "b"], "x": [1, 2]})
    other = pa.record_batch({"event": ["a", "b"], "x": [1, 3]})

    def forms(rows: pa.RecordBatch) -> list[skew.Rows]:
        return [rows, pa.Table.from_batches([rows]), iter([rows.slice(0, 1), rows.slice(1)])]

    for training in range(3):
        for serving in range(3):
            found = skew.differing(forms(batch)[training], forms(other)[serving], "event")
            assert (found["x"].joined, found["x"].examples) == (2, [("b", 2, 3)])
    with pytest.raises(DataError, match="The serving log has no batches"):
        skew.differing(batch, [], "event")


def test_a_join_without_its_key_is_an_error() -> None:
    rows = pa.record_batch({"event": ["a"], "x": [1]})
    with pytest.raises(DataError, match="The serving log has no column evnt to join by"):
        skew.differing([rows], pa.table(rows.to_pydict()), "evnt")
    with pytest.raises(DataError, match="has the same event twice"):
        skew.differing([rows], pa.table({"event": ["a", "a"]}), "event")
    with pytest.raises(DataError, match="The training rows have no column event"):
        skew.differing([rows.select(["x"])], pa.table({"event": ["a"]}), "event")
