"""Operators: how a relation moves the vector of its lhs before it is compared with a rhs.

`serving/operators.py` is the numpy twin; a test holds the two together.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from partitions.errors import ConfigError
from partitions.registry import Registry


class Operator(Protocol):
    angles: ClassVar[bool]  # parameters are angles: shrinking or scaling them would mean nothing
    matrix: ClassVar[bool]  # dim^2 parameters: gathered by relation and not by edge

    def check(self, dim: int) -> None:
        """ConfigError where this dimension does not suit."""

    def num_params(self, dim: int) -> int: ...

    def initial(self, dim: int) -> Tensor:
        """float32 [num_params]: parameters that move nothing."""

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        """x: [..., D]; params: [..., P], broadcast against x's leading axes. Returns [..., D]."""


OPERATORS: Registry[Operator] = Registry("operator")


class _AnyDim:
    angles: ClassVar[bool] = False
    matrix: ClassVar[bool] = False

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


@OPERATORS.add("linear")
@dataclass(frozen=True)
class Linear(_AnyDim):
    """M x: with the dot comparator, RESCAL (Nickel et al. 2011). params: M, row by row."""

    matrix: ClassVar[bool] = True

    def num_params(self, dim: int) -> int:
        return dim * dim

    def initial(self, dim: int) -> Tensor:
        return torch.eye(dim).flatten()

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        # A product per set of parameters, whatever x has beside it: nothing is expanded.
        dim = x.shape[-1]
        return torch.einsum("...ij,...j->...i", params.unflatten(-1, (dim, dim)), x)


@OPERATORS.add("affine")
@dataclass(frozen=True)
class Affine(_AnyDim):
    """M x + p: with the l2 comparator, near TransR (Lin et al. 2015). params: M, then p."""

    matrix: ClassVar[bool] = True

    def num_params(self, dim: int) -> int:
        return dim * dim + dim

    def initial(self, dim: int) -> Tensor:
        return torch.cat([torch.eye(dim).flatten(), torch.zeros(dim)])

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        matrix, shift = params.split([x.shape[-1] ** 2, x.shape[-1]], dim=-1)
        return Linear()(x, matrix) + shift


class _EvenDim(_AnyDim):
    name: ClassVar[str]

    def check(self, dim: int) -> None:
        if dim % 2:
            raise ConfigError(f"{self.name} needs an even model.dim, found {dim}.")


@OPERATORS.add("rotate")
@dataclass(frozen=True)
class Rotate(_EvenDim):
    """x * e^(i p) over complex numbers: with the l2 comparator, near RotatE (Sun et al. 2019).

    x as for complex_diagonal; params: D / 2 angles in radians, any number of turns.
    """

    name: ClassVar[str] = "rotate"
    angles: ClassVar[bool] = True

    def num_params(self, dim: int) -> int:
        return dim // 2

    def initial(self, dim: int) -> Tensor:
        return torch.zeros(dim // 2)

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        return ComplexDiagonal()(x, torch.cat([params.cos(), params.sin()], dim=-1))


@OPERATORS.add("complex_diagonal")
@dataclass(frozen=True)
class ComplexDiagonal(_EvenDim):
    """x * p over complex numbers: with the dot comparator, ComplEx (Trouillon et al. 2016).

    The first half of x and of p holds real parts, the second half imaginary parts.
    """

    name: ClassVar[str] = "complex_diagonal"

    def initial(self, dim: int) -> Tensor:
        return torch.cat([torch.ones(dim // 2), torch.zeros(dim // 2)])

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        x_re, x_im = x.chunk(2, dim=-1)
        p_re, p_im = params.chunk(2, dim=-1)
        return torch.cat([x_re * p_re - x_im * p_im, x_re * p_im + x_im * p_re], dim=-1)
