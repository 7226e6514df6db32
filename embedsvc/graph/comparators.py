"""Comparators: the score of two vectors; higher is better."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from partitions.errors import ConfigError
from partitions.registry import Registry


class Comparator(Protocol):
    @property
    def metric(self) -> Literal["dot", "cos", "l2"]:
        """What an index must search by to rank as this comparator does."""

    def pairs(self, a: Tensor, b: Tensor) -> Tensor:
        """[..., D], [..., D] -> [...]: score of each row of a with the same row of b."""

    def blocks(self, a: Tensor, b: Tensor) -> Tensor:
        """[..., M, D], [..., N, D] -> [..., M, N]: score of every row of a with every row of b."""

    def error_bound(self, a: Tensor, b: Tensor) -> Tensor:
        """[M, D], [N, D] -> [M]: how far a float32 entry of `blocks` may lie from its true value,
        at most. Evaluation computes anew, exactly, what is closer to a positive than this."""


COMPARATORS: Registry[Comparator] = Registry("comparator")

_EPSILON = 1.2e-7  # float32


@COMPARATORS.add("dot")
@dataclass(frozen=True)
class Dot:
    """sum_d a[d] b[d]"""

    metric: Literal["dot"] = field(default="dot", init=False)

    def pairs(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(-1)

    def blocks(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b.transpose(-1, -2)

    def error_bound(self, a: Tensor, b: Tensor) -> Tensor:
        # Summing D rounded products, in any order: D epsilon |a| |b| (Higham 2002, section 3.1).
        return a.shape[-1] * _EPSILON * a.norm(dim=-1) * b.norm(dim=-1).max()


@COMPARATORS.add("cos")
@dataclass(frozen=True)
class Cos:
    """scale * <a, b> / (|a| |b|); a softmax over scores in [-1, 1] wants a scale of 10 or so."""

    scale: float = 1.0
    metric: Literal["cos"] = field(default="cos", init=False)

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ConfigError(f"comparator cos: scale = {self.scale}: must be above 0.")

    def pairs(self, a: Tensor, b: Tensor) -> Tensor:
        return self.scale * (_unit(a) * _unit(b)).sum(-1)

    def blocks(self, a: Tensor, b: Tensor) -> Tensor:
        return self.scale * (_unit(a) @ _unit(b).transpose(-1, -2))

    def error_bound(self, a: Tensor, b: Tensor) -> Tensor:
        bound = (a.shape[-1] + 8) * 2 * _EPSILON * self.scale
        return torch.full(a.shape[:1], bound, dtype=a.dtype)


@COMPARATORS.add("l2")
@dataclass(frozen=True)
class L2:
    """-|a - b|"""

    metric: Literal["l2"] = field(default="l2", init=False)

    def pairs(self, a: Tensor, b: Tensor) -> Tensor:
        return -(a - b).square().sum(-1).clamp(min=_tiny(a)).sqrt()

    def blocks(self, a: Tensor, b: Tensor) -> Tensor:
        squared_a = a.square().sum(-1, keepdim=True)
        squared_b = b.square().sum(-1).unsqueeze(-2)
        squared = squared_a + squared_b - 2 * (a @ b.transpose(-1, -2))
        return -squared.clamp(min=_tiny(a)).sqrt()

    def error_bound(self, a: Tensor, b: Tensor) -> Tensor:
        # The squared distance is off by at most e = (D + 4) epsilon (|a| + |b|)^2, so its root,
        # which is steepest at 0, by at most sqrt(e); below the floor under the root, by the floor.
        reach = (a.norm(dim=-1) + b.norm(dim=-1).max()).square()
        return ((a.shape[-1] + 4) * _EPSILON * reach).sqrt() + _tiny(a) ** 0.5


@COMPARATORS.add("squared_l2")
@dataclass(frozen=True)
class SquaredL2:
    """-|a - b|^2, which ranks as l2 does; served and published as l2."""

    metric: Literal["l2"] = field(default="l2", init=False)

    def pairs(self, a: Tensor, b: Tensor) -> Tensor:
        return -(a - b).square().sum(-1)

    def blocks(self, a: Tensor, b: Tensor) -> Tensor:
        squared_a = a.square().sum(-1, keepdim=True)
        squared_b = b.square().sum(-1).unsqueeze(-2)
        return -(squared_a + squared_b - 2 * (a @ b.transpose(-1, -2))).clamp(min=0)

    def error_bound(self, a: Tensor, b: Tensor) -> Tensor:
        reach = (a.norm(dim=-1) + b.norm(dim=-1).max()).square()
        return (a.shape[-1] + 4) * _EPSILON * reach


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=_tiny(x))


def _tiny(x: Tensor) -> float:
    """Keeps roots and quotients differentiable at 0; far below what vectors of use reach."""
    return 1e-30 if x.dtype == torch.float64 else 1e-12
