"""partitions.schedule: workers come, fail and die at random; every bucket counts exactly once."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from partitions.schedule import Lease, Progress, Schedule
from partitions.schema import Bucket, Slot

WORKERS = ("ann", "bob", "eve")


def two_types(bucket: Bucket) -> frozenset[Slot]:
    return frozenset({Slot("user", bucket.lhs), Slot("movie", bucket.rhs)})


def one_type(bucket: Bucket) -> frozenset[Slot]:
    return frozenset({Slot("node", bucket.lhs), Slot("node", bucket.rhs)})


def left_only(bucket: Bucket) -> frozenset[Slot]:
    return frozenset({Slot("user", bucket.lhs)})


def nothing(bucket: Bucket) -> frozenset[Slot]:
    return frozenset()


def grid(rows: int, columns: int) -> list[Bucket]:
    return [Bucket(i, j) for i in range(rows) for j in range(columns)]


def shuffled(buckets: Sequence[Bucket]) -> Callable[[int], list[Bucket]]:
    """An order of its own for every epoch, the same at every call."""
    return lambda epoch: [
        buckets[at] for at in np.random.default_rng(epoch).permutation(len(buckets))
    ]


class Workers(RuleBasedStateMachine):
    """Several workers drive a schedule. What is saved survives a kill, the rest does not."""

    @initialize(
        buckets=st.lists(st.sampled_from(grid(4, 3)), min_size=1, max_size=8, unique=True),
        locks=st.sampled_from([two_types, one_type, left_only, nothing]),
        num_epochs=st.integers(1, 3),
    )
    def start(
        self,
        buckets: list[Bucket],
        locks: Callable[[Bucket], frozenset[Slot]],
        num_epochs: int,
    ) -> None:
        self.buckets, self.locks, self.num_epochs = buckets, locks, num_epochs
        self.running: dict[int, tuple[Lease, str]] = {}
        self.late: set[int] = set()  # tokens that count for nothing any more
        self.committed: list[Lease] = []  # in this process
        self.saved = Progress()
        self.saved_commits: list[Lease] = []  # what a manifest says, over all kills
        self.schedule = self.resumed()

    def resumed(self) -> Schedule:
        return Schedule(shuffled(self.buckets), self.locks, self.num_epochs, self.saved)

    @property
    def epoch(self) -> int:
        return len(self.committed) // len(self.buckets)

    @property
    def waiting(self) -> set[Bucket]:
        done = {lease.bucket for lease in self.committed if lease.epoch == self.epoch}
        busy = {lease.bucket for lease, _ in self.running.values()}
        return set(self.buckets) - done - busy if self.epoch < self.num_epochs else set()

    def free_for(self, worker: str) -> set[Bucket]:
        held = [self.locks(lease.bucket) for lease, who in self.running.values() if who != worker]
        return {b for b in self.waiting if self.locks(b).isdisjoint(frozenset().union(*held))}

    @rule(worker=st.sampled_from(WORKERS))
    def acquire(self, worker: str) -> None:
        free = self.free_for(worker)
        lease = self.schedule.acquire(worker)
        assert (lease is None) == (not free), "idle though a bucket is free, or the reverse"
        if lease is not None:
            assert lease.bucket in free
            assert lease.epoch == self.epoch, "epochs overlap"
            assert lease.token not in self.running and lease.token >= self.saved.next_token
            assert lease.token not in {saved.token for saved in self.saved_commits}
            self.late.discard(lease.token)  # a kill may have lost that it was given out before
            self.running[lease.token] = (lease, worker)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(sorted(self.running)))
        assert self.schedule.commit(token)
        self.committed.append(self.running.pop(token)[0])
        self.late.add(token)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(sorted(self.running)))
        assert self.schedule.fail(token)
        lease, worker = self.running.pop(token)
        self.late.add(token)
        assert lease.bucket in self.waiting
        assert self.free_for(worker)

    @rule(data=st.data(), made_up=st.integers(-1, 1000))
    def late_writer(self, data: st.DataObject, made_up: int) -> None:
        tokens = sorted(self.late | ({made_up} - set(self.running)))
        if tokens:
            token = data.draw(st.sampled_from(tokens))
            before = self.schedule.progress
            assert not self.schedule.commit(token)
            assert not self.schedule.fail(token)
            assert self.schedule.progress == before

    @rule()
    def save(self) -> None:
        self.saved, self.saved_commits = self.schedule.progress, list(self.committed)

    @rule()
    def kill_and_resume(self) -> None:
        self.late |= set(self.running)
        self.running, self.committed = {}, list(self.saved_commits)
        self.schedule = self.resumed()
        assert self.schedule.progress == self.saved

    @invariant()
    def no_two_workers_share_a_lock(self) -> None:
        held: dict[Slot, str] = {}
        for lease, worker in self.running.values():
            for slot in self.locks(lease.bucket):
                assert held.setdefault(slot, worker) == worker

    @invariant()
    def counts_are_right(self) -> None:
        assert self.schedule.finished == (self.epoch >= self.num_epochs)
        assert self.schedule.progress.epoch == self.epoch
        assert self.schedule.num_waiting == len(self.waiting)
        expected = 0 if self.schedule.finished else len(self.buckets)
        assert self.schedule.num_buckets == expected

    def teardown(self) -> None:
        if not hasattr(self, "schedule"):
            return
        for token in list(self.running):
            assert self.schedule.fail(token)
        self.running.clear()
        left = self.num_epochs * len(self.buckets) - len(self.committed)
        for _ in range(left):
            lease = self.schedule.acquire("ann")
            assert lease is not None
            assert self.schedule.commit(lease.token)
            self.committed.append(lease)
        assert self.schedule.finished and self.schedule.acquire("ann") is None
        epochs = [lease.epoch for lease in self.committed]
        assert epochs == sorted(epochs)
        times = Counter((lease.epoch, lease.bucket) for lease in self.committed)
        assert times == Counter((e, b) for e in range(self.num_epochs) for b in self.buckets)
        tokens = [lease.token for lease in self.committed]
        assert len(set(tokens)) == len(tokens)


Workers.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
test_workers_that_fail_and_die_do_every_bucket_once = Workers.TestCase


def drained(schedule: Schedule) -> list[Lease]:
    leases = []
    while (lease := schedule.acquire("ann")) is not None:
        leases.append(lease)
        assert schedule.commit(lease.token)
    return leases


def test_a_single_worker_follows_the_order_of_each_epoch() -> None:
    order = shuffled(grid(3, 3))
    leases = drained(Schedule(order, two_types, num_epochs=3))
    assert [lease.bucket for lease in leases] == order(0) + order(1) + order(2)
    assert [lease.epoch for lease in leases] == [0] * 9 + [1] * 9 + [2] * 9
    assert [lease.token for lease in leases] == list(range(1, 28))


def test_a_worker_may_train_several_buckets_over_the_tables_it_holds() -> None:
    buckets = [Bucket(0, 0), Bucket(0, 1), Bucket(1, 1)]
    schedule = Schedule(lambda epoch: buckets, two_types, num_epochs=1)
    assert [schedule.acquire("ann").bucket for _ in range(2)] == buckets[:2]  # type: ignore[union-attr]
    assert schedule.acquire("bob") is None, "(1, 1) needs movie 1, which ann holds"
    assert schedule.acquire("ann").bucket == buckets[2]  # type: ignore[union-attr]


def test_the_next_epoch_waits_for_the_last_commit_of_this_one() -> None:
    schedule = Schedule(lambda epoch: grid(2, 1), nothing, num_epochs=2)
    first, second = schedule.acquire("ann"), schedule.acquire("bob")
    assert first is not None and second is not None
    assert schedule.acquire("eve") is None
    schedule.commit(second.token)
    assert schedule.acquire("eve") is None
    schedule.commit(first.token)
    third = schedule.acquire("eve")
    assert third is not None and third.epoch == 1


def test_a_failed_bucket_is_the_next_one() -> None:
    schedule = Schedule(lambda epoch: grid(3, 1), nothing, num_epochs=1)
    first = schedule.acquire("ann")
    assert first is not None
    schedule.fail(first.token)
    again = schedule.acquire("bob")
    assert again is not None
    assert (again.bucket, again.token) == (first.bucket, first.token + 1)


def test_a_finished_schedule_goes_on_when_epochs_are_added() -> None:
    schedule = Schedule(lambda epoch: grid(2, 2), two_types, num_epochs=1)
    drained(schedule)
    more = Schedule(lambda epoch: grid(2, 2), two_types, 3, schedule.progress)
    assert not more.finished
    leases = drained(more)
    assert [lease.epoch for lease in leases] == [1] * 4 + [2] * 4
    assert leases[0].token == 5
    assert more.finished


@pytest.mark.parametrize("epochs", [0, 3])
def test_without_buckets_everything_is_done(epochs: int) -> None:
    schedule = Schedule(lambda epoch: [], two_types, epochs)
    assert schedule.finished and schedule.acquire("ann") is None
    assert (schedule.num_buckets, schedule.num_waiting) == (0, 0)


def test_many_epochs_with_nothing_to_do_are_passed() -> None:
    """More of them than Python's stack is deep; the last one has a bucket."""
    schedule = Schedule(lambda epoch: grid(1, 1) if epoch == 4999 else [], two_types, 5000)
    assert schedule.progress == Progress(4999)
    assert [lease.epoch for lease in drained(schedule)] == [4999]
    assert schedule.finished
    assert Schedule(lambda epoch: [], two_types, 5000).finished


def test_an_epoch_whose_buckets_are_all_done_gives_way_to_the_next() -> None:
    progress = Progress(2, tuple(grid(2, 1)), 9)
    schedule = Schedule(lambda epoch: grid(2, 1), two_types, 4, progress)
    assert schedule.progress == Progress(3, (), 9)


def test_what_comes_is_told_for_this_epoch_and_the_next() -> None:
    order = shuffled(grid(3, 2))
    schedule = Schedule(order, two_types, 2)
    first = schedule.acquire("ann")
    assert first is not None
    assert schedule.coming() == order(0)[1:] + order(1)
    schedule.fail(first.token)
    assert schedule.coming() == order(0) + order(1)
    for _ in range(6):
        lease = schedule.acquire("ann")
        assert lease is not None
        schedule.commit(lease.token)
    assert schedule.coming() == order(1), "there is no third epoch"
