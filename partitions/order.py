"""Orders: in which sequence an epoch visits its buckets. Pure functions of buckets and a seed.

A good order makes successive buckets share partitions, so that few tables are swapped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from partitions.registry import Registry
from partitions.schema import Bucket


class Order(Protocol):
    def __call__(self, buckets: Sequence[Bucket], rng: np.random.Generator) -> list[Bucket]:
        """A permutation of `buckets`."""


ORDERS: Registry[Order] = Registry("order")


@ORDERS.add("random")
@dataclass(frozen=True)
class RandomOrder:
    """No reuse: about 2 p (p - 1) table reads an epoch. The yardstick for the others."""

    def __call__(self, buckets: Sequence[Bucket], rng: np.random.Generator) -> list[Bucket]:
        return [buckets[at] for at in rng.permutation(len(buckets))]


@ORDERS.add("inside_out")
@dataclass(frozen=True)
class InsideOutOrder:
    """L-shaped layers from the last to the first (PyTorch-BigGraph, Lerer et al. 2019).

    Layer i holds the buckets whose smaller index is i; a bucket and its transpose are neighbours,
    pairs are shuffled inside a layer. Successive buckets share partition i.
    """

    def __call__(self, buckets: Sequence[Bucket], rng: np.random.Generator) -> list[Bucket]:
        ordered: list[Bucket] = []
        layers: dict[int, dict[int, list[Bucket]]] = {}
        for bucket in sorted(buckets):
            layers.setdefault(min(bucket), {}).setdefault(max(bucket), []).append(bucket)
        for inner in sorted(layers, reverse=True):
            pairs = layers[inner]
            for outer in rng.permutation(sorted(pairs)):
                ordered += pairs[outer]
        return ordered
