"""Edges by the ids of their ends, whatever bucket they lie in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions.graph import Graph
from partitions.schema import Bucket

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class EdgeIds:
    """int64 arrays of one length: 24 bytes an edge."""

    lhs: Ids
    rel: Ids
    rhs: Ids

    def __len__(self) -> int:
        return len(self.rel)

    def take(self, rows: NDArray[Any]) -> "EdgeIds":
        return EdgeIds(self.lhs[rows], self.rel[rows], self.rhs[rows])


def of_bucket(graph: Graph, split: str, bucket: Bucket) -> EdgeIds:
    edges = graph.edges(split, bucket)
    rel = edges.rel.astype(np.int64)
    lhs_start = np.array([_start(graph, r.lhs, bucket.lhs) for r in graph.relations])
    rhs_start = np.array([_start(graph, r.rhs, bucket.rhs) for r in graph.relations])
    return EdgeIds(edges.lhs + lhs_start[rel], rel, edges.rhs + rhs_start[rel])


def _start(graph: Graph, entity_type: str, partition: int) -> int:
    slot = graph.slot_of(entity_type, partition)
    return int(graph.starts[entity_type][slot.partition])


def of_split(graph: Graph, split: str) -> EdgeIds:
    """All edges of a split in memory, so meant for valid and test."""
    parts = [of_bucket(graph, split, bucket) for bucket in graph.buckets(split)]
    if not parts:
        return EdgeIds(*(np.empty(0, np.int64) for _ in range(3)))
    return EdgeIds(
        np.concatenate([part.lhs for part in parts]),
        np.concatenate([part.rel for part in parts]),
        np.concatenate([part.rhs for part in parts]),
    )


def repeated(graph: Graph, edges: EdgeIds, splits: Sequence[str]) -> NDArray[np.bool_]:
    """Of each edge, whether these splits have it too; memory follows a bucket and `edges`."""
    lhs, rhs = np.unique(edges.lhs), np.unique(edges.rhs)

    def codes(some: EdgeIds) -> Ids:
        at = some.rel * len(lhs) + np.searchsorted(lhs, some.lhs)
        return at * len(rhs) + np.searchsorted(rhs, some.rhs)

    wanted, found = codes(edges), np.zeros(len(edges), np.bool_)
    for split in splits:
        for bucket in graph.buckets(split):
            part = of_bucket(graph, split, bucket)
            part = part.take(np.isin(part.lhs, lhs) & np.isin(part.rhs, rhs))
            found |= np.isin(wanted, codes(part))
    return found


def pairs_of(
    graph: Graph, rel: int, splits: Sequence[str], lhs: tuple[int, int] | None = None
) -> Iterator[tuple[str, Ids, Ids]]:
    """(split, lhs, rhs) of one relation's edges, a bucket at a time. lhs: the first id and the end;
    buckets without any of these are not read."""
    lhs_type = graph.relations[rel].lhs
    for split in splits:
        for bucket in graph.buckets(split):
            slot = graph.slot_of(lhs_type, bucket.lhs)
            begin, end = graph.starts[lhs_type][slot.partition : slot.partition + 2]
            if lhs is not None and (end <= lhs[0] or begin >= lhs[1]):
                continue
            edges = of_bucket(graph, split, bucket)
            chosen = edges.rel == rel
            yield split, edges.lhs[chosen], edges.rhs[chosen]
