"""Recommenders learn from nothing but who interacted with what: a sparse user-item matrix.

The simplest that may do: popularity, item neighbours, a spectral filter and EASE train nothing or
solve one system; iALS and `propagation` learn vectors. They show within minutes whether a deeper
model earns its keep. All rank every item, with what a user has interacted with left out (best.py).

    fitted = RECOMMENDERS.build({"name": "ials", "dim": 128}).fit(matrix)
    items = top_items(fitted, users, 20)              of the users that it was fitted to
    items = top_items(fitted, histories, 20)          of anybody, from events alone: fold-in

The whole job of adding one: one class here, registered; contract tests cover it by that.

Letters: U users, I items, B users of a block, D dimension.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from partitions.registry import Registry

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


class Fitted(Protocol):
    """What a recommender learned. Scores are compared within a user only; higher is better."""

    @property
    def matrix(self) -> sp.csr_matrix:
        """float32 [U, I], what it was fitted to; as `binary` makes it."""

    def scores(self, users: Ids) -> Floats:
        """[B, I], the caller's to write to, of users of the matrix."""

    def scores_of(self, histories: sp.csr_matrix) -> Floats:
        """[B, I] of anybody, from their rows of events alone; histories: as `binary` makes it."""


class Recommender(Protocol):
    """Keyword arguments of the constructor are the config keys."""

    def fit(self, matrix: sp.csr_matrix) -> Fitted:
        """matrix: [U, I], as `binary` makes it. Users and items without events are allowed."""


RECOMMENDERS: Registry[Recommender] = Registry("recommender")


@dataclass(frozen=True)
class OfHistories:
    """For recommenders that know a user only by their events: users of the matrix are no other."""

    matrix: sp.csr_matrix

    def scores(self, users: Ids) -> Floats:
        return self.scores_of(self.matrix[users])

    def scores_of(self, histories: sp.csr_matrix) -> Floats:
        raise NotImplementedError


@dataclass(frozen=True)
class Vectors:
    """For recommenders whose scores are inner products, which an index can search.

    users: float32 [U, D]; items: float32 [I, D].
    """

    matrix: sp.csr_matrix
    users: Floats
    items: Floats

    def scores(self, users: Ids) -> Floats:
        return self.users[users] @ self.items.T

    def scores_of(self, histories: sp.csr_matrix) -> Floats:
        return self.fold_in(histories) @ self.items.T

    def fold_in(self, histories: sp.csr_matrix) -> Floats:
        """[B, D], vectors of users from their events alone; items stay as they are."""
        raise NotImplementedError


def binary(matrix: sp.spmatrix) -> sp.csr_matrix:
    """Each (user, item) once, with value 1 in float32, items of a user ascending."""
    rows = sp.csr_matrix(matrix, dtype=np.float32, copy=True)
    rows.sum_duplicates()
    rows.eliminate_zeros()
    rows.data[:] = 1
    return rows


from embedsvc.ranking.recommenders import als as als  # noqa: E402  (they register themselves)
from embedsvc.ranking.recommenders import blend as blend  # noqa: E402
from embedsvc.ranking.recommenders import linear as linear  # noqa: E402
from embedsvc.ranking.recommenders import neighbours as neighbours  # noqa: E402
from embedsvc.ranking.recommenders import popular as popular  # noqa: E402
from embedsvc.ranking.recommenders import propagation as propagation  # noqa: E402
from embedsvc.ranking.recommenders import spectral as spectral  # noqa: E402
