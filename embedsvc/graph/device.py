"""The step of a GPU: tables stay on the device while the buffer holds them, large batches go there.

    the buffer's thread    reads a table, `place`s it; `fetch`es it, writes it
    the host               makes the next batch, while the device trains on those before
    the device             gathers rows, scores, differentiates, updates, rounds

Nothing here asks the device for a number but the loss, once in some batches: each such question
would let it run dry. So the distinct rows of a batch are not counted. They are padded to as many as
there can be, by a spare row that each table has at its end: it is nobody's, its gradient is 0, and
so it stays as it is.

All but the copies runs on any torch device. On the CPU it does what the exact step does
(step.ExactBatches), bit for bit, to which tests hold it.

Letters: n distinct rows, padding included; R rows of a table, D dimension, P operator parameters.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from embedsvc.config import NegativesConfig, TrainConfig
from embedsvc.graph import rounding
from embedsvc.graph.batches import Batch, Group
from embedsvc.graph.model import CPU, BatchTensors, BatchVectors, GraphModel, batch_loss, table_name
from embedsvc.graph.optimizers import Optimizer
from embedsvc.graph.step import Rate, batcher_of, constant, rounding_key
from partitions.edges import Edges
from partitions.errors import ConfigError
from partitions.schema import Slot
from partitions.tables import Table

_EPSILON = 1e-10  # AdaGrad's, of operator parameters; as in step.py
_PIECE = 32  # batches from one look at the loss to the next


def is_used(train: TrainConfig) -> bool:
    return train.device != "cpu" or train.step == "device"


def device_of(train: TrainConfig, features: str | None) -> torch.device | None:
    """None where one of the CPU's own steps trains. ConfigError where the device can't.

    features: the first setting that gives entities features.
    """
    if not is_used(train):
        return None
    if train.step in ("fast", "exact"):
        raise ConfigError(
            f"[train] step = {train.step} runs on the CPU only. Set train.step=auto, or "
            "train.device=cpu."
        )
    if found := features or ("train.precision = float16" if train.precision == "float16" else None):
        setting = "device = cuda" if train.device == "cuda" else "step = device"
        raise ConfigError(
            f"[train] {setting} does not cover {found}. Set train.device=cpu and train.step=auto."
        )
    if train.device == "cpu":
        return CPU
    if not torch.backends.cuda.is_built():
        raise ConfigError(
            f"[train] device = cuda needs PyTorch's CUDA build, found {torch.__version__} without "
            "CUDA. Install that one (EMBEDSVC_TORCH=cuda scripts/setup), or set train.device=cpu."
        )
    if not torch.cuda.is_available():
        raise ConfigError(
            "[train] device = cuda: PyTorch finds no CUDA device here. See whether nvidia-smi "
            "lists one, or set train.device=cpu."
        )
    return torch.device("cuda", torch.cuda.current_device())


# --- tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceTable:
    """A table with a spare row of zeros at its end: R + 1 rows.

    vectors: float32 or bfloat16 [R + 1, D]; state: float32 [R + 1, ...]; shared: float32 [S].
    """

    vectors: Tensor
    state: Tensor
    shared: Tensor
    optimizer: str

    @property
    def num_rows(self) -> int:
        return len(self.state) - 1

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    def largest_state(self) -> float:
        return float(self.state.amax())

    def largest_number(self) -> float:
        return max(float(self.vectors.amax()), -float(self.vectors.amin()))


class Copies:
    """Brings tables to a device and back; for the buffer's thread.

    On a GPU the copies have a stream of their own, beside which training goes on, and the thread
    waits for them. A table that leaves was trained to its end by then: `fetch` lets the copy wait
    for all that training has asked for. So no memory is used again while something reads it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = None if device == CPU else torch.cuda.Stream(device)

    def place(self, table: Table) -> DeviceTable:
        try:
            with self._copying():
                return DeviceTable(
                    self._to_device(_tensor(table.vectors), spare=1),
                    self._to_device(torch.from_numpy(table.state), spare=1),
                    self._to_device(torch.from_numpy(table.shared), spare=0),
                    table.optimizer,
                )
        except torch.OutOfMemoryError:
            raise _too_small() from None

    def fetch(self, table: DeviceTable) -> Table:
        """On the CPU without a copy."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.default_stream(self.device))
        with self._copying():
            parts = [table.vectors[:-1], table.state[:-1], table.shared]
            vectors, state, shared = map(self._to_host, parts)
        return Table(_array(vectors), _array(state), _array(shared), table.optimizer)

    @contextmanager
    def _copying(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def _to_device(self, source: Tensor, spare: int) -> Tensor:
        rows, *rest = source.shape
        found = torch.empty((rows + spare, *rest), dtype=source.dtype, device=self.device)
        found[rows:] = 0
        if self._stream is not None:
            source = source.pin_memory()
        found[:rows].copy_(source, non_blocking=True)
        return found

    def _to_host(self, source: Tensor) -> Tensor:
        if self._stream is None:
            return source
        found = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        return found.copy_(source, non_blocking=True)


def _tensor(vectors: NDArray[Any]) -> Tensor:
    """Shared; numpy has no bfloat16 (partitions.precision)."""
    if vectors.dtype == np.uint16:
        return torch.from_numpy(vectors.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(vectors)


def _array(tensor: Tensor) -> NDArray[Any]:
    if tensor.dtype == torch.bfloat16:
        bits: NDArray[Any] = tensor.view(torch.int16).numpy().view(np.uint16)
        return bits
    found: NDArray[Any] = tensor.numpy()
    return found


def _too_small() -> ConfigError:
    return ConfigError(
        "The device's memory is full. Lower train.buffer, train.prefetch or train.batch_size, or "
        "use more partitions."
    )


# --- the step -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceBatches:
    """A Step over `DeviceTable`s."""

    model: GraphModel
    lr: float
    relation_lr: float
    batch_size: int
    chunk_size: int
    negatives: NegativesConfig
    optimizer: Optimizer
    device: torch.device

    def __call__(
        self,
        tables: Mapping[Slot, Any],  # of DeviceTable
        edges: Edges,
        groups: Sequence[Group],
        seeds: Sequence[int],
        rate: Rate = constant,
    ) -> Generator[tuple[int, float], None, None]:
        num_rows = {slot: table.num_rows for slot, table in tables.items()}
        batcher = batcher_of(
            self.model, self.negatives, self.batch_size, self.chunk_size, groups, num_rows
        )
        key = rounding_key(seeds)
        loss, count = torch.zeros((), dtype=torch.float64, device=self.device), 0
        try:
            with self._parameters() as parameters:
                batches = batcher.batches(edges, np.random.default_rng(seeds))
                for number, batch in enumerate(batches):
                    factor = rate(batch.num_edges)
                    keys = [rounding.key_of(np.uint64(key), number, side) for side in (0, 1)]
                    loss += self._train(tables, parameters, batch, factor, keys)
                    count += batch.num_edges
                    if number % _PIECE == _PIECE - 1:
                        yield count, float(loss)
                        loss, count = torch.zeros_like(loss), 0
                if count:
                    yield count, float(loss)
        except torch.OutOfMemoryError:
            raise _too_small() from None

    @contextmanager
    def _parameters(self) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """Values and state of the operators' parameters on the device, for one bucket; they go back
        at its end, where a commit finds them."""
        own = self.model.parameters

        def with_spare(table: Tensor) -> Tensor:
            return torch.cat([table, table.new_zeros(1, table.shape[1])]).to(self.device)

        there = {
            name: (with_spare(own.values[name]), with_spare(own.state[name])) for name in own.values
        }
        try:
            yield there
        finally:
            for name, (values, state) in there.items():
                own.values[name].copy_(values[:-1])
                own.state[name].copy_(state[:-1])

    def _train(
        self,
        tables: Mapping[Slot, DeviceTable],
        parameters: Mapping[str, tuple[Tensor, Tensor]],
        batch: Batch,
        factor: float,
        keys: Sequence[int],
    ) -> Tensor:
        """The batch's loss before the update. keys: of the rounding of each table."""
        group, a = batch.group, BatchTensors.of(batch, self.device)
        left, right = tables[group.lhs], tables[group.rhs]
        if group.lhs == group.rhs:
            sides = [_Rows(left, [a.lhs_KC, a.rhs_KC, a.neg_lhs_KU, a.neg_rhs_KU])]
            lhs, rhs, neg_lhs, neg_rhs = sides[0].gathered()
        else:
            sides = [
                _Rows(left, [a.lhs_KC, a.neg_lhs_KU]),
                _Rows(right, [a.rhs_KC, a.neg_rhs_KU]),
            ]
            (lhs, neg_lhs), (rhs, neg_rhs) = (side.gathered() for side in sides)
        rel = a.rel_KC
        matrix = self.model.operators[group.operator].matrix
        if matrix and (batch.rel_KC == batch.rel_KC[:, :1]).all():
            rel = rel[:, :1]
        forward, reverse = (
            _Parameters(*parameters[name], rel) if name in parameters else None
            for name in (table_name(group.operator, way) for way in (False, True))
        )
        assert forward is not None
        vectors = BatchVectors(
            lhs, rhs, neg_lhs, neg_rhs, forward.gathered(), reverse.gathered() if reverse else None
        )
        loss = batch_loss(self.model, batch, vectors, self.negatives.in_batch, a)
        loss.backward()
        for side, key in zip(sides, keys, strict=False):
            side.update(self.optimizer, factor * self.lr, int(key))
        for one in (forward, reverse):
            if one is not None:
                one.update(factor * self.relation_lr)
        return loss.detach()


