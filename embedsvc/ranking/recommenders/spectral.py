"""The spectral filter: item co-occurrence, smoothed; nothing is trained (GF-CF, Shen et al. 2021).

    N = D_U^-1/2 M D_I^-1/2                       M: users x items, D: their numbers of events
    scores = x (N'N + low D_I^-1/2 V V' D_I^1/2)  for the row x of a user's events

N'N, the linear filter, weighs items by the users they share, popular items and busy users for less.
V, the `rank` strongest right singular vectors of N, is the ideal low-pass: what is common to many.

N'N is never built: a user's row goes to all users through M' and back, over events that exist.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from embedsvc.compiled import LOOSE_SUMS, jit
from embedsvc.ranking.recommenders import RECOMMENDERS, Floats, OfHistories
from embedsvc.ranking.recommenders.products import over_rows, times
from partitions.errors import ConfigError

_ROUNDS = 8  # of subspace iteration
_SPARE = 32  # vectors iterated beyond those kept
_NOTHING = 1e-3  # of the greatest singular value; float32 knows the squares to about 1e-7


@RECOMMENDERS.add("spectral")
@dataclass(frozen=True)
class Spectral:
    rank: int = 256  # of the low-pass; 0 leaves it out
    low: float = 0.3  # its weight beside the linear filter
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ConfigError(f"recommender spectral: rank = {self.rank}: must not be negative.")

    def fit(self, matrix: sp.csr_matrix) -> "SpectralFilter":
        normal, root_I = normalised(matrix)
        _, vectors = right_singular(normal, min(self.rank, *matrix.shape), self.seed)
        low_in = vectors / root_I[:, None]
        low_out = np.float32(self.low) * vectors * root_I[:, None]
        return SpectralFilter(matrix, normal, normal.T.tocsr(), root_I, low_in, low_out)


@dataclass(frozen=True)
class SpectralFilter(OfHistories):
    normal: sp.csr_matrix  # N
    turned: sp.csr_matrix  # N'
    root_I: Floats  # of the number of events
    low_in: Floats  # [I, rank]
    low_out: Floats  # [I, rank]

    def scores_of(self, histories: sp.csr_matrix) -> Floats:
        scores = times(histories, self.low_in) @ self.low_out.T
        self.add_linear(histories, scores)
        return scores

    def add_linear(self, histories: sp.csr_matrix, out: Floats) -> None:
        """out += x N'N."""
        turned, normal = self.turned, self.normal
        there = turned.indptr, turned.indices, turned.data
        back = normal.indptr, normal.indices, normal.data
        parts = histories.indptr, histories.indices
        work = np.arange(len(out) + 1) * normal.nnz
        over_rows(work, _there_and_back, *parts, *there, *back, out)


def normalised(matrix: sp.csr_matrix) -> tuple[sp.csr_matrix, Floats]:
    """N, and the roots of the items' numbers of events, at least 1."""
    count_U = np.maximum(np.diff(matrix.indptr), 1)
    root_I = np.sqrt(np.maximum(np.bincount(matrix.indices, minlength=matrix.shape[1]), 1))
    values = 1 / (np.sqrt(np.repeat(count_U, np.diff(matrix.indptr))) * root_I[matrix.indices])
    normal = sp.csr_matrix((values.astype(np.float32), matrix.indices, matrix.indptr), matrix.shape)
    return normal, root_I.astype(np.float32)


def right_singular(matrix: sp.csr_matrix, rank: int, seed: int = 0) -> tuple[Floats, Floats]:
    """The `rank` greatest singular values, descending, and their right vectors [columns, rank].

    Less of them where the matrix has a lower rank: below _NOTHING of the greatest is rounding.

    Subspace iteration on M'M with a random start (Halko et al. 2011): all of its work is products
    of blocks. The vectors agree to some 1e-3 where singular values crowd; the span matters here.
    """
    if rank == 0:
        return np.empty(0, np.float32), np.empty((matrix.shape[1], 0), np.float32)
    turned = matrix.T.tocsr()
    width = min(rank + _SPARE, *matrix.shape)
    block = np.random.default_rng(seed).standard_normal((matrix.shape[1], width), np.float32)
    for _ in range(_ROUNDS):
        block = _orthonormal(times(turned, times(matrix, _orthonormal(block))))
    image = times(matrix, block)
    squares, turn = np.linalg.eigh(image.T @ image)
    order = np.argsort(-squares)[:rank]
    order = order[squares[order] > _NOTHING**2 * max(squares.max(), 0)]
    return np.sqrt(squares[order]), block @ turn[:, order]


def _orthonormal(block: Floats) -> Floats:
    """An orthonormal basis of the columns; twice by Cholesky, which is all products, in float64.

    Where columns depend on each other, Cholesky fails: then by Householder's QR, which never does.
    """
    found = block
    try:
        for _ in range(2):
            gram = (found.T @ found).astype(np.float64)
            gram[np.diag_indices_from(gram)] += 1e-7 * np.trace(gram) / len(gram)
            found = found @ np.linalg.inv(np.linalg.cholesky(gram)).T.astype(np.float32)
    except np.linalg.LinAlgError:
        return np.linalg.qr(block)[0]
    return found


@jit(**LOOSE_SUMS)
def _there_and_back(  # type: ignore[no-untyped-def]
    first, last, indptr, indices, ends, users, to_user, starts, items, to_item, out
):
    """Per row: the weight of all users by shared items, then those users' items."""
    weight = np.zeros(len(starts) - 1, np.float32)
    for row in range(first, last):
        weight[:] = 0
        for at in range(indptr[row], indptr[row + 1]):
            item = indices[at]
            for place in range(ends[item], ends[item + 1]):
                weight[users[place]] += to_user[place]
        for user in range(len(weight)):
            if weight[user] != 0:
                for place in range(starts[user], starts[user + 1]):
                    out[row, items[place]] += weight[user] * to_item[place]
