"""Item neighbours: an item scores by how much it co-occurs with those of the user's history.

    score[i] = sum over j of the history: sim[j, i], where sim = cosine of the items' columns,
    of which each item j keeps its `neighbours` highest (Sarwar et al. 2001)

An item's similarity to itself is left out: it is never recommended.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from embedsvc.ranking.recommenders import RECOMMENDERS, Floats, OfHistories
from embedsvc.ranking.recommenders.best import best_of
from embedsvc.ranking.recommenders.products import times_sparse
from partitions.errors import ConfigError

_BLOCK = 256  # items whose similarities to all are held at once


@RECOMMENDERS.add("item-knn")
@dataclass(frozen=True)
class ItemNeighbours:
    neighbours: int = 100  # of each item

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ConfigError(f"recommender item-knn: neighbours = {self.neighbours}: at least 1.")

    def fit(self, matrix: sp.csr_matrix) -> "Neighbours":
        num_items = matrix.shape[1]
        count = np.maximum(np.bincount(matrix.indices, minlength=num_items), 1)
        unit = (matrix @ sp.diags(1 / np.sqrt(count))).tocsr().astype(np.float32)
        of_items = unit.T.tocsr()
        parts = []
        for first in range(0, num_items, _BLOCK):
            block = of_items[first : first + _BLOCK]
            similar = np.zeros((block.shape[0], num_items), np.float32)
            times_sparse(block, unit, similar)
            parts.append(_kept(similar, first, min(self.neighbours, num_items)))
        return Neighbours(matrix, sp.vstack(parts, "csr") if parts else of_items)


def _kept(similar: Floats, first: int, k: int) -> sp.csr_matrix:
    """The k highest of each row that are above 0, the row's own item (first, ...) left out."""
    rows = np.arange(len(similar))
    own = sp.csr_matrix((np.ones(len(rows)), (rows, first + rows)), similar.shape)
    items = best_of(similar, own, k)
    places = np.repeat(rows, k), np.maximum(items, 0).ravel()
    values = np.where(items.ravel() >= 0, similar[places], 0)
    found = values > 0
    return sp.csr_matrix((values[found], (places[0][found], places[1][found])), similar.shape)


@dataclass(frozen=True)
class Neighbours(OfHistories):
    similarity: sp.csr_matrix  # float32 [I, I], `neighbours` entries a row at most

    def scores_of(self, histories: sp.csr_matrix) -> Floats:
        out = np.zeros((histories.shape[0], self.similarity.shape[0]), np.float32)
        times_sparse(histories, self.similarity, out)
        return out
