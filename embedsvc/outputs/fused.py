"""Training steps that update the classes themselves: two halves, and autograd around them.

`FullStep` is of all classes; sparse.py has the one of some. The first pass finds each row's log Z,
keeping only its highest score and its sum of exponentials so far; the second computes the scores
again, and from them the gradients, and updates each row while it is in cache.

Letters: B batch, C classes, D dimension, T labels of a row.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from embedsvc.outputs import kernels
from embedsvc.outputs.kernels import TILE, Table, Update
from embedsvc.outputs.sparse import (
    Floats,
    Scoring,
    Workspace,
    in_threads,
    slices,
    slopes,
)
from partitions.errors import DataError

if TYPE_CHECKING:
    from embedsvc.outputs.full import FullSoftmax


class FusedStep(Protocol):
    """A training step between its halves."""

    log_prob: NDArray[np.float64]  # [B]

    def finish(self, weight: Floats, wanted: bool) -> Floats | None:
        """Update the rows. weight: [B], the slope of what is minimised in -log_prob.

        Returns the gradient of the hidden vectors, [B, D], where wanted.
        """


@dataclass
class FullStep:
    """A FusedStep over all classes."""

    table: Table
    update: Update
    halves: bool  # products are of bfloat16
    hidden: Floats  # [B, D]
    turned: Floats  # [D, B]
    targets: NDArray[np.int64]  # [B, T]
    log_total: NDArray[np.float64]  # [B]
    log_prob: NDArray[np.float64]
    num_labels: NDArray[np.int64]
    bounds: list[tuple[int, int]]
    space: Workspace

    @classmethod
    def begin(
        cls,
        table: Table,
        update: Update,
        halves: bool,
        hidden: Floats,
        targets: NDArray[np.int64],
        space: Workspace,
        threads: int,
    ) -> "FullStep":
        bounds = slices(len(table.values), threads)
        work = space.floats("block", len(bounds), TILE, len(hidden))
        found = Scoring(hidden, targets, bounds, space)

        def score(thread: int, first: int, last: int) -> None:
            kernels.score_all(
                table,
                halves,
                first,
                last,
                found.turned,
                targets,
                work[thread],
                found.label,
                found.top[thread],
                found.total[thread],
            )

        in_threads(score, bounds)
        log_total = found.log_total()
        log_prob, num_labels = found.of_labels(log_total)
        return cls(
            table,
            update,
            halves,
            hidden,
            found.turned,
            targets,
            log_total,
            log_prob,
            num_labels,
            bounds,
            space,
        )

    def finish(self, weight: Floats, wanted: bool) -> Floats | None:
        num, dim = self.hidden.shape
        weight, share = slopes(weight, self.num_labels)
        log_total = self.log_total.astype(np.float32)
        block = self.space.floats("block", len(self.bounds), TILE, num)
        work = self.space.floats("work", len(self.bounds), TILE, dim)
        grads = self.space.floats("grad", len(self.bounds), 2, num if wanted else 0, dim)

        def learn(thread: int, first: int, last: int) -> None:
            kernels.update_all(
                self.table,
                self.update,
                self.halves,
                first,
                last,
                self.hidden,
                self.turned,
                self.targets,
                log_total,
                weight,
                share,
                block[thread],
                work[thread],
                grads[thread],
            )

        in_threads(learn, self.bounds)
        return grads[:, 0].sum(0) if wanted else None


class Fused(torch.autograd.Function):
    """Autograd around a FusedStep: rows are updated when gradients arrive."""

    @staticmethod
    def forward(
        ctx: Any, hidden_BD: Tensor, trigger: Tensor, layer: "FullSoftmax", targets_BT: Tensor
    ) -> Tensor:
        """trigger: empty, requires a gradient, so that backward runs if hidden_BD needs none."""
        space = layer._spaces.pop() if layer._spaces else Workspace()
        ctx.save_for_backward(hidden_BD)
        ctx.layer, ctx.space = layer, space
        ctx.rows_at = layer.weight.data_ptr()
        # A copy: whoever fills batches into the same memory may do so before backward.
        ctx.step = layer._begin(hidden_BD.detach().numpy(), targets_BT.numpy().copy(), space)
        if not np.isfinite(ctx.step.log_prob).all():
            raise DataError(
                f"The scores of row {first_bad(ctx.step.log_prob)} overflow: weights or hidden "
                "vectors have grown too large, as by a learning rate too high."
            )
        return torch.from_numpy(ctx.step.log_prob.astype(np.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # torch complains if hidden was changed, or freed by a backward
        if ctx.step is None:
            raise RuntimeError("The rows were updated by an earlier backward of this forward pass.")
        if ctx.rows_at != ctx.layer.weight.data_ptr():
            raise RuntimeError("Classes were added or loaded between forward and backward.")
        weight = -grad_B.numpy()
        if not np.isfinite(weight).all():
            raise DataError(
                f"The gradient of row {first_bad(weight)}'s output is not finite; no class was "
                "updated."
            )
        grad = ctx.step.finish(weight, ctx.needs_input_grad[0])
        ctx.step = None
        ctx.layer._spaces.append(ctx.space)
        return None if grad is None else torch.from_numpy(grad), None, None, None


def first_bad(values: NDArray[Any]) -> int:
    """The first row with a number that is not finite."""
    return int(np.argwhere(~np.isfinite(values))[0, 0])
