"""Top-k lists of a relation: who is asked about, what they should be given, how good a list is.

    asked = Asked.of(graph, "bought", "test")
    judged = judge(OfCheckpoint(trained, "bought"), asked, 20)
    judged.values["recall@20"]              float64, one per asker

Whatever makes lists (sources.py: a checkpoint, a published version, popularity; served.py: a live
server) is judged here by one rule: all rhs are ranked, but for those that the asker had before.

Letters: Q askers, N entities of the rhs type, K places.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from embedsvc.edge_ids import Ids, pairs_of
from embedsvc.evaluation import metrics
from embedsvc.training.askers import known_before
from partitions.graph import Graph

BLOCK = 16_384  # askers at a time: a source may go through all vectors for each block

Floats = NDArray[np.float64]
Progress = Callable[[int], None]  # askers that were answered since the last call


class Found(NamedTuple):
    """Best first. ids: int64 [B, K], -1 in empty places; scores: float32 [B, K], there -inf."""

    ids: Ids
    scores: NDArray[np.float32]


class Lists(Protocol):
    """A source of lists. Whom it does not know gets an empty one."""

    def top(self, lhs: Ids, k: int, left_out: sp.csr_matrix) -> Found:
        """left_out: [B, N], what must not be in the list of each lhs; ids ascending."""


@dataclass(frozen=True)
class Asked:
    """Those with something to find in a split, and nothing of it seen before."""

    relation: str
    lhs: Ids  # [Q], ascending
    goals: sp.csr_matrix  # [Q, N], what should be found: each once, at least one a row
    left_out: sp.csr_matrix  # [Q, N], what they had in the splits before; and themselves
    num_known: Ids  # [Q], events in the splits before, repeated ones included
    popularity: Ids  # [N], training edges
    num_without_goals: int  # askers of the split who are left out: they had all of it before

    @staticmethod
    def of(graph: Graph, relation: str, split: str) -> "Asked":
        rel = graph.relation_id(relation)
        ends = graph.relations[rel]
        num_lhs, num_rhs = graph.num_entities(ends.lhs), graph.num_entities(ends.rhs)
        held = [lhs * num_rhs + rhs for _, lhs, rhs in pairs_of(graph, rel, [split])]
        pairs = np.unique(np.concatenate(held)) if held else np.empty(0, np.int64)
        lhs = np.unique(pairs // num_rhs)
        goals = _matrix(np.searchsorted(lhs, pairs // num_rhs), pairs % num_rhs, len(lhs), num_rhs)
        popularity, known = np.zeros(num_rhs, np.int64), np.zeros(num_lhs, np.int64)
        for name, who, what in pairs_of(graph, rel, known_before(split)):
            known += np.bincount(who, minlength=num_lhs)
            if name == "train":
                popularity += np.bincount(what, minlength=num_rhs)
        left_out = had_before(graph, relation, lhs, known_before(split))
        goals = goals - goals.multiply(left_out)
        goals.eliminate_zeros()
        some = np.diff(goals.indptr) > 0
        return Asked(
            relation,
            lhs[some],
            goals[some],
            left_out[some],
            known[lhs[some]],
            popularity,
            int(np.sum(~some)),
        )

    def __len__(self) -> int:
        return len(self.lhs)

    def take(self, rows: Ids) -> "Asked":
        """Some of those who are asked about; rows ascending."""
        left = {
            name: getattr(self, name)[rows] for name in ("lhs", "goals", "left_out", "num_known")
        }
        return replace(self, **left)

    @cached_property
    def num_goals(self) -> Ids:
        return np.diff(self.goals.indptr).astype(np.int64)


def had_before(graph: Graph, relation: str, lhs: Ids, splits: tuple[str, ...]) -> sp.csr_matrix:
    """bool [len(lhs), N]: what each of them, ascending, has edges to in these splits; and itself,
    where both ends are of one type, as nobody is recommended to themselves."""
    rel = graph.relation_id(relation)
    ends = graph.relations[rel]
    span = (int(lhs[0]), int(lhs[-1]) + 1) if len(lhs) else (0, 0)
    rows, columns = [], []
    for _, who, what in pairs_of(graph, rel, splits, span):
        at = np.minimum(np.searchsorted(lhs, who), max(len(lhs) - 1, 0))
        hit = np.flatnonzero(lhs[at] == who) if len(lhs) else np.empty(0, np.int64)
        rows.append(at[hit])
        columns.append(what[hit])
    if ends.lhs == ends.rhs:
        rows.append(np.arange(len(lhs)))
        columns.append(lhs)
    nothing = [np.empty(0, np.int64)]
    return _matrix(
        np.concatenate(nothing + rows),
        np.concatenate(nothing + columns),
        len(lhs),
        graph.num_entities(ends.rhs),
    )


def _matrix(rows: Ids, columns: Ids, num_rows: int, num_columns: int) -> sp.csr_matrix:
    """Each pair once, columns ascending."""
    ones = np.ones(len(rows), np.bool_)
    found = sp.csr_matrix((ones, (rows, columns)), (num_rows, num_columns))
    found.sum_duplicates()
    return found.astype(np.int8)


@dataclass(frozen=True)
class Judged:
    """Lists of all that were asked, and how good each is."""

    k: int
    found: Found  # [Q, k]
    hits: NDArray[np.bool_]  # [Q, k]
    values: dict[str, Floats]  # "recall@20" and so on: [Q], each in [0, 1]

    def take(self, rows: Ids) -> "Judged":
        found = Found(self.found.ids[rows], self.found.scores[rows])
        values = {name: each[rows] for name, each in self.values.items()}
        return Judged(self.k, found, self.hits[rows], values)


def judge(lists: Lists, asked: Asked, k: int, progress: Progress = lambda answered: None) -> Judged:
    found = ask(lists, asked.lhs, k, asked.left_out, progress)
    hits = hits_of(found.ids, asked.goals)
    values = {f"{name}@{k}": of(hits, asked.num_goals) for name, of in metrics.LIST_METRICS.items()}
    return Judged(k, found, hits, values)


def ask(
    lists: Lists,
    lhs: Ids,
    k: int,
    left_out: sp.csr_matrix,
    progress: Progress = lambda answered: None,
) -> Found:
    """All lists, in blocks of askers."""
    parts = [Found(np.empty((0, k), np.int64), np.empty((0, k), np.float32))]
    for first in range(0, len(lhs), BLOCK):
        block = slice(first, first + BLOCK)
        parts.append(lists.top(lhs[block], k, left_out[block]))
        progress(len(lhs[block]))
    ids, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Found(ids, scores)


def hits_of(ids: Ids, goals: sp.csr_matrix) -> NDArray[np.bool_]:
    """bool like ids: whether the entity at each place is a goal of its row."""
    rows = np.repeat(np.arange(len(ids)), np.diff(goals.indptr))
    span = goals.shape[1]
    wanted = rows * span + goals.indices
    places = np.arange(len(ids))[:, None] * span + ids
    return np.isin(np.where(ids < 0, -1, places), wanted)
