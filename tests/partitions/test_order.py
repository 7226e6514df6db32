"""partitions.order: every order visits each bucket once; the good ones swap few tables."""

from collections import OrderedDict
from collections.abc import Sequence
from statistics import mean

import numpy as np
import pytest

from partitions.order import ORDERS
from partitions.schema import Bucket

SQUARE = [Bucket(i, j) for i in range(8) for j in range(8)]
SETS = {
    "square": SQUARE,
    "wide": [Bucket(i, j) for i in range(3) for j in range(7)],
    "tall": [Bucket(i, j) for i in range(6) for j in range(2)],
    "diagonal": [Bucket(i, i) for i in range(5)],
    "upper triangle": [Bucket(i, j) for i in range(5) for j in range(i, 5)],
    "sparse": [Bucket(0, 9), Bucket(9, 0), Bucket(3, 1), Bucket(4, 4), Bucket(2, 11)],
    "one": [Bucket(0, 0)],
    "none": [],
}


def ordered(name: str, buckets: Sequence[Bucket], seed: int) -> list[Bucket]:
    return ORDERS.build(name)(buckets, np.random.default_rng(seed))


def swaps(order: Sequence[Bucket], capacity: int) -> int:
    """Partitions read by a buffer that drops the least recently used, its first fill left out."""
    held: OrderedDict[int, None] = OrderedDict()
    reads = 0
    for bucket in order:
        for partition in bucket:
            if partition not in held:
                reads += 1
                if len(held) == capacity:
                    held.popitem(last=False)
            held[partition] = None
            held.move_to_end(partition)
    return reads - capacity


@pytest.mark.parametrize("name", list(ORDERS))
@pytest.mark.parametrize("shape", list(SETS))
def test_every_order_visits_each_bucket_once(name: str, shape: str) -> None:
    for seed in range(5):
        order = ordered(name, SETS[shape], seed)
        assert sorted(order) == sorted(SETS[shape])
        assert all(type(bucket) is Bucket for bucket in order)


@pytest.mark.parametrize("name", list(ORDERS))
@pytest.mark.parametrize("shape", list(SETS))
def test_every_order_is_decided_by_its_seed(name: str, shape: str) -> None:
    given = list(SETS[shape])
    first = ordered(name, given, 1)
    assert ordered(name, given, 1) == first
    assert given == SETS[shape], "the buckets passed in were moved"
    if shape in ("square", "wide"):
        assert len({tuple(ordered(name, given, seed)) for seed in range(5)}) > 1


def test_inside_out_does_not_mind_the_order_it_is_given() -> None:
    assert ordered("inside_out", SQUARE[::-1], 3) == ordered("inside_out", SQUARE, 3)


def test_inside_out_walks_the_layers_from_the_last_and_keeps_transposes_together() -> None:
    order = ordered("inside_out", SQUARE, 1)
    layers = [min(bucket) for bucket in order]
    assert layers == sorted(layers, reverse=True)
    for at, bucket in enumerate(order):
        if bucket.lhs < bucket.rhs:
            assert order[at + 1] == bucket[::-1]


def test_inside_out_swaps_near_the_lower_bound_with_two_partitions_in_memory() -> None:
    # reference/graph-embedding.md section 4: for p = 8, c = 2 the bound is p(p-1)/2 - 1 = 27,
    # inside_out measured 31.5 and random 91 under PBG's policy.
    counts = [swaps(ordered("inside_out", SQUARE, seed), 2) for seed in range(100)]
    assert min(counts) >= 27
    assert 30.5 < mean(counts) < 33.5
    random = mean(swaps(ordered("random", SQUARE, seed), 2) for seed in range(100))
    assert random > 2.5 * mean(counts)
