"""Sequences of items: what each entity did, in the order of time, or what random walks came past.

They are what examples.py makes its examples of. Ids are those of the graph: an entity's number
within its type, all partitions counted through (graph.starts).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsvc.compiled import jit
from embedsvc.graph.fast import num_cores
from embedsvc.outputs.sparse import in_threads, slices
from partitions.edges import Edges
from partitions.errors import ConfigError, DataError
from partitions.graph import Graph
from partitions.hashing import GOLDEN, mix
from partitions.schema import Bucket

Ids = NDArray[np.int64]

_GOLDEN = np.uint64(GOLDEN)


@dataclass(frozen=True)
class Sequences:
    """items[starts[s] : starts[s + 1]] is sequence s, the oldest first; it may be empty.

    starts: int64 [S + 1], from 0 on; items: int64 [N], at least 0. 8 bytes each.
    """

    starts: Ids
    items: Ids

    def __post_init__(self) -> None:
        starts, items = self.starts, self.items
        if not len(starts) or starts[0] or starts[-1] != len(items) or (np.diff(starts) < 0).any():
            raise DataError(
                f"The starts of sequences must rise from 0 to the {len(items)} items there are."
            )
        if len(items) and items.min() < 0:
            raise DataError(f"Items must be at least 0, found {items.min()}.")

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, at: int) -> Ids:
        return self.items[self.starts[at] : self.starts[at + 1]]

    def newest(self, which: Ids, width: int) -> Ids:
        """int64 [len(which), width]: the last items of these sequences, padded with -1 at the left:
        the histories of whoever is asked about."""
        out = np.empty((len(which), width), np.int64)
        copy_before(self.items, self.starts[which], self.starts[which + 1], out)
        return out


@jit
def copy_before(items, begins, ends, out):  # type: ignore[no-untyped-def]
    """out[b], written: the last of items[begins[b] : ends[b]], at the right; -1 left of them."""
    width = out.shape[1]
    for b in range(ends.size):
        num = min(ends[b] - begins[b], width)
        out[b, : width - num] = -1
        for i in range(num):
            out[b, width - num + i] = items[ends[b] - num + i]


# --- histories ------------------------------------------------------------------------------------


def histories(graph: Graph, relation: str, split: str | Sequence[str] = "train") -> Sequences:
    """The rhs of each lhs of a relation, one sequence an lhs, numbered by its id.

    In the order of time where all edges have one, equal times in that of the file; else in that of
    the file, as far as the graph keeps it: see `keeps_order`. A repeated edge stands repeatedly.
    split: several are put together, and without times in that order.
    Takes 8 bytes an lhs and 8 an edge, with times 16, and what one bucket of edges takes: buckets
    stream by, twice.
    """
    rel = graph.relation_id(relation)
    places = [(one, bucket) for one in _splits(split) for bucket in graph.buckets(one)]
    num = np.zeros(graph.num_entities(graph.relations[rel].lhs), np.int64)
    has_times = True
    for lhs, _, time in _edges_of(graph, rel, places):
        num += np.bincount(lhs, minlength=len(num))
        has_times = has_times and (time is not None or not len(lhs))
    starts = np.concatenate([[0], np.cumsum(num)])
    items = np.empty(starts[-1], np.int64)
    times = np.empty(starts[-1] if has_times else 0, np.int64)
    at = starts[:-1].copy()
    for lhs, rhs, time in _edges_of(graph, rel, places):
        _put(lhs, rhs, at, items)
        if has_times and len(lhs):
            at -= np.bincount(lhs, minlength=len(at))
            _put(lhs, time, at, times)
    if has_times:
        _sort_by_time(starts, times, items)
    return Sequences(starts, items)


def keeps_order(graph: Graph, relation: str) -> bool:
    """Whether `histories` are in the order in which things happened, or were written down.

    Without times they are only where the rhs type has one partition: each bucket keeps the order of
    the file, but nobody knows which of two buckets' edges came first.
    """
    rhs = graph.relations[graph.relation_id(relation)].rhs
    return bool(graph.has_times) or graph.entity_types[rhs].num_partitions == 1


def _splits(split: str | Sequence[str]) -> Sequence[str]:
    return [split] if isinstance(split, str) else split


def _edges_of(
    graph: Graph, rel: int, places: Sequence[tuple[str, Bucket]]
) -> Iterator[tuple[Ids, Ids, Ids | None]]:
    """Bucket by bucket, the ids of both ends of a relation's edges, and their times."""
    relation = graph.relations[rel]
    for split, bucket in places:
        edges = graph.edges(split, bucket)
        rows = np.flatnonzero(edges.rel == rel)
        lhs = _ids(graph, relation.lhs, bucket.lhs, edges.lhs[rows])
        rhs = _ids(graph, relation.rhs, bucket.rhs, edges.rhs[rows])
        yield lhs, rhs, _times(edges, rows)


def _ids(graph: Graph, entity_type: str, partition: int, offsets: NDArray[np.uint32]) -> Ids:
    slot = graph.slot_of(entity_type, partition)
    return offsets + graph.starts[entity_type][slot.partition]


def _times(edges: Edges, rows: NDArray[Any]) -> Ids | None:
    return None if edges.time is None else edges.time[rows]


@jit
def _put(owner, values, at, out):  # type: ignore[no-untyped-def]
    """Append each value to its owner's, of which at[owner] is the end, moved on."""
    for i in range(owner.size):
        out[at[owner[i]]] = values[i]
        at[owner[i]] += 1


