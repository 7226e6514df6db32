"""The buffer holds few tables, loses none, and writes only what changed."""

import errno
import resource
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from embedsvc.training.buffer import Buffer
from partitions.buffer_states import beta_swaps
from partitions.checkpoint import Checkpoint
from partitions.durable import FileEntry
from partitions.errors import ConfigError, DataError
from partitions.lookahead import num_swaps
from partitions.order import ORDERS
from partitions.schema import Bucket, Slot
from partitions.tables import Fresh, Table

DIM = 3
PINNED = Slot("tag", 0)
SLOTS = [Slot("user", at) for at in range(6)]
NUM_ROWS = {slot: 4 + slot.partition for slot in [PINNED, *SLOTS]}


class Watched:
    """A buffer, and weak references to every table it ever handed out."""

    def __init__(self, folder: Path, capacity: int, stored: dict | None = None) -> None:
        self.alive: dict[Slot, list[weakref.ref]] = {slot: [] for slot in NUM_ROWS}
        self.most_alive = 0
        self.made: list[Slot] = []
        self.checkpoint = Checkpoint(folder)
        self.buffer = Buffer(
            self.checkpoint, stored or {}, NUM_ROWS, self._fresh, frozenset({PINNED}), capacity
        )

    def _fresh(self, slot: Slot) -> Fresh:
        def make(offsets: np.ndarray) -> np.ndarray:
            self.made.append(slot)
            self._count(loading=1)
            return np.full((len(offsets), DIM), slot.partition, np.float32)

        return make

    def _count(self, loading: int = 0) -> None:
        num = sum(
            any(ref() is not None for ref in refs)
            for slot, refs in self.alive.items()
            if slot != PINNED
        )
        self.most_alive = max(self.most_alive, num + loading)

    def train(self, slots: list[Slot], token: int) -> None:
        """Add 1 to every number of row 0 and of row token % rows, as a step would."""
        with self.buffer.hold(slots, token) as tables:
            assert set(tables) == set(slots)
            for slot in slots:
                self.alive[slot].append(weakref.ref(tables[slot].vectors))
                for row in {0, token % NUM_ROWS[slot]}:
                    tables[slot].vectors[row] += 1
                    tables[slot].state[row] += 1
            del tables
            self._count()

    def files(self) -> set[str]:
        return {path.name for path in self.checkpoint.path.glob("tables/*")}


def expected(history: list[list[Slot]]) -> dict[Slot, tuple[np.ndarray, np.ndarray]]:
    """What each table must hold after the leases 1, 2, ... of `history`."""
    tables = {
        slot: (np.full((rows, DIM), slot.partition, np.float32), np.zeros(rows, np.float32))
        for slot, rows in NUM_ROWS.items()
    }
    for token, slots in enumerate(history, start=1):
        for slot in slots:
            for row in {0, token % NUM_ROWS[slot]}:
                tables[slot][0][row] += 1
                tables[slot][1][row] += 1
    return tables


