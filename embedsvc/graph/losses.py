"""Losses: what a true edge's score and its negatives' scores cost; and regularizers.

The whole job of adding a loss: one class here. Contract tests cover it by its being registered.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from partitions.errors import ConfigError
from partitions.registry import Registry


class Loss(Protocol):
    def __call__(self, pos: Tensor, neg: Tensor) -> Tensor:
        """pos: float [..., C], scores of true edges; neg: float [..., C, N], scores of their
        negatives, -inf marks a masked slot. Returns [..., C], each edge's loss; N = 0 is allowed.
        """


LOSSES: Registry[Loss] = Registry("loss")


@LOSSES.add("softmax")
@dataclass(frozen=True)
class SoftmaxLoss:
    """Cross-entropy of the true edge among its negatives.

    loss = -pos + log(exp(pos) + sum over n of exp(neg[n]))
    """

    def __call__(self, pos: Tensor, neg: Tensor) -> Tensor:
        return torch.cat([pos.unsqueeze(-1), neg], dim=-1).logsumexp(-1) - pos


@LOSSES.add("sampled_softmax")
@dataclass(frozen=True)
class SampledSoftmaxLoss(SoftmaxLoss):
    """The softmax over all entities of the partition, estimated from the candidates of a chunk.

    neg[n] come less log(how often candidate n is expected in the chunk), which makes the sum over
    candidates an unbiased estimate of the sum over entities (Bengio and Senecal 2008; the log-Q
    correction). So popular entities, drawn often, are not pushed away for being drawn.
    """


@LOSSES.add("logistic")
@dataclass(frozen=True)
class LogisticLoss:
    """Binary cross-entropy; the negatives of an edge weigh as much as the edge itself.

    loss = log(1 + exp(-pos)) + mean over unmasked n of log(1 + exp(neg[n]))
    """

    def __call__(self, pos: Tensor, neg: Tensor) -> Tensor:
        count = (neg > -torch.inf).sum(-1).clamp(min=1)
        return functional.softplus(-pos) + functional.softplus(neg).sum(-1) / count


@LOSSES.add("ranking")
@dataclass(frozen=True)
class RankingLoss:
    """Hinge on the gap between an edge and its negatives (Bordes et al. 2013, eq. 1).

    loss = sum over n of max(0, margin - pos + neg[n])
    """

    margin: float = 0.1  # in score units

    def __call__(self, pos: Tensor, neg: Tensor) -> Tensor:
        return (self.margin - pos.unsqueeze(-1) + neg).clamp(min=0).sum(-1)


@LOSSES.add("self_adversarial")
@dataclass(frozen=True)
class SelfAdversarialLoss:
    """Harder negatives weigh more (Sun et al. 2019, eq. 5); for scores that are distances, negated.

    loss = -log sigmoid(gamma + pos) - sum over n of w[n] log sigmoid(-gamma - neg[n])
    w = softmax over unmasked n of alpha * neg[n], taken as constants: no gradient flows through it
    """

    gamma: float = 12.0  # in score units: true edges shall score above -gamma, others below
    alpha: float = 1.0  # 0: all negatives weigh the same

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise ConfigError(f"loss self_adversarial: alpha = {self.alpha}: must not be negative.")

    def __call__(self, pos: Tensor, neg: Tensor) -> Tensor:
        cost = functional.softplus(self.gamma + neg)
        return functional.softplus(-self.gamma - pos) + (self.weights(neg) * cost).sum(-1)

    def weights(self, neg: Tensor) -> Tensor:
        """[..., N], summing to 1 over N, and to 0 where all is masked."""
        masked = neg == -torch.inf
        logits = (self.alpha * neg.detach()).masked_fill(masked, -torch.inf)
        return logits.softmax(-1).masked_fill(masked, 0.0)


class Regularizer(Protocol):
    def __call__(self, x: Tensor) -> Tensor:
        """x: float [..., D], vectors or moved vectors of a batch's edges. Returns [...]."""


REGULARIZERS: Registry[Regularizer] = Registry("regularizer")


@REGULARIZERS.add("l2")
@dataclass(frozen=True)
class L2:
    """weight * sum over d of x[d]^2, over the factors in the batch only, as for n3."""

    weight: float = 0.01

    def __post_init__(self) -> None:
        _check_weight("l2", self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        return self.weight * x.square().sum(-1)


@REGULARIZERS.add("n3")
@dataclass(frozen=True)
class N3:
    """weight * sum over d of |x[d]|^3, the modulus taken over complex pairs (Lacroix et al. 2018).

    Over the factors in the batch only, hence weighted by how often an entity occurs. For operators
    that are not complex the modulus of a pair still bounds both its numbers.
    """

    weight: float = 0.01

    def __post_init__(self) -> None:
        _check_weight("n3", self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            return self.weight * x.abs().pow(3).sum(-1)
        re, im = x.chunk(2, dim=-1)
        squared = re.square() + im.square()
        return self.weight * (squared * (squared + 1e-20).sqrt()).sum(-1)


def _check_weight(name: str, weight: float) -> None:
    if not weight >= 0:
        raise ConfigError(f"regularizer {name}: weight = {weight}: must not be negative.")
