"""The training report: one HTML file with curves, which needs no network and no script.

Made from what a run leaves behind anyway: metrics.jsonl (one record a bucket) and the settings in
the checkpoint's manifest. So it can be made anew at any time, also while training goes on.
"""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from embedsvc.training.ledger import read_records
from partitions import durable

REPORT = "report.html"
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 220, 64, 28, 12  # of a plot, in pixels


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
        _plot("Loss, mean per edge", numbers, [epoch.loss for epoch in epochs]),
        _plot("Edges per second", numbers, [epoch.edges_per_s for epoch in epochs], floor=0.0),
        _plot(
            "Waited for tables, % of the time",
            numbers,
            [100 * epoch.wait_s / max(epoch.train_s, 1e-9) for epoch in epochs],
            floor=0.0,
        ),
    ]
    for name in sorted(
        {key for r in records if "bucket" not in r for key in r} - {"epoch", "time"}
    ):
        judged = [r for r in records if name in r and isinstance(r[name], int | float)]
        if judged:
            judged.sort(key=_number)
            values = [float(r[name]) for r in judged]
            plots.append(_plot(f"Validation {name}", [_number(r) for r in judged], values))
    rows = [
        (f"{table}.{key}", value) for table, keys in settings.items() for key, value in keys.items()
    ]
    body = [
        f"<h1>{html.escape(title)}</h1>",
        _table(facts.items()),
        *plots,
        "<h2>Epochs</h2>",
        _epoch_table(epochs),
        "<h2>Settings</h2>",
        _table((name, json.dumps(value)) for name, value in rows),
    ]
    return _PAGE.format(title=html.escape(title), body="\n".join(body))


# --- parts of the page ----------------------------------------------------------------------------


def _table(rows: Any) -> str:
    cells = "".join(
        f"<tr><th scope=row>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
        for name, text in rows
    )
    return f"<table>{cells}</table>"


def _epoch_table(epochs: Sequence[Epoch]) -> str:
    head = "".join(
        f"<th scope=col>{name}</th>"
        for name in ("epoch", "edges", "loss", "seconds", "edges/s", "waited, s")
    )
    body = "".join(
        f"<tr><td>{e.number}</td><td>{e.edges:,}</td><td>{e.loss:.5f}</td>"
        f"<td>{e.train_s:,.1f}</td><td>{e.edges_per_s:,.0f}</td><td>{e.wait_s:,.2f}</td></tr>"
        for e in epochs
    )
    return f"<table class=numbers><tr>{head}</tr>{body}</table>"


def _plot(title: str, xs: Sequence[int], ys: Sequence[float], *, floor: float | None = None) -> str:
    """A line over epochs as SVG; each point says its value when pointed at."""
    ys = [y for y in ys if y == y and abs(y) != float("inf")]
    xs = xs[: len(ys)]
    if not ys:
        return ""
    ticks = _ticks(min(ys) if floor is None else min(floor, *ys), max(ys))
    low, high = min(ticks[0], *ys), max(ticks[-1], *ys)
    span_x = max(xs[-1] - xs[0], 1)

    def x_at(x: float) -> float:
        return _LEFT + (x - xs[0]) / span_x * (_WIDTH - _LEFT - 12)

    def y_at(y: float) -> float:
        room = _HEIGHT - _TOP - _BOTTOM
        return _TOP + (1 - (y - low) / max(high - low, 1e-30)) * room

    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 12}" y1="{y_at(tick):.1f}" '
        f'y2="{y_at(tick):.1f}"/><text x="{_LEFT - 6}" y="{y_at(tick) + 4:.1f}" '
        f'text-anchor="end">{tick:,.4g}</text>'
        for tick in ticks
    )
    step = max(1, -(-len(xs) // 10))
    labels = "".join(
        f'<text x="{x_at(x):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{x}</text>'
        for x in xs[::step]
    )
    points = [(x_at(x), y_at(y)) for x, y in zip(xs, ys, strict=True)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>epoch {n}: {value:,.6g}</title></circle>'
        for (x, y), n, value in zip(points, xs, ys, strict=True)
    )
    label = f"{title} by epoch, last {ys[-1]:,.6g}"
    return (
        f'<h2>{html.escape(title)}</h2><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(label)}">{grid}{labels}<polyline points="{line}"/>{dots}</svg>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Some six round numbers that span [low, high]."""
    span = max(high - low, 1e-6 * max(abs(low), abs(high)), 1e-9)
    unit = 10.0 ** math.floor(math.log10(span / 6))
    step = unit * next(times for times in (1, 2, 5, 10) if span / (unit * times) <= 6)
    return [n * step for n in range(math.floor(low / step), math.ceil(high / step) + 1)]


_PAGE = """<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
:root {{ --ink: #1a1a1a; --soft: #767676; --line: #0b62c4; --rule: #ddd; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8e8e8; --soft: #9a9a9a; --line: #6cb0ff; --rule: #3a3a3a; }}
}}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); }}
body {{ max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.05rem; margin: 1.6rem 0 .3rem; }}
svg {{ width: 100%; height: auto; font-size: 11px; }}
svg text {{ fill: var(--soft); }} .grid {{ stroke: var(--rule); }}
polyline {{ fill: none; stroke: var(--line); stroke-width: 2; }} circle {{ fill: var(--line); }}
table {{ border-collapse: collapse; }} th {{ text-align: left; font-weight: 500; }}
th, td {{ padding: .15rem .9rem .15rem 0; border-bottom: 1px solid var(--rule); }}
.numbers td {{ text-align: right; font-variant-numeric: tabular-nums; }}
</style>
{body}
</html>
"""
