"""Evaluations as tables for a terminal, of the JSON that is stored."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

Numbers = Mapping[str, Any]


def lists_table(report: Numbers, *, by_history: bool = False) -> Table:
    """report: a RecommendReport. by_history: also by how much is known of who asks, which a tower
    makes its vectors of."""
    table = Table(title=f"Top-{report['k']} lists of {report['num_lists']:,} for {_of(report)}")
    for column in ("", "model", "95 % interval", "most popular"):
        table.add_column(column, justify="left" if not column else "right")
    for name, found in report["metrics"].items():
        table.add_row(name, f"{found['value']:.4f}", _interval(found), _number(report, name))
    table.add_section()
    for name, value in report["catalogue"].items():
        table.add_row(name, f"{value:.4f}", "", "")
    if by_history:
        table.add_section()
        for band in report["by_history"]:
            error = 1.96 * band["recall_se"]
            around = {"low": band["recall"] - error, "high": band["recall"] + error}
            label = f"recall of {band['num_lists']:,} with {band['events']} events"
            table.add_row(label, f"{band['recall']:.4f}", _interval(around), "")
    return table


def lists_notes(report: Numbers) -> list[str]:
    """What a table of means leaves out, a line each."""
    cold, k = report["cold_items"], report["k"]
    notes = []
    if report["num_without_goals"]:
        notes.append(
            f"{report['num_without_goals']:,} more had all of their held-out {_of(report)} before: "
            "no list can find anything for them"
        )
    if new := next((band for band in report["by_history"] if band["events"] == "0"), None):
        notes.append(
            f"{new['num_lists']:,} cold askers, without an event before: "
            f"recall@{k} {new['recall']:.4f}"
        )
    if cold["num_goals"]:
        notes.append(
            f"{cold['num_goals']:,} of {cold['num_goals'] + cold['num_warm']:,} goals are cold, "
            f"without a training edge: {cold['found']:,} of them are listed"
        )
    if report["short_lists"]:
        notes.append(f"{report['short_lists']:,} lists are shorter than {k}: nothing else is left")
    return notes


def _of(report: Numbers) -> str:
    return str(report["relation"])


def _interval(found: Numbers) -> str:
    return f"[{found['low']:.4f}, {found['high']:.4f}]"


def _number(report: Numbers, name: str) -> str:
    value = report["popular"].get(name)
    return "" if value is None else f"{value:.4f}"
