"""RowEmbedding: a table of input vectors, of which a step costs what the rows it touches cost.

    table = RowEmbedding(1_000_000, 64)
    mean_BD = table.pooled(history_BL)  # or table(history_BL): [B, L, D]
    loss.backward()                     # the rows learn here, each once, of its summed gradient

torch.nn.Embedding with sparse gradients makes [B L, D] numbers of a gradient, sorts them, and
hands them to an optimizer. Here the gradient of a pooled vector goes straight to its rows: places
of equal ids are listed together, and a thread sums each row's gradient and updates the row at once.
No two threads write to one row, and its sum runs in the order of places: with any number of threads
a step is the same, bit for bit.

Letters: B batch, D dimension, L places of a history, U distinct ids, n places in all (B L).
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from embedsvc.graph.fast import num_cores
from embedsvc.outputs.kernels import Table
from embedsvc.outputs.sparse import ROW_OPTIMIZERS, Floats, Ids, in_threads, slices
from embedsvc.ranking import row_kernels
from partitions.errors import ConfigError, DataError


class RowEmbedding(nn.Module):
    """A table of num_rows vectors. **Rows learn in backward**, by `optimizer` with `lr`.

    They have no .grad, and no torch optimizer touches them; `lr` may be set anew at any time. In
    eval mode nothing learns. Of two look-ups before one backward pass each is its own update.

    weight: float32 [num_rows, dim], CPU, uniform within init_scale at first (None: 1 / sqrt(dim)).
    optimizer_state: float32 [num_rows, 0, 1 or 2]. Another tensor of the same shape may take the
    place of either at any time, such as a mapped file: `table.weight.data = mapped`. With
    init_scale = 0 no page of the first ones is touched, so that they take no memory until then.
    """

    def __init__(
        self,
        num_rows: int,
        dim: int,
        *,
        optimizer: str | dict[str, Any] = "rowwise_adagrad",
        lr: float = 0.1,
        init_scale: float | None = None,
        threads: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_rows < 1 or dim < 1:
            raise ConfigError(
                f"A table of vectors needs at least one row and one number a row, found {num_rows} "
                f"and {dim}."
            )
        scale = dim**-0.5 if init_scale is None else init_scale
        if not 0 <= scale < np.inf:
            raise ConfigError(f"init_scale is {scale}; it must be finite and at least 0.")
        self.lr = lr
        self.threads = num_cores() if threads is None else threads
        self._optimizer = ROW_OPTIMIZERS.build(optimizer)
        self.weight = nn.Parameter(_zeros(num_rows, dim), requires_grad=False)
        self.register_buffer("optimizer_state", _zeros(num_rows, self._optimizer.state_width))
        self.optimizer_state: Tensor
        if scale > 0:
            self.weight.uniform_(-scale, scale, generator=torch.Generator().manual_seed(seed))

    @property
    def num_rows(self) -> int:
        return len(self.weight)

    @property
    def dim(self) -> int:
        return int(self.weight.shape[1])

    def extra_repr(self) -> str:
        return f"{self.num_rows}, {self.dim}"

    def forward(self, ids: Tensor) -> Tensor:
        """The rows of int64 ids of any shape: [..., D]; 0 where an id is -1."""
        places = self._checked(ids).reshape(-1, 1)
        found = self._looked_up(places, (places >= 0).astype(np.float32))
        return found.reshape(*ids.shape, self.dim)

    def pooled(self, ids_BL: Tensor, weight_BL: Tensor | None = None) -> Tensor:
        """sum over l of weight[b, l] row[ids[b, l]]: [B, D]; None: the mean. Places of -1 count
        nothing, and of nothing else the result is 0. No gradient reaches the weights."""
        ids = self._checked(ids_BL)
        if ids.ndim != 2:
            raise DataError(f"Ids to pool must be [batch, places], found {list(ids.shape)}.")
        there = ids >= 0
        if weight_BL is None:
            weight = there / np.maximum(there.sum(1, keepdims=True), 1)
        else:
            weight = np.where(there, weight_BL.detach().numpy(), 0)
        return self._looked_up(ids, weight.astype(np.float32))

    def _looked_up(self, ids: Ids, weight: Floats) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return torch.from_numpy(self._pool(ids, weight))
        trigger = torch.empty(0, requires_grad=True)
        ids = ids.copy()  # the caller may fill his own anew before rows learn
        found: Tensor = _LookUp.apply(trigger, self, ids, weight)  # type: ignore[no-untyped-call]
        return found

    def _checked(self, ids: Tensor) -> Ids:
        if ids.dtype != torch.int64 or ids.device.type != "cpu":
            raise DataError(f"Ids must be int64 on the CPU, found {ids.dtype} on {ids.device}.")
        found: Ids = np.ascontiguousarray(ids.numpy())
        if found.size and not -1 <= found.min() <= found.max() < self.num_rows:
            wrong = found[(found < -1) | (found >= self.num_rows)][0]
            raise DataError(
                f"There is no row {wrong}: ids are 0 to {self.num_rows - 1}, and -1 is padding."
            )
        return found

    # --- the two passes

    def _table(self) -> Table:
        if self.weight.device.type != "cpu" or self.weight.dtype != torch.float32:
            raise ConfigError(
                f"RowEmbedding works on the CPU in float32, found {self.weight.dtype} on "
                f"{self.weight.device}."
            )
        return Table(
            self.weight.detach().numpy(),
            np.empty(0, np.float32),
            self.optimizer_state.numpy(),
            np.empty(0, np.uint8),
        )

    def _pool(self, ids: Ids, weight: Floats) -> Floats:
        table = self._table()
        out = np.empty((len(ids), self.dim), np.float32)
        in_threads(
            lambda _, first, last: row_kernels.pool(table.values, first, last, ids, weight, out),
            slices(len(ids), self.threads),
        )
        return out

    def _learn(self, ids: Ids, weight: Floats, grad: Floats) -> None:
        """grad: [B, D], of the sums that `_pool` made."""
        table, update = self._table(), self._optimizer.update(self.lr)
        distinct, starts, places = grouped(ids.reshape(-1))
        bounds = slices(len(distinct), self.threads)
        work = np.empty((len(bounds), self.dim), np.float32)
        in_threads(
            lambda thread, first, last: row_kernels.learn(
                table,
                update,
                first,
                last,
                distinct,
                starts,
                places,
                ids.shape[1],
                weight.reshape(-1),
                grad,
                work[thread],
            ),
            bounds,
        )


def grouped(ids: Ids) -> tuple[Ids, Ids, Ids]:
    """The distinct ids [U] in the order of first sight, those below 0 left out; and the places of
    each, in order: places[starts[u] : starts[u + 1]]."""
    size = len(ids)
    slots = np.empty(1 << (2 * size + 1).bit_length(), np.int32)
    distinct, number = np.empty(size, np.int64), np.empty(size, np.int32)
    num = row_kernels.number_distinct(ids, slots, distinct, number)
    starts, places = np.zeros(num + 1, np.int64), np.empty(size, np.int64)
    row_kernels.list_places(number, starts, places)
    return distinct[:num], starts, places


class _LookUp(torch.autograd.Function):
    """Autograd around the two passes: rows are updated when gradients arrive."""

    @staticmethod
    def forward(ctx: Any, trigger: Tensor, layer: RowEmbedding, ids: Ids, weight: Floats) -> Tensor:
        """trigger: empty, requires a gradient, so that backward runs."""
        ctx.layer, ctx.ids, ctx.weight = layer, ids, weight
        return torch.from_numpy(layer._pool(ids, weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[None, None, None, None]:
        if ctx.layer is None:
            raise RuntimeError("The rows were updated by an earlier backward of this look-up.")
        grad: NDArray[np.float32] = grad_BD.contiguous().numpy()
        if not np.isfinite(grad).all():
            raise DataError(
                "The gradient of a looked-up row is not finite, as by a learning rate too high; "
                "no row was updated."
            )
        ctx.layer._learn(ctx.ids, ctx.weight, grad)
        ctx.layer = None
        return None, None, None, None


def _zeros(*shape: int) -> Tensor:
    """Of pages that take memory when they are written to."""
    return torch.from_numpy(np.zeros(shape, np.float32))
