"""Orders: in which sequence an epoch visits its buckets. Pure functions of buckets and a seed.

A good order makes successive buckets share tables, so that few are swapped. `beta` and `best` know
how many tables fit: they fix a sequence of buffer states (buffer_states.py) and give each bucket to
one of the states that hold its tables: `assign = "first"` to the earliest, or `"random"` to any, so
that successive batches have less in common (COMET, Waleffe et al. 2023) for the same swaps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from partitions.buffer_states import (
    Needs,
    State,
    all_pairs_meet,
    by_index,
    elimination,
    greedy,
    shortest,
    tables_of,
)
from partitions.errors import ConfigError
from partitions.lookahead import num_swaps
from partitions.registry import Registry
from partitions.schema import Bucket, Slot


class Order(Protocol):
    def __call__(self, buckets: Needs, capacity: int, rng: np.random.Generator) -> list[Bucket]:
        """A permutation of `buckets`, where `capacity` tables fit into memory."""


ORDERS: Registry[Order] = Registry("order")


@ORDERS.add("random")
@dataclass(frozen=True)
class RandomOrder:
    """No reuse: about 2 p (p - 1) table reads an epoch. The yardstick for the others."""

    def __call__(self, buckets: Needs, capacity: int, rng: np.random.Generator) -> list[Bucket]:
        given = list(buckets)
        return [given[at] for at in rng.permutation(len(given))]


@ORDERS.add("affinity")
@dataclass(frozen=True)
class AffinityOrder:
    """A bucket, its transpose, then any that shares a table with it (PyTorch-BigGraph).

    That one is drawn evenly from those that remain; where none does, from all.
    """

    def __call__(self, buckets: Needs, capacity: int, rng: np.random.Generator) -> list[Bucket]:
        remaining = dict.fromkeys(sorted(buckets))
        sharing: dict[Slot, dict[Bucket, None]] = {slot: {} for slot in tables_of(buckets)}
        for bucket in remaining:
            for slot in buckets[bucket]:
                sharing[slot][bucket] = None
        ordered: list[Bucket] = []
        near: list[Bucket] = []
        while remaining:
            near = near or list(remaining)
            bucket = near[rng.integers(len(near))]
            for one in (bucket, Bucket(bucket.rhs, bucket.lhs)):
                if one in remaining:
                    ordered.append(one)
                    del remaining[one]
                    for slot in buckets[one]:
                        del sharing[slot][one]
            last = sorted(buckets[ordered[-1]])
            near = list(dict.fromkeys(other for slot in last for other in sharing[slot]))
        return ordered


@ORDERS.add("inside_out")
@dataclass(frozen=True)
class InsideOutOrder:
    """L-shaped layers from the last to the first (PyTorch-BigGraph, Lerer et al. 2019).

    Layer i holds the buckets whose smaller index is i; a bucket and its transpose are neighbours,
    pairs are shuffled inside a layer. Successive buckets share partition i.
    """

    def __call__(self, buckets: Needs, capacity: int, rng: np.random.Generator) -> list[Bucket]:
        return [bucket for layer in _layers(buckets, rng)[::-1] for bucket in layer]


@ORDERS.add("outside_in")
@dataclass(frozen=True)
class OutsideInOrder:
    """The layers of inside_out from the first to the last (PyTorch-BigGraph)."""

    def __call__(self, buckets: Needs, capacity: int, rng: np.random.Generator) -> list[Bucket]:
        return [bucket for layer in _layers(buckets, rng) for bucket in layer]


def _layers(buckets: Needs, rng: np.random.Generator) -> list[list[Bucket]]:
    layers: dict[int, dict[int, list[Bucket]]] = {}
    for bucket in sorted(buckets):
        layers.setdefault(min(bucket), {}).setdefault(max(bucket), []).append(bucket)
    return [
        [bucket for outer in rng.permutation(sorted(pairs)) for bucket in pairs[outer]]
        for _, pairs in sorted(layers.items())
    ]


@ORDERS.add("beta")
@dataclass(frozen=True)
class BetaOrder:
    """Elimination (BETA in Marius, Mohoney et al. 2021): `beta_swaps` swaps, for two tables in
    memory as few as can be."""

    assign: str = "random"

    def __post_init__(self) -> None:
        _check_assign(self.assign)

    def __call__(self, buckets: Needs, capacity: int, rng: np.random.Generator) -> list[Bucket]:
        capacity = _at_least_a_bucket(buckets, capacity)
        return _played(buckets, *_beta(buckets, capacity, rng), self.assign, rng)


@ORDERS.add("best")
@dataclass(frozen=True)
class BestOrder:
    """The fewest swaps known here, never more than `beta`: a stored sequence of states for one
    type of up to 16 partitions, else the better of `beta` and greedy swaps."""

    assign: str = "random"

    def __post_init__(self) -> None:
        _check_assign(self.assign)

    def __call__(self, buckets: Needs, capacity: int, rng: np.random.Generator) -> list[Bucket]:
        capacity = _at_least_a_bucket(buckets, capacity)
        if all_pairs_meet(buckets):
            tables = tables_of(buckets)
            shuffled = [tables[at] for at in rng.permutation(len(tables))]
            states = shortest(shuffled, capacity) or elimination(buckets, capacity, rng)
            return _played(buckets, buckets, states, self.assign, rng)
        ways = [_beta(buckets, capacity, rng), (buckets, greedy(buckets, capacity, rng))]
        orders = [_played(buckets, *way, self.assign, rng) for way in ways]
        return min(orders, key=lambda order: num_swaps((buckets[b] for b in order), capacity))


def _check_assign(assign: str) -> None:
    if assign not in ("first", "random"):
        raise ConfigError(f'assign is "first" or "random", found {assign!r}.')


def _at_least_a_bucket(buckets: Needs, capacity: int) -> int:
    """An order takes for granted that any bucket fits; the buffer refuses one that does not."""
    return max(capacity, *map(len, buckets.values())) if buckets else capacity


def _beta(buckets: Needs, capacity: int, rng: np.random.Generator) -> tuple[Needs, list[State]]:
    """The states, and what each bucket needs in terms of them."""
    if max(map(len, buckets.values()), default=0) > 2:
        buckets, capacity = by_index(buckets, capacity)
    return buckets, elimination(buckets, capacity, rng)


def _played(
    buckets: Needs,
    needs: Needs,
    states: Sequence[State],
    assign: str,
    rng: np.random.Generator,
) -> list[Bucket]:
    """The buckets in the order of the states they are given to, shuffled inside a state."""
    column = {slot: at for at, slot in enumerate(tables_of(needs))}
    holds = np.zeros((len(states), len(column)), bool)
    for row, state in enumerate(states):
        holds[row, [column[slot] for slot in state]] = True
    plays: list[list[Bucket]] = [[] for _ in states]
    for bucket in sorted(buckets):
        able = np.flatnonzero(holds[:, [column[slot] for slot in needs[bucket]]].all(1))
        plays[able[0 if assign == "first" else rng.integers(len(able))]].append(bucket)
    return [play[at] for play in plays for at in rng.permutation(len(play))]
