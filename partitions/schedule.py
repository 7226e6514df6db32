"""The bucket state machine: which bucket may be trained next, and which count as done.

No clock, no I/O, no engine: the local trainer and any cluster engine drive the same object.

    lease = schedule.acquire(worker)    # a bucket, or None: nothing is free for this worker now
    schedule.commit(lease.token)        # its effect is in the manifest: done, partitions unlocked
    schedule.fail(lease.token)          # its worker died: the bucket is to be done again

A bucket is done when it is committed, never when it is handed out. Locks are (type, partition) of
partitioned types and belong to a worker, so that one worker may train several buckets over the
tables it holds and commit them together. An epoch begins when the one before is wholly committed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from partitions.schema import Bucket, Slot


@dataclass(frozen=True)
class Lease:
    token: int  # grows for ever, over restarts too; fences late writers
    epoch: int  # counted from 0
    bucket: Bucket


@dataclass(frozen=True)
class Progress:
    """What a manifest keeps of a schedule: enough to go on after any kill."""

    epoch: int = 0
    done: tuple[Bucket, ...] = ()  # of the epoch, in the order of their commits
    next_token: int = 1


class Schedule:
    def __init__(
        self,
        order: Callable[[int], Sequence[Bucket]],
        locks: Callable[[Bucket], frozenset[Slot]],
        num_epochs: int,
        progress: Progress = Progress(),
    ) -> None:
        """order: the buckets of an epoch in the order wanted, the same at every call."""
        self._order, self._locks, self._num_epochs = order, locks, num_epochs
        self._next_token = progress.next_token
        self._running: dict[int, tuple[Lease, str]] = {}
        self._begin(progress.epoch, progress.done)

    def _begin(self, epoch: int, done: Sequence[Bucket] = ()) -> None:
        """The first epoch from this one on that has anything to do."""
        known = set(done)
        self._epoch, self._done, self._waiting = epoch, list(done), list[Bucket]()
        while self._epoch < self._num_epochs:
            self._waiting = [b for b in self._order(self._epoch) if b not in known]
            if self._waiting:
                return
            self._epoch, self._done = self._epoch + 1, []
            known.clear()

    @property
    def finished(self) -> bool:
        return self._epoch >= self._num_epochs

    @property
    def progress(self) -> Progress:
        return Progress(self._epoch, tuple(self._done), self._next_token)

    @property
    def num_buckets(self) -> int:
        """Buckets of the current epoch."""
        return len(self._waiting) + len(self._running) + len(self._done)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def coming(self) -> list[Bucket]:
        """What waits, and the epoch after this one: all that a buffer may want to know."""
        after = self._epoch + 1
        return self._waiting + (list(self._order(after)) if after < self._num_epochs else [])

    def acquire(self, worker: str) -> Lease | None:
        """The first waiting bucket whose partitions no other worker holds."""
        held = {
            slot
            for lease, holder in self._running.values()
            if holder != worker
            for slot in self._locks(lease.bucket)
        }
        for bucket in self._waiting:
            if held.isdisjoint(self._locks(bucket)):
                self._waiting.remove(bucket)
                lease = Lease(self._next_token, self._epoch, bucket)
                self._next_token += 1
                self._running[lease.token] = (lease, worker)
                return lease
        return None

    def commit(self, token: int) -> bool:
        """Mark a lease's bucket done. False for a token that is not outstanding: a late writer."""
        if token not in self._running:
            return False
        lease, _ = self._running.pop(token)
        self._done.append(lease.bucket)
        if not self._waiting and not self._running:
            self._begin(self._epoch + 1)
        return True

    def fail(self, token: int) -> bool:
        """Put a lease's bucket back in front. False for a token that is not outstanding."""
        if token not in self._running:
            return False
        lease, _ = self._running.pop(token)
        self._waiting.insert(0, lease.bucket)
        return True
