#!/usr/bin/env python3
"""Does the data gate catch what breaks recommenders, and keep still otherwise?

    scripts/evaluate_gate.py            400,000 rows a batch, some minutes
    scripts/evaluate_gate.py --quick    within a minute

Two shops (scripts/event_log.py), one whose keys tell their type and one where they are plain
numbers that users and items share. The first week gives the schema and the last good batch. Then:

* each of twelve faults is planted in a later week, in all rows and in smaller shares of them: is
  there an alarm, and is the first anomaly the right one?
* 30 clean batches a shop, later weeks of 1/4 to 4 times the size and samples of the first week: is
  there any alarm?

--edges FILE (tab-separated, two to four columns, maybe .gz; may be repeated) does the last for
real data: six times, a random half is the first batch; samples of 1 to 1/10 of the rest follow.

--speed does nothing but time the gate on rows in memory, of 3 and of 256 relations, on one core.

Prints tables; the last line is one JSON object.
"""

import argparse
import gzip
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import event_log
from event_log import ENDPOINTS, FAULTS, Shop, end_of
from facts import facts

from partitions.gate.anomalies import Report
from partitions.gate.data_schema import DataSchema
from partitions.gate.statistics import Statistics
from partitions.validation import Gate, stream

Known = tuple[DataSchema | None, Statistics | None]
STRENGTHS = [1.0, 0.3, 0.1, 0.03, 0.01]  # shares of the rows that are broken
FAULT_WEEK = 5


class Trial:
    """A shop whose first week is known to the gate."""

    def __init__(self, shop: Shop, rows: int, folder: Path) -> None:
        self.shop, self.rows, self.folder = shop, rows, folder
        self.speeds: list[float] = []
        self.known: Known = (None, None)
        first = self.check(shop.week(0, rows), 0)
        self.known = (first.schema, first.statistics)

    def check(
        self, table: pa.Table, week: int, form: str = "parquet", *, cut: bool = False
    ) -> Report:
        inputs = event_log.write(table, self.folder, form)
        if cut:
            event_log.cut(self.folder / f"part-1.{form}")
        start = time.perf_counter()
        report = stream(Gate(*self.known, ENDPOINTS, end_of(week)), inputs)
        if form == "parquet":
            self.speeds.append(report.rows / (time.perf_counter() - start))
        for path in self.folder.iterdir():
            path.unlink()
        return report

    def fault(self, name: str, strength: float, seed: int) -> str:
        """The name of the first anomaly, "" for no alarm."""
        _, break_it, form = FAULTS[name]
        rng = np.random.default_rng([seed, FAULT_WEEK])
        table = self.shop.week(FAULT_WEEK, self.rows)
        broken = rng.random(len(table)) < strength
        rest, some = table.filter(pa.array(~broken)), table.filter(pa.array(broken))
        some = break_it(some, rng)
        if rest.schema != some.schema:  # numbers beside text in one column
            rest = rest.cast(some.schema)
        report = self.check(
            pa.concat_tables([rest, some]), FAULT_WEEK, form, cut=name == "truncated file"
        )
        return report.anomalies[0].name if report.anomalies else ""

    def clean(self, number: int, seed: int) -> Report:
        if number % 3 == 2:
            rng = np.random.default_rng([seed, number])
            first = self.shop.week(0, self.rows)
            size = self.rows // [1, 2, 4][number % 9 // 3]
            chosen = np.sort(rng.choice(self.rows, size, replace=False))
            return self.check(first.take(pa.array(chosen)), 0)
        rows = int(self.rows * [0.25, 0.5, 1, 2, 4][number % 5])
        return self.check(self.shop.week(number + 1, rows), number + 1)


