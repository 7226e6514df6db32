"""Contracts of every registered operator."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from embedsvc.graph.operators import OPERATORS
from partitions.errors import ConfigError

DIM = 6


def inputs(name: str, *leading: int, dim: int = DIM) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    num_params = OPERATORS.build(name).num_params(dim)
    x = torch.randn(*leading, dim, dtype=torch.float64, generator=generator)
    return x, torch.randn(*leading, num_params, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", list(OPERATORS))
def test_an_operator_equals_a_plain_loop(name: str, plain: SimpleNamespace) -> None:
    x, params = inputs(name, 4)
    found = OPERATORS.build(name)(x, params)
    loop = [
        plain.operators[name](row, p) for row, p in zip(x.tolist(), params.tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(loop, dtype=torch.float64))


@pytest.mark.parametrize("name", list(OPERATORS))
def test_one_set_of_parameters_moves_every_row_of_a_chunk(name: str) -> None:
    operator = OPERATORS.build(name)
    x, params = inputs(name, 2, 3)
    shared = operator(x, params[:, :1])
    # A matrix product may sum in another order where more rows go through it.
    tolerance = 1e-13 if operator.matrix else 0.0
    for chunk in range(2):
        for row in range(3):
            torch.testing.assert_close(
                shared[chunk, row],
                operator(x[chunk, row], params[chunk, 0]),
                rtol=tolerance,
                atol=tolerance,
            )


@pytest.mark.parametrize("name", list(OPERATORS))
def test_an_operator_has_the_gradient_of_its_values(name: str) -> None:
    x, params = inputs(name, 3)
    assert torch.autograd.gradcheck(
        OPERATORS.build(name), (x.requires_grad_(), params.requires_grad_())
    )


@pytest.mark.parametrize("name", list(OPERATORS))
def test_the_first_parameters_move_nothing(name: str) -> None:
    operator = OPERATORS.build(name)
    x = inputs(name, 3)[0].float()
    params = operator.initial(DIM)
    assert params.dtype == torch.float32
    assert params.shape == (operator.num_params(DIM),)
    assert torch.equal(operator(x, params.expand(3, -1)), x)


@pytest.mark.parametrize("sign", [-1e4, 1e4])
@pytest.mark.parametrize("name", list(OPERATORS))
def test_an_operator_is_finite_at_large_numbers(name: str, sign: float) -> None:
    x, params = inputs(name, 2)
    x, params = torch.full_like(x, 1e4).float(), torch.full_like(params, sign).float()
    x.requires_grad_()
    params.requires_grad_()
    moved = OPERATORS.build(name)(x, params)
    moved.sum().backward()
    assert torch.isfinite(moved).all() and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", list(OPERATORS))
def test_an_operator_accepts_any_dimension_it_can_move(name: str) -> None:
    operator = OPERATORS.build(name)
    operator.check(4)
    if name in ("complex_diagonal", "rotate"):
        with pytest.raises(ConfigError, match=rf"{name} needs an even model\.dim, found 5"):
            operator.check(5)
    else:
        operator.check(5)
        x, params = inputs(name, 2, dim=5)
        assert operator(x, params).shape == (2, 5)


def test_a_rotation_keeps_lengths_and_turns_back() -> None:
    x, angles = inputs("rotate", 4)
    rotate = OPERATORS.build("rotate")
    moved = rotate(x, angles)
    torch.testing.assert_close(moved.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotate(moved, -angles), x)


def test_an_unknown_operator_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no operator named x\. Known here: affine, .*rotate"):
        OPERATORS.build("x")
