"""Lists for everybody, as a job: the k best rhs of every lhs, written as Parquet.

    lhs: large_string, rhs: list<large_string>, score: list<float>      a row an lhs, best first
    lhs, place: int32 (1 is best), rhs, score                           long = true: a row a place

Exact, over all rhs but those that the lhs has an edge to in any split. Rows are in the order of
ids. Memory is bounded by blocks of askers, what these had, tables of one partition, and the keys of
all rhs.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedsvc.evaluation.lists import BLOCK, Found, Progress, had_before
from embedsvc.evaluation.sources import OfCheckpoint
from embedsvc.trained import Trained
from partitions import durable
from partitions.graph import slots_of
from partitions.schema import SPLITS

_SPAN = 1 << 20  # lhs whose edges are in memory at once


def write_all(
    trained: Trained,
    relation: str,
    to: Path,
    k: int,
    *,
    long: bool = False,
    progress: Progress = lambda answered: None,
) -> int:
    """Returns the number of places that stayed empty, since there was nothing left to list. k: more
    than there are rhs is as many as there are."""
    graph = trained.graph
    ends = graph.relations[graph.relation_id(relation)]
    names = graph.all_keys(ends.rhs)
    k = min(k, len(names))
    empty = 0
    with durable.replacing(to) as file, pq.ParquetWriter(file, _schema(long)) as writer:
        for keys, found in _blocks(trained, relation, k):
            writer.write_table(_table(keys, names, found, long))
            empty += int(np.sum(found.ids < 0))
            progress(len(keys))
    return empty


def _blocks(trained: Trained, relation: str, k: int) -> Iterator[tuple[pa.Array, Found]]:
    """The keys of some lhs and their lists, partition by partition."""
    graph, lists = trained.graph, OfCheckpoint(trained, relation)
    lhs_type = graph.relations[graph.relation_id(relation)].lhs
    for slot in slots_of(graph.entity_types[lhs_type]):
        start, keys = int(graph.starts[lhs_type][slot.partition]), graph.keys(slot)
        for first in range(0, len(keys), _SPAN):
            lhs = np.arange(start + first, start + min(first + _SPAN, len(keys)))
            had = had_before(graph, relation, lhs, SPLITS)
            for at in range(0, len(lhs), BLOCK):
                block = slice(at, at + BLOCK)
                part = keys.slice(first + at, len(lhs[block]))
                yield part, lists.top(lhs[block], k, had[block])


def _schema(long: bool) -> pa.Schema:
    text, score = pa.large_string(), pa.float32()
    if long:
        return pa.schema([("lhs", text), ("place", pa.int32()), ("rhs", text), ("score", score)])
    return pa.schema([("lhs", text), ("rhs", pa.list_(text)), ("score", pa.list_(score))])


def _table(keys: pa.Array, names: pa.Array, found: Found, long: bool) -> pa.Table:
    filled = found.ids >= 0
    rhs, score = names.take(pa.array(found.ids[filled])), pa.array(found.scores[filled])
    if long:
        row, place = np.nonzero(filled)
        lhs = keys.take(pa.array(row))
        return pa.table([lhs, pa.array((place + 1).astype(np.int32)), rhs, score], _schema(long))
    ends: NDArray[np.int32] = np.concatenate([[0], np.cumsum(filled.sum(axis=1))]).astype(np.int32)
    lists = [pa.ListArray.from_arrays(pa.array(ends), values) for values in (rhs, score)]
    return pa.table([keys, *lists], _schema(long))
