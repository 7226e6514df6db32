"""The exact softmax by torch, over chunks of classes: any device and dtype, dense gradients.

B x C numbers are never in memory: the backward pass computes the scores again.

Letters: B batch, C classes, D dimension, T labels of a row, K answers.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_NUMBERS = 1 << 22  # scores at a time: 16 MiB of float32


class TopK(NamedTuple):
    """Answers, best first."""

    values: Tensor  # [B, K], scores
    indices: Tensor  # int64 [B, K], classes


def chunks(num_classes: int, num_rows: int) -> list[slice]:
    size = max(256, _CHUNK_NUMBERS // max(num_rows, 1))
    return [slice(first, first + size) for first in range(0, num_classes, size)]


def scores_of(
    hidden_BD: Tensor, weight_CD: Tensor, bias_C: Tensor | None, removed_C: Tensor, chunk: slice
) -> Tensor:
    rows = weight_CD[chunk]
    scores = hidden_BD @ rows.T if bias_C is None else torch.addmm(bias_C[chunk], hidden_BD, rows.T)
    if len(removed_C):
        scores.masked_fill_(removed_C[chunk].bool(), -torch.inf)
    return scores


class _LogProb(torch.autograd.Function):
    """Log-probability [B] of the targets; gradients as dense as their tensors, where asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_BD: Tensor,
        weight_CD: Tensor,
        bias_C: Tensor | None,
        removed_C: Tensor,
        targets_BT: Tensor,
    ) -> Tensor:
        log_total = log_partition(hidden_BD, weight_CD, bias_C, removed_C)
        there = targets_BT >= 0
        ids = targets_BT.clamp(min=0)
        label = torch.einsum("bd,btd->bt", hidden_BD, weight_CD[ids])
        if bias_C is not None:
            label += bias_C[ids]
        ctx.save_for_backward(hidden_BD, weight_CD, bias_C, removed_C, targets_BT, log_total)
        log_prob = torch.where(there, label - log_total[:, None], 0.0)
        return log_prob.sum(1) / there.sum(1).clamp(min=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, removed, targets, log_total = ctx.saved_tensors
        there = targets >= 0
        num_labels = there.sum(1)
        weight_B = torch.where(num_labels > 0, -grad_B, 0.0)
        share = (weight_B / num_labels.clamp(min=1))[:, None].expand_as(targets)[there]
        row = torch.arange(len(hidden), device=hidden.device)[:, None].expand_as(targets)[there]
        wanted = target = targets[there]
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden) if need_hidden else None
        grad_weight = torch.empty_like(weight) if need_weight else None
        grad_bias = torch.empty_like(bias) if need_bias else None
        for chunk in chunks(len(weight), len(hidden)):
            slope = scores_of(hidden, weight, bias, removed, chunk)
            slope.sub_(log_total[:, None]).exp_().mul_(weight_B[:, None])
            here = (wanted >= chunk.start) & (wanted < chunk.stop)
            at = (row[here], target[here] - chunk.start)
            slope.index_put_(at, -share[here], accumulate=True)
            if grad_hidden is not None:
                grad_hidden.addmm_(slope, weight[chunk])
            if grad_weight is not None:
                torch.mm(slope.T, hidden, out=grad_weight[chunk])
            if grad_bias is not None:
                grad_bias[chunk] = slope.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None


def log_prob(
    hidden_BD: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor | None,
    removed_C: Tensor,
    targets_BT: Tensor,
) -> Tensor:
    """Log-probability [B] of each row's targets, exact; the mean over its labels, 0 if none.

    removed_C: uint8 [C] or [0]; targets_BT: -1 where there is none. Differentiable in the first
    three.
    """
    found: Tensor = _LogProb.apply(  # type: ignore[no-untyped-call]
        hidden_BD, weight_CD, bias_C, removed_C, targets_BT
    )
    return found


def log_partition(
    hidden_BD: Tensor, weight_CD: Tensor, bias_C: Tensor | None, removed_C: Tensor
) -> Tensor:
    """log Z [B], exact. removed_C: uint8 [C] or [0]."""
    total = hidden_BD.new_full((len(hidden_BD),), -torch.inf)
    for chunk in chunks(len(weight_CD), len(hidden_BD)):
        scores = scores_of(hidden_BD, weight_CD, bias_C, removed_C, chunk)
        total = torch.logaddexp(total, scores.logsumexp(1))
    return total


def topk(
    hidden_BD: Tensor, weight_CD: Tensor, bias_C: Tensor | None, removed_C: Tensor, k: int
) -> TopK:
    """The k best classes of each row, exact; fewer where there are fewer."""
    num_live = len(weight_CD) - int(removed_C.sum())
    best = hidden_BD.new_empty((len(hidden_BD), 0))
    ids = best.long()
    for chunk in chunks(len(weight_CD), len(hidden_BD)):
        scores = scores_of(hidden_BD, weight_CD, bias_C, removed_C, chunk)
        top, at = scores.topk(min(k, scores.shape[1]))
        best, ids = torch.cat([best, top], 1), torch.cat([ids, at + chunk.start], 1)
        best, at = best.topk(min(k, best.shape[1]))
        ids = ids.gather(1, at)
    return TopK(best[:, : min(k, num_live)], ids[:, : min(k, num_live)])
