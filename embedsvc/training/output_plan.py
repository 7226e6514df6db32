"""The memory plan of `[output]`: what training will take, said before it is taken."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from embedsvc.config import OutputConfig, TrainConfig
from embedsvc.graph.fast import num_cores
from embedsvc.outputs.kernels import TILE
from embedsvc.outputs.retrievers import RETRIEVERS
from embedsvc.outputs.sparse import ROW_OPTIMIZERS
from embedsvc.ranking.examples import EXAMPLES, NextItem
from embedsvc.ranking.towers import POOLINGS, Gru, Mean, Recency
from embedsvc.training.asker_features import text_bytes
from embedsvc.training.askers import BLOCK_NUMBERS
from embedsvc.training.events import SEQUENCES, Histories, relation_of
from embedsvc.training.room import refusal
from partitions.errors import ConfigError
from partitions.graph import Graph, slots_of
from partitions.memory import PANDAS_BYTES, available_bytes
from partitions.schema import RelationType

# As measured: interpreter and libraries 400 MB, compiled kernels 100. The first run compiles them,
# which takes 130 MB more for a small index and 260 for a large one: half of that is planned for.
_PROCESS_BYTES = 630_000_000
_FREQUENCY_BYTES = 36  # a class: frequency, rank and alias
_VALUE_BYTES = 200  # of a feature's: its text in Python, and where it stands
_WHILE_BUILT = 3  # times as much as an index keeps, keys and their order being in memory with it
_TILES_BYTES = 100 << 20  # of scores, and copies of them
_BLOCK_COPIES = 6  # of the rows of a block of histories, where they are looked up one by one


@dataclass(frozen=True)
class OutputPlan:
    """Bytes, by what they are for."""

    rows: int  # of classes and of the input table, with their state
    events: int
    index: int
    batch: int
    commit: int
    process: int = _PROCESS_BYTES + PANDAS_BYTES
    evaluation: int = 0  # at the end of an epoch, where early stopping asks for it
    mapped: bool = False  # rows are in files, and not in the total

    @property
    def total(self) -> int:
        parts = self.events + self.index + self.batch + self.commit + self.process
        parts += self.evaluation
        return parts if self.mapped else parts + self.rows

    def __str__(self) -> str:
        mb = {name: value / 1e6 for name, value in vars(self).items()}
        rows = "" if self.mapped else f"rows {mb['rows']:,.0f}, "
        files = f", and {mb['rows']:,.0f} MB of rows in mapped files" if self.mapped else ""
        return (
            f"memory plan: {self.total / 1e6:,.0f} MB ({rows}sequences {mb['events']:,.0f}, "
            f"frequencies and index {mb['index']:,.0f}, batch {mb['batch']:,.0f}, "
            f"commit {mb['commit']:,.0f}, "
            + (f"evaluation {mb['evaluation']:,.0f}, " if self.evaluation else "")
            + f"process {mb['process']:,.0f}){files}"
        )

    def check(self, memory_mb: int | None) -> None:
        """ConfigError where the plan can't fit."""
        remedies = {
            "events": ("sequences", "fewer or shorter walks, or fewer training edges"),
            "index": ("frequencies and index", "fewer classes"),
            "batch": ("work on a batch", "a smaller output.batch_size, head or samples"),
            "commit": ("commits", "more partitions"),
            "evaluation": ("early stopping", "more partitions, or no train.early_stopping"),
        }
        if not self.mapped:
            remedies["rows"] = ("rows", "output.mapped = true, a smaller output.dim")
        if (why := refusal(self, remedies, memory_mb)) is not None:
            raise ConfigError(why)


