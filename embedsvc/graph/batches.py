"""A bucket's edges -> batches of chunks, shuffled by a seed.

The edges of a chunk share their negatives; the chunks of a batch share their entity types and
operator, so that a batch is a handful of matrix products. Where the model must move candidates
rather than queries (no reciprocal parameters), a chunk also shares its relation. The last chunk of
a group is padded; padding weighs nothing and is nobody's negative.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partitions.edges import Edges
from partitions.schema import Slot

_PAD = -1


@dataclass(frozen=True)
class Group:
    """What all edges of a batch have in common."""

    lhs: Slot
    rhs: Slot
    operator: str


@dataclass(frozen=True)
class Batch:
    """K chunks of C edges and, for each chunk and side, U entities drawn evenly.

    Offsets are int64 rows of the group's tables.
    """

    group: Group
    lhs_KC: NDArray[np.int64]
    rel_KC: NDArray[np.int64]
    rhs_KC: NDArray[np.int64]
    real_KC: NDArray[np.bool_]  # False marks padding
    weight_KC: NDArray[np.float32]  # 0 for padding
    neg_lhs_KU: NDArray[np.int64]
    neg_rhs_KU: NDArray[np.int64]

    @property
    def num_edges(self) -> int:
        return int(np.count_nonzero(self.real_KC))


@dataclass(frozen=True)
class Batcher:
    """groups: of each relation, in this bucket. num_rows: of each slot."""

    groups: Sequence[Group]
    num_rows: dict[Slot, int]
    batch_size: int
    chunk_size: int
    num_uniform: int
    chunk_by_relation: bool

    def batches(self, edges: Edges, rng: np.random.Generator) -> Iterator[Batch]:
        kinds = list(dict.fromkeys(self.groups))
        kind_of_rel = np.array([kinds.index(group) for group in self.groups])
        rel = edges.rel.astype(np.int64)
        shared = rel if self.chunk_by_relation else kind_of_rel[rel]
        chunks = _chunks(shared, self.chunk_size, rng)
        kind_of_chunk = kind_of_rel[rel[chunks[:, 0]]]
        per_batch = max(1, self.batch_size // self.chunk_size)
        plan = [
            (kind, rows)
            for kind in range(len(kinds))
            for rows in _pieces(np.flatnonzero(kind_of_chunk == kind), per_batch, rng)
        ]
        for at in rng.permutation(len(plan)):
            kind, rows = plan[at]
            yield self._batch(edges, kinds[kind], chunks[rows], rng)

    def _batch(
        self, edges: Edges, group: Group, chunks_KC: NDArray[np.int64], rng: np.random.Generator
    ) -> Batch:
        real_KC = chunks_KC != _PAD
        # Padding repeats the chunk's first edge, which keeps its relation and rows valid.
        rows_KC = np.where(real_KC, chunks_KC, chunks_KC[:, :1])
        weight_KC = real_KC.astype(np.float32)
        if edges.weight is not None:
            weight_KC *= edges.weight[rows_KC]
        size = (len(chunks_KC), self.num_uniform)
        return Batch(
            group,
            lhs_KC=edges.lhs[rows_KC].astype(np.int64),
            rel_KC=edges.rel[rows_KC].astype(np.int64),
            rhs_KC=edges.rhs[rows_KC].astype(np.int64),
            real_KC=real_KC,
            weight_KC=weight_KC,
            neg_lhs_KU=rng.integers(0, self.num_rows[group.lhs], size),
            neg_rhs_KU=rng.integers(0, self.num_rows[group.rhs], size),
        )


def _chunks(
    shared: NDArray[np.int64], chunk_size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """int64 [chunks, chunk_size] edge numbers, _PAD at the end of a group's last chunk."""
    shuffled = rng.permutation(len(shared))
    ordered = shuffled[np.argsort(shared[shuffled], kind="stable")]
    sizes = np.bincount(shared) if len(shared) else np.zeros(0, np.int64)
    num_chunks = -(-sizes // chunk_size)
    # Each edge's place: the group's first chunk, then its number within the group.
    first_place = np.repeat((np.cumsum(num_chunks) - num_chunks) * chunk_size, sizes)
    number = np.arange(len(shared)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chunks = np.full(int(num_chunks.sum()) * chunk_size, _PAD, np.int64)
    chunks[first_place + number] = ordered
    return chunks.reshape(-1, chunk_size)


def _pieces(
    rows: NDArray[np.int64], size: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    rows = rng.permutation(rows)
    return [rows[at : at + size] for at in range(0, len(rows), size)]
