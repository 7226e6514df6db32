"""A bucket's edges -> batches of chunks, shuffled by a seed.

The edges of a chunk share their negatives; the chunks of a batch share their entity types and
operator, so that a batch is a handful of matrix products. Where the model must move candidates
rather than queries (no reciprocal parameters), a chunk also shares its relation. The last chunk of
a group is padded; padding weighs nothing and is nobody's negative.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsvc.graph.negatives import Sampler, Sampling
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
    """K chunks of C edges and, for each chunk and side, U entities drawn as its negatives.

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
    # Logarithms of how often each candidate is expected in its chunk, where the loss corrects by it
    log_q_lhs: NDArray[np.float32] | None = None
    log_q_rhs: NDArray[np.float32] | None = None
    seed: int = 0  # of whatever else the batch's loss draws

    @property
    def num_edges(self) -> int:
        return int(np.count_nonzero(self.real_KC))


@dataclass(frozen=True)
class Batcher:
    """groups: of each relation, in this bucket. num_rows: of each slot. relation_weights: of each
    relation's edges, beside their own; unset: 1. seeded: draw a seed for each batch."""

    groups: Sequence[Group]
    num_rows: dict[Slot, int]
    batch_size: int
    chunk_size: int
    num_uniform: int
    chunk_by_relation: bool
    sampling: Sampling = field(default_factory=Sampling)
    relation_weights: NDArray[np.float32] | None = None
    seeded: bool = False

    def batches(self, edges: Edges, rng: np.random.Generator) -> Iterator[Batch]:
        kinds = list(dict.fromkeys(self.groups))
        kind_of_rel = np.array([kinds.index(group) for group in self.groups], np.uint32)
        rel = edges.rel
        if self.chunk_by_relation:
            shared = rel
        else:
            shared = kind_of_rel.astype(np.min_scalar_type(len(kinds)))[rel]
        # Of few edges every chunk would be mostly padding, which is scored like edges.
        most = int(np.bincount(shared).max(initial=1))
        chunks = _chunks(shared, min(self.chunk_size, most), rng)
        kind_of_chunk = kind_of_rel[rel[chunks[:, 0]]]
        ends = [(group.lhs, group.rhs) for group in self.groups]
        sampler = Sampler(self.sampling, self.num_uniform, self.num_rows, ends, edges, shared)
        per_batch = max(1, self.batch_size // self.chunk_size)
        plan = [
            (kind, rows)
            for kind in range(len(kinds))
            for rows in _pieces(np.flatnonzero(kind_of_chunk == kind), per_batch, rng)
        ]
        for at in rng.permutation(len(plan)):
            kind, rows = plan[at]
            mine = chunks[rows]
            yield self._batch(edges, kinds[kind], mine, shared[mine[:, 0]], sampler, rng)

    def _batch(
        self,
        edges: Edges,
        group: Group,
        chunks_KC: NDArray[np.int64],
        shared_K: NDArray[np.unsignedinteger[Any]],
        sampler: Sampler,
        rng: np.random.Generator,
    ) -> Batch:
        real_KC = chunks_KC != _PAD
        # Padding repeats the chunk's first edge, which keeps its relation and rows valid.
        rows_KC = np.where(real_KC, chunks_KC, chunks_KC[:, :1])
        weight_KC = real_KC.astype(np.float32)
        if edges.weight is not None:
            weight_KC *= edges.weight[rows_KC]
        if self.relation_weights is not None:
            weight_KC *= self.relation_weights[edges.rel[rows_KC]]
        lhs_KC = edges.lhs[rows_KC].astype(np.int64)
        rhs_KC = edges.rhs[rows_KC].astype(np.int64)
        neg_lhs_KU = sampler.draw(group.lhs, len(chunks_KC), rng)
        neg_rhs_KU = sampler.draw(group.rhs, len(chunks_KC), rng)
        known = (shared_K.astype(np.int64), real_KC.sum(axis=1))
        return Batch(
            group,
            lhs_KC=lhs_KC,
            rel_KC=edges.rel[rows_KC].astype(np.int64),
            rhs_KC=rhs_KC,
            real_KC=real_KC,
            weight_KC=weight_KC,
            neg_lhs_KU=neg_lhs_KU,
            neg_rhs_KU=neg_rhs_KU,
            log_q_lhs=sampler.log_counts(group.lhs, 0, *known, lhs_KC, neg_lhs_KU),
            log_q_rhs=sampler.log_counts(group.rhs, 1, *known, rhs_KC, neg_rhs_KU),
            seed=int(rng.integers(1 << 63)) if self.seeded else 0,
        )


def _chunks(
    shared: NDArray[np.unsignedinteger[Any]], chunk_size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """int64 [chunks, chunk_size] edge numbers, _PAD at the end of a group's last chunk.

    Takes up to four int64 an edge at a time.
    """
    ordered = rng.permutation(len(shared))
    ordered = ordered[np.argsort(shared[ordered], kind="stable")]
    sizes = np.bincount(shared) if len(shared) else np.zeros(0, np.int64)
    num_chunks = -(-sizes // chunk_size)
    # Each edge's place: the group's first chunk, then its number within the group.
    places = np.arange(len(shared))
    begins = (np.cumsum(num_chunks) - num_chunks) * chunk_size
    places += np.repeat(begins - (np.cumsum(sizes) - sizes), sizes)
    chunks = np.full(int(num_chunks.sum()) * chunk_size, _PAD, np.int64)
    chunks[places] = ordered
    return chunks.reshape(-1, chunk_size)


def _pieces(
    rows: NDArray[np.int64], size: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    rows = rng.permutation(rows)
    return [rows[at : at + size] for at in range(0, len(rows), size)]
