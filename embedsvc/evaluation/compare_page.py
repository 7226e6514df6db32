"""A comparison of two versions, as people read it: a page, and tables for a terminal."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from embedsvc import pages
from embedsvc.evaluation.change_parts import entity_parts, list_parts, row_parts
from embedsvc.evaluation.compare import Comparison
from embedsvc.evaluation.tables import interval
from partitions import durable

_SHOWN = 40  # settings that differ, in a terminal


def page(found: Comparison) -> str:
    title = f"{found.old.version} and {found.new.version}"
    parts = [
        pages.note(
            f"Old: {found.old.version}; new: {found.new.version}. Judged by the {found.split} "
            "split as it is now. Differences are new - old, with paired 95 % intervals."
        ),
        *map(pages.note, found.notes),
    ]
    if found.lists:
        parts.append(pages.heading("Lists"))
        parts.append(
            pages.note(
                "p by randomisation over askers; adjusted for all metrics on this page (Holm)."
            )
        )
    for one in found.lists:
        parts += list_parts(one)
    for row in found.rows:
        parts += row_parts(row)
    if found.entities:
        parts.append(pages.heading("What is in them"))
        parts += entity_parts(found.entities, found.vectors or {})
    parts.append(pages.heading("Files"))
    parts.append(pages.table(("", "old", "new"), _facts(found)))
    parts.append(pages.heading("Settings that differ"))
    parts += _settings_parts(found.settings or {})
    return pages.page(title, parts)


def _facts(found: Comparison) -> list[tuple[str, ...]]:
    """Rows of name, old, new: what the manifests say."""
    old, new = found.old, found.new
    sizes = {
        f"{name}, MB": tuple(_mb(one.bytes.get(name)) for one in (old, new))
        for name in sorted({*old.bytes, *new.bytes})
    }
    indexes = {
        f"index {name}": tuple(one.indexes.get(name, "-") for one in (old, new))
        for name in sorted({*old.indexes, *new.indexes})
    }
    rows = {
        "folder": (old.folder, new.folder),
        "published": (old.created, new.created),
        "checkpoint": (old.checkpoint[:12] or "-", new.checkpoint[:12] or "-"),
        **sizes,
        "in all, MB": tuple(_mb(sum(one.bytes.values())) for one in (old, new)),
        **indexes,
    }
    if old.eval_s is not None or new.eval_s is not None:
        rows["evaluated in, s"] = tuple(pages.number(one.eval_s, 1) for one in (old, new))
    return [(name, *pair) for name, pair in rows.items()]


def _mb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.2f}"


def _settings_parts(settings: Mapping[str, tuple[Any, Any]]) -> Iterator[str]:
    if not settings:
        yield pages.note("None.")
        return
    rows = [(name, *map(_value, pair)) for name, pair in settings.items()]
    yield pages.table(("", "old", "new"), rows)


def _value(value: Any) -> str:
    return "-" if value is None else json.dumps(value, ensure_ascii=False)


# --- for a terminal -------------------------------------------------------------------------------


def show(found: Comparison, console: Console, to: Path, *, as_json: bool) -> None:
    """Print it, and write the page; as_json: all of it as the last line, too."""
    for part in tables(found):
        if isinstance(part, str):
            console.print(f"compare: {part}", soft_wrap=True, markup=False)
        else:
            console.print(part)
    to.parent.mkdir(parents=True, exist_ok=True)
    with durable.replacing(to) as file:
        file.write(page(found).encode())
    console.print(f"compare: the same as a page in {to}", soft_wrap=True, markup=False)
    if as_json:
        text = json.dumps(durable.without_nan(found.as_json()))
        console.print(text, soft_wrap=True, markup=False, highlight=False)


def tables(found: Comparison) -> Iterator[Table | str]:
    """Tables, and lines of text."""
    yield from found.notes
    for one in found.lists:
        title = f"Top-{one.k} lists of {one.num_asked:,} for {one.relation}"
        table = _table(title, "old", "new", "new - old", "95 % interval", "p (Holm)")
        for name, change in one.metrics.items():
            less = change.difference
            table.add_row(
                name,
                *(f"{value:.4f}" for value in (change.old, change.new)),
                *(f"{less.value:+.4f}", interval(asdict(less))),
                f"{change.adjusted:.4f}",
            )
        yield table
        churn = one.churn
        if one.without_old or one.without_new:
            yield (
                f"{one.without_old:,} askers have no list in the old version, {one.without_new:,} "
                "none in the new one: 0 in each metric"
            )
        yield (
            f"top {churn.k}: {100 * churn.set_changed:.1f} % of {churn.num_lists:,} lists have "
            f"other entities, {100 * churn.order_changed:.1f} % another order; mean Jaccard "
            f"{churn.jaccard:.3f}"
        )
    for row in found.rows:
        users = "" if row.users is None else f" of {row.users:,} users"
        table = _table(f"{row.rows:,} rows{users}: {row.label}", "value", "95 % interval")
        for name, intervals in row.figures.items():
            for which, one_ in zip(("old", "new", "new - old"), intervals, strict=True):
                value, low, high = map(pages.number, (one_.value, one_.low, one_.high))
                table.add_row(f"{name} {which}", value, f"[{low}, {high}]")
        yield table
        yield f"probabilities of {row.label} moved by {row.moved:.4f} on average"
    if found.entities:
        table = _table("Entities", "old", "new", "appeared", "vanished", "mean cosine")
        for name, entity in found.entities.items():
            counts = (entity.old, entity.new, entity.appeared, entity.vanished)
            cosine = pages.number((found.vectors or {})[name].cosine, 3)
            table.add_row(escape(name), *(f"{count:,}" for count in counts), cosine)
        yield table
    table = _table("Files", "old", "new")
    for row_ in _facts(found):
        table.add_row(*map(escape, row_))
    yield table
    settings = found.settings or {}
    for name, (was, now) in list(settings.items())[:_SHOWN]:
        yield f"{name}: {_value(was)} -> {_value(now)}"
    if len(settings) > _SHOWN:
        yield f"and {len(settings) - _SHOWN:,} settings more, which the page has"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=escape(title), box=None, title_justify="left")
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    return table
