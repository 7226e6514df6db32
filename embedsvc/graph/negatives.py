"""Which entities the edges of a chunk are told apart from, and how often each is expected there.

All draws of a side are shared by the chunk and come from the partition in memory:

    uniform  each entity with the same chance
    degree   with a chance that grows as count^alpha, count being how many of the bucket's edges
             have the entity at either end. Counts are of the bucket at hand, so they need no pass
             of their own, and a run that resumes finds the same ones.
    every    no draw: the whole partition, once (1-vs-all)

A loss that corrects for the sampling (`losses.SampledSoftmaxLoss`) wants to know how often a
candidate was to be expected in its chunk, from whichever of these sources and from the chunk's own
edges: the sum over sources.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions.edges import Edges
from partitions.schema import Slot

_LEAST = 1e-30  # an expected count whose logarithm is still a number


@dataclass(frozen=True)
class Sampling:
    """What is drawn beside the uniform negatives, and whether expected counts are wanted."""

    degree: int = 0
    alpha: float = 1.0
    every: bool = False
    in_batch: bool = True  # for the counts only: the chunk's own edges are candidates, too
    log_q: bool = False


class Sampler:
    """Draws for one bucket.

    ends: of each relation, the slots of its lhs and rhs. shared: [edges], what the edges of a
    chunk have in common; only compared with itself.
    """

    def __init__(
        self,
        sampling: Sampling,
        num_uniform: int,
        num_rows: Mapping[Slot, int],
        ends: Sequence[tuple[Slot, Slot]],
        edges: Edges,
        shared: NDArray[np.unsignedinteger[Any]],
    ) -> None:
        self._sampling, self._num_uniform, self._num_rows = sampling, num_uniform, num_rows
        self._wants_counts = sampling.log_q and not sampling.every
        self._cumulative: dict[Slot, NDArray[np.float64]] = {}
        if sampling.degree and not sampling.every:
            self._cumulative = {
                slot: np.cumsum(count**sampling.alpha)
                for slot, count in _degrees(num_rows, ends, edges).items()
            }
        self._frequencies: tuple[_Frequencies, ...] = ()
        if self._wants_counts and sampling.in_batch:
            self._frequencies = tuple(_Frequencies(shared, end) for end in (edges.lhs, edges.rhs))

    def draw(self, slot: Slot, num_chunks: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """int64 [num_chunks, U] rows of the slot's table."""
        rows = self._num_rows[slot]
        if self._sampling.every:
            return np.tile(np.arange(rows), (num_chunks, 1))
        drawn = rng.integers(0, rows, (num_chunks, self._num_uniform))
        if not self._sampling.degree:
            return drawn
        cumulative = self._cumulative[slot]
        points = rng.random((num_chunks, self._sampling.degree)) * cumulative[-1]
        weighted = np.searchsorted(cumulative, points, side="right")
        # A product that rounds up to the sum would lie beyond the last entity that has any edge.
        last = np.searchsorted(cumulative, cumulative[-1])
        return np.concatenate([drawn, np.minimum(weighted, last)], axis=1)

    def log_counts(
        self,
        slot: Slot,
        side: int,
        shared_K: NDArray[np.int64],
        num_real_K: NDArray[np.int64],
        true_KC: NDArray[np.int64],
        drawn_KU: NDArray[np.int64],
    ) -> NDArray[np.float32] | None:
        """float32 [K, C + U], or [K, U] without in-batch candidates: the logarithm of how often
        each candidate is expected among the chunk's. None where no correction is wanted.

        side: 0 for lhs, 1 for rhs. num_real_K: edges of each chunk, padding not counted.
        """
        if not self._wants_counts:
            return None
        candidates = np.concatenate([true_KC, drawn_KU], 1) if self._frequencies else drawn_KU
        expected = np.full(candidates.shape, self._num_uniform / self._num_rows[slot])
        if self._sampling.degree:
            cumulative = self._cumulative[slot]
            chance = np.diff(cumulative, prepend=0.0) / cumulative[-1]
            expected += self._sampling.degree * chance[candidates]
        if self._frequencies:
            others = np.maximum(num_real_K - 1, 0)[:, None]
            expected += others * self._frequencies[side].of(shared_K[:, None], candidates)
        return np.log(np.maximum(expected, _LEAST)).astype(np.float32)


def _degrees(
    num_rows: Mapping[Slot, int], ends: Sequence[tuple[Slot, Slot]], edges: Edges
) -> dict[Slot, NDArray[np.float64]]:
    """How many edge ends of the bucket each row of each slot is."""
    found = {slot: np.zeros(rows) for slot, rows in num_rows.items()}
    for side, offsets in enumerate((edges.lhs, edges.rhs)):
        slots = [pair[side] for pair in ends]
        for slot in dict.fromkeys(slots):
            mine = np.array([other == slot for other in slots])[edges.rel]
            found[slot] += np.bincount(offsets[mine], minlength=len(found[slot]))
    return found


class _Frequencies:
    """Of the edges that share chunks: how large a part has a given entity at this end."""

    def __init__(
        self, shared: NDArray[np.unsignedinteger[Any]], offsets: NDArray[np.uint32]
    ) -> None:
        self._span = int(offsets.max(initial=0)) + 1
        codes = shared.astype(np.int64) * self._span + offsets
        self._codes, counts = np.unique(codes, return_counts=True)
        sizes = np.bincount(shared) if len(shared) else np.zeros(0, np.int64)
        self._share = counts / sizes[self._codes // self._span]

    def of(self, shared: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
        """Elementwise, broadcast; 0 for an entity that none of them has there."""
        codes = shared * self._span + np.minimum(offsets, self._span - 1)
        at = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        known = (self._codes[at] == codes) & (offsets < self._span)
        return np.where(known, self._share[at], 0.0)
