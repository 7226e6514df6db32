"""Trained vectors and the spectral filter together: what one misses the other often has.

    score = exp(cosine / temperature) and the filter's score, each divided by its standard deviation
            over a user's items; their sum, the filter's times `filter`

Vectors know what an item is like, the filter each pair of items that a few users shared. The sum is
no inner product: an index can search the vectors alone, and the sum rank what it found.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from embedsvc.ranking.recommenders import RECOMMENDERS, Floats, Ids
from embedsvc.ranking.recommenders.propagation import Propagated, Propagation
from embedsvc.ranking.recommenders.spectral import Spectral, SpectralFilter


@RECOMMENDERS.add("blend")
@dataclass(frozen=True)
class Blend:
    filter: float = 1.0  # weight of the filter beside that of the vectors
    temperature: float = 0.2  # of cosines, in the sum; in training it is Propagation's
    dim: int = 128
    epochs: int = 8
    rank: int = 256
    low: float = 0.6
    seed: int = 0

    def fit(self, matrix: sp.csr_matrix) -> "Blended":
        vectors = Propagation(dim=self.dim, epochs=self.epochs, seed=self.seed).fit(matrix)
        filtered = Spectral(rank=self.rank, low=self.low, seed=self.seed).fit(matrix)
        return Blended(matrix, vectors, filtered, self.filter, self.temperature)


@dataclass(frozen=True)
class Blended:
    matrix: sp.csr_matrix
    vectors: Propagated
    filtered: SpectralFilter
    weight: float
    temperature: float

    def scores(self, users: Ids) -> Floats:
        return self._sum(self.vectors.scores(users), self.filtered.scores(users))

    def scores_of(self, histories: sp.csr_matrix) -> Floats:
        return self._sum(self.vectors.scores_of(histories), self.filtered.scores_of(histories))

    def _sum(self, cosine: Floats, filtered: Floats) -> Floats:
        cosine -= 1
        cosine /= np.float32(self.temperature)
        total = _standard(np.exp(cosine, out=cosine))
        filtered = _standard(filtered)
        filtered *= np.float32(self.weight)
        total += filtered
        return total


def _standard(scores: Floats) -> Floats:
    """In place: the standard deviation of each row 1, unless it is 0."""
    deviation = scores.std(axis=1, keepdims=True)
    scores /= np.where(deviation > 0, deviation, 1)
    return scores