def real_alarms(path: Path, seed: int) -> list[list[str]]:
    """What was alarming in each of 24 clean batches of an edge list."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        cells = [line.rstrip("\n").split("\t") for line in file]
    names = [["lhs", "rhs"], ["lhs", "rel", "rhs"], ["lhs", "rel", "rhs", "weight"]]
    columns = names[len(cells[0]) - 2]
    if len(columns) == 3 and all(row[2].isdigit() for row in cells):
        columns = ["lhs", "rhs", "weight"]
    table = pa.table({name: [row[at] for row in cells] for at, name in enumerate(columns)})
    ends = {"*": ("entity", "entity" if "rel" in columns else "other")}
    relation = None if "rel" in columns else "edge"
    rng, found = np.random.default_rng(seed), []

    def check(rows: NDArray[np.int64], known: Known) -> Report:
        gate = Gate(*known, ends, 0)
        batch = table.take(pa.array(rows)).combine_chunks().to_batches()[0]
        gate.add(path.name, 0, batch, relation)
        return gate.finish()

    for _ in range(6):
        rows = rng.permutation(len(table))
        half, rest = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        first = check(half, (None, None))
        for part in (1, 2, 4, 10):
            report = check(rest[: len(rest) // part], (first.schema, first.statistics))
            found.append([anomaly.what for anomaly in report.anomalies])
    return found


def speed(relations: int, seed: int) -> dict[str, float]:
    """CPU microseconds a row of a first and of a checked batch of 2.6 million rows."""
    rng = np.random.default_rng(seed)
    keys = pa.array([f"entity-{i:08}" for i in range(200_000)])
    names = pa.array([f"r{i}" for i in range(relations)])
    batches = []
    for _ in range(10):
        lhs, rel, rhs = (rng.integers(0, n, 1 << 18) for n in (200_000, relations, 200_000))
        columns = [keys.take(pa.array(lhs)), names.take(pa.array(rel)), keys.take(pa.array(rhs))]
        batches.append(pa.record_batch(columns, ["lhs", "rel", "rhs"]))
    known: Known = (None, None)
    found = {}
    for kind in ("warm-up", "first", "checked"):
        gate = Gate(*(known if kind == "checked" else (None, None)), {"*": ("entity", "entity")}, 0)
        start = time.process_time()
        for number, batch in enumerate(batches):
            gate.add("memory", number << 18, batch)
        report = gate.finish()
        found[f"{kind}_us_a_row"] = round((time.process_time() - start) / report.rows * 1e6, 3)
        known = (report.schema, report.statistics)
    del found["warm-up_us_a_row"]
    return {"relations": relations, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="40,000 rows, three strengths")
    parser.add_argument("--edges", type=Path, action="append", default=[])
    parser.add_argument("--speed", action="store_true", help="only time rows in memory")
    given = parser.parse_args()
    if given.speed:
        pa.set_cpu_count(1)
        print(json.dumps([speed(relations, given.seed) for relations in (3, 256)]))
        return
    rows = 40_000 if given.quick else given.rows
    strengths = [1.0, 0.1, 0.01] if given.quick else STRENGTHS
    users, items = rows // 10, rows // 40
    console = Console()
    caught: dict[tuple[str, float], list[str]] = {}
    alarms: list[str] = []
    speeds = []
    for plain in (False, True):
        shop = Shop(given.seed, users, items, plain)
        with tempfile.TemporaryDirectory() as folder:
            trial = Trial(shop, rows, Path(folder))
            for name in FAULTS:
                for strength in strengths:
                    if name != "truncated file" or strength == 1:
                        first = trial.fault(name, strength, given.seed)
                        caught.setdefault((name, strength), []).append(first)
            trial.speeds.clear()
            for number in range(30):
                report = trial.clean(number, given.seed)
                alarms += [anomaly.what for anomaly in report.anomalies[:1]]
            speeds += trial.speeds
    _print(console, caught, strengths, alarms)
    real = {path: real_alarms(path, given.seed) for path in given.edges}
    for path, batches in real.items():
        bad = [what for batch in batches for what in batch]
        console.print(f"{path.name}: {sum(map(bool, batches))} of {len(batches)} gave an alarm")
        for what in bad[:3]:
            console.print(f"  {what}")
    full = [(name, first) for name in FAULTS for first in caught[name, 1.0]]
    result = {
        "faults": len(full),
        "caught": sum(first != "" for _, first in full),
        "wrong_name": sum(first not in ("", FAULTS[name][0]) for name, first in full),
        "clean_batches": 60,
        "false_alarms": len(alarms),
        "rows_per_s": round(float(np.median(speeds))),
        "rows": rows,
        "real_batches": sum(map(len, real.values())),
        "real_alarms": sum(bool(what) for batches in real.values() for what in batches),
        "seed": given.seed,
        **facts(),
    }
    print(json.dumps(result))


def _print(
    console: Console,
    caught: dict[tuple[str, float], list[str]],
    strengths: list[float],
    alarms: list[str],
) -> None:
    table = Table(title="First anomaly, by the share of rows that is broken; names | plain numbers")
    table.add_column("fault")
    for strength in strengths:
        table.add_column(f"{strength:.0%}")
    for name, (right, _, _) in FAULTS.items():
        cells = []
        for strength in strengths:
            marks = [
                "-" if first == "" else "ok" if first == right else first
                for first in caught.get((name, strength), [])
            ]
            cells.append(" | ".join(marks))
        table.add_row(name, *cells)
    console.print(table)
    console.print(f"{len(alarms)} of 60 clean batches gave an alarm")
    for what in alarms:
        console.print(f"  {what}")


if __name__ == "__main__":
    main()
