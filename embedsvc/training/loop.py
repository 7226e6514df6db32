"""The loop that trainers share: leases are trained, and commits make them count.

    for lease in schedule: train(lease); now and then, and at the end of an epoch: commit(leases)

What a lease is of (a bucket, a piece of an epoch) and what a commit writes is the trainer's matter.
"""

from collections.abc import Callable
from time import monotonic

from embedsvc.config import TrainConfig
from embedsvc.training.ledger import Ledger
from embedsvc.training.stopping import EarlyStopping
from partitions.schedule import Lease, Schedule

_WORKER = "local"


def train_leases(
    schedule: Schedule,
    ledger: Ledger,
    stopping: EarlyStopping | None,
    config: TrainConfig,
    train: Callable[[Lease], None],
    commit: Callable[[list[Lease]], None],
) -> None:
    """commit: writes what these leases made, commits them to the schedule, and clears the list."""
    uncommitted: list[Lease] = []
    last_commit = monotonic()
    progress = schedule.progress
    ledger.go_on_from(progress.epoch, len(progress.done))
    if stopping is not None:
        ledger.judged_before(stopping.metric, stopping.history)
    if config.tensorboard:
        ledger.draw_curves(progress.epoch, len(progress.done))
    while not _stops(schedule, ledger, stopping, uncommitted) and not schedule.finished:
        lease = schedule.acquire(_WORKER)
        if lease is not None:
            train(lease)
            uncommitted.append(lease)
        # No lease: all of the epoch's are trained, and have to count before there are others.
        if lease is None or monotonic() - last_commit >= config.commit_every_s:
            commit(uncommitted)
            last_commit = monotonic()


def _stops(
    schedule: Schedule, ledger: Ledger, stopping: EarlyStopping | None, uncommitted: list[Lease]
) -> bool:
    """Where an epoch has just ended, all of it committed: whether it was the last one."""
    progress = schedule.progress
    if stopping is None or uncommitted or progress.done:
        return False
    found = stopping.judge(progress.epoch)
    if found is not None:
        ledger.judged(progress.epoch, stopping.metric, found)
    return stopping.stopped
