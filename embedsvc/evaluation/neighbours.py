"""Who lies near whom: the entities with the most edges, and what the model puts beside them.

Vectors stream by partition, in tiles, so memory does not grow with entities.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
import torch

from embedsvc.edge_ids import Ids
from embedsvc.evaluation.topk import Best
from embedsvc.graph.comparators import L2, Cos
from embedsvc.trained import Trained
from partitions.graph import Graph, slots_of

_TILE = 4_096  # candidates whose scores are in memory at once


@dataclass(frozen=True)
class Named:
    """An entity as people know it."""

    key: str
    attribute: str  # the first one, "" where there is none

    def __str__(self) -> str:
        return f"{self.key} · {self.attribute}" if self.attribute else self.key


@dataclass(frozen=True)
class Hub:
    entity: Named
    degree: int
    neighbours: tuple[tuple[Named, float], ...]  # nearest first, with scores


def hubs_of(
    trained: Trained, entity_type: str, degrees: Ids, num_hubs: int = 5, k: int = 5
) -> list[Hub]:
    """The entities with the most edges, and the k that are most like each: by cosine, or where
    training measured distance, by that. degrees: int64 [entities].

    A vector that is not finite is near to nothing.
    """
    ids = np.argsort(-degrees, kind="stable")[:num_hubs].astype(np.int64)
    best = nearest(trained, entity_type, ids, k)
    wanted = np.concatenate([ids, best.ids[best.ids >= 0]])
    distinct, place = np.unique(wanted, return_inverse=True)
    names = names_of(trained.graph, entity_type, distinct)
    found = iter(place[len(ids) :].tolist())
    hubs = []
    for row, at in enumerate(place[: len(ids)].tolist()):
        scores = best.scores[row][best.ids[row] >= 0].tolist()
        neighbours = tuple((names[next(found)], score) for score in scores)
        hubs.append(Hub(names[at], int(degrees[ids[row]]), neighbours))
    return hubs


@torch.no_grad()
def nearest(trained: Trained, entity_type: str, ids: Ids, k: int) -> Best:
    """The k entities most like each of these, but for itself."""
    compare = L2() if trained.model.comparator.metric == "l2" else Cos()
    query_BD = trained.gather(entity_type, ids)
    graph, ones = trained.graph, np.ones(len(ids), np.int8)
    shape = (len(ids), graph.num_entities(entity_type))
    itself = sp.csr_matrix((ones, (np.arange(len(ids)), ids)), shape)
    best = Best(len(ids), k)
    for at, slot in enumerate(slots_of(graph.entity_types[entity_type])):
        vectors, first = trained.vectors(slot), int(graph.starts[entity_type][at])
        for row in range(0, len(vectors), _TILE):
            tile_ND = torch.from_numpy(vectors[row : row + _TILE])
            scores = np.ascontiguousarray(compare.blocks(query_BD, tile_ND).numpy(), np.float32)
            best.add(scores, itself, first_id=first + row)
    return best


def names_of(graph: Graph, entity_type: str, ids: Ids) -> list[Named]:
    """Of these ids, in their order; keys of one partition in memory at a time."""
    keys = np.empty(len(ids), object)
    starts = graph.starts[entity_type]
    for at, slot in enumerate(slots_of(graph.entity_types[entity_type])):
        rows = np.flatnonzero((ids >= starts[at]) & (ids < starts[at + 1]))
        if len(rows):
            taken = graph.keys(slot).take(pa.array(ids[rows] - starts[at]))
            keys[rows] = taken.to_pylist()
    attributes = graph.attributes(entity_type)
    first = [""] * len(ids)
    if attributes is not None and attributes.num_columns:
        column = attributes.column(0).take(pa.array(ids)).to_pylist()
        first = ["" if value is None else str(value) for value in column]
    return [Named(key, attribute) for key, attribute in zip(keys, first, strict=True)]
