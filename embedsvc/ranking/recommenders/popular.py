"""Popularity: everybody gets what most users have. What any other recommender must beat."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from embedsvc.ranking.recommenders import RECOMMENDERS, Floats, OfHistories


@RECOMMENDERS.add("popularity")
@dataclass(frozen=True)
class Popularity:
    def fit(self, matrix: sp.csr_matrix) -> "Popular":
        return Popular(matrix, np.bincount(matrix.indices, minlength=matrix.shape[1]))


@dataclass(frozen=True)
class Popular(OfHistories):
    count_I: np.ndarray

    def scores_of(self, histories: sp.csr_matrix) -> Floats:
        return np.repeat(self.count_I.astype(np.float32)[None], histories.shape[0], axis=0)
