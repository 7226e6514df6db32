"""EASE: the best linear item-to-item model with a zero diagonal, in closed form (Steck 2019).

    G = M'M + ridge,  P = G^-1,  W[j, i] = -P[j, i] / P[i, i],  W[i, i] = 0;  scores = x W

A dense matrix of items x items: with 41,000 items 6.7 GB, in float32, and as much again while the
inverse is made. So it is `plan`ned first. `most_popular` keeps to so many items with the most
events; the others are never recommended and count for nothing in a history.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import lapack

from embedsvc.ranking.recommenders import RECOMMENDERS, Floats, OfHistories
from embedsvc.ranking.recommenders.products import times
from partitions.errors import ConfigError
from partitions.memory import available_bytes

_BLOCK = 2048  # columns scaled, or filled, at once


@RECOMMENDERS.add("ease")
@dataclass(frozen=True)
class Ease:
    ridge: float = 200.0  # in events
    most_popular: int | None = None  # items; unset: all

    def __post_init__(self) -> None:
        if self.ridge <= 0:
            raise ConfigError(f"recommender ease: ridge = {self.ridge}: must be above 0.")
        if self.most_popular is not None and self.most_popular < 1:
            raise ConfigError(
                f"recommender ease: most_popular = {self.most_popular}: must be at least 1."
            )

    def fit(self, matrix: sp.csr_matrix) -> "LinearItems":
        count = np.bincount(matrix.indices, minlength=matrix.shape[1])
        wanted = min(self.most_popular or matrix.shape[1], matrix.shape[1])
        check_memory(wanted, available_bytes())
        items = np.sort(np.argsort(-count, kind="stable")[:wanted])
        return LinearItems(matrix, items, self._weights(matrix[:, items]))

    def _weights(self, matrix: sp.csr_matrix) -> Floats:
        gram = np.asfortranarray((matrix.T @ matrix).toarray())
        gram[np.diag_indices_from(gram)] += np.float32(self.ridge)
        gram, failed = lapack.spotrf(gram, lower=True, overwrite_a=True)
        if not failed:
            gram, failed = lapack.spotri(gram, lower=True, overwrite_c=True)
        if failed:
            raise ConfigError(
                f"recommender ease: ridge = {self.ridge} is too small for these events in float32: "
                "raise it."
            )
        return _zero_diagonal(_whole(gram))


def plan(num_items: int) -> int:
    """Bytes at the peak of a fit: the matrix, and a copy of it while events are counted."""
    return 2 * 4 * num_items**2


def check_memory(num_items: int, free_bytes: int) -> None:
    """ConfigError where a fit does not fit."""
    if (needed := plan(num_items)) > 0.9 * free_bytes:
        fits = int((0.9 * free_bytes / plan(1)) ** 0.5)
        raise ConfigError(
            f"recommender ease needs {needed / 1e9:.1f} GB for {num_items:,} items, and "
            f"{free_bytes / 1e9:.1f} GB are free: set most_popular to {fits:,} or less."
        )


def _whole(lower: Floats) -> Floats:
    """Both triangles of a symmetric matrix whose lower one is given, in place."""
    for first in range(0, len(lower), _BLOCK):
        last = first + _BLOCK
        block = lower[first:last, first:last]
        lower[first:last, first:last] = np.tril(block) + np.tril(block, -1).T
        lower[first:last, last:] = lower[last:, first:last].T
    return lower


def _zero_diagonal(inverse: Floats) -> Floats:
    """-P / diag(P), column by column, in place."""
    own = inverse.diagonal().copy()
    for first in range(0, len(inverse), _BLOCK):
        inverse[:, first : first + _BLOCK] /= -own[first : first + _BLOCK]
    inverse[np.diag_indices_from(inverse)] = 0
    return inverse


@dataclass(frozen=True)
class LinearItems(OfHistories):
    items: NDArray[np.int64]  # ascending, those of the weights
    weights: Floats  # [items, items]

    def scores_of(self, histories: sp.csr_matrix) -> Floats:
        if len(self.items) == histories.shape[1]:
            return times(histories, self.weights)
        scores = np.full(histories.shape, -np.inf, np.float32)
        scores[:, self.items] = times(histories[:, self.items], self.weights)
        return scores
