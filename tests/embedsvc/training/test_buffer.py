"""The buffer holds few tables, loses none, and writes only what changed."""

import weakref
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from embedsvc.training.buffer import Buffer
from partitions.checkpoint import Checkpoint
from partitions.errors import ConfigError, DataError
from partitions.schema import Slot
from partitions.tables import Fresh

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
