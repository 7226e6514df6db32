"""iALS against its objective: plain normal equations, a falling loss, and fold-in."""

import numpy as np
import pytest
import scipy.sparse as sp

from embedsvc.ranking.recommenders import RECOMMENDERS
from embedsvc.ranking.recommenders.als import Factors, Objective, diagonalised
from tests.embedsvc.ranking.recommenders.test_recommenders import communities


def fitted(**settings: object) -> Factors:
    return RECOMMENDERS.build({"name": "ials", "dim": 8, **settings}).fit(communities())


def loss(found: Factors) -> float:
    """The objective, in plain float64."""
    matrix, o = found.matrix.toarray().astype(np.float64), found.objective
    users, items = found.users.astype(np.float64), found.items.astype(np.float64)
    scores = users @ items.T
    total = (matrix * (1 - scores) ** 2).sum() + o.unseen * (scores**2).sum()
    for rows, events, others in [(users, matrix.sum(1), items), (items, matrix.sum(0), users)]:
        weight = o.ridge * (events + o.unseen * len(others)) ** o.scaled
        total += (weight * (rows**2).sum(1)).sum()
    return float(total)


@pytest.mark.parametrize("dim", [4, 40])  # histories of some 20: both ways of solving
def test_rows_solve_their_normal_equations(dim: int) -> None:
    matrix = communities()
    rng = np.random.default_rng(0)
    (items,) = diagonalised(rng.standard_normal((60, dim), np.float32))
    objective = Objective(unseen=0.2, ridge=0.05, scaled=0.7)
    found = objective.solve(matrix, items, 60)
    wide = items.astype(np.float64)
    for row, vector in zip(matrix, found, strict=True):
        own = wide[row.indices]
        ridge = 0.05 * (row.nnz + 0.2 * 60) ** 0.7
        system = own.T @ own + 0.2 * wide.T @ wide + ridge * np.eye(dim)
        np.testing.assert_allclose(vector, np.linalg.solve(system, own.sum(0)), atol=1e-5)


def test_a_users_vector_is_the_one_folded_in_and_the_one_recomputed_alone() -> None:
    found = fitted()
    np.testing.assert_allclose(found.fold_in(found.matrix), found.users, atol=1e-5)
    alone = np.vstack([found.fold_in(found.matrix[u]) for u in range(found.matrix.shape[0])])
    np.testing.assert_allclose(alone, found.users, atol=1e-5)


def test_no_small_step_from_the_folded_in_vector_is_better() -> None:
    found = fitted(epochs=3)
    least = loss(found)
    rng = np.random.default_rng(0)
    for _ in range(20):
        moved = found.users + 0.01 * rng.standard_normal(found.users.shape, np.float32)
        assert loss(Factors(found.matrix, moved, found.items, found.objective)) > least


def test_the_objective_falls_with_epochs() -> None:
    losses = [loss(fitted(epochs=epochs)) for epochs in (1, 2, 4, 8)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.99 * losses[0]


def test_without_events_a_vector_is_zero() -> None:
    found = fitted()
    assert not found.fold_in(sp.csr_matrix((2, 60), dtype=np.float32)).any()


@pytest.mark.parametrize("setting", [{"dim": 0}, {"epochs": 0}, {"ridge": 0.0}, {"unseen": -1.0}])
def test_bad_settings_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(Exception, match=next(iter(setting))):
        fitted(**setting)
