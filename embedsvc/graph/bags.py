"""Entities whose vectors are the means of their features' vectors (Wu et al. 2018; featurised
entities of PyTorch-BigGraph).

    vector(e) = sum over f in bag(e) of vector(f) / |bag(e)|

A feature named twice counts twice, and an entity without features is at 0. A gradient of an
entity's vector is one of each of its features', divided by the size of its bag.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from partitions.bags import Bags
from partitions.graph import Graph, slots_of
from partitions.schema import Slot

_BLOCK_ROWS = 1 << 16


@dataclass(frozen=True)
class FeatureBags:
    """table: holds the features' vectors. bags: of each entity, as rows of it."""

    table: Slot
    bags: Bags

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(rows of the table, bag after bag; where each entity's begin), int64."""
        features, starts = self.bags.of(rows.numpy())
        return torch.from_numpy(features), torch.from_numpy(starts)


def bags_of(graph: Graph) -> dict[Slot, FeatureBags]:
    """Those of every slot that has no vectors of its own."""
    found = {}
    for name, entity_type in graph.entity_types.items():
        if (bags := graph.bags(name)) is not None:
            [slot] = slots_of(entity_type)
            found[slot] = FeatureBags(graph.table_of(slot), bags)
    return found


def featurised(graph: Graph) -> str | None:
    """The first setting that gives entities features, which only the exact step can train."""
    names = (name for name, kind in graph.entity_types.items() if kind.features is not None)
    return next((f"graph.entities.{name}.features" for name in names), None)


def pooled(vectors_ED: Tensor, places: Tensor, starts_B: Tensor) -> Tensor:
    """[B, D] means of rows of vectors; places: int64 rows, bag after bag, from starts on."""
    return functional.embedding_bag(places, vectors_ED, starts_B, mode="mean")


@torch.no_grad()
def entity_vectors(vectors: NDArray[np.float32], bags: Bags) -> NDArray[np.float32]:
    """float32 [entities, dim]. vectors: of the features. Works block by block."""
    table = torch.from_numpy(vectors)
    out = torch.empty(len(bags), table.shape[1])
    for start in range(0, len(bags), _BLOCK_ROWS):
        rows = np.arange(start, min(start + _BLOCK_ROWS, len(bags)))
        features, starts = bags.of(rows)
        out[start : start + len(rows)] = pooled(
            table, torch.from_numpy(features), torch.from_numpy(starts)
        )
    found: NDArray[np.float32] = out.numpy()
    return found


def bags_bytes(bags: Mapping[Slot, FeatureBags]) -> int:
    return sum(one.bags.num_bytes for one in bags.values())
