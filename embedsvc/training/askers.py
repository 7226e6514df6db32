"""Vectors [x, 1] of who asks: a trained tower over what each of them had before some moment.

x follows from the tower, the input rows and the events, so no table holds it. It is made when it is
asked for, of the events that are known then: whoever judges a split knows those of the splits
before it, everybody else knows all. Items that training never looked at are left out. Entities are
asked about in blocks, and beside their histories only a block's items and rows are in memory.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embedsvc.config import OutputConfig, TrainConfig
from embedsvc.ranking.examples import EXAMPLES, NextItem
from embedsvc.ranking.sequences import Ids, Sequences, histories
from embedsvc.ranking.towers import HistoryTower
from embedsvc.training.asker_features import AskerFeatures
from embedsvc.training.rows import Floats, input_place
from partitions.checkpoint import Checkpoint
from partitions.durable import FileEntry
from partitions.graph import Graph, slots_of
from partitions.schema import SPLITS, RelationType, Slot
from partitions.tables import Stored

BLOCK_NUMBERS = 1 << 21  # of the rows of a block's histories: 8 MB


def known_before(split: str | None) -> tuple[str, ...]:
    """The splits whose events are known when `split` is judged; None: nothing is held back."""
    return SPLITS if split is None else SPLITS[: max(1, SPLITS.index(split))]


def make_tower(
    output: OutputConfig, config: TrainConfig, longest: int = 1, feature_rows: int = 0
) -> HistoryTower:
    """A tower as `output` says, but for its rows. longest: of the histories it will see."""
    examples = EXAMPLES.build(output.examples)
    return HistoryTower(
        1,  # its rows follow
        output.dim,
        pooling=output.tower,
        # Of skip-grams who asks is the mean of all there is.
        max_history=examples.max_history if isinstance(examples, NextItem) else longest,
        hidden=output.hidden,
        feature_rows=feature_rows,
        optimizer=output.optimizer,
        lr=output.tower_lr or output.lr,
        threads=config.threads,
        seed=config.seed,
    )


@dataclass(frozen=True)
class InputRows:
    """The input rows of a checkpoint's classes, memory-mapped."""

    graph: Graph
    name: str  # the classes' entity type
    dim: int
    tables: Mapping[Slot, FileEntry]
    checkpoint: Checkpoint

    @cached_property
    def _parts(self) -> list[tuple[int, int, Stored]]:
        """Of each partition that has some: the first id, the end, and what is stored."""
        parts = []
        for slot in slots_of(self.graph.entity_types[self.name]):
            entry = self.tables.get(slot._replace(entity_type=input_place(self.name)))
            if entry is not None:
                begin = int(self.graph.starts[self.name][slot.partition])
                num_rows = self.graph.num_rows(slot)
                stored = self.checkpoint.stored_rows(entry, num_rows, self.dim, digest=True)
                parts.append((begin, begin + num_rows, stored))
        return parts

    def of(self, ids: Ids) -> tuple[Floats, NDArray[np.bool_]]:
        """Which of them, ascending, were learnt, bool [len(ids)]; before it, the rows of these."""
        learnt = np.zeros(len(ids), np.bool_)
        found: list[Floats] = [np.empty((0, self.dim), np.float32)]
        for begin, end, stored in self._parts:
            first, last = np.searchsorted(ids, [begin, end])
            offsets = ids[first:last] - begin
            at, after = (np.searchsorted(stored.rows, offsets, side) for side in ("left", "right"))
            learnt[first:last] = at < after
            found.append(stored.vectors[at[at < after]])
        return np.concatenate(found), learnt


@dataclass(frozen=True)
class Askers:
    """Whoever is on the lhs of a relation whose rhs are the classes of [output]."""

    graph: Graph
    relation: RelationType
    output: OutputConfig
    config: TrainConfig
    rows: InputRows
    learnt: Mapping[str, NDArray[Any]]  # the tower's parameters, by their names
    features: AskerFeatures | None = None
    feature_rows: Floats = field(default_factory=lambda: np.empty((0, 0), np.float32))
    known: tuple[str, ...] = SPLITS

    @cached_property
    def _histories(self) -> Sequences:
        return histories(self.graph, self.relation.name, self.known)

    @cached_property
    def tower(self) -> HistoryTower:
        """But for its rows."""
        longest = int(np.diff(self._histories.starts).max(initial=1))
        num_rows = len(self.feature_rows)
        tower = make_tower(self.output, self.config, longest, num_rows).eval()
        if tower.features is not None:
            tower.features.weight.data = torch.from_numpy(self.feature_rows)
        with torch.no_grad():
            for name, value in tower.named_parameters():
                if value.requires_grad:
                    value.copy_(torch.from_numpy(self.learnt[name]))
        return tower

    def vectors(self, who: Ids) -> Floats:
        """float32 [len(who), dim + 1]: [x, 1] of these ids."""
        out = np.ones((len(who), self.output.dim + 1), np.float32)
        for places, width in self._blocks(who):
            out[places, :-1] = self._x_of(self._histories.newest(who[places], width), who[places])
        return out

    def features_of(self, who: Ids) -> Ids:
        """int64 [len(who), columns]: what the tower knows of them besides; -1: nothing."""
        return self.features.ids[who] if self.features is not None else np.empty((len(who), 0), int)

    @property
    def newest(self) -> int | None:
        """So many events of each count; None: all."""
        examples = EXAMPLES.build(self.output.examples)
        return examples.max_history if isinstance(examples, NextItem) else None

    def histories_of(self, who: Ids) -> Ids:
        """int64 [len(who), the longest]: what the tower makes their vectors of; -1 is padding."""
        starts = self._histories.starts
        longest = int((starts[who + 1] - starts[who]).max(initial=1))
        return self._histories.newest(who, min(longest, self.tower.max_history))

    def _blocks(self, who: Ids) -> Iterator[tuple[Ids, int]]:
        """Places in `who`, and the length of the longest history there. Those of about one length
        are together: the others are padded."""
        starts = self._histories.starts
        sizes = np.clip(starts[who + 1] - starts[who], 1, self.tower.max_history)
        order, at = np.argsort(-sizes, kind="stable"), 0
        while at < len(order):
            width = int(sizes[order[at]])
            some = max(1, BLOCK_NUMBERS // (width * self.output.dim))
            yield order[at : at + some], width
            at += some

    @torch.no_grad()
    def _x_of(self, history_BL: Ids, who: Ids) -> Floats:
        items, at = np.unique(history_BL, return_inverse=True)
        rows, learnt = self.rows.of(items)
        self.tower.table.weight.data = torch.from_numpy(rows)
        # -1 is padding, as is what nobody learnt, whose row would be noise.
        places = np.where(learnt, np.cumsum(learnt) - 1, -1)[at].reshape(history_BL.shape)
        features = torch.from_numpy(self.features_of(who))
        return np.asarray(self.tower(torch.from_numpy(places), features).numpy())
