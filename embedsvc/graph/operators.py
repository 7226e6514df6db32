"""Operators: how a relation moves the vector of its lhs before it is compared with a rhs.

`serving/operators.py` is the numpy twin; a test holds the two together.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from partitions.errors import ConfigError
from partitions.registry import Registry


class Operator(Protocol):
    def check(self, dim: int) -> None:
        """ConfigError where this dimension does not suit."""

    def num_params(self, dim: int) -> int: ...

    def initial(self, dim: int) -> Tensor:
        """float32 [num_params]: parameters that move nothing."""

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        """x: [..., D]; params: [..., P], broadcast against x's leading axes. Returns [..., D]."""


OPERATORS: Registry[Operator] = Registry("operator")


class _AnyDim:
    def check(self, dim: int) -> None:
        pass

    def num_params(self, dim: int) -> int:
        return dim


@OPERATORS.add("identity")
@dataclass(frozen=True)
class Identity(_AnyDim):
    """x"""

    def num_params(self, dim: int) -> int:
        return 0

    def initial(self, dim: int) -> Tensor:
        return torch.zeros(0)

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        return x


@OPERATORS.add("diagonal")
@dataclass(frozen=True)
class Diagonal(_AnyDim):
    """x * p: with the dot comparator, DistMult (Yang et al. 2015)."""

    def initial(self, dim: int) -> Tensor:
        return torch.ones(dim)

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        return x * params


@OPERATORS.add("translation")
@dataclass(frozen=True)
class Translation(_AnyDim):
    """x + p: with the l2 comparator, TransE (Bordes et al. 2013)."""

    def initial(self, dim: int) -> Tensor:
        return torch.zeros(dim)

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        return x + params


@OPERATORS.add("complex_diagonal")
@dataclass(frozen=True)
class ComplexDiagonal(_AnyDim):
    """x * p over complex numbers: with the dot comparator, ComplEx (Trouillon et al. 2016).

    The first half of x and of p holds real parts, the second half imaginary parts.
    """

    def check(self, dim: int) -> None:
        if dim % 2:
            raise ConfigError(f"complex_diagonal needs an even model.dim, found {dim}.")

    def initial(self, dim: int) -> Tensor:
        return torch.cat([torch.ones(dim // 2), torch.zeros(dim // 2)])

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        x_re, x_im = x.chunk(2, dim=-1)
        p_re, p_im = params.chunk(2, dim=-1)
        return torch.cat([x_re * p_re - x_im * p_im, x_re * p_im + x_im * p_re], dim=-1)
