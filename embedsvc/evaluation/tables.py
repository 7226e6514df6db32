"""Evaluations as tables for a terminal, of the JSON that is stored."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from embedsvc.evaluation.nodes import NodesReport
from embedsvc.evaluation.sampled import MEASURES, name_of

Numbers = Mapping[str, Any]
_NONE = "—"


def lists_table(report: Numbers, *, by_history: bool = False) -> Table:
    """report: a RecommendReport. by_history: also by how much is known of who asks, which a tower
    makes its vectors of."""
    title = f"Top-{report['k']} lists of {report['num_lists']:,} for {_of(report)}"
    table = Table(title=escape(title))
    for column in ("", "model", "95 % interval", "most popular"):
        table.add_column(column, justify="left" if not column else "right")
    for name, found in report["metrics"].items():
        table.add_row(name, f"{found['value']:.4f}", interval(found), _number(report, name))
    table.add_section()
    for name, value in report["catalogue"].items():
        table.add_row(name, f"{value:.4f}", "", "")
    if by_history:
        table.add_section()
        for band in report["by_history"]:
            around = {end: band[f"recall_{end}"] for end in ("low", "high")}
            label = f"recall, {band['events']} events known"
            row = f"{band['recall']:.4f}", interval(around), f"of {band['num_lists']:,}"
            table.add_row(label, *row)
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


def links_table(report: Numbers, split: str) -> Table:
    """report: of embedsvc.evaluation.links."""
    ties = "" if report["ties"] == "pessimistic" else f", ties {report['ties']}"
    table = _ranks_table(f"Filtered ranks of {report['edges']:,} {split} edges, both sides{ties}")
    other = "realistic" if report["ties"] == "pessimistic" else "pessimistic"
    _add_ranks(table, "both sides", report)
    for label, end in (("  95 % from", "low"), ("  to", "high")):
        table.add_row(label, *(_figure(report["intervals"][name][end]) for name in _SHARES))
    _add_ranks(table, f"  ties {other}", report[other])
    _add_ranks(table, "  raw", report["raw"])
    for side, row in report["by_side"].items():
        _add_ranks(table, side, row)
    for row in report["by_degree"]:
        _add_ranks(table, f"degree {row['degree']}: {row['ranks']:,}", row)
    if 1 < len(report["by_relation"]) <= 12:
        for relation, row in report["by_relation"].items():
            _add_ranks(table, relation, row)
    return table


def sampled_links_table(report: Numbers, split: str) -> Table:
    """report: of embedsvc.evaluation.sampled."""
    drawn = f"{report['sampled_candidates']:,} drawn candidates"
    table = Table(title=f"Estimates from {drawn} of {report['edges']:,} {split} edges, both sides")
    for column in ("", "estimate"):
        table.add_column(column, justify="left" if not column else "right")
    for name in map(name_of, MEASURES):
        table.add_row(name, f"{report[name]:,.4f}")
    return table


def links_notes(report: Numbers) -> list[str]:
    """What a table of ranks leaves out, a line each."""
    notes = []
    if report["nan_edges"]:
        notes.append(
            f"{report['nan_edges']:,} edges have no score, as the vector of an end is not finite: "
            "they have the last rank. Train again, with a smaller train.lr."
        )
    if report.get("nan_candidates"):
        notes.append(
            f"{report['nan_candidates']:,} edges were ranked beside a candidate whose vector is "
            "not finite, which counts as higher."
        )
    if report.get("sampled_short"):
        notes.append(
            f"{report['sampled_short']:,} ends had fewer drawn candidates than asked for, as most "
            "complete a known edge"
        )
    if report.get("repeats"):
        notes.append(
            f"{report['repeats']:,} of {report['edges']:,} edges are edges of a split before, too: "
            "these ranks reward that they are learnt by heart; lists leave such items out"
        )
    return notes


_SHARES = ("mrr", "hits1", "hits3", "hits10")


def classify_table(report: NodesReport, entity_type: str) -> Table:
    title = f"Labels of {report.num_nodes:,} {entity_type} entities ({report.split})"
    table = Table(title=escape(title), title_justify="left")
    has_auc = any(found.auc is not None for found in report.shares)
    for column in ("taught by", "judged", "micro-F1", "macro-F1", *["AUC"] * has_auc):
        table.add_column(column, justify="right")
    for found in report.shares:
        cells = [found.micro_f1, found.macro_f1, *([found.auc] if found.auc else [])]
        numbers = [f"{cell.value:.4f} {interval(asdict(cell))}" for cell in cells]
        table.add_row(f"{found.share:.0%}", f"{found.num_judged:,}", *numbers)
    return table


def _ranks_table(title: str) -> Table:
    table = Table(title=title)
    for column in ("", "MRR", "Hits@1", "Hits@3", "Hits@10", "mean rank"):
        table.add_column(column, justify="left" if not column else "right")
    return table


def _add_ranks(table: Table, name: str, row: Numbers) -> None:
    shares = [f"{row[share]:.4f}" for share in _SHARES]
    table.add_row(escape(name), *shares, f"{row['mean_rank']:,.1f}")


def _of(report: Numbers) -> str:
    return str(report["relation"])


def interval(found: Numbers) -> str:
    """[low, high], and a dash where there is none."""
    low, high = found["low"], found["high"]
    return f"[{low:.4f}, {high:.4f}]" if low == low and high == high else _NONE


def _figure(value: float) -> str:
    return f"{value:.4f}" if value == value else _NONE


def _number(report: Numbers, name: str) -> str:
    value = report["popular"].get(name)
    return "" if value is None else f"{value:.4f}"