@given(
    history=st.lists(
        st.lists(st.sampled_from(SLOTS), min_size=1, max_size=3, unique=True), max_size=12
    ),
    capacity=st.integers(3, 5),
)
def test_no_update_is_lost_and_no_more_tables_are_held_than_allowed(
    history: list[list[Slot]], capacity: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    history = [[PINNED, *slots] for slots in history]
    watched = Watched(tmp_path_factory.mktemp("checkpoint"), capacity)
    for token, slots in enumerate(history, start=1):
        watched.train(slots, token)
    assert watched.most_alive <= capacity
    stored = watched.buffer.write_changed()
    wanted = expected(history)
    assert set(stored) == {slot for slots in history for slot in slots}
    for slot, entry in stored.items():
        table = watched.checkpoint.read_table(
            entry, watched._fresh(slot), watched.buffer._num_rows[slot]
        )
        assert np.array_equal(table.vectors, wanted[slot][0])
        assert np.array_equal(table.state, wanted[slot][1])


def test_an_evicted_table_comes_back_equal(tmp_path: Path) -> None:
    watched = Watched(tmp_path, capacity=2)
    history = [[SLOTS[0], SLOTS[1]], [SLOTS[2], SLOTS[3]], [SLOTS[0], SLOTS[3]]]
    for token, slots in enumerate(history, start=1):
        watched.train(slots, token)
    assert watched.buffer.num_reads == 1
    with watched.buffer.hold([SLOTS[0], SLOTS[1]], 4) as tables:
        for slot in (SLOTS[0], SLOTS[1]):
            assert np.array_equal(tables[slot].vectors, expected(history)[slot][0])
            assert np.array_equal(tables[slot].state, expected(history)[slot][1])


def test_the_least_recently_used_table_leaves_first(tmp_path: Path) -> None:
    watched = Watched(tmp_path, capacity=3)
    for token, at in enumerate((0, 1, 2, 0), start=1):
        watched.train([SLOTS[at]], token)
    watched.train([SLOTS[3]], 5)  # 1 leaves
    watched.train([SLOTS[0], SLOTS[2]], 6)
    assert watched.buffer.num_reads == 0
    watched.train([SLOTS[1]], 7)
    assert watched.buffer.num_reads == 1


def test_a_pinned_table_never_leaves_and_does_not_count(tmp_path: Path) -> None:
    watched = Watched(tmp_path, capacity=1)
    for token, slot in enumerate([*SLOTS, *SLOTS], start=1):
        watched.train([PINNED, slot], token)
    assert watched.most_alive <= 1
    assert watched.made.count(PINNED) == 1
    assert not any(name.startswith("tag") for name in watched.files())


def test_a_table_that_did_not_change_is_not_written_again(tmp_path: Path) -> None:
    watched = Watched(tmp_path, capacity=2)
    watched.train([PINNED, SLOTS[0], SLOTS[1]], 1)
    first = watched.buffer.write_changed()
    assert watched.buffer.num_writes == 3
    assert watched.buffer.write_changed() == first
    watched.train([SLOTS[2]], 2)  # evicts 0, whose newest file is there already
    assert watched.buffer.num_writes == 3
    second = watched.buffer.write_changed()
    assert watched.buffer.num_writes == 4
    assert {s: e for s, e in second.items() if s != SLOTS[2]} == first
    assert watched.files() == {Path(entry.path).name for entry in second.values()}


def test_a_spilled_table_keeps_the_checkpoints_file_beside_it(tmp_path: Path) -> None:
    """Until the next commit the manifest still names the old file: it may not be overwritten."""
    watched = Watched(tmp_path, capacity=1)
    watched.train([SLOTS[0]], 1)
    committed = watched.buffer.write_changed()[SLOTS[0]]
    watched.train([SLOTS[0]], 2)
    watched.train([SLOTS[1]], 3)  # spills 0
    assert len([name for name in watched.files() if name.startswith("user-000")]) == 2
    old = watched.checkpoint.read_table(
        committed, watched._fresh(SLOTS[0]), watched.buffer._num_rows[SLOTS[0]]
    )
    assert np.array_equal(old.vectors, expected([[SLOTS[0]]])[SLOTS[0]][0])


def test_a_table_is_read_from_the_file_the_checkpoint_names(tmp_path: Path) -> None:
    first = Watched(tmp_path, capacity=2)
    first.train([SLOTS[0], SLOTS[1]], 1)
    stored = first.buffer.write_changed()
    second = Watched(tmp_path, capacity=2, stored=stored)
    second.train([SLOTS[0], SLOTS[2]], 2)
    assert (second.buffer.num_reads, second.buffer.num_writes) == (1, 0)
    assert second.buffer.io_bytes == stored[SLOTS[0]].bytes
    assert second.buffer.wait_s > 0
    # Untouched rows are not in the file: they were made anew, from the slot they belong to.
    with second.buffer.hold([SLOTS[0]], 3) as tables:
        wanted = expected([[SLOTS[0], SLOTS[1]], [SLOTS[0], SLOTS[2]]])[SLOTS[0]]
        assert np.array_equal(tables[SLOTS[0]].vectors, wanted[0])


def test_a_buffer_smaller_than_a_bucket_is_refused_with_the_number_it_needs(
    tmp_path: Path,
) -> None:
    watched = Watched(tmp_path, capacity=2)
    with (
        pytest.raises(
            ConfigError,
            match=r"buffer = 2 is too small.*needs 3 tables.*user 0, user 1, user 2.*"
            r"Set train\.buffer=3 or more",
        ),
        watched.buffer.hold([PINNED, *SLOTS[:3]], 1),
    ):
        pass


def test_a_truncated_table_is_named_with_what_to_do(tmp_path: Path) -> None:
    watched = Watched(tmp_path, capacity=2)
    watched.train([SLOTS[0]], 1)
    stored = watched.buffer.write_changed()
    path = tmp_path / stored[SLOTS[0]].path
    path.write_bytes(path.read_bytes()[:-1])
    again = Watched(tmp_path, capacity=2, stored=stored)
    with (
        pytest.raises(DataError, match=r"user-000\S* has .* bytes where its manifest says .*Copy"),
        again.buffer.hold([SLOTS[0]], 2),
    ):
        pass


# --- told what comes -----------------------------------------------------------------------------


class Storage(Checkpoint):
    """A checkpoint that writes down what is done with its tables, and how many are in memory."""

    def __init__(self, path: Path, delay_s: float = 0.0) -> None:
        super().__init__(path)
        self.delay_s = delay_s
        self.events: list[tuple[str, Slot]] = []
        self.slot_of: dict[str, Slot] = {}
        self.alive: list[weakref.ref] = []
        self.most_alive = 0

    def made(self, vectors: np.ndarray) -> None:
        self.alive = [ref for ref in [*self.alive, weakref.ref(vectors)] if ref() is not None]
        self.most_alive = max(self.most_alive, len(self.alive))

    def read_table(self, entry: FileEntry, make: Fresh, num_rows: int) -> Table:
        slot = self.slot_of[entry.path]
        self.events.append(("read begins", slot))
        time.sleep(self.delay_s)
        table = super().read_table(entry, make, num_rows)
        self.made(table.vectors)
        self.events.append(("read ends", slot))
        return table

    def write_table(self, slot: Slot, token: int, table: Table) -> FileEntry:
        self.events.append(("write begins", slot))
        time.sleep(self.delay_s)
        entry = super().write_table(slot, token, table)
        self.slot_of[entry.path] = slot
        self.events.append(("write ends", slot))
        return entry


@contextmanager
def told(
    storage: Storage,
    visits: list[list[Slot]],
    capacity: int,
    prefetch: int,
    plan: list[list[Slot]] | None = None,
    stored: dict[Slot, FileEntry] | None = None,
) -> Iterator[Buffer]:
    """A buffer that knows the visits to come, or believes in a plan of its own."""
    left = list(visits)

    def fresh(slot: Slot) -> Fresh:
        def make(offsets: np.ndarray) -> np.ndarray:
            vectors = np.full((len(offsets), DIM), slot.partition, np.float32)
            if len(offsets) == NUM_ROWS[slot]:
                storage.made(vectors)
            return vectors

        return make

    def coming() -> list[list[Slot]]:
        return left[buffer.visited + 1 :] if plan is None else plan  # type: ignore[attr-defined]

    pinned = frozenset({PINNED})
    buffer = Buffer(storage, stored or {}, NUM_ROWS, fresh, pinned, capacity, prefetch, coming)
    buffer.visited = 0  # type: ignore[attr-defined]
    try:
        yield buffer
    finally:
        buffer.close()


def visit(buffer: Buffer, slots: list[Slot], token: int) -> None:
    with buffer.hold(slots, token) as tables:
        assert set(tables) == set(slots)
        for slot in slots:
            for row in {0, token % NUM_ROWS[slot]}:
                tables[slot].vectors[row] += 1
                tables[slot].state[row] += 1
    buffer.visited += 1  # type: ignore[attr-defined]


def assert_nothing_lost(
    storage: Storage, stored: dict[Slot, FileEntry], history: list[list[Slot]]
) -> None:
    wanted = expected(history)
    for slot, entry in stored.items():
        table = Checkpoint(storage.path).read_table(
            entry, lambda offsets, slot=slot: wanted[slot][0][offsets], NUM_ROWS[slot]
        )
        assert np.array_equal(table.vectors, wanted[slot][0])
        assert np.array_equal(table.state, wanted[slot][1])


def assert_writes_end_before_reads(storage: Storage) -> None:
    written: set[Slot] = set()
    being_written: Slot | None = None
    for what, slot in storage.events:
        if what == "write begins":
            assert being_written is None
            being_written = slot
        elif what == "write ends":
            being_written = None
            written.add(slot)
        else:
            assert slot in written and slot != being_written


VISITS = st.lists(
    st.lists(st.sampled_from(SLOTS), min_size=1, max_size=2, unique=True), max_size=14
)


@given(visits=VISITS, capacity=st.integers(2, 4), prefetch=st.integers(0, 2), data=st.data())
def test_a_plan_that_holds_swaps_least_and_one_that_does_not_loses_nothing(
    visits: list[list[Slot]],
    capacity: int,
    prefetch: int,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    believed = data.draw(st.none() | VISITS, label="a wrong plan")
    commits = data.draw(st.sets(st.integers(0, 13), max_size=3), label="commits")
    storage = Storage(tmp_path_factory.mktemp("checkpoint"))
    with told(storage, visits, capacity, prefetch, believed) as buffer:
        for token, slots in enumerate(visits, start=1):
            visit(buffer, slots, token)
            if token in commits:
                assert_nothing_lost(storage, buffer.write_changed(), visits[:token])
        stored = buffer.write_changed()
        if believed is None:
            assert buffer.num_swaps == num_swaps(visits, capacity)
    assert set(stored) == {slot for slots in visits for slot in slots}
    assert_nothing_lost(storage, stored, visits)
    assert_writes_end_before_reads(storage)
    assert storage.most_alive <= capacity + prefetch


def bucket_visits(p: int, c: int, epochs: int, name: str = "best") -> list[list[Slot]]:
    square = [Bucket(i, j) for i in range(p) for j in range(p)]
    needs = {bucket: frozenset(SLOTS[at] for at in bucket) for bucket in square}
    orders = [ORDERS.build(name)(needs, c, np.random.default_rng(e)) for e in range(epochs)]
    return [sorted(needs[bucket]) for order in orders for bucket in order]


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_bytes_moved_are_swaps_times_the_bytes_of_a_table(prefetch: int, tmp_path: Path) -> None:
    """Once all rows of all tables are touched, so that every file is of its full size."""
    storage = Storage(tmp_path)
    with told(storage, [], len(SLOTS), 0) as buffer:
        for token in range(1, 13):
            visit(buffer, SLOTS, token)
        stored = buffer.write_changed()
    sizes = {slot: (tmp_path / entry.path).stat().st_size for slot, entry in stored.items()}
    assert buffer.io_bytes == sum(sizes.values())

    visits = bucket_visits(6, 3, 3)
    before, num_events = buffer.io_bytes, len(storage.events)
    with told(storage, visits, 3, prefetch, stored=stored) as buffer:
        for token, slots in enumerate(visits, start=100):
            visit(buffer, slots, token)
        buffer.write_changed()
    events = storage.events[num_events:]
    done = Counter(what for what, _ in events)
    assert 3 * 6 <= buffer.num_swaps <= 3 * (beta_swaps(6, 3) + 3), "a new first fill an epoch"
    assert buffer.num_reads == done["read ends"] == buffer.num_swaps + 3
    assert buffer.num_writes == done["write ends"] == buffer.num_swaps + 3
    moved = sum(sizes[slot] for what, slot in events if what.endswith("ends"))
    assert buffer.io_bytes - before == moved
    assert_writes_end_before_reads(storage)


def test_training_does_not_wait_for_what_it_was_told(tmp_path: Path) -> None:
    """Reading or writing takes 8 ms and training a bucket 20 ms: all but the first fill hides."""
    waits = {}
    visits = bucket_visits(6, 3, 2)
    for prefetch in (0, 1):
        storage = Storage(tmp_path / str(prefetch), delay_s=0.008)
        with told(storage, visits, 3, prefetch, None if prefetch else []) as buffer:
            for token, slots in enumerate(visits, start=1):
                visit(buffer, slots, token)
                time.sleep(0.02)
            waits[prefetch] = buffer.wait_s
            moved = buffer.num_reads + buffer.num_writes
            assert moved >= 20
    assert waits[0] > 20 * 0.008, "without a plan it waits for each"
    assert waits[1] < 0.3 * waits[0]


def test_a_full_disk_in_the_background_is_told_and_nothing_committed_is_lost(
    tmp_path: Path,
) -> None:
    storage = Storage(tmp_path)
    visits = [[SLOTS[at % 4], SLOTS[(at + 1) % 4]] for at in range(40)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with told(storage, visits, 2, 1) as buffer:
        for token in range(1, 5):
            visit(buffer, visits[token - 1], token)
        committed = buffer.write_changed()
        contents = {
            entry.path: (tmp_path / entry.path).read_bytes() for entry in committed.values()
        }
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(OSError) as caught:
                for token in range(5, 40):
                    visit(buffer, visits[token - 1], token)
            with pytest.raises(OSError):
                buffer.write_changed()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        # It stays so: what could not be written must not be read back as it was before.
        with pytest.raises(OSError), buffer.hold([SLOTS[0]], 99):
            pass
    assert caught.value.errno == errno.EFBIG
    assert str(caught.value.filename).startswith(str(tmp_path / "tables" / "user-00"))
    assert contents == {path: (tmp_path / path).read_bytes() for path in contents}
    assert not list(tmp_path.glob("tables/*.tmp-*"))
    assert_nothing_lost(storage, committed, visits[:4])


@pytest.mark.parametrize("damage", ["gone", "altered", "short"])
def test_a_damaged_file_read_ahead_is_named(damage: str, tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    visits = [[SLOTS[at % 5]] for at in range(20)]
    with told(storage, visits, 2, 1) as buffer:
        for token in range(1, 6):
            visit(buffer, visits[token - 1], token)
        stored = buffer.write_changed()
        time.sleep(0.05)  # what was on its way is there
        slot = next(s for s in SLOTS[:5] if s not in buffer._held and s not in buffer._arriving)
        path = tmp_path / stored[slot].path
        data = bytearray(path.read_bytes())
        data[-70] ^= 1
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(data if damage == "altered" else data[:-1])
        with pytest.raises(
            DataError, match=r"user-00\S* (is missing|was altered|has .* bytes)"
        ) as e:
            for token in range(6, 20):
                visit(buffer, visits[token - 1], token)
    assert str(path) in str(e.value) and "Copy" in str(e.value)
