"""The step of a ranker's layers, written out: forth, loss, back and update in blocks that stay in
cache (layer_kernels.py), with no other work of torch's than to hold the numbers.

Embeddings of slots with few ids (slots.Few) go through the first layer once an id, not once a row:
W e of each is worked out, rows add theirs up, and on the way back slopes are summed by id.

Its twin is autograd through `Body`, which also learns what this does not cover: dropout, two
towers, no hidden layer. With one number of threads a step ends in the same bits; threads add in
their order.

Letters: B batch, H units of the first layer, M ids of few, N numbers of all layers, T tasks, W
inputs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from embedsvc.graph.fast import one_blas_thread
from embedsvc.outputs.sparse import Floats, Workspace, in_threads, slices
from embedsvc.ranking import layer_kernels
from embedsvc.ranking.layer_kernels import Once
from embedsvc.ranking.slots import Few


class Slopes(NamedTuple):
    loss: float  # summed
    logit: Floats  # [B, T], of the summed loss by logits
    few: list[Floats]  # of each of few's slots, [E, D], of the mean loss by its embeddings
    few_logit: Floats  # [M, T], of the summed loss
    few_seen: Floats  # [M], how often


class Layers:
    """sizes: of the inputs, each layer and the heads; optimizer: torch's Adagrad or Adam of weight
    and bias of each, which stay where torch has them, as does its state."""

    def __init__(
        self, sizes: Sequence[int], optimizer: torch.optim.Optimizer, threads: int
    ) -> None:
        self._sizes, self._optimizer, self._threads = list(sizes), optimizer, threads
        self._space = Workspace()
        self.grad = np.empty(0, np.float32)  # [N], of the last `slope`

    @property
    def _parameters(self) -> list[nn.Parameter]:
        found: list[nn.Parameter] = self._optimizer.param_groups[0]["params"]
        return found

    def slope(
        self,
        inputs: Floats,
        logit: Floats,
        label: Floats,
        weight: Floats,
        positive: Floats,
        few: Few | None = None,
    ) -> Slopes:
        """The way forth and back; no weight is changed before `update`.

        inputs: [B, W], C order, without those of `few`; **replaced by the gradient** of the mean
        loss by them. logit: [B, T], what else adds to logits, **mutated**; label: [B, T], 0, 1 or
        NaN; positive: [T].
        """
        (num, width), tasks, units = inputs.shape, logit.shape[1], self._sizes[1]
        bounds, sizes = slices(num, self._threads), np.array([width, *self._sizes[1:]])
        first = self._parameters[0].detach().numpy()
        kept = np.ones(first.shape[1], np.bool_)  # the inputs that stand in rows
        for table in few.tables if few is not None else ():
            kept[table.at : table.at + table.dim] = False
        numbers = self._gathered(first, kept)
        once = self._once(first, few, num, tasks)
        grads = self._space.floats("grads", len(bounds), len(numbers))
        rooms = self._space.floats("room", len(bounds), layer_kernels.room_for(self._sizes))
        sums = self._space.floats("sums", len(bounds), len(once.units), units + tasks + 1)
        slope, losses = np.empty_like(logit), [0.0] * len(bounds)
        share = np.float32(1 / max(num, 1))

        def work(thread: int, begin: int, end: int) -> None:
            losses[thread] = layer_kernels.learn(
                *(sizes, numbers, once, begin, end, inputs, logit, label, weight, positive, share),
                *(rooms[thread], grads[thread], sums[thread], slope),
            )

        in_threads(work, bounds)
        by_id = sums.sum(0)
        found = Slopes(sum(losses), slope, [], by_id[:, units:-1], by_id[:, -1])
        self.grad = self._space.floats("grad", sum(p.numel() for p in self._parameters))
        begin = units * width
        self.grad[first.size :] = grads[:, begin:].sum(0)
        to_first = self.grad[: first.size].reshape(first.shape)
        to_first[:, kept] = grads[:, :begin].sum(0).reshape(units, width)
        if few is not None:
            self._back_to_few(few, first, by_id[:, :units], to_first, found.few)
        return found

    def _gathered(self, first: Floats, kept: NDArray[np.bool_]) -> Floats:
        """All numbers, end to end; of the first layer those of inputs that stand in rows."""
        parts = [first[:, kept] if not kept.all() else first]
        parts += [p.detach().numpy() for p in self._parameters[1:]]
        numbers = self._space.floats("numbers", sum(part.size for part in parts))
        return np.concatenate([part.reshape(-1) for part in parts], out=numbers)

    def _once(self, first: Floats, few: Few | None, num: int, tasks: int) -> Once:
        if few is None:
            none = np.empty(0, np.float32)
            starts, places = np.zeros(num + 1, np.int64), np.empty(0, np.int32)
            return Once(starts, places, none, none.reshape(0, len(first)), none.reshape(0, tasks))
        units = self._space.floats("units", len(few.logit), len(first))
        with one_blas_thread():
            for table, rows, begin in zip(few.tables, few.rows, few.begins, strict=False):
                weights = np.ascontiguousarray(first[:, table.at : table.at + table.dim])
                layer_kernels.multiply(rows, weights.T, units[begin : begin + len(rows)])
        return Once(few.starts, few.places, few.share, units, few.logit)

    def _back_to_few(
        self, few: Few, first: Floats, sums: Floats, to_first: Floats, grads: list[Floats]
    ) -> None:
        """sums: [M, H]; grads: of each slot's embeddings, added."""
        with one_blas_thread():
            for at, (table, rows) in enumerate(zip(few.tables, few.rows, strict=True)):
                columns = slice(table.at, table.at + table.dim)
                own = np.ascontiguousarray(sums[few.begins[at] : few.begins[at + 1]])
                weights = np.ascontiguousarray(first[:, columns])
                of_weights, of_rows = np.empty_like(weights), np.empty_like(rows)
                layer_kernels.multiply(own.T, rows, of_weights)
                layer_kernels.multiply(own, weights, of_rows)
                to_first[:, columns] = of_weights
                grads.append(of_rows)

    def update(self) -> None:
        """The optimizer's step, by the gradients that `slope` made."""
        make_state(self._optimizer)
        at, lr = 0, self._optimizer.param_groups[0]["lr"]
        for parameter in self._parameters:
            state, value = self._optimizer.state[parameter], parameter.detach().view(-1).numpy()
            grad = self.grad[at : at + len(value)]
            at += len(value)
            state["step"] += 1
            keys = ("sum", "exp_avg", "exp_avg_sq")
            kept = [state[key].view(-1).numpy() for key in keys if key in state]
            if isinstance(self._optimizer, torch.optim.Adam):
                layer_kernels.adam(value, grad, *kept, lr, float(state["step"]))
            else:
                layer_kernels.adagrad(value, grad, *kept, np.float32(lr))


def make_state(optimizer: torch.optim.Optimizer) -> None:
    """What Adam would make at its first step; torch's Adagrad has its state from the start."""
    for parameter in optimizer.param_groups[0]["params"]:
        state = optimizer.state[parameter]
        if isinstance(optimizer, torch.optim.Adam) and not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(parameter) for _ in range(2))
