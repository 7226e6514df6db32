"""No alarm on clean batches: both drawn from one distribution, the first inferred, the second
checked against it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from partitions import validation
from partitions.gate.anomalies import Report
from partitions.gate.batch_rules import Reading
from partitions.gate.data_files import Located
from partitions.validation import Gate

Draw = Callable[[np.random.Generator, int], dict[str, Any]]


def pairs(draw: Draw, times: int, first: int, second: int, **gate: Any) -> list[list[str]]:
    """What was alarming in each of `times` second batches."""
    found = []
    for seed in range(times):
        rng = np.random.default_rng([seed, first, second])
        old, new = (pa.record_batch(draw(rng, rows)) for rows in (first, second))
        known = validation.check([Located("x", 0, old)], None, None, as_of=0, **gate)
        report = validation.check(
            [Located("x", 0, new)], known.schema, known.statistics, as_of=0, **gate
        )
        found.append([f"{anomaly.name}: {anomaly.what}" for anomaly in report.anomalies])
    return found


def alarms(found: list[list[str]]) -> list[str]:
    return [names[0] for names in found if names]


def rarely(value: str) -> Draw:
    def draw(rng: np.random.Generator, rows: int) -> dict[str, Any]:
        cells = rng.integers(1, 10, rows).astype(str).astype(object)
        cells[rng.random(rows) < 1 / 20_000] = value
        keys = rng.integers(0, 1000, rows).astype(str)
        return {"lhs": keys, "rhs": keys[::-1].copy(), "weight": pa.array(cells, pa.string())}

    return draw


@pytest.mark.parametrize("value", ["", "much"])
@pytest.mark.parametrize("second", [2_000, 20_000, 200_000])
def test_an_exception_that_the_first_batch_lacks_is_no_alarm(value: str, second: int) -> None:
    times = 5 if second > 100_000 else 40
    assert alarms(pairs(rarely(value), times, 20_000, second)) == []


def with_cells(value: str, count: int) -> Report:
    batch = {"weight": ["5"] * 20_000}
    first = validation.check([Located("x", 0, pa.record_batch(batch))], None, None)
    batch["weight"][:count] = [value] * count
    second = [Located("x", 0, pa.record_batch(batch))]
    return validation.check(second, first.schema, first.statistics)


@pytest.mark.parametrize(("value", "name"), [("", "missing_values"), ("much", "mixed_types")])
def test_exceptions_that_chance_does_not_explain_are_found(value: str, name: str) -> None:
    assert with_cells(value, 3).clean
    assert [anomaly.name for anomaly in with_cells(value, 20).anomalies] == [name]


def test_a_missing_key_is_never_chance() -> None:
    keys = [str(i) for i in range(1000)]
    batch = pa.record_batch({"lhs": keys, "rhs": keys})
    ends = {"r": ("a", "b")}
    first = Gate(None, None, ends, 0)
    first.add("x", 0, batch, "r")
    known = first.finish()
    second = Gate(known.schema, known.statistics, ends, 0)
    second.add("x", 0, pa.record_batch({"lhs": ["", *keys[1:]], "rhs": keys}), "r")
    assert [anomaly.name for anomaly in second.finish().anomalies] == ["missing_values"]


@pytest.mark.parametrize(("malformed", "names"), [(3, []), (20, ["malformed_rows"])])
def test_lines_that_are_no_rows_are_compared_with_chance(malformed: int, names: list[str]) -> None:
    batch = pa.record_batch({"lhs": [str(i) for i in range(1000)] * 2})
    first = Gate(None, None, {}, 0)
    first.add("x", 0, batch)
    known = first.finish()
    second = Gate(known.schema, known.statistics, {}, 0)
    second.add("x", 0, batch)
    second.reading.merge(Reading(malformed=malformed))
    assert [anomaly.name for anomaly in second.finish().anomalies] == names


def tailed(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    names = rng.zipf(1.7, rows)
    return {
        "lhs": rng.integers(0, 5_000, rows).astype(str),
        "rel": np.char.add("r", np.minimum(names, 600).astype(str)),
        "rhs": rng.integers(0, 5_000, rows).astype(str),
    }


def test_relations_too_rare_for_the_first_batch_are_no_alarm_where_any_may_come() -> None:
    ends = {"*": ("entity", "entity")}
    assert alarms(pairs(tailed, 8, 5_000, 5_000, endpoints=ends)) == []


def test_relations_that_all_came_often_are_all_that_may_come() -> None:
    def even(rng: np.random.Generator, rows: int) -> dict[str, Any]:
        return {**tailed(rng, rows), "rel": np.array(["r", "s"])[rng.integers(0, 2, rows)]}

    ends = {"*": ("entity", "entity")}
    batch = pa.record_batch(even(np.random.default_rng(1), 5_000))
    known = validation.check([Located("x", 0, batch)], None, None, endpoints=ends)
    assert known.schema is not None and set(known.schema.relations) == {"r", "s"}
    new = pa.record_batch(
        {**even(np.random.default_rng(2), 5_000), "rel": ["r", "s", "t"] * 1666 + ["r"] * 2}
    )
    report = validation.check([Located("x", 0, new)], known.schema, known.statistics)
    assert report.anomalies[0].name == "unknown_relation"


TAILS: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "pareto 1": lambda rng, rows: rng.pareto(1, rows),
    "pareto 0.5": lambda rng, rows: rng.pareto(0.5, rows),
    "cauchy": lambda rng, rows: rng.standard_cauchy(rows),
    "lognormal 3": lambda rng, rows: rng.lognormal(0, 3, rows),
    "normal": lambda rng, rows: rng.normal(0, 1, rows),
    "exponential": lambda rng, rows: rng.exponential(1, rows),
    "uniform": lambda rng, rows: rng.uniform(-1, 1, rows),
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("rows", [30, 300, 3_000])
def test_the_range_leaves_room_for_any_tail(tail: str, rows: int) -> None:
    found = pairs(lambda rng, rows: {"x": TAILS[tail](rng, rows)}, 60, rows, rows)
    assert alarms(found) == []


@pytest.mark.parametrize("tail", ["exponential", "lognormal 3", "pareto 1"])
def test_another_unit_is_found_whatever_the_tail(tail: str) -> None:
    rng = np.random.default_rng(1)
    old, new = (pa.record_batch({"x": TAILS[tail](rng, 3_000) * f}) for f in (1, 100))
    known = validation.check([Located("x", 0, old)], None, None)
    report = validation.check([Located("x", 0, new)], known.schema, known.statistics)
    assert report.anomalies[0].name == "wrong_unit"


@pytest.mark.parametrize("factor", [0.1, 1, 10])
def test_a_band_holds_from_a_tenth_to_ten_times(factor: float) -> None:
    def draw(rng: np.random.Generator, rows: int) -> dict[str, Any]:
        cells = rng.integers(0, 40_000, rows)  # 2,000 rows: 2.5 % repeat one; 20,000: 21 %
        return {"lhs": (cells // 200).astype(str), "rhs": (cells % 200).astype(str)}

    def numbers(rng: np.random.Generator, rows: int) -> dict[str, Any]:
        return {"x": rng.normal(0, 1, rows)}

    def keys(rng: np.random.Generator, rows: int) -> dict[str, Any]:
        names = rng.integers(0, 10**9, rows).astype(str)
        return {"lhs": names, "rhs": names[::-1].copy()}

    second = int(2_000 * factor)
    ends = {"": ("one", "other")}
    assert alarms(pairs(numbers, 40, 2_000, second)) == []
    assert alarms(pairs(keys, 20, 2_000, second, endpoints=ends)) == []
    assert alarms(pairs(draw, 20, 2_000, second, endpoints=ends)) == []
    assert alarms(pairs(draw, 5, 20_000, int(20_000 * factor), endpoints=ends)) == []


def test_tenfold_rows_are_found_where_some_repeat_anyway() -> None:
    def draw(rng: np.random.Generator, rows: int) -> pa.RecordBatch:
        return pa.record_batch({"x": rng.integers(0, 40_000, rows).astype(str)})

    rng = np.random.default_rng(1)
    known = validation.check([Located("x", 0, draw(rng, 5_000))], None, None)
    tenfold = pa.concat_batches([draw(rng, 500)] * 10)
    report = validation.check([Located("x", 0, tenfold)], known.schema, known.statistics)
    assert report.anomalies[0].name == "duplicates"


@pytest.mark.parametrize(("first", "second"), [(50, 500), (300, 300), (20_000, 2_000)])
def test_rare_relations_have_no_share_that_a_few_rows_can_tell(first: int, second: int) -> None:
    def draw(rng: np.random.Generator, rows: int) -> dict[str, Any]:
        names = np.minimum(rng.zipf(1.3, rows), 5).astype(str)
        return {**tailed(rng, rows), "rel": np.char.add("r", names)}

    ends = {"*": ("entity", "entity")}
    found = pairs(draw, 60 if first < 1_000 else 10, first, second, endpoints=ends)
    assert [what for what in alarms(found) if "relation" in what.partition(":")[0]] == []
