"""The step of a ranker's layers, written out: forth, loss, back and update in blocks that stay in
cache (layer_kernels.py), with no other work of torch's than to hold the numbers.

Its twin is autograd through `Body`, which also learns what this does not cover: dropout, two
towers, no hidden layer. With one number of threads a step ends in the same bits; threads add in
their order.

Letters: B batch, N numbers of all layers, T tasks, W inputs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from embedsvc.outputs.sparse import Floats, Workspace, in_threads, slices
from embedsvc.ranking import layer_kernels


class Layers:
    """sizes: of the inputs, each layer and the heads; optimizer: torch's Adagrad or Adam of weight
    and bias of each, which stay where torch has them, as does its state."""

    def __init__(
        self, sizes: Sequence[int], optimizer: torch.optim.Optimizer, threads: int
    ) -> None:
        self._sizes, self._optimizer, self._threads = list(sizes), optimizer, threads
        self._space = Workspace()

    @property
    def _parameters(self) -> list[nn.Parameter]:
        found: list[nn.Parameter] = self._optimizer.param_groups[0]["params"]
        return found

    def slope(
        self, inputs: Floats, logit: Floats, label: Floats, weight: Floats, positive: Floats
    ) -> tuple[float, Floats]:
        """(summed loss, its slope by logits [B, T]); no weight is changed before `update`.

        inputs: [B, W], C order, **replaced by the gradient** of the mean loss by them. logit: [B,
        T], what else adds to logits; label: [B, T], 0, 1 or NaN; positive: [T].
        """
        num = len(inputs)
        bounds = slices(num, self._threads)
        numbers = self._gathered()
        self._grads = self._space.floats("grads", len(bounds), len(numbers))
        size = layer_kernels.room_for(self._sizes)
        rooms = self._space.floats("room", len(bounds), size)
        sizes = np.array(self._sizes, np.int64)
        slope, losses = np.empty_like(logit), [0.0] * len(bounds)
        share = np.float32(1 / max(num, 1))

        def work(thread: int, first: int, last: int) -> None:
            losses[thread] = layer_kernels.learn(
                *(sizes, numbers, first, last, inputs, logit, label, weight, positive, share),
                *(rooms[thread], self._grads[thread], slope),
            )

        in_threads(work, bounds)
        return sum(losses), slope

    def _gathered(self) -> Floats:
        """All numbers, end to end."""
        parts = [p.detach().numpy().reshape(-1) for p in self._parameters]
        numbers = self._space.floats("numbers", sum(len(part) for part in parts))
        np.concatenate(parts, out=numbers)
        return numbers

    def update(self) -> None:
        """The optimizer's step, by the gradients that `slope` made."""
        make_state(self._optimizer)
        at, lr = 0, self._optimizer.param_groups[0]["lr"]
        for parameter in self._parameters:
            state, value = self._optimizer.state[parameter], parameter.detach().view(-1).numpy()
            grads = self._grads[:, at : at + len(value)]
            at += len(value)
            state["step"] += 1
            keys = ("sum", "exp_avg", "exp_avg_sq")
            kept = [state[key].view(-1).numpy() for key in keys if key in state]
            if isinstance(self._optimizer, torch.optim.Adam):
                layer_kernels.adam(value, grads, *kept, lr, float(state["step"]))
            else:
                layer_kernels.adagrad(value, grads, *kept, np.float32(lr))


def make_state(optimizer: torch.optim.Optimizer) -> None:
    """What Adam would make at its first step; torch's Adagrad has its state from the start."""
    for parameter in optimizer.param_groups[0]["params"]:
        state = optimizer.state[parameter]
        if isinstance(optimizer, torch.optim.Adam) and not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(parameter) for _ in range(2))
