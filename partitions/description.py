"""What a graph looks like: degrees, hubs, relations, balance. Streams buckets; memory: one degree
an entity."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partitions.graph import Graph
from partitions.schema import SPLITS


@dataclass(frozen=True)
class Hub:
    key: str
    degree: int


@dataclass(frozen=True)
class TypeDescription:
    """One entity type, over the edges of all splits; an edge counts at both its ends."""

    name: str
    num_entities: int
    rows: list[int]  # of each partition
    degree_histogram: list[int]  # entities of degree 0, 1, 2-3, 4-7, 8-15, ...
    median_degree: float
    mean_degree: float
    hubs: list[Hub]  # largest first


def describe_types(graph: Graph, num_hubs: int = 10) -> list[TypeDescription]:
    degrees = degrees_of(graph)
    return [_describe(graph, name, degrees[name], num_hubs) for name in graph.entity_types]


def degrees_of(graph: Graph) -> dict[str, NDArray[np.int64]]:
    """Entity type -> int64 [entities] by id."""
    degrees = {name: np.zeros(graph.num_entities(name), np.int64) for name in graph.entity_types}
    for split in SPLITS:
        for bucket in graph.buckets(split):
            edges = graph.edges(split, bucket)
            for at, relation in enumerate(graph.relations):
                chosen = edges.rel == at
                for name, part, offsets in (
                    (relation.lhs, bucket.lhs, edges.lhs),
                    (relation.rhs, bucket.rhs, edges.rhs),
                ):
                    slot = graph.slot_of(name, part)
                    start, end = graph.starts[name][slot.partition : slot.partition + 2]
                    counts = np.bincount(offsets[chosen], minlength=end - start)
                    degrees[name][start:end] += counts
    return degrees


def _describe(
    graph: Graph, name: str, degrees: NDArray[np.int64], num_hubs: int
) -> TypeDescription:
    bands = np.frexp(degrees.astype(np.float64))[1]  # 0 -> 0, 1 -> 1, 2-3 -> 2, 4-7 -> 3, ...
    top = np.argsort(-degrees, kind="stable")[:num_hubs]
    keys = graph.all_keys(name)
    return TypeDescription(
        name=name,
        num_entities=len(degrees),
        rows=np.diff(graph.starts[name]).tolist(),
        degree_histogram=np.bincount(bands).tolist(),
        median_degree=float(np.median(degrees)),
        mean_degree=float(degrees.mean()),
        hubs=[Hub(keys[int(at)].as_py(), int(degrees[at])) for at in top],
    )


def band_name(band: int) -> str:
    """0, 1, 2-3, 4-7, ... for a place in `degree_histogram`."""
    if band <= 1:
        return str(band)
    return f"{1 << (band - 1):,}-{(1 << band) - 1:,}"