def distinct(rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """(int64 [n] the rows that occur, in order, then `num_rows` as often as is left; where among
    them each of `rows` is).

    n is as many as there can be: min(len(rows), num_rows). What torch.unique does, but that how
    many there are is a number for which the host would have to wait.
    """
    ordered, order = rows.sort()
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=is_first[1:])
    number = is_first.cumsum(0) - 1
    found = rows.new_full((min(len(rows), num_rows),), num_rows)
    found[number] = ordered
    places = torch.empty_like(order)
    places[order] = number
    return found, places


class _Rows:
    """The rows of one table that a batch needs, as an autograd leaf."""

    def __init__(self, table: DeviceTable, parts: Sequence[Tensor]) -> None:
        self.table = table
        flat = torch.cat([part.flatten() for part in parts])
        self.rows, places = distinct(flat, table.num_rows)
        ends = np.cumsum([part.numel() for part in parts])[:-1].tolist()
        split = torch.tensor_split(places, ends)
        self._places = [p.view(part.shape) for p, part in zip(split, parts, strict=True)]
        self.leaf = table.vectors[self.rows].float().requires_grad_()

    def gathered(self) -> list[Tensor]:
        """Of each part [..., D]."""
        return [functional.embedding(places, self.leaf) for places in self._places]

    def update(self, optimizer: Optimizer, lr: float, key: int) -> None:
        if self.leaf.grad is None:
            return
        table, rows = self.table, self.rows
        own = table.state[rows]
        updated = self.leaf.detach() - optimizer.step(self.leaf.grad, own, table.shared, lr)
        table.state[rows] = own
        if table.vectors.dtype == torch.bfloat16:
            updated = rounding.stochastic_bfloat16(updated, key, rows)
        table.vectors[rows] = updated


class _Parameters:
    """The parameters of a batch's relations in one operator's table, as an autograd leaf."""

    def __init__(self, values: Tensor, state: Tensor, rel: Tensor) -> None:
        """values, state: float32 [R + 1, P]. rel: int64, of any shape."""
        self.values, self.state = values, state
        self.rows, places = distinct(rel.flatten(), len(values) - 1)
        self._places = places.view(rel.shape)
        self.leaf = values[self.rows].requires_grad_()

    def gathered(self) -> Tensor:
        """[*rel.shape, P]"""
        return self.leaf[self._places]

    def update(self, lr: float) -> None:
        if self.leaf.grad is None or not self.leaf.numel():
            return
        state = self.state[self.rows] + self.leaf.grad.square()
        self.state[self.rows] = state
        step = lr * self.leaf.grad / (state.sqrt() + _EPSILON)
        self.values[self.rows] = self.leaf.detach() - step
