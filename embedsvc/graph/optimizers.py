"""Optimizers of vectors: what an update makes of a row, and what it keeps for the next one.

The whole job of adding one: one class here, and a plain loop of it in its test. Operator parameters
have AdaGrad of their own (step.py).

Letters: n distinct rows of a batch, D dimension.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from embedsvc.config import ModelConfig, TrainConfig
from partitions.errors import ConfigError
from partitions.registry import Registry
from partitions.tables import Form

_EPSILON = 1e-10


class Optimizer(Protocol):
    def state_shape(self, dim: int) -> tuple[int, ...]:
        """Of a row's state: () is one number."""

    def num_shared(self, dim: int) -> int:
        """Numbers that belong to the table as a whole."""

    def step(self, grad: Tensor, state: Tensor, shared: Tensor, lr: float) -> Tensor:
        """What is to be subtracted from the rows: float [n, D].

        grad: float [n, D]; state: float [n, *state_shape] and shared: float [num_shared], mutated.
        All begin at 0. A row without a gradient (all 0, or too small to square) keeps its state,
        and 0 is subtracted. Another one's state is not all 0 afterwards: that says that training
        has touched the row, and that it must be stored.
        """


OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")


def form_of(model: ModelConfig, train: TrainConfig) -> Form:
    """How the tables of a run are kept."""
    optimizer = OPTIMIZERS.build(train.optimizer)
    name = train.optimizer if isinstance(train.optimizer, str) else train.optimizer["name"]
    dim = model.dim
    return Form(name, optimizer.state_shape(dim), optimizer.num_shared(dim), train.precision)


class _NothingShared:
    def num_shared(self, dim: int) -> int:
        return 0


@OPTIMIZERS.add("rowwise_adagrad")
@dataclass(frozen=True)
class RowwiseAdagrad(_NothingShared):
    """AdaGrad with one accumulator a row (Gupta et al. 2014; PyTorch-BigGraph's choice).

    G[r] += mean over d of g[r, d]^2 ;  w[r] -= lr g[r] / (sqrt(G[r]) + 1e-10)
    """

    def state_shape(self, dim: int) -> tuple[int, ...]:
        return ()

    def step(self, grad: Tensor, state: Tensor, shared: Tensor, lr: float) -> Tensor:
        state += grad.square().mean(-1)
        scale = torch.where(state > 0, lr / (state.sqrt() + _EPSILON), 0.0)
        return scale.unsqueeze(-1) * grad


@OPTIMIZERS.add("adagrad")
@dataclass(frozen=True)
class Adagrad(_NothingShared):
    """One accumulator a number (Duchi et al. 2011).

    G += g^2 ;  w -= lr g / (sqrt(G) + 1e-10)
    """

    def state_shape(self, dim: int) -> tuple[int, ...]:
        return (dim,)

    def step(self, grad: Tensor, state: Tensor, shared: Tensor, lr: float) -> Tensor:
        state += grad.square()
        return torch.where(state > 0, lr / (state.sqrt() + _EPSILON), 0.0) * grad


@OPTIMIZERS.add("sgd")
@dataclass(frozen=True)
class Sgd(_NothingShared):
    """w -= lr g

    A row's state is 1 once it was trained: the mark that it must be stored.
    """

    def state_shape(self, dim: int) -> tuple[int, ...]:
        return ()

    def step(self, grad: Tensor, state: Tensor, shared: Tensor, lr: float) -> Tensor:
        seen = _seen(grad)
        state[seen] = 1
        return torch.where(seen.unsqueeze(-1), lr * grad, 0.0)


@OPTIMIZERS.add("adam")
@dataclass(frozen=True)
class Adam(_NothingShared):
    """Adam (Kingma and Ba 2015) with one second moment a row, as FBGEMM's partial row-wise Adam.

    t[r] += 1 ;  m[r] = beta1 m[r] + (1 - beta1) g[r]
    v[r] = beta2 v[r] + (1 - beta2) mean over d of g[r, d]^2
    w[r] -= lr m[r] / (1 - beta1^t[r]) / (sqrt(v[r] / (1 - beta2^t[r])) + 1e-8)

    Lazy: a row without a gradient stands still, moments and all, and t counts the row's own
    updates. With a count of all steps, as FBGEMM has it, the first step of a row that comes late
    would be (1 - beta1) / sqrt(1 - beta2), some 3, times too long: its moments begin at 0 as well.
    State: m, v, t.
    """

    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        for name, beta in vars(self).items():
            if not 0 <= beta < 1:
                raise ConfigError(f"adam's {name} is {beta}; it must be at least 0 and below 1.")

    def state_shape(self, dim: int) -> tuple[int, ...]:
        return (dim + 2,)

    def step(self, grad: Tensor, state: Tensor, shared: Tensor, lr: float) -> Tensor:
        seen = _seen(grad)
        g, own = grad[seen], state[seen]
        m, v, t = own[:, :-2], own[:, -2:-1], own[:, -1:]
        t += 1
        m += (1 - self.beta1) * (g - m)
        v += (1 - self.beta2) * (g.square().mean(-1, keepdim=True) - v)
        state[seen] = own
        step = torch.zeros_like(grad)
        mean, square = m / (1 - self.beta1**t), v / (1 - self.beta2**t)
        step[seen] = lr * mean / (square.sqrt() + 1e-8)
        return step


@OPTIMIZERS.add("sm3")
@dataclass(frozen=True)
class Sm3:
    """SM3-II (Anil et al. 2019) whose sets are a table's rows and columns, updated sparsely.

    nu[r, d] = min(R[r], C[d]) + g[r, d]^2 ;  w[r, d] -= lr g[r, d] / sqrt(nu[r, d]), where 0/0 = 0
    R[r] = max over d of nu[r, d] ;  C[d] = max of C[d] and nu[r, d] over the batch's rows

    That leaves rows outside the batch alone, and yet is what the update of all rows would give:
    theirs is nu[r, d] = min(R[r], C[d]), which raises neither.
    """

    def state_shape(self, dim: int) -> tuple[int, ...]:
        return ()

    def num_shared(self, dim: int) -> int:
        return dim

    def step(self, grad: Tensor, state: Tensor, shared: Tensor, lr: float) -> Tensor:
        if not len(grad):
            return grad
        nu = torch.minimum(state.unsqueeze(-1), shared) + grad.square()
        state[:] = torch.maximum(state, nu.amax(-1))
        torch.maximum(shared, nu.amax(0), out=shared)
        return torch.where(nu > 0, lr / nu.sqrt(), 0.0) * grad


def _seen(grad: Tensor) -> Tensor:
    """bool [n]: which rows have a gradient; NaN counts."""
    return (grad.square() != 0).any(-1)