@jit
def _sort_by_time(starts, times, items):  # type: ignore[no-untyped-def]
    for s in range(starts.size - 1):
        begin, end = starts[s], starts[s + 1]
        for i in range(begin + 1, end):
            if times[i] < times[i - 1]:
                order = np.argsort(times[begin:end], kind="mergesort")
                items[begin:end] = items[begin:end][order]
                break


# --- walks ----------------------------------------------------------------------------------------


def walks(
    graph: Graph,
    relations: Sequence[str] | None,
    entity_type: str,
    length: int,
    per_entity: int,
    seed: int,
    *,
    split: str | Sequence[str] = "train",
    threads: int | None = None,
) -> Sequences:
    """Random walks along edges of these relations (None: all), in either direction.

    From each entity of the type, `per_entity` walks: sequence e per_entity + r is walk r from e. A
    walk visits `length` nodes, its start included, and each next one is drawn evenly from the edges
    of the last: of two parallel edges, each counts, and weights don't. Nodes of other types are
    passed and left out. Without an edge a walk is its start alone. One seed gives the same walks
    with any number of threads.
    Takes 8 bytes a node and 8 an edge to walk on (16 from 4 billion nodes on), and 8 bytes a walk
    and 8 an item of the result: walks are walked twice, first only to count.
    """
    if length < 1 or per_entity < 1:
        raise ConfigError(
            f"Walks of length {length}, {per_entity} an entity: both must be at least 1."
        )
    if entity_type not in graph.entity_types:
        raise DataError(f"{graph.path} has no entity type {entity_type}.")
    names = [r.name for r in graph.relations] if relations is None else relations
    first = _first_nodes(graph)
    starts, neighbours = _neighbours(graph, [graph.relation_id(name) for name in names], split)
    kind = (starts, neighbours, first[entity_type], length, per_entity, _walk_key(seed))
    num_kept = np.empty(graph.num_entities(entity_type) * per_entity, np.int64)
    bounds = slices(len(num_kept), num_cores() if threads is None else threads)
    num_entities = graph.num_entities(entity_type)
    nothing = np.empty(0, np.int64)
    in_threads(
        lambda _, begin, end: _walk(*kind, num_entities, begin, end, num_kept, nothing, nothing),
        bounds,
    )
    out_starts = np.concatenate([[0], np.cumsum(num_kept)])
    items = np.empty(out_starts[-1], np.int64)
    in_threads(
        lambda _, begin, end: _walk(*kind, num_entities, begin, end, num_kept, out_starts, items),
        bounds,
    )
    return Sequences(out_starts, items)


def _first_nodes(graph: Graph) -> dict[str, int]:
    """The types' entities numbered through: a node is first[type] + id."""
    sizes = {name: graph.num_entities(name) for name in graph.entity_types}
    ends = np.cumsum(list(sizes.values()))
    return {name: int(end - sizes[name]) for name, end in zip(sizes, ends, strict=True)}


def _neighbours(
    graph: Graph, rels: Sequence[int], split: str | Sequence[str]
) -> tuple[Ids, NDArray[Any]]:
    """Those of node v: neighbours[starts[v] : starts[v + 1]]."""
    places = [(one, bucket) for one in _splits(split) for bucket in graph.buckets(one)]
    first = _first_nodes(graph)
    num_nodes = sum(graph.num_entities(name) for name in graph.entity_types)
    num = np.zeros(num_nodes, np.int64)
    for lhs, rhs in _nodes_of(graph, rels, places, first):
        num += np.bincount(lhs, minlength=num_nodes) + np.bincount(rhs, minlength=num_nodes)
    starts = np.concatenate([[0], np.cumsum(num)])
    neighbours = np.empty(starts[-1], np.uint32 if num_nodes < 2**32 else np.int64)
    at = starts[:-1].copy()
    for lhs, rhs in _nodes_of(graph, rels, places, first):
        _put(lhs, rhs, at, neighbours)
        _put(rhs, lhs, at, neighbours)
    return starts, neighbours


def _nodes_of(
    graph: Graph, rels: Sequence[int], places: Sequence[tuple[str, Bucket]], first: dict[str, int]
) -> Iterator[tuple[Ids, Ids]]:
    for rel in rels:
        relation = graph.relations[rel]
        for lhs, rhs, _ in _edges_of(graph, rel, places):
            yield lhs + first[relation.lhs], rhs + first[relation.rhs]


def _walk_key(seed: int) -> np.uint64:
    return np.uint64(np.random.SeedSequence([seed, 0x3A1C]).generate_state(1, np.uint64)[0])


@jit
def _walk(  # type: ignore[no-untyped-def]
    starts,
    neighbours,
    first,
    length,
    per_entity,
    key,
    num_entities,
    begin,
    end,
    num_kept,
    out_starts,
    out,
):
    """Walks begin .. end - 1: num_kept, written; and where out has room, the nodes kept."""
    for walk in range(begin, end):
        node = np.int64(first + walk // per_entity)
        state = mix(key + _GOLDEN * np.uint64(walk + 1))
        kept = 0
        for _ in range(length):
            if first <= node < first + num_entities:
                if out.size:
                    out[out_starts[walk] + kept] = node - first
                kept += 1
            degree = starts[node + 1] - starts[node]
            if degree == 0:
                break
            state += _GOLDEN
            node = np.int64(neighbours[starts[node] + np.int64(mix(state) % np.uint64(degree))])
        num_kept[walk] = kept
