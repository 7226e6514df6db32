"""The buffer: which embedding tables are in memory. Loading, eviction and spilling hide here.

Tables of types with one partition stay for good; of the others at most `capacity` are held. Told
which buckets come, the buffer gives up the table that is needed last (partitions/lookahead.py),
and loads the next ones while training goes on; not told, or told wrongly, it gives up the least
recently used. A table that leaves changed is written under a name of its own, to be read back from
there; it belongs to no checkpoint until the next commit names it.

One thread reads and writes, in the order in which it is asked. So a table is written before it is
read again, and what makes room is gone before what needs the room is there: the tables held,
coming and going never take more than those held and coming did when the last of them was asked
for, which is at most `capacity + prefetch`.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Protocol

from partitions import tables
from partitions.checkpoint import Checkpoint
from partitions.durable import FileEntry
from partitions.errors import ConfigError
from partitions.lookahead import Lookahead
from partitions.schema import Slot
from partitions.tables import Form, Fresh, Table

_PLAIN = Form()


class Placement(Protocol):
    """Where the tables are that the buffer holds. Its thread calls both."""

    def place(self, table: Table) -> Any:
        """What is held, and trained, of a table just read."""

    def fetch(self, held: Any) -> Table:
        """The table again, to be written."""


class InMemory:
    def place(self, table: Table) -> Table:
        return table

    def fetch(self, held: Table) -> Table:
        return held


IN_MEMORY = InMemory()


class Buffer:
    def __init__(
        self,
        checkpoint: Checkpoint,
        stored: Mapping[Slot, FileEntry],
        num_rows: Mapping[Slot, int],
        fresh: Callable[[Slot], Fresh],
        pinned: frozenset[Slot],
        capacity: int,
        prefetch: int = 0,
        coming: Callable[[], Iterable[Collection[Slot]]] = tuple,
        form: Form = _PLAIN,
        placement: Placement = IN_MEMORY,
    ) -> None:
        """stored: the newest file of each table that has one. pinned: tables that never leave.
        prefetch: tables loaded ahead beyond `capacity`. coming: the tables of the buckets after
        the one that is held, as far as they are known; a hint. form: of tables without a file."""
        self._checkpoint, self._num_rows, self._fresh = checkpoint, num_rows, fresh
        self._form, self._placement = form, placement
        self._stored = dict(stored)  # changed by the thread alone, which reads it at its turn
        self._pinned, self._capacity, self._prefetch = pinned, capacity, prefetch
        self._held: OrderedDict[Slot, Any] = OrderedDict()
        self._arriving: dict[Slot, Future[Any]] = {}
        self._dirty: dict[Slot, int] = {}  # slot -> token of the last lease that touched it
        self._coming, self._plan, self._planned = coming, Lookahead(), 0
        self._thread = ThreadPoolExecutor(1, "tables")
        self._failure: BaseException | None = None  # of the thread: nothing is done after it
        self.num_reads = self.num_writes = 0
        self.num_swaps = 0  # tables that left to make room
        self.wait_s = 0.0  # time that training stood still for loading and writing

    @property
    def io_bytes(self) -> int:
        """Bytes of table files, counted where they are read and written."""
        return self._checkpoint.table_traffic.io_bytes

    @contextmanager
    def hold(self, slots: Sequence[Slot], token: int) -> Iterator[dict[Slot, Any]]:
        """The tables of a bucket, loaded where missing, and marked as changed under `token`.

        Raises what went wrong with a table file, whichever table it was and whenever.
        """
        start = perf_counter()
        self.check_fits(slots)
        self._follow(slots)
        for slot in slots:
            if slot not in self._held:
                self._held[slot] = self._take(slot, slots)
            self._held.move_to_end(slot)
        self._load_ahead(slots)
        self._raise_failure()
        self.wait_s += perf_counter() - start
        yield {slot: self._held[slot] for slot in slots}
        self._dirty |= dict.fromkeys(slots, token)

    def write_changed(self) -> dict[Slot, FileEntry]:
        """Write every changed table in memory. Returns the newest file of each stored table."""
        start = perf_counter()
        writing = [self._write(slot, self._held[slot]) for slot in sorted(self._dirty)]
        for future in [*writing, self._thread.submit(self._raise_failure)]:  # those before, too
            future.result()
        self.wait_s += perf_counter() - start
        return dict(self._stored)

    def close(self) -> None:
        """Stop the thread. What it has not begun is not done: changes are to be written before."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def check_fits(self, slots: Sequence[Slot]) -> None:
        """ConfigError where a bucket needs more tables than may be held."""
        wanted = self._swapped(slots)
        if len(wanted) > self._capacity:
            raise ConfigError(
                f"[train] buffer = {self._capacity} is too small: a bucket of this graph needs "
                f"{len(wanted)} tables at once ({', '.join(f'{s[0]} {s[1]}' for s in wanted)}). "
                f"Set train.buffer={len(wanted)} or more."
            )

    def _swapped(self, slots: Iterable[Slot]) -> list[Slot]:
        return [slot for slot in slots if slot not in self._pinned]

    def _follow(self, slots: Sequence[Slot]) -> None:
        """Go on in the plan; make a new one where it did not expect this, or knows little more."""
        needed = self._swapped(slots)
        if 2 * len(self._plan) <= self._planned or not self._plan.expects(needed):
            self._plan = Lookahead([needed, *map(self._swapped, self._coming())])
            self._planned = len(self._plan)
        self._plan.at += 1

    def _take(self, slot: Slot, needed: Sequence[Slot]) -> Any:
        """A table that is not held, with room made for it."""
        if slot in self._pinned:
            return self._load(slot).result()
        while len(self._swapped(self._held)) >= self._capacity:
            self._give_up(slot for slot in self._held if slot not in needed)
        if slot not in self._arriving:
            while self._num_taken() >= self._capacity + self._prefetch:
                self._give_up(s for s in [*self._arriving, *self._held] if s not in needed)
            self._arriving[slot] = self._load(slot)
        table = self._arriving[slot].result()
        del self._arriving[slot]
        return table

    def _load_ahead(self, slots: Sequence[Slot]) -> None:
        """Ask for the tables that are missing next, as far as there is room for them, or can be
        made: by what is to leave then, and is not needed before."""
        for swap in self._plan.swaps(self._swapped(self._held), self._capacity):
            if swap.enters in self._arriving:
                continue
            if swap.enters in self._held:  # it has to leave, and be written, before it comes back
                return
            if self._num_taken() >= self._capacity + self._prefetch:
                leaves = swap.leaves
                if leaves is None or leaves not in self._held or leaves in slots:
                    return
                if self._plan.next_use(leaves, self._plan.at) < swap.at:
                    return
                self._evict(leaves)
            self._arriving[swap.enters] = self._load(swap.enters)

    def _num_taken(self) -> int:
        return len(self._swapped(self._held)) + len(self._arriving)

    def _give_up(self, slots: Iterable[Slot]) -> None:
        """The one of them that is needed last."""
        slot = self._plan.farthest(self._swapped(slots), self._plan.at)
        if slot in self._held:
            self._evict(slot)
        else:  # asked for by a plan that did not hold
            arriving = self._arriving.pop(slot)
            if not arriving.cancel():
                arriving.result()

    def _evict(self, slot: Slot) -> None:
        table = self._held.pop(slot)
        self.num_swaps += 1
        if slot in self._dirty:
            self._write(slot, table)

    def _load(self, slot: Slot) -> Future[Any]:
        return self._thread.submit(self._read_now, slot)

    def _write(self, slot: Slot, table: Any) -> Future[None]:
        return self._thread.submit(self._write_now, slot, self._dirty.pop(slot), table)

    # --- in the thread ---------------------------------------------------------------------------

    def _read_now(self, slot: Slot) -> Any:
        self._raise_failure()
        try:
            if slot not in self._stored:
                made = tables.fresh(self._num_rows[slot], self._fresh(slot), self._form)
                return self._placement.place(made)
            entry = self._stored[slot]
            read = self._checkpoint.read_table(entry, self._fresh(slot), self._num_rows[slot])
            held = self._placement.place(read)
        except BaseException as error:
            self._failure = error
            raise
        self.num_reads += 1
        return held

    def _write_now(self, slot: Slot, token: int, held: Any) -> None:
        self._raise_failure()
        try:
            self._stored[slot] = self._checkpoint.write_table(
                slot, token, self._placement.fetch(held)
            )
        except BaseException as error:
            self._failure = error
            raise
        self.num_writes += 1

    def _raise_failure(self) -> None:
        """A table that could not be written would be read back as it was before: stop at once."""
        if self._failure is not None:
            raise self._failure
