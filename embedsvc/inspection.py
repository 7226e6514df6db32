"""`embedsvc inspect`: a graph's description, printed."""

from pathlib import Path

from rich.bar import Bar
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from partitions.config import RunConfig, load
from partitions.description import TypeDescription, band_name, describe_types
from partitions.errors import DataError
from partitions.graph import MANIFEST, Graph
from partitions.schema import SPLITS


def show(path: Path) -> None:
    """path: a graph folder, that of its run, or a config whose run has one."""
    graph = Graph(_graph_of(path))
    console = Console()
    for description in describe_types(graph):
        console.print(_degrees(description))
        hubs = ", ".join(f"{hub.key} ({hub.degree:,})" for hub in description.hubs)
        console.print(f"largest hubs: {hubs}\n", markup=False, highlight=False)
    console.print(_relations(graph))
    console.print(_balance(graph))


def _graph_of(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"{path} is missing: name a graph's folder, or the TOML file of its run.")
    if not path.is_dir():
        return load(path).table("run", RunConfig).graph
    inside = RunConfig(dir=path).graph
    if not (path / MANIFEST).exists() and inside.is_dir():
        return inside
    return path if path.name not in ("", "..") else path.resolve()  # "." has no name to look beside


def _degrees(description: TypeDescription) -> Table:
    table = Table(
        title=f"{description.name}: {description.num_entities:,} entities, "
        f"degree {description.mean_degree:,.1f} on average, {description.median_degree:,.0f} in "
        "the middle",
        box=None,
    )
    table.add_column("degree", justify="right")
    table.add_column("entities", justify="right")
    table.add_column("", width=40)
    most = max(description.degree_histogram)
    for band, count in enumerate(description.degree_histogram):
        table.add_row(band_name(band), f"{count:,}", Bar(most, 0, count, width=40))
    return table


def _relations(graph: Graph) -> Table:
    table = Table(title="Relations", box=None)
    for name in ("relation", "lhs", "rhs"):
        table.add_column(name, overflow="fold")
    for split in SPLITS:
        table.add_column(split, justify="right")
    counts = graph.manifest.relation_edges
    for at, relation in enumerate(graph.relations):
        numbers = [f"{counts[split][at]:,}" for split in SPLITS]
        table.add_row(escape(relation.name), relation.lhs, relation.rhs, *numbers)
    return table


def _balance(graph: Graph) -> Table:
    table = Table(title="Balance", box=None)
    for name in ("", "parts", "smallest", "mean", "largest"):
        table.add_column(name, justify="right" if name else "left")
    groups = {
        f"{name} rows": [graph.num_rows(graph.slot_of(name, part)) for part in range(count)]
        for name, entity_type in graph.entity_types.items()
        for count in [entity_type.num_partitions]
    }
    groups["train bucket edges"] = [graph.num_edges("train", b) for b in graph.buckets("train")]
    for name, sizes in groups.items():
        if sizes:
            mean = sum(sizes) / len(sizes)
            row = [f"{x:,.0f}" for x in (len(sizes), min(sizes), mean, max(sizes))]
            table.add_row(name, *row)
    return table
