"""Slots: the tables of categorical features, of which a step costs what the ids it meets cost.

Each id of a slot has an embedding for the deep part and a weight a task for the wide part. Both
learn from the same batch, in one pass over its ids:

    embedding  v[id]           row-wise AdaGrad (or another row optimizer), of the mean loss
    weight     w[id] of (z,n)  FTRL-proximal with L1 and L2, of the summed loss

    g = sum over the batch's rows that have the id of the logit's slope
    w = 0 if |z| <= l1, else -(z - sign(z) l1) / ((beta + sqrt(n)) / alpha + l2)
    z += g - (sqrt(n + g^2) - sqrt(n)) / alpha * w ;  n += g^2          (McMahan et al. 2013)

An id of a list counts once for each time it stands there: the wide part sums, the deep part takes
the mean. Tables are 0 at first, so that an id that no training row had adds nothing, and memory is
taken where ids learnt, page by page. In training the embedding of such an id is small numbers that
seed, slot and id decide.

A thread takes whole slots. A slot's sums run in the order of rows, so that with any number of
threads a step ends in the same bits.

Letters: B batch, D numbers of an embedding, S slots, T tasks, W numbers of all embeddings.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedsvc.outputs.kernels import Table
from embedsvc.outputs.sampling import key_of
from embedsvc.outputs.sparse import Floats, RowOptimizer, in_threads
from embedsvc.ranking import slot_kernels
from partitions.errors import ConfigError
from partitions.features import Encoded, Slot

_NONE = np.empty(0, np.float32)
_NO_NOISE = np.uint64(0), np.float32(0)
_NONE_REMOVED = np.empty(0, np.uint8)


class Ftrl(NamedTuple):
    """alpha: step size; beta: keeps early steps small; l1: weights whose |z| it exceeds are 0."""

    alpha: float = 0.1
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    def check(self) -> None:
        wrong = [name for name in ("beta", "l1", "l2") if not 0 <= getattr(self, name) < np.inf]
        if not 0 < self.alpha < np.inf:
            wrong.append("alpha")
        if wrong:
            raise ConfigError(
                f"FTRL's {wrong[0]} is {getattr(self, wrong[0])}; alpha must be above 0, the "
                "others at least 0, and all of them finite."
            )

    def weights(self, wide: Floats) -> Floats:
        """float32 [...] of (z, n): [..., 2]."""
        z, n = wide[..., 0], wide[..., 1]
        slack = np.sign(z) * np.maximum(np.abs(z) - np.float32(self.l1), 0)
        scale = np.asarray((self.beta + np.sqrt(n)) / self.alpha + self.l2)
        scale[slack == 0] = 1  # beta and l2 of 0 make it 0 where nothing was learnt
        return np.asarray(-slack / scale, np.float32)


@dataclass(frozen=True)
class SlotTable:
    """A slot's numbers, by id; those of the part that leaves the slot out are of no width."""

    slot: Slot
    values: Floats  # [E, D]
    state: Floats  # [E, S], of the row optimizer
    wide: Floats  # [E, T, 2]: z and n
    at: int  # first of its D columns among the W

    @property
    def dim(self) -> int:
        return int(self.values.shape[1])


class SlotTables:
    """The tables of all slots.

    dims: slot -> D, of the slots of the deep part; wide: the slots of the wide part. decay: of
    embeddings, per example that looks one up (L2).
    """

    def __init__(
        self,
        slots: tuple[Slot, ...],
        dims: Mapping[str, int],
        wide: frozenset[str],
        num_tasks: int,
        optimizer: RowOptimizer,
        ftrl: Ftrl,
        *,
        init_scale: float,
        threads: int,
        seed: int,
    ) -> None:
        ftrl.check()
        self.optimizer, self.ftrl, self.threads = optimizer, ftrl, threads
        self._noise = [(key_of(seed, at), np.float32(init_scale)) for at in range(len(slots))]
        self.num_tasks, self.width = num_tasks, 0
        self.tables: list[SlotTable] = []
        for slot in slots:
            dim = dims.get(slot.name, 0)
            state = optimizer.state_width if dim else 0
            tasks = num_tasks if slot.name in wide else 0
            self.tables.append(
                SlotTable(
                    slot,
                    np.zeros((slot.size, dim), np.float32),
                    np.zeros((slot.size, state), np.float32),
                    np.zeros((slot.size, tasks, 2), np.float32),
                    self.width,
                )
            )
            self.width += dim
        self._hashes: dict[int, NDArray[np.int32]] = {}

    def look_up(
        self, batch: Encoded, *, training: bool, out: Floats | None = None
    ) -> tuple[Floats, Floats]:
        """Embeddings side by side, [B, W], and what the wide weights sum to, [B, T]. out: [B, W or
        more], to write the former to its first columns."""
        num = len(batch)
        if out is None:
            out = np.empty((num, self.width), np.float32)
        parts = np.zeros((len(self.tables), num, self.num_tasks), np.float32)

        def work(thread: int, number: int, table: SlotTable) -> None:
            ids, column, offsets = _places(table.slot, batch)
            logit = parts[number, :, : table.wide.shape[1]]
            noise = self._noise[number] if training else _NO_NOISE
            slot_kernels.look_up(
                *(ids, column, offsets, table.values, noise),
                *(table.wide, self.ftrl, table.at, out, logit),
            )

        self._for_each(work)
        return out, parts.sum(0)

    def learn(
        self, batch: Encoded, grad_BW: Floats, slope_BT: Floats, lr: float, decay: float = 0.0
    ) -> None:
        """grad_BW: of the mean loss by the embeddings; slope_BT: of the summed loss by logits."""
        update = self.optimizer.update(lr)
        decay = decay / max(len(batch), 1)

        def work(thread: int, number: int, table: SlotTable) -> None:
            ids, column, offsets = _places(table.slot, batch)
            rows = Table(table.values, _NONE, table.state, _NONE_REMOVED)
            slot_kernels.learn(
                *(ids, column, offsets, rows, self._noise[number], update, np.float32(decay)),
                *(table.wide, self.ftrl, table.at, grad_BW, slope_BT, self._hash(thread, len(ids))),
            )

        self._for_each(work)

    def _for_each(self, work: Callable[[int, int, SlotTable], None]) -> None:
        """Whichever thread is free takes the next slot; the largest come first."""
        waiting: Iterator[tuple[int, SlotTable]] = iter(
            sorted(enumerate(self.tables), key=lambda item: -item[1].slot.size)
        )

        def take(thread: int, first: int, last: int) -> None:
            for number, table in waiting:
                if table.dim or table.wide.shape[1]:
                    work(thread, number, table)

        in_threads(take, [(0, 0)] * max(1, min(self.threads, len(self.tables))))

    def _hash(self, thread: int, num_ids: int) -> NDArray[np.int32]:
        """A thread's room for a hash table of so many ids."""
        size = 1 << (2 * num_ids + 1).bit_length()
        if thread not in self._hashes or len(self._hashes[thread]) < size:
            self._hashes[thread] = np.empty(size, np.int32)
        return self._hashes[thread][:size]


def _places(slot: Slot, batch: Encoded) -> tuple[NDArray[np.int32], int, NDArray[np.int64]]:
    """(ids, column, offsets), as the kernels want them."""
    if slot.bag:
        values, offsets = batch.bags[slot.column]
        return values.reshape(-1, 1), 0, offsets
    return batch.single, slot.column, np.arange(len(batch) + 1)
