"""Commands of this floor: `embedsvc validate`.

Heavy libraries are imported inside the functions, so that --help answers at once.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from partitions.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from partitions.gate.anomalies import Anomaly, Report

_TABLE_WIDTH = 120  # columns of a terminal in which a table of distances cuts nothing

Config = Annotated[
    Path,
    # readable: partitions.config says it in a sentence
    typer.Argument(help="TOML file with your settings.", show_default=False, readable=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings that differ, such as run.dir=runs/b.", show_default=False),
]
Accept = Annotated[
    bool, typer.Option("--accept", help="This batch is right: edit the schema to let it in.")
]
AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of",
        help="Date, or date and time (UTC), that the data should reach up to. Unset: now.",
        show_default=False,
    ),
]
Distances = Annotated[
    bool, typer.Option("--distances", help="Show how far everything is from the last good batch.")
]


def validate(
    config: Config,
    overrides: Overrides = None,
    accept: Accept = False,
    as_of: AsOf = None,
    distances: Distances = False,
) -> None:
    """Raw edges -> what is wrong with them, if anything. The first batch gives the schema.

    Exit code 0: clean, 1: anomalies found, 2: the input can't be used.

    Example: `embedsvc validate graph.toml --as-of 2026-11-20`
    """
    from rich.console import Console

    from partitions import config as settings_file
    from partitions import durable, notes
    from partitions.config import GraphConfig, RunConfig
    from partitions.progress import rows_bar
    from partitions.validation import SCHEMA
    from partitions.validation import validate as check

    settings = settings_file.load(config, overrides or [])
    run = settings.table("run", RunConfig)
    folder = run.dir
    graph = settings.table("graph", GraphConfig)
    moment = moment_of(as_of)
    console = Console()
    with durable.only_writer(folder, "validating for"), rows_bar(console) as bar:
        notes.settle(run.graph)  # a killed import's: they say what is checked against
        task = bar.add_task("validate", total=None)
        report = check(
            graph,
            folder,
            as_of=moment,
            accept=accept,
            progress=lambda name, rows: bar.update(task, description=name, advance=rows),
        )
    print_report(console, report, folder / SCHEMA, accept=accept)
    if distances:
        _print_distances(console, report)
    if not (accept and report.usable):
        raise typer.Exit(report.exit_code)


def moment_of(text: str | None) -> int | None:
    """Seconds since the epoch: the end of a date, or the moment itself."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--as-of {text} is no date: write it as 2026-11-20 or 2026-11-20T08:00."
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    whole_day = len(text) <= len("2026-11-20")
    return int(moment.timestamp()) + (86_399 if whole_day else 0)


def print_report(
    console: "Console", report: "Report", schema: Path, *, accept: bool = False
) -> None:
    """What the gate found; schema: where the rules are."""
    from rich.markup import escape
    from rich.table import Table

    read = f"{report.rows:,} rows of {report.files:,} file{'s' * (report.files != 1)}"
    if report.first_use:
        line = f"validate: {read}; inferred {schema} from them. Please review it."
        console.print(escape(line), soft_wrap=True)
    elif report.clean:
        console.print(f"validate: {read}, no anomaly", soft_wrap=True)
    else:
        table = Table(title=f"Anomalies in {read}", title_justify="left", show_lines=True)
        for column in ("anomaly", "what", "first seen at"):
            table.add_column(column, overflow="fold")
        for anomaly in report.anomalies:
            follows = f"\nexplains {', '.join(anomaly.follows)}" if anomaly.follows else ""
            cells = "\n".join(map(str, anomaly.cells[:3]))
            table.add_row(anomaly.name, escape(anomaly.what + follows), escape(cells))
        console.print(table)
    for note in report.notes:
        console.print(escape(f"look: {note}"), soft_wrap=True)
    if accept and report.usable and not report.clean:
        line = f"validate: accepted, {schema} is edited; the next batch compares with this"
        console.print(escape(line), soft_wrap=True)
    elif not report.clean and report.usable and report.edits:
        line = f"To accept them, write in {schema}, or use --accept:"
        console.print(escape(line), soft_wrap=True)
        for edit in report.edits:
            now = report.schema.at(edit.table, edit.key) if report.schema is not None else None
            was = "" if now is None else f"  # now {_short(now)}"
            console.print(escape(f"  {edit}{was}"), highlight=False, soft_wrap=True)
    if any(map(_is_undeclared, report.anomalies)):
        line = 'No schema can accept a relation that the config lacks: name it, or "*", in '
        console.print(escape(f"{line}[graph.relations], or mend the data."), soft_wrap=True)


def _is_undeclared(anomaly: "Anomaly") -> bool:
    """An unknown relation comes with its table, unless the config does not know it either."""
    named = any(edit.table[0] == "relations" for edit in anomaly.edits)
    return anomaly.name == "unknown_relation" and not named


def _short(value: object) -> str:
    text = str(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _print_distances(console: "Console", report: "Report") -> None:
    from rich.markup import escape
    from rich.table import Table

    title = "Against the last good batch, nearest to its limit first"
    nearest = sorted(report.distances, key=lambda d: -d.excess / max(d.limit, 1e-9))
    if not console.is_terminal or console.width < _TABLE_WIDTH:
        console.print(f"{title}:")
        for d in nearest:
            figures = f"observed {d.observed:.4g}, expected {d.expected:.4g}, "
            limits = f"threshold {d.threshold:.4g}, noise {d.noise:.4g}"
            part = f"{d.excess / max(d.limit, 1e-9):.0%} of its limit"
            line = f"{d.name}: {d.what}: {figures}{limits}: {part}"
            console.print(escape(line), highlight=False, soft_wrap=True)
        return
    table = Table(title=title)
    for column in ("check", "of", "observed", "expected", "threshold", "noise", "of limit"):
        words = column in ("check", "of")
        table.add_column(column, justify="left" if words else "right", no_wrap=column != "of")
    for d in nearest:
        cells = [f"{v:.4g}" for v in (d.observed, d.expected, d.threshold, d.noise)]
        table.add_row(d.name, escape(d.what), *cells, f"{d.excess / max(d.limit, 1e-9):.0%}")
    console.print(table)