def plan_output(
    graph: Graph, output: OutputConfig, config: TrainConfig, folder: Path
) -> OutputPlan:
    """ConfigError where the disk below `folder` has no room for files that are mapped."""
    relation = relation_of(graph, output)
    num_classes = graph.num_entities(relation.rhs)
    width = ROW_OPTIMIZERS.build(output.optimizer).state_width
    rows = num_classes * 4 * (2 * output.dim + 1 + 2 * width)
    features = 0
    if output.features:  # text and what is made of it; numbers of all who ask, and of values
        text, values = text_bytes(graph, relation.lhs, output.features)
        features = 3 * text + 8 * graph.num_entities(relation.lhs) * len(output.features)
        features += values * (4 * (output.dim + width) + _VALUE_BYTES)
    largest = max(graph.num_rows(slot) for slot in slots_of(graph.entity_types[relation.rhs]))
    plan = OutputPlan(
        rows=rows,
        events=_events_bytes(graph, output) + features,
        index=num_classes * _index_bytes(output),
        batch=_batch_bytes(output, num_classes, config.threads or num_cores()),
        commit=largest * 17,  # which rows are touched, by number; keys' hashes
        evaluation=_evaluation_bytes(graph, relation, largest * 4 * (output.dim + 1 + width))
        + features
        if config.early_stopping
        else 0,
    )
    mapped = output.mapped
    if mapped == "auto":
        mapped = plan.total > available_bytes(config.memory_mb)
    plan = replace(plan, mapped=bool(mapped))
    # A commit is written beside the two before it, which are kept, and beside the best.
    commits = (3 + (config.early_stopping is not None)) * rows
    _check_disk(rows if mapped else 0, commits, folder)
    return plan


def _check_disk(rows: int, commits: int, folder: Path) -> None:
    """rows, commits: their bytes. Commits that are there already make place for those to come."""
    there = sum(file.stat().st_size for file in folder.glob("tables/*"))
    free = _disk_free(folder)
    if rows + max(commits - there, 0) <= free:
        return
    mapped = f"{rows / 1e6:,.0f} MB of files for mapped rows and " if rows else ""
    raise ConfigError(
        f"[output] takes {mapped}{commits / 1e6:,.0f} MB for its commits, and {folder} has "
        f"{free / 1e6:,.0f} MB of disk free: make room, or choose a smaller output.dim."
    )


def _index_bytes(output: OutputConfig) -> int:
    """A class."""
    if output.kind != "lsh_softmax":
        return 8
    if output.retriever == "none":
        return _FREQUENCY_BYTES
    return _FREQUENCY_BYTES + _WHILE_BUILT * RETRIEVERS.build(output.retriever).bytes_per_class


def _events_bytes(graph: Graph, output: OutputConfig) -> int:
    source = SEQUENCES.build(output.sequences)
    return _sequences_bytes(graph, *source.num_items(graph, relation_of(graph, output)))


def _sequences_bytes(graph: Graph, owners: int, items: int) -> int:
    """While they are read."""
    times = 2 if graph.has_times else 1
    # An owner's start, count and place while they are put together; starts of examples.
    return 32 * owners + 8 * times * items


def _batch_bytes(output: OutputConfig, num_classes: int, threads: int) -> int:
    size, dim = output.batch_size, output.dim
    examples = EXAMPLES.build(output.examples)
    length = examples.max_history if isinstance(examples, NextItem) else 1
    active = TILE * threads
    if output.kind == "lsh_softmax":
        found = size * (1 + output.retrieved)  # targets, and what is retrieved
        active += min(output.head + found + output.samples, num_classes)
    pooling = POOLINGS.build(output.tower)
    copies = 0 if isinstance(pooling, Mean | Recency) else 6  # of the rows that are pooled
    if isinstance(pooling, Gru):
        copies = 18  # with its gates, kept for the way back
    unpooled = copies * length * dim
    # Scores and rows of the active classes; histories, hidden vectors and gradients of each.
    return 4 * (active * (size + dim) + size * (6 * length + unpooled + 4 * dim))


def _evaluation_bytes(graph: Graph, relation: RelationType, table_bytes: int) -> int:
    """Of two tables as one follows the other, of edges and pairs, of tiles of scores; and of
    histories, numbers of the rows they are made of, and work on a block of them."""
    edges = sum(graph.num_edges(split) for split in ("train", "valid"))
    found = 2 * table_bytes + 100 * edges + _TILES_BYTES
    if relation.lhs != relation.rhs:
        found += _sequences_bytes(graph, *Histories().num_items(graph, relation))
        found += 16 * graph.num_entities(relation.rhs) + _BLOCK_COPIES * 4 * BLOCK_NUMBERS
    return found


def _disk_free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize
