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

Of a slot with few ids for the batch's rows, the embeddings, and what the first layer makes of them,
are looked up once an id and not once a row (`Few`, layers.py).

A thread takes whole slots. A slot's sums run in the order of rows, so that with any number of
threads a step ends in the same bits.

Letters: B batch, D numbers of an embedding, S slots, T tasks, W numbers of all embeddings.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
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

FEW = 16  # rows an id: below, adding up what is worked out once costs more than it spares

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


@dataclass(frozen=True)
class Few:
    """Slots with few ids for a batch's rows, end to end: M ids in all.

    begins: int64 [slots + 1]; rows: of each slot, [E, D], its embeddings as the batch sees them;
    logit: [M, T], wide weights. Row b has the ids places[starts[b] : starts[b + 1]], each of which
    counts `share` in its slot's mean. The gradients are [M, D of the slot], [M, T] and [M]: as
    slot_kernels.learn_rows wants them.
    """

    numbers: list[int]
    tables: list[SlotTable]
    begins: NDArray[np.int64]
    rows: list[Floats]
    logit: Floats
    starts: NDArray[np.int64]
    places: NDArray[np.int32]
    share: Floats


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

    def few(self, batch: Encoded, *, training: bool, others: int) -> Few | None:
        """The slots of few ids, looked up; None: there are none. others: numbers among the inputs
        that are of no slot; one input at least is left to those that are not few."""
        most = len(batch) // FEW
        found = [
            at for at, table in enumerate(self.tables) if table.dim > 0 and table.slot.size <= most
        ]
        if found and not others and len(found) == sum(table.dim > 0 for table in self.tables):
            found.remove(max(found, key=lambda at: self.tables[at].slot.size))
        if not found:
            return None
        tables = [self.tables[at] for at in found]
        begins = np.cumsum([0, *(table.slot.size for table in tables)])
        logit = np.zeros((begins[-1], self.num_tasks), np.float32)
        rows = []
        for number, table, begin in zip(found, tables, begins, strict=False):
            size, own = table.slot.size, np.empty((table.slot.size, table.dim), np.float32)
            every = np.arange(size, dtype=np.int32)[:, None], 0, np.arange(size + 1)
            noise = self._noise[number] if training else _NO_NOISE
            slot_kernels.look_up(
                *(*every, table.values, noise, table.wide, self.ftrl, 0, own),
                logit[begin : begin + size, : table.wide.shape[1]],
            )
            rows.append(own)
        return Few(found, tables, begins, rows, logit, *_lists(tables, begins, batch))

    def look_up(
        self,
        batch: Encoded,
        *,
        training: bool,
        out: Floats | None = None,
        few: Few | None = None,
    ) -> tuple[Floats, Floats]:
        """Embeddings side by side, [B, W], and what the wide weights sum to, [B, T]. out: [B, W or
        more], to write the former to its first columns. few: are left out."""
        num, columns = len(batch), self._columns(few)
        if out is None:
            out = np.empty((num, self.width), np.float32)
        parts = np.zeros((len(self.tables), num, self.num_tasks), np.float32)

        def work(thread: int, number: int, table: SlotTable) -> None:
            ids, column, offsets = _places(table.slot, batch)
            logit = parts[number, :, : table.wide.shape[1]]
            noise = self._noise[number] if training else _NO_NOISE
            slot_kernels.look_up(
                *(ids, column, offsets, table.values, noise),
                *(table.wide, self.ftrl, columns[number], out, logit),
            )

        self._for_each(work, columns)
        return out, parts.sum(0)

    def learn(
        self,
        batch: Encoded,
        grad_BW: Floats,
        slope_BT: Floats,
        lr: float,
        decay: float = 0.0,
        few: Few | None = None,
    ) -> None:
        """grad_BW: of the mean loss by the embeddings; slope_BT: of the summed loss by logits.
        few: are left out."""
        update, columns = self.optimizer.update(lr), self._columns(few)
        decay = decay / max(len(batch), 1)

        def work(thread: int, number: int, table: SlotTable) -> None:
            ids, column, offsets = _places(table.slot, batch)
            slot_kernels.learn(
                *(ids, column, offsets, _rows(table), self._noise[number], update),
                *(np.float32(decay), table.wide, self.ftrl, columns[number], grad_BW, slope_BT),
                self._hash(thread, len(ids)),
            )

        self._for_each(work, columns)

    def learn_few(
        self, few: Few, grads: list[Floats], slopes: Floats, seen: Floats, lr: float, decay: float
    ) -> None:
        """grads: of each of the slots, [E, D], summed over the batch; slopes: [M, T]; seen: [M].
        decay: of each time that an id was seen."""
        update = self.optimizer.update(lr)
        for at, (number, table) in enumerate(zip(few.numbers, few.tables, strict=True)):
            own = slice(few.begins[at], few.begins[at + 1])
            met = np.flatnonzero(seen[own])
            slot_kernels.learn_rows(
                *(met, grads[at][met], slopes[own][met], seen[own][met], _rows(table)),
                *(self._noise[number], update, np.float32(decay), table.wide, self.ftrl),
            )

    def _columns(self, few: Few | None) -> dict[int, int]:
        """Slot's number -> the first of its columns, of those that are not few."""
        found, width = {}, 0
        for number, table in enumerate(self.tables):
            if few is None or number not in few.numbers:
                found[number] = width
                width += table.dim
        return found

    def _for_each(
        self, work: Callable[[int, int, SlotTable], None], numbers: Collection[int]
    ) -> None:
        """Whichever thread is free takes the next slot; the largest come first."""
        waiting: Iterator[tuple[int, SlotTable]] = iter(
            sorted(
                ((number, self.tables[number]) for number in numbers),
                key=lambda item: -item[1].slot.size,
            )
        )

        def take(thread: int, first: int, last: int) -> None:
            for number, table in waiting:
                if table.dim or table.wide.shape[1]:
                    work(thread, number, table)

        in_threads(take, [(0, 0)] * max(1, min(self.threads, len(numbers))))

    def _hash(self, thread: int, num_ids: int) -> NDArray[np.int32]:
        """A thread's room for a hash table of so many ids."""
        size = 1 << (2 * num_ids + 1).bit_length()
        if thread not in self._hashes or len(self._hashes[thread]) < size:
            self._hashes[thread] = np.empty(size, np.int32)
        return self._hashes[thread][:size]


def _rows(table: SlotTable) -> Table:
    return Table(table.values, _NONE, table.state, _NONE_REMOVED)


def _lists(
    tables: list[SlotTable], begins: NDArray[np.int64], batch: Encoded
) -> tuple[NDArray[np.int64], NDArray[np.int32], Floats]:
    """(starts, places, share) of Few."""
    found = [_places(table.slot, batch) for table in tables]
    starts = np.zeros(len(batch) + 1, np.int64)
    for _, _, offsets in found:
        starts += offsets
    places, share = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
    ends = starts[:-1].copy()
    for begin, of_slot in zip(begins.tolist(), found, strict=False):
        slot_kernels.list_places(*of_slot, begin, ends, places, share)
    return starts, places, share


def _places(slot: Slot, batch: Encoded) -> tuple[NDArray[np.int32], int, NDArray[np.int64]]:
    """(ids, column, offsets), as the kernels want them."""
    if slot.bag:
        values, offsets = batch.bags[slot.column]
        return values.reshape(-1, 1), 0, offsets
    return batch.single, slot.column, np.arange(len(batch) + 1)
