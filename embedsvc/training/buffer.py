"""The buffer: which embedding tables are in memory. Loading, eviction and spilling hide here.

Tables of types with one partition stay for good; of the others at most `capacity` are held, and the
least recently used leaves first. A table that leaves changed is written under a name of its own, to
be read back from there; it belongs to no checkpoint until the next commit names it.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter

from partitions import tables
from partitions.checkpoint import Checkpoint
from partitions.durable import FileEntry
from partitions.errors import ConfigError
from partitions.schema import Slot
from partitions.tables import Fresh, Table


class Buffer:
    def __init__(
        self,
        checkpoint: Checkpoint,
        stored: Mapping[Slot, FileEntry],
        num_rows: Mapping[Slot, int],
        fresh: Callable[[Slot], Fresh],
        pinned: frozenset[Slot],
        capacity: int,
    ) -> None:
        """stored: the newest file of each table that has one. pinned: tables that never leave."""
        self._checkpoint, self._num_rows, self._fresh = checkpoint, num_rows, fresh
        self._stored = dict(stored)
        self._pinned, self._capacity = pinned, capacity
        self._held: OrderedDict[Slot, Table] = OrderedDict()
        self._dirty: dict[Slot, int] = {}  # slot -> token of the last lease that touched it
        self.num_reads = self.num_writes = 0
        self.io_bytes = 0
        self.wait_s = 0.0  # time that training stood still for loading and spilling

    @contextmanager
    def hold(self, slots: Sequence[Slot], token: int) -> Iterator[dict[Slot, Table]]:
        """The tables of a bucket, loaded where missing, and marked as changed under `token`."""
        self._make_room(slots)
        for slot in slots:
            if slot not in self._held:
                self._held[slot] = self._load(slot)
            self._held.move_to_end(slot)
        yield {slot: self._held[slot] for slot in slots}
        self._dirty |= dict.fromkeys(slots, token)

    def write_changed(self) -> dict[Slot, FileEntry]:
        """Write every changed table in memory. Returns the newest file of each stored table."""
        for slot in sorted(self._dirty):
            self._write(slot)
        return dict(self._stored)

    def check_fits(self, slots: Sequence[Slot]) -> None:
        """ConfigError where a bucket needs more tables than may be held."""
        wanted = [slot for slot in slots if slot not in self._pinned]
        if len(wanted) > self._capacity:
            raise ConfigError(
                f"[train] buffer = {self._capacity} is too small: a bucket of this graph needs "
                f"{len(wanted)} tables at once ({', '.join(f'{s[0]} {s[1]}' for s in wanted)}). "
                f"Set train.buffer={len(wanted)} or more."
            )

    def _make_room(self, slots: Sequence[Slot]) -> None:
        self.check_fits(slots)
        wanted = [slot for slot in slots if slot not in self._pinned]
        leaving = [s for s in self._held if s not in self._pinned and s not in slots]
        num_kept = sum(slot not in self._pinned for slot in self._held) - len(leaving)
        num_new = sum(slot not in self._held for slot in wanted)
        excess = len(leaving) + num_kept + num_new - self._capacity
        for slot in leaving[: max(excess, 0)]:
            if slot in self._dirty:
                self._write(slot)
            del self._held[slot]

    def _load(self, slot: Slot) -> Table:
        start = perf_counter()
        if slot in self._stored:
            entry = self._stored[slot]
            table = self._checkpoint.read_table(entry, self._fresh(slot), self._num_rows[slot])
            self.num_reads += 1
            self.io_bytes += entry.bytes
        else:
            table = tables.fresh(self._num_rows[slot], self._fresh(slot))
        self.wait_s += perf_counter() - start
        return table

    def _write(self, slot: Slot) -> None:
        start = perf_counter()
        token = self._dirty[slot]
        self._stored[slot] = self._checkpoint.write_table(slot, token, self._held[slot])
        del self._dirty[slot]
        self.num_writes += 1
        self.io_bytes += self._stored[slot].bytes
        self.wait_s += perf_counter() - start
