"""The data gate on a shop's event log: twelve planted faults are named, clean batches pass.

scripts/evaluate_gate.py runs the same at a larger scale; docs/validation.md has its figures.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from partitions import validation
from partitions.config import SourceConfig
from partitions.gate import data_schema, schema_edits
from partitions.gate.anomalies import Report
from partitions.gate.data_files import Input, Located
from partitions.gate.statistics import Statistics
from partitions.validation import Gate
from scripts import event_log
from scripts.event_log import ENDPOINTS, FAULTS, Shop, end_of

ROWS = 30_000
SHOPS = {
    "names": Shop(num_users=4_000, num_items=1_000),
    "plain numbers": Shop(num_users=4_000, num_items=1_000, plain=True),
}


ENDS = {"saw": ("user", "item")}


def check(table: pa.Table, week: int, known: tuple[data_schema.DataSchema, Statistics]) -> Report:
    gate = Gate(*known, ENDPOINTS, end_of(week))
    gate.add("log.parquet", 0, table.combine_chunks().to_batches()[0])
    return gate.finish()


@cache
def first_week(name: str) -> tuple[data_schema.DataSchema, Statistics]:
    gate = Gate(None, None, ENDPOINTS, end_of(0))
    gate.add("log.parquet", 0, SHOPS[name].week(0, ROWS).combine_chunks().to_batches()[0])
    report = gate.finish()
    assert report.schema is not None
    assert report.notes == ()
    return report.schema, report.statistics


def faulty(name: str, fault: str, folder: Path) -> Report:
    _, break_it, form = FAULTS[fault]
    table = break_it(SHOPS[name].week(3, ROWS), np.random.default_rng(5))
    inputs = event_log.write(table, folder, form)
    if fault == "truncated file":
        event_log.cut(folder / f"part-1.{form}")
    return validation.stream(Gate(*first_week(name), ENDPOINTS, end_of(3)), inputs)


@pytest.mark.parametrize("shop", SHOPS)
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_caught_and_named(fault: str, shop: str, tmp_path: Path) -> None:
    report = faulty(shop, fault, tmp_path)
    names = [anomaly.name for anomaly in report.anomalies]
    assert names[:1] == [FAULTS[fault][0]], [anomaly.what for anomaly in report.anomalies]
    assert set(names) == {FAULTS[fault][0]}, "effects stand beside their cause"
    assert report.exit_code == (2 if fault == "truncated file" else 1)


@pytest.mark.parametrize("shop", SHOPS)
@pytest.mark.parametrize("fault", set(FAULTS) - {"truncated file"})
def test_the_printed_edits_accept_the_fault(fault: str, shop: str, tmp_path: Path) -> None:
    report = faulty(shop, fault, tmp_path)
    schema, last_good = first_week(shop)
    text = schema_edits.edited(data_schema.as_toml(schema, {}), report.edits, "schema.toml")
    accepting = Gate(data_schema.parse(text, "schema.toml"), last_good, ENDPOINTS, end_of(3))
    form = FAULTS[fault][2]
    inputs = [Input(tmp_path, SourceConfig(path=f"*.{form}"), COLUMNS)]
    again = validation.stream(accepting, inputs)
    assert [anomaly.what for anomaly in again.anomalies] == []


COLUMNS: dict[str, str | int] = {
    name: name for name in ["lhs", "rel", "rhs", "weight", "timestamp", "device"]
}


@pytest.mark.parametrize("shop", SHOPS)
def test_no_alarm_on_thirty_clean_weeks_of_different_size(shop: str) -> None:
    for week in range(1, 31):
        rows = ROWS * [1, 2, 4][week % 3] // [1, 4][week % 2]
        report = check(SHOPS[shop].week(week, rows), week, first_week(shop))
        assert [anomaly.what for anomaly in report.anomalies] == [], f"week {week}, {rows} rows"


@pytest.mark.parametrize("shop", SHOPS)
def test_no_alarm_on_thirty_samples_of_the_first_week(shop: str) -> None:
    week = SHOPS[shop].week(0, ROWS)
    rng = np.random.default_rng(8)
    for sample in range(30):
        size = ROWS // [1, 2, 4][sample % 3]
        rows = np.sort(rng.choice(ROWS, size, replace=False))
        report = check(week.take(pa.array(rows)), 0, first_week(shop))
        assert [anomaly.what for anomaly in report.anomalies] == [], f"sample {sample}"


@pytest.mark.parametrize("form", ["parquet", "tsv", "tsv.gz", "arrow"])
def test_a_cut_file_is_called_so_in_each_format(form: str, tmp_path: Path) -> None:
    table = SHOPS["names"].week(0, 5_000)
    inputs = event_log.write(table, tmp_path, form)
    report = validation.stream(Gate(None, None, ENDPOINTS, end_of(0)), inputs)
    event_log.cut(tmp_path / f"part-1.{form}")
    found = validation.stream(Gate(report.schema, report.statistics, ENDPOINTS, end_of(0)), inputs)
    assert [anomaly.name for anomaly in found.anomalies] == ["truncated_file"]
    assert "part-1" in found.anomalies[0].what
    assert found.exit_code == (1 if form == "tsv" else 2)


def test_bytes_of_another_encoding_are_called_so(tmp_path: Path) -> None:
    inputs = event_log.write(SHOPS["names"].week(0, 2_000), tmp_path, "tsv", files=1)
    path = tmp_path / "part-0.tsv"
    path.write_bytes(path.read_text("utf-8").encode("latin-1"))
    report = validation.stream(Gate(*first_week("names"), ENDPOINTS, end_of(0)), inputs)
    assert [anomaly.name for anomaly in report.anomalies] == ["encoding_break"]
    assert f"{path}:" in report.anomalies[0].what
    assert not report.usable


def swap(table: pa.Table, one: str, other: str) -> pa.Table:
    names = {one: other, other: one}
    return table.rename_columns([names.get(n, n) for n in table.column_names])


def test_other_swapped_columns_are_called_so() -> None:
    week = SHOPS["names"].week(2, ROWS)
    for one, other in (("weight", "timestamp"), ("rel", "lhs")):
        report = check(swap(week, one, other).select(week.column_names), 2, first_week("names"))
        assert report.anomalies[0].name == "swapped_columns", (one, other)
        assert {anomaly.name for anomaly in report.anomalies[1:]} <= {"missing_relation"}


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ({"weight": -999.0}, "sentinel_value"),
        ({"weight": 0.0}, "sentinel_value"),
        ({"timestamp": -1}, "sentinel_value"),
        ({"timestamp": end_of(3) * 1000}, "wrong_unit"),
        ({"timestamp": end_of(3) + 86_400}, "future_timestamps"),
        ({"timestamp": end_of(-200)}, "out_of_range"),
        ({"timestamp": end_of(-2)}, "late_events"),
        ({"lhs": "-1"}, "sentinel_value"),
        ({"lhs": "NULL"}, "sentinel_value"),
        ({"lhs": "robot-#"}, "key_format"),
        ({"rel": "wished"}, "unknown_relation"),
        ({"device": "console"}, "unknown_value"),
        ({"device": None}, "missing_values"),
        ({"rhs": None}, "missing_values"),
        ({"rhs": ""}, "missing_values"),
    ],
)
def test_a_value_in_every_tenth_row_is_called_by_what_it_is(
    fault: dict[str, object], name: str
) -> None:
    table = SHOPS["names"].week(3, ROWS)
    ((column, value),) = fault.items()
    at = table.column_names.index(column)
    old = table.column(column).to_pylist()
    old[4::10] = [
        value.replace("#", str(i)) if isinstance(value, str) else value
        for i in range(len(old[4::10]))
    ]
    table = table.set_column(at, column, pa.array(old, table.column(column).type))
    report = check(table, 3, first_week("names"))
    assert [anomaly.name for anomaly in report.anomalies][:1] == [name]
    anomaly = report.anomalies[0]
    if anomaly.rows:
        assert anomaly.rows == 3_000 or column in ("lhs", "rhs")
        assert (anomaly.cells[0].file, anomaly.cells[0].row) == ("log.parquet", 5)


def test_a_day_missing_in_the_middle_is_found() -> None:
    table = SHOPS["names"].week(3, ROWS)
    day = np.asarray(table.column("timestamp")) // event_log.DAY_S - event_log.START_DAY - 21
    report = check(table.filter(pa.array(day != 3)), 3, first_week("names"))
    assert [anomaly.name for anomaly in report.anomalies] == ["thin_day"]
    assert "2026-01-25" in report.anomalies[0].what


def test_one_late_feed_of_three_is_found() -> None:
    table = SHOPS["names"].week(3, ROWS)
    last = np.asarray(table.column("timestamp")) > end_of(3) - event_log.DAY_S
    bought = np.asarray(table.column("rel")) == "bought"
    report = check(table.filter(pa.array(~(last & bought))), 3, first_week("names"))
    assert [anomaly.name for anomaly in report.anomalies] == ["late_data"]
    assert report.anomalies[0].relation == "bought"


def test_the_hub_that_grew_is_named_and_not_the_largest() -> None:
    def batch(seed: int, hub: float) -> pa.RecordBatch:
        rng = np.random.default_rng(seed)
        ids = np.where(rng.random(20_000) < 0.2, 7, rng.integers(10, 5_000, 20_000))
        ids[rng.random(20_000) < hub] = 1
        keys = pa.array([f"item-{i}" for i in range(5_000)])
        users = pa.array([f"u{i}" for i in rng.integers(0, 9_000, 20_000)])
        return pa.record_batch({"lhs": users, "rhs": keys.take(pa.array(ids))})

    first = validation.check([Located("x", 0, batch(1, 0), "saw")], None, None, endpoints=ENDS)
    report = validation.check(
        [Located("x", 0, batch(2, 0.12), "saw")], first.schema, first.statistics, endpoints=ENDS
    )
    assert report.anomalies[0].name == "hub_explosion"
    assert "'item-1' leads" in report.anomalies[0].what


def test_self_loops_are_found_where_both_ends_are_of_one_type() -> None:
    table = SHOPS["names"].week(3, ROWS)
    rhs = table.column("rhs").to_pylist()
    follows = np.flatnonzero(np.asarray(table.column("rel")) == "follows")[::50]
    for row in follows:
        rhs[row] = table.column("lhs")[int(row)].as_py()
    table = table.set_column(2, "rhs", pa.array(rhs))
    report = check(table, 3, first_week("names"))
    assert [anomaly.name for anomaly in report.anomalies] == ["self_loops"]
    assert report.anomalies[0].rows == len(follows)


def test_the_hours_of_today_so_far_say_nothing() -> None:
    today = event_log.DAY_S
    schema, last_good = first_week("names")
    table = SHOPS["names"].week(1, ROWS)
    early = end_of(1) - today + 3 * 3600  # three in the morning of the last day
    so_far = table.filter(pa.array(np.asarray(table.column("timestamp")) <= early))
    gate = Gate(schema, last_good, ENDPOINTS, early)
    gate.add("log.parquet", 0, so_far.combine_chunks().to_batches()[0])
    report = gate.finish()
    assert [anomaly.what for anomaly in report.anomalies] == []
    hours = next(d for d in report.distances if d.what.startswith("hours of the day"))
    assert hours.observed < 0.01


def test_history_may_be_checked_again_years_later() -> None:
    gate = Gate(None, None, ENDPOINTS, end_of(0) + 2 * 365 * event_log.DAY_S)
    batch = SHOPS["names"].week(0, ROWS).combine_chunks().to_batches()[0]
    gate.add("log.parquet", 0, batch)
    report = gate.finish()
    assert report.schema is not None
    assert report.schema.columns["timestamp"].max_lag_days is None
    later = Gate(report.schema, report.statistics, ENDPOINTS, end_of(0) + 9 * 365 * 86_400)
    later.add("log.parquet", 0, batch)
    assert later.finish().clean


def test_a_log_that_grows_day_by_day_is_clean() -> None:
    days = [SHOPS["names"].week(0, ROWS)]
    schema, last_good = first_week("names")
    for week in range(1, 4):
        days.append(SHOPS["names"].week(week, ROWS))
        report = check(pa.concat_tables(days), week, (schema, last_good))
        assert [anomaly.what for anomaly in report.anomalies] == []
        last_good = report.statistics
