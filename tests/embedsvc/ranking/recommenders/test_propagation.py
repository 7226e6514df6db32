"""The trained recommender: its gradient against autograd of the formulas, and what it learns."""

import numpy as np
import pytest
import torch

from embedsvc.ranking.recommenders import RECOMMENDERS
from embedsvc.ranking.recommenders import propagation as module
from embedsvc.ranking.recommenders.propagation import Graph, Propagated, Sides, Softmax, Unit
from partitions.errors import ConfigError
from tests.embedsvc.ranking.recommenders.test_recommenders import communities

T = 0.2


def tables(dim: int = 5) -> Sides:
    rng = np.random.default_rng(3)
    return Sides(
        rng.standard_normal((120, dim), np.float32), rng.standard_normal((60, dim), np.float32)
    )


def exact(e: Sides, users: np.ndarray, layers: int) -> tuple[float, list[np.ndarray]]:
    """The loss of the module's docstring in float64, and autograd's gradients by e."""
    events = torch.from_numpy(communities().toarray()).double()
    of_user, of_item = events.sum(1).clamp(min=1), events.sum(0).clamp(min=1)
    normal = events / of_user.sqrt()[:, None] / of_item.sqrt()
    leaves = [torch.from_numpy(table).double().requires_grad_() for table in e]
    x = list(leaves)
    sums = list(leaves)
    for _ in range(layers):
        x = [normal @ x[1], normal.T @ x[0]]
        sums = [a + b for a, b in zip(sums, x, strict=True)]
    unit = [torch.nn.functional.normalize(total) for total in sums]
    scores = (unit[0] @ unit[1].T / T)[users]
    whole = torch.logsumexp(scores, 1, keepdim=True)
    loss = (events[users] * (torch.logaddexp(scores, whole) - scores)).sum()
    loss.backward()
    return loss.item(), [leaf.grad.numpy() for leaf in leaves]


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_loss_and_gradients_equal_autograds(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TILE", 7)
    users = np.array([2, 3, 5, 7, 11, 13, 17, 19, 23])
    matrix, e = communities(), tables()
    graph = Graph(matrix, layers)
    units = [Unit.of(rows) for rows in graph.propagate(e)]
    loss, found = Softmax(matrix, T, rounded=False).gradients(
        users, Sides(*(unit.rows for unit in units))
    )
    back = graph.propagate(Sides(*(u.back(g) for u, g in zip(units, found, strict=True))))
    expected_loss, expected = exact(e, users, layers)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for side, truth in zip(back, expected, strict=True):
        np.testing.assert_allclose(side, truth, atol=2e-5 * np.abs(truth).max())


def test_products_of_bfloat16_change_gradients_little() -> None:
    matrix, users = communities(), np.arange(120)
    unit = Sides(*(Unit.of(rows).rows for rows in tables(16)))
    _, near = Softmax(matrix, T, rounded=True).gradients(users, unit)
    _, true = Softmax(matrix, T, rounded=False).gradients(users, unit)
    for rounded, side in zip(near, true, strict=True):
        assert np.linalg.norm(rounded - side) < 0.02 * np.linalg.norm(side)


def fitted(**settings: object) -> Propagated:
    spec = {"name": "propagation", "dim": 8, "epochs": 20, "batch": 40, **settings}
    return RECOMMENDERS.build(spec).fit(communities())


def test_training_lowers_the_loss(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    fitted()
    losses = [float(r.getMessage().split("loss=")[1].split()[0]) for r in caplog.records]
    assert len(losses) == 60 and np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_users_vector_is_the_one_folded_in_and_the_one_recomputed_alone(layers: int) -> None:
    found = fitted(layers=layers, epochs=2, own=False)
    np.testing.assert_allclose(found.fold_in(found.matrix), found.users, atol=1e-5)
    alone = np.vstack([found.fold_in(found.matrix[u]) for u in range(120)])
    np.testing.assert_allclose(alone, found.users, atol=1e-5)


@pytest.mark.parametrize(
    "setting", [{"dim": 0}, {"layers": 0}, {"temperature": 0.01}, {"lr": 0.0}, {"batch": 0}]
)
def test_bad_settings_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        fitted(**setting)
