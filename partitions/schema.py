"""The nouns of a partitioned graph.

An edge is (`lhs`, `rel`, `rhs`): the (head, relation, tail) of the knowledge-graph literature.
A `key` is an entity's outside name, its `partition` a hash of the key, its `offset` the row inside
that partition, its `id` the row inside the whole entity type (partitions laid end to end).
"""

from dataclasses import dataclass
from typing import NamedTuple

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class EntityType:
    name: str
    num_partitions: int
    features: str | None = None  # type whose rows its vectors are means of (bags.py); None: its own


@dataclass(frozen=True)
class RelationType:
    name: str
    lhs: str  # entity type
    rhs: str  # entity type


class Bucket(NamedTuple):
    """The edges of one pair of partition indices, whatever their relations.

    A side whose entity type has a single partition does not bind: such an edge lies in the bucket
    of its other side, (j, j), so that training it needs one partition and no more.
    """

    lhs: int
    rhs: int


class Slot(NamedTuple):
    """One embedding table in memory or on disk: a partition of an entity type."""

    entity_type: str
    partition: int
