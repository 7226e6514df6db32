"""A Wide & Deep model as tables and arrays of a checkpoint.

    table SLOT          embeddings, and their optimizer's state
    table SLOT.wide     z of each task, with n for its state: FTRL's weights
    parameters          body.* and its optimizer's state, wide.dense and wide.bias: (z, n),
                        positive_weight

Only ids that training met are stored. No feature has a dot in its name.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedsvc.outputs.sparse import Floats
from embedsvc.ranking.layers import make_state
from embedsvc.ranking.slots import SlotTable
from embedsvc.ranking.wide_deep import WideDeep
from partitions.checkpoint import Checkpoint
from partitions.durable import FileEntry
from partitions.schema import Slot

_WIDE = ".wide"
_BLOCK = 1 << 16  # rows looked at together


def write_tables(
    model: WideDeep, checkpoint: Checkpoint, token: int, optimizer: str
) -> dict[Slot, FileEntry]:
    """optimizer: the name of the embeddings'."""
    entries = {}
    for table in model.slots.tables:
        for name, vectors, state, kind in _parts(table, optimizer):
            touched = _touched(vectors, state)
            # A stored row's state is not all 0; an optimizer that keeps nothing has none to store.
            kept: Floats = np.broadcast_to(np.float32(1), len(vectors))
            if state.shape[1]:
                kept = state[:, 0] if state.shape[1] == 1 else state
            slot = Slot(name, 0)
            entries[slot] = checkpoint.write_rows(slot, token, vectors, kept, touched, kind)
    return entries


def _touched(vectors: Floats, state: Floats) -> NDArray[np.bool_]:
    """Of each row, whether training has met it; a byte a row, and no more."""
    found = np.zeros(len(vectors), np.bool_)
    for first in range(0, len(vectors), _BLOCK):
        block = slice(first, first + _BLOCK)
        found[block] = (state if state.shape[1] else vectors)[block].any(axis=1)
    return found


def read_tables(
    model: WideDeep, checkpoint: Checkpoint, stored: Mapping[Slot, FileEntry], optimizer: str
) -> None:
    for table in model.slots.tables:
        for name, vectors, state, _ in _parts(table, optimizer):
            entry = stored.get(Slot(name, 0))
            if entry is None:
                continue
            found = checkpoint.stored_rows(entry, len(vectors), vectors.shape[1])
            for block in found.blocks():
                rows = found.rows[block]
                vectors[rows] = found.vectors[block]
                if state.shape[1]:
                    state[rows] = found.state[block].reshape(len(rows), -1)


def _parts(table: SlotTable, optimizer: str) -> Iterator[tuple[str, Floats, Floats, str]]:
    """(name, vectors, state, optimizer) of the tables that a slot has; views."""
    name = table.slot.name
    if table.dim:
        yield name, table.values, table.state, optimizer
    if table.wide.shape[1]:
        yield name + _WIDE, table.wide[:, :, 0], table.wide[:, :, 1], "ftrl"


# --- everything else ------------------------------------------------------------------------------


def arrays_of(model: WideDeep) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {"wide.dense": model.wide_dense, "wide.bias": model.bias}
    found["positive_weight"] = model.positive_weight
    for name, tensor in _tensors(model):
        found[name] = tensor.detach().numpy()
    return found


def load_arrays(model: WideDeep, arrays: Mapping[str, NDArray[Any]]) -> None:
    model.wide_dense[:], model.bias[:] = arrays["wide.dense"], arrays["wide.bias"]
    if model.optimizer is not None:
        make_state(model.optimizer)
    with torch.no_grad():
        for name, tensor in _tensors(model):
            tensor.copy_(torch.from_numpy(arrays[name].reshape(tensor.shape)))


def _tensors(model: WideDeep) -> Iterator[tuple[str, Tensor]]:
    """Of the body, and of its optimizer."""
    if model.body is None or model.optimizer is None:
        return
    for name, parameter in model.body.named_parameters():
        yield f"body.{name}", parameter
        for key, value in sorted(model.optimizer.state[parameter].items()):
            if isinstance(value, Tensor):
                yield f"body.{name}:{key}", value
