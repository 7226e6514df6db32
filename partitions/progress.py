"""The progress bar of work that goes row by row: rows done, rows/s, time left."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _RowsPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s")


def rows_bar(console: Console, unit: str = "rows") -> Progress:
    """Shown on a terminal only, and gone when done. Tasks without a total show no time left."""
    return Progress(
        TextColumn("{task.description}", markup=False),  # a file's name may hold brackets
        BarColumn(),
        TextColumn("{task.completed:,} " + unit),
        _RowsPerSecond(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
