"""Rows of `[output]` while they are learnt, and as tables of the checkpoint.

    class rows    [w, b]    table of the classes' entity type
    input rows    v         table TYPE.input, which histories are made of (askers.py)

An entity's rows begin where those of a graph's entities begin: at a function of the seed and the
key. A mapped table lies in a file without a name, which vanishes with the process: pages in use
are in memory, others are not, and neither are counted as the process's own.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedsvc.config import ModelConfig
from embedsvc.graph.initial import FreshOf, fresh_maker
from partitions import durable
from partitions.checkpoint import Checkpoint
from partitions.durable import FileEntry
from partitions.errors import DataError
from partitions.graph import Graph, slots_of
from partitions.schema import Slot

Floats = NDArray[np.float32]

_BLOCK = 8192  # rows made at a time


def first_rows(graph: Graph, dim: int, seed: int) -> FreshOf:
    """Deviation 1 / sqrt(3 dim), as of numbers uniform within 1 / sqrt(dim)."""
    return fresh_maker(graph, ModelConfig(dim=dim, init_scale=init_scale(dim)), seed)


def init_scale(dim: int) -> float:
    return float((3 * dim) ** -0.5)


def input_place(name: str) -> str:
    """Under what type a checkpoint has input rows; no entity type has a dot in its name."""
    return f"{name}.input"


@dataclass(frozen=True)
class RowTable:
    """The rows of an entity type, by id. weight: [rows, D]; bias: [rows] or [0]: there is none;
    state: [rows, S], of the optimizer `optimizer`."""

    weight: Floats
    bias: Floats
    state: Floats
    optimizer: str

    @staticmethod
    def empty(
        num_rows: int, dim: int, width: int, *, bias: bool, optimizer: str, folder: Path | None
    ) -> "RowTable":
        """width: S. folder: where to map files; None: in memory."""
        weight = _zeros((num_rows, dim), folder)
        state = _zeros((num_rows, width), folder)
        return RowTable(weight, _zeros((num_rows * bias,), folder), state, optimizer)

    @property
    def dim(self) -> int:
        """Of a stored row."""
        return self.weight.shape[1] + (len(self.bias) > 0)

    def fill(
        self,
        graph: Graph,
        name: str,
        at: str,
        fresh: FreshOf,
        stored: Mapping[Slot, FileEntry],
        checkpoint: Checkpoint,
    ) -> None:
        """With what is stored under the type `at`, and fresh rows of the type `name` elsewhere."""
        for slot in slots_of(graph.entity_types[name]):
            start, num_rows = int(graph.starts[name][slot.partition]), graph.num_rows(slot)
            make = fresh(slot)
            for begin in range(0, num_rows, _BLOCK):
                offsets = np.arange(begin, min(begin + _BLOCK, num_rows))
                self._put(start + offsets, make(offsets))
            entry = stored.get(Slot(at, slot.partition))
            if entry is None:
                continue
            found = checkpoint.stored_rows(entry, num_rows, self.dim)
            for block in found.blocks():
                rows = start + found.rows[block]
                self._put(rows, found.vectors[block])
                if self.state.shape[1]:
                    self.state[rows] = found.state[block].reshape(len(rows), -1)

    def _put(self, rows: NDArray[np.int64], vectors: Floats) -> None:
        dim = self.weight.shape[1]
        self.weight[rows] = vectors[:, :dim]
        if len(self.bias):
            self.bias[rows] = vectors[:, dim]

    def write(
        self, graph: Graph, name: str, at: str, checkpoint: Checkpoint, token: int
    ) -> dict[Slot, FileEntry]:
        """The tables of type `name`, stored under the type `at`."""
        entries = {}
        for slot in slots_of(graph.entity_types[name]):
            start = int(graph.starts[name][slot.partition])
            part = slice(start, start + graph.num_rows(slot))
            vectors = _Joined(self.weight[part], self.bias[part])
            # An optimizer that keeps nothing doesn't say which rows it touched: all count as such.
            state: Floats = np.broadcast_to(np.float32(1), graph.num_rows(slot))
            if self.state.shape[1]:
                state = self.state[part, 0] if self.state.shape[1] == 1 else self.state[part]
            touched = np.not_equal(state, 0) if state.ndim == 1 else np.any(state, axis=1)
            target = Slot(at, slot.partition)
            entries[target] = checkpoint.write_rows(
                target, token, vectors, state, touched, self.optimizer
            )
        return entries


@dataclass(frozen=True)
class _Joined:
    """tensors.Source of [w, b]."""

    weight: Floats
    bias: Floats
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.weight), self.weight.shape[1] + (len(self.bias) > 0)

    def __getitem__(self, rows: NDArray[np.int64], /) -> Floats:
        out = np.empty((len(rows), self.shape[1]), np.float32)
        out[:, : self.weight.shape[1]] = self.weight[rows]
        if len(self.bias):
            out[:, -1] = self.bias[rows]
        return out


def _zeros(shape: tuple[int, ...], folder: Path | None) -> Floats:
    if folder is None or 0 in shape:
        return np.zeros(shape, np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    path = durable.temporary_name(folder / "rows")
    try:
        with path.open("w+b") as file:
            _reserve(file.fileno(), 4 * math.prod(shape), folder)
            found = np.memmap(file, np.float32, "r+", shape=shape)
    finally:
        path.unlink(missing_ok=True)  # the map keeps it until the process ends
    return np.asarray(found)


def _reserve(file: int, num_bytes: int, folder: Path) -> None:
    """Disk for all of an empty file, which reads as zeros. A map of a file with holes would kill
    the process, without a word, at the first page that the disk has no room for."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, num_bytes)
        os.truncate(file, num_bytes)
    except OSError as error:
        raise DataError(
            f"{folder} has no room for a file of {num_bytes / 1e6:,.0f} MB of mapped rows "
            f"({error.strerror}): make room, or choose a smaller output.dim."
        ) from None
