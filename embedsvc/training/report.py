"""The training report: one HTML file with curves (pages.py), which needs no network and no script.

Made from what a run leaves behind anyway: metrics.jsonl (one record a bucket) and the settings in
the checkpoint's manifest. So it can be made anew at any time, also while training goes on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from embedsvc import pages
from embedsvc.training.ledger import read_records
from partitions import durable

REPORT = "report.html"
_NOT_MEASURED = {"epoch", "time"}  # of a record that is of no bucket


@dataclass(frozen=True)
class Epoch:
    """What metrics.jsonl says of one pass over the edges; a bucket trained twice counts once."""

    number: int
    edges: int
    loss: float  # mean over edges
    train_s: float
    wait_s: float  # for tables, of train_s

    @property
    def edges_per_s(self) -> float:
        return self.edges / max(self.train_s, 1e-9)


def epochs_of(records: Sequence[Mapping[str, Any]]) -> list[Epoch]:
    """records: of metrics.jsonl. After a kill a bucket comes again: its last record stands."""
    last = {(r["epoch"], *r["bucket"]): r for r in records if "bucket" in r}
    found = []
    for number, group in groupby(sorted(last.values(), key=lambda r: r["epoch"]), _number):
        buckets = list(group)
        edges = sum(r["edges"] for r in buckets)
        loss = sum(r["loss"] * r["edges"] for r in buckets) / max(edges, 1)
        train_s = sum(r["edges"] / max(r["edges_per_s"], 1) for r in buckets)
        found.append(Epoch(number, edges, loss, train_s, sum(r["wait_s"] for r in buckets)))
    return found


def _number(record: Mapping[str, Any]) -> int:
    return int(record["epoch"])


def write(checkpoint: Path, title: str, facts: Mapping[str, str]) -> Path:
    """Write report.html into the checkpoint folder. facts: name -> text, for its first table."""
    records = read_records(checkpoint / "metrics.jsonl")
    manifest = durable.read_json(checkpoint / "checkpoint.json", "Train again.")
    path = checkpoint / REPORT
    with durable.replacing(path) as file:
        file.write(page(title, facts, records, manifest["config"]).encode())
    return path


def page(
    title: str,
    facts: Mapping[str, str],
    records: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> str:
    epochs = epochs_of(records)
    numbers = [epoch.number for epoch in epochs]
    plots = [
        pages.line_plot("Loss, mean per edge", numbers, {"": [epoch.loss for epoch in epochs]}),
        pages.line_plot(
            "Edges per second", numbers, {"": [epoch.edges_per_s for epoch in epochs]}, floor=0.0
        ),
        pages.line_plot(
            "Waited for tables, % of the time",
            numbers,
            {"": [100 * epoch.wait_s / max(epoch.train_s, 1e-9) for epoch in epochs]},
            floor=0.0,
        ),
        *validation_plots(records),
    ]
    settled = {
        f"{table}.{key}": json.dumps(value)
        for table, keys in settings.items()
        for key, value in keys.items()
    }
    return pages.page(
        title,
        [
            pages.facts(facts),
            *plots,
            pages.heading("Epochs"),
            _epoch_table(epochs),
            pages.heading("Settings"),
            pages.facts(settled),
        ],
    )


def validation_plots(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A plot of each number that was measured between epochs."""
    plots = []
    for name in sorted({key for r in records if "bucket" not in r for key in r} - _NOT_MEASURED):
        judged = [r for r in records if isinstance(r.get(name), int | float) and "bucket" not in r]
        judged.sort(key=_number)
        values = [float(r[name]) for r in judged]
        plots.append(
            pages.line_plot(f"Validation {name}", [_number(r) for r in judged], {"": values})
        )
    return plots


def _epoch_table(epochs: Sequence[Epoch]) -> str:
    columns = ("epoch", "edges", "loss", "seconds", "edges/s", "waited, s")
    return pages.table(
        columns,
        (
            (
                e.number,
                f"{e.edges:,}",
                *(f"{e.loss:.5f}", f"{e.train_s:,.1f}", f"{e.edges_per_s:,.0f}"),
                f"{e.wait_s:,.2f}",
            )
            for e in epochs
        ),
    )
