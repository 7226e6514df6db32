"""iALS: least squares over all users x items, events for 1 and the rest for 0 at a low weight.

    sum over events (1 - <u, i>)^2 + unseen * sum over all pairs <u, i>^2
      + ridge * sum over rows (events of the row + unseen * pairs of the row)^scaled |row|^2

(Hu, Koren and Volinsky 2008; regularisation scaled by frequency and its settings as in "Revisiting
iALS", Rendle et al. 2021). Given the items, each user's vector has a closed form, and the other way
round: an epoch solves all items, then all users.

A user with n events costs n^2 D + n^3, not D^3. In the basis where V'V, the items' matrix of second
moments, is diagonal, what does not come from the user's own events is the diagonal matrix
S = unseen V'V + regularisation, and

    (S + H'H)^-1 H'1 = S^-1 H' (1 + H S^-1 H')^-1 1        H: [n, D], vectors of the user's items

so that a thousand dimensions are cheap where histories are short.

Users are solved last, which makes the vector of anybody in the matrix the same as the one folded in
from their events.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from embedsvc.compiled import LOOSE_SUMS, jit
from embedsvc.ranking.recommenders import RECOMMENDERS, Floats, Vectors
from embedsvc.ranking.recommenders.products import over_rows
from partitions.errors import ConfigError

_START = 0.1  # expected length of a row before the first epoch


@dataclass(frozen=True)
class Objective:
    unseen: float  # weight of a pair without an event, against 1
    ridge: float
    scaled: float  # 0: the same ridge for all rows; 1: in proportion to their weight

    def solve(self, events: sp.csr_matrix, others: Floats, num_others: int) -> Floats:
        """[rows, D], the best vector of each row of events, given vectors of its columns.

        others: [columns, D] in a basis where others' others is diagonal, see `diagonalised`.
        """
        second_D = np.einsum("cd,cd->d", others, others, dtype=np.float64)
        weight = np.diff(events.indptr) + self.unseen * num_others
        ridge = (self.ridge * weight**self.scaled).astype(np.float32)
        out = np.zeros((events.shape[0], others.shape[1]), np.float32)
        work = np.concatenate([[0], np.cumsum(np.diff(events.indptr).astype(np.int64) ** 2)])
        unseen_D = (self.unseen * second_D).astype(np.float32)
        parts = events.indptr, events.indices, others, unseen_D, ridge
        over_rows(work, _solve, *parts, out)
        return out


def diagonalised(vectors: Floats, *along: Floats) -> tuple[Floats, ...]:
    """`vectors`, and others whose products with them matter, in a basis of orthogonal columns."""
    _, turn = np.linalg.eigh((vectors.T @ vectors).astype(np.float64))
    turn = turn.astype(np.float32)
    return vectors @ turn, *(other @ turn for other in along)


@RECOMMENDERS.add("ials")
@dataclass(frozen=True)
class Ials:
    dim: int = 256
    epochs: int = 12
    unseen: float = 0.1
    ridge: float = 0.003
    scaled: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in [("dim", 1), ("epochs", 1)]:
            if (value := getattr(self, name)) < least:
                raise ConfigError(f"recommender ials: {name} = {value}: must be at least {least}.")
        for name in ("unseen", "ridge"):
            if (value := getattr(self, name)) <= 0:
                raise ConfigError(f"recommender ials: {name} = {value}: must be above 0.")

    def fit(self, matrix: sp.csr_matrix) -> "Factors":
        objective = Objective(self.unseen, self.ridge, self.scaled)
        num_users, num_items = matrix.shape
        turned = matrix.T.tocsr()
        turned.sort_indices()
        start = np.random.default_rng(self.seed).standard_normal((num_items, self.dim), np.float32)
        (items,) = diagonalised(start * np.float32(_START / np.sqrt(self.dim)))
        users = objective.solve(matrix, items, num_items)
        for _ in range(self.epochs):
            (users,) = diagonalised(users)
            (items,) = diagonalised(objective.solve(turned, users, num_users))
            users = objective.solve(matrix, items, num_items)
        return Factors(matrix, users, items, objective)


@dataclass(frozen=True)
class Factors(Vectors):
    objective: Objective

    def fold_in(self, histories: sp.csr_matrix) -> Floats:
        return self.objective.solve(histories, self.items, len(self.items))


@jit(**LOOSE_SUMS)
def _solve(first, last, indptr, indices, others, unseen_D, ridge, out):  # type: ignore[no-untyped-def]
    dim = others.shape[1]
    for row in range(first, last):
        num = indptr[row + 1] - indptr[row]
        if num == 0:
            continue
        own = np.empty((num, dim), np.float32)
        scaled = np.empty((num, dim), np.float32)
        for at in range(num):
            item = indices[indptr[row] + at]
            for d in range(dim):
                own[at, d] = others[item, d]
                scaled[at, d] = others[item, d] / (unseen_D[d] + ridge[row])
        if num <= dim:
            gram = np.dot(own, scaled.T)
            for at in range(num):
                gram[at, at] += 1
            out[row] = np.dot(np.linalg.solve(gram, np.ones(num, np.float32)), scaled)
        else:
            gram = np.dot(own.T, own)
            for d in range(dim):
                gram[d, d] += unseen_D[d] + ridge[row]
            out[row] = np.linalg.solve(gram, np.dot(np.ones(num, np.float32), own))
