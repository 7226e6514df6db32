"""Contracts of every registered loss and regularizer."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from embedsvc.config import ModelConfig
from embedsvc.graph.losses import LOSSES, REGULARIZERS, SelfAdversarialLoss
from partitions.errors import ConfigError

# With alpha = 0 the weights of negatives are constants, so that differences of values see them so.
GRADIENT_SPECS = {"self_adversarial": {"name": "self_adversarial", "alpha": 0.0}}
SIZES = [(1, 1), (3, 4), (5, 1), (2, 0)]  # edges, negatives


def scores(num_edges: int, num_negatives: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_edges * 100 + num_negatives)
    pos = scale * torch.randn(num_edges, dtype=torch.float64, generator=generator)
    neg = scale * torch.randn(num_edges, num_negatives, dtype=torch.float64, generator=generator)
    return pos, neg


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_equals_a_plain_loop(
    name: str, sizes: tuple[int, int], plain: SimpleNamespace
) -> None:
    pos, neg = scores(*sizes)
    found = LOSSES.build(name)(pos, neg)
    loop = [plain.losses[name](p, n) for p, n in zip(pos.tolist(), neg.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(loop, dtype=torch.float64))


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_keeps_leading_axes_apart(name: str, plain: SimpleNamespace) -> None:
    pos, neg = scores(6, 3)
    flat = LOSSES.build(name)(pos, neg)
    shaped = LOSSES.build(name)(pos.view(2, 3), neg.view(2, 3, 3))
    torch.testing.assert_close(shaped, flat.view(2, 3))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_has_the_gradient_of_its_values(name: str, sizes: tuple[int, int]) -> None:
    pos, neg = scores(*sizes)
    loss = LOSSES.build(GRADIENT_SPECS.get(name, name))
    assert torch.autograd.gradcheck(loss, (pos.requires_grad_(), neg.requires_grad_()))


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("pos_score", [-1e4, 1e4])
@pytest.mark.parametrize("neg_score", [-1e4, 1e4])
def test_a_loss_and_its_gradient_are_finite_at_large_scores(
    name: str, dtype: torch.dtype, pos_score: float, neg_score: float
) -> None:
    pos = torch.full((2,), pos_score, dtype=dtype, requires_grad=True)
    neg = torch.full((2, 3), neg_score, dtype=dtype, requires_grad=True)
    loss = LOSSES.build(name)(pos, neg)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(pos.grad).all() and torch.isfinite(neg.grad).all()


@pytest.mark.parametrize("name", list(LOSSES))
def test_without_negatives_only_the_edge_itself_can_cost(name: str) -> None:
    pos = torch.tensor([0.5, -3.0], dtype=torch.float64)
    loss = LOSSES.build(name)(pos, torch.empty(2, 0, dtype=torch.float64))
    softplus = torch.nn.functional.softplus
    alone = {"logistic": softplus(-pos), "self_adversarial": softplus(-12.0 - pos)}.get(
        name, torch.zeros_like(pos)
    )
    torch.testing.assert_close(loss, alone)


@pytest.mark.parametrize("name", list(LOSSES))
def test_masked_slots_cost_nothing_and_have_no_gradient(name: str) -> None:
    loss = LOSSES.build(name)
    pos, neg = scores(4, 3)
    unmasked = loss(pos, neg[:, :2])
    whole = torch.cat([neg[:, :1], torch.full_like(neg[:, :1], 50.0), neg[:, 1:2]], dim=1)
    whole.requires_grad_()
    pos.requires_grad_()
    mask = torch.tensor([0.0, -torch.inf, 0.0], dtype=torch.float64)
    masked = loss(pos, whole + mask)
    torch.testing.assert_close(masked, unmasked)
    masked.sum().backward()
    assert torch.isfinite(pos.grad).all() and torch.isfinite(whole.grad).all()
    assert (whole.grad[:, 1] == 0).all()


@pytest.mark.parametrize("name", list(LOSSES))
def test_all_slots_masked_is_as_good_as_no_negatives(name: str) -> None:
    loss = LOSSES.build(name)
    pos, neg = scores(3, 2)
    pos.requires_grad_()
    neg.requires_grad_()
    masked = loss(pos, neg + torch.tensor(-torch.inf))
    torch.testing.assert_close(masked, loss(pos, neg[:, :0]))
    masked.sum().backward()
    assert torch.isfinite(pos.grad).all()
    assert (neg.grad == 0).all()


@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_the_ranking_loss_takes_its_margin_from_the_config(
    margin: float, plain: SimpleNamespace
) -> None:
    pos, neg = scores(3, 4)
    found = LOSSES.build({"name": "ranking", "margin": margin})(pos, neg)
    loop = [
        plain.losses["ranking"](p, n, margin)
        for p, n in zip(pos.tolist(), neg.tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(loop, dtype=torch.float64))


@pytest.mark.parametrize(("gamma", "alpha"), [(0.0, 0.5), (3.0, 2.0), (1.0, 0.0)])
def test_the_self_adversarial_loss_takes_its_settings_from_the_config(
    gamma: float, alpha: float, plain: SimpleNamespace
) -> None:
    pos, neg = scores(3, 4)
    spec = {"name": "self_adversarial", "gamma": gamma, "alpha": alpha}
    loop = [
        plain.losses["self_adversarial"](p, n, gamma, alpha)
        for p, n in zip(pos.tolist(), neg.tolist(), strict=True)
    ]
    found = LOSSES.build(spec)(pos, neg)
    torch.testing.assert_close(found, torch.tensor(loop, dtype=torch.float64))


def test_no_gradient_flows_through_the_weights_of_adversarial_negatives() -> None:
    """d loss / d neg[n] = w[n] sigmoid(gamma + neg[n]), w held."""
    pos, neg = scores(3, 4)
    loss = LOSSES.build({"name": "self_adversarial", "gamma": 1.0, "alpha": 1.5})
    neg.requires_grad_()
    loss(pos, neg).sum().backward()
    held = (1.5 * neg.detach()).softmax(-1)
    torch.testing.assert_close(neg.grad, held * torch.sigmoid(1.0 + neg.detach()))


@pytest.mark.parametrize("dim", [1, 2, 5, 6])
@pytest.mark.parametrize("name", list(REGULARIZERS))
def test_a_regularizer_equals_a_plain_loop(name: str, dim: int, plain: SimpleNamespace) -> None:
    x, _ = scores(4 * dim, 0)
    x = x.view(2, 2, dim)
    found = REGULARIZERS.build({"name": name, "weight": 0.3})(x)
    loop = [plain.regularizers[name](row, 0.3) for row in x.view(4, dim).tolist()]
    torch.testing.assert_close(found, torch.tensor(loop, dtype=torch.float64).view(2, 2))


@pytest.mark.parametrize("dim", [3, 4])
@pytest.mark.parametrize("name", list(REGULARIZERS))
def test_a_regularizer_has_the_gradient_of_its_values(name: str, dim: int) -> None:
    x, _ = scores(3 * dim, 0)
    assert torch.autograd.gradcheck(REGULARIZERS.build(name), (x.view(3, dim).requires_grad_(),))


@pytest.mark.parametrize("dim", [3, 4])
@pytest.mark.parametrize("value", [0.0, 1e-12, 1e4])
@pytest.mark.parametrize("name", list(REGULARIZERS))
def test_a_regularizer_and_its_gradient_are_finite(name: str, value: float, dim: int) -> None:
    x = torch.full((2, dim), value, requires_grad=True)
    cost = REGULARIZERS.build(name)(x)
    cost.sum().backward()
    assert torch.isfinite(cost).all() and torch.isfinite(x.grad).all()
    assert value or (x.grad == 0).all()


@pytest.mark.parametrize("name", list(REGULARIZERS))
def test_a_negative_regularizer_weight_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"weight = -1: must not be negative"):
        REGULARIZERS.build({"name": name, "weight": -1})
    with pytest.raises(ConfigError, match=r"weight = nan: must not be negative"):
        REGULARIZERS[name](weight=math.nan)


def test_a_negative_sharpness_of_adversarial_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"alpha = -1: must not be negative"):
        LOSSES.build({"name": "self_adversarial", "alpha": -1})
    with pytest.raises(ConfigError, match=r"alpha = nan: must not be negative"):
        SelfAdversarialLoss(alpha=math.nan)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "x", True, None])
@pytest.mark.parametrize(
    ("setting", "name", "key"),
    [
        ("loss", "ranking", "margin"),
        ("loss", "self_adversarial", "gamma"),
        ("loss", "self_adversarial", "alpha"),
        ("comparator", "cos", "scale"),
        ("regularizer", "n3", "weight"),
        ("regularizer", "l2", "weight"),
    ],
)
def test_what_is_no_finite_number_is_refused_with_the_config(
    setting: str, name: str, key: str, value: object
) -> None:
    with pytest.raises(ValueError, match=f"{name}: {key} = {value!r}: must be a finite number"):
        ModelConfig.model_validate({setting: {"name": name, key: value}})
