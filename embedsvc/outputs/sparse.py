"""The fused step over some classes: scores, gradients and updates of their rows, on two threads.

A step's cost and memory follow the number A of active classes, not C: rows are gathered once, and
the active ones are told apart in a hash table of 2 A places.

    begin    gather the rows, score them, take exponentials             2 A B D operations
    finish   slopes in place, gradients of rows and of hidden vectors   4 A B D
             and each row's update while its gradient is in cache

Between the two, autograd may do as it likes: what `finish` needs is in the SparseStep. Each half is
one task a thread, a slice of the classes each.

In the optimizers, means are over the D numbers of a row and its bias: one step for all of them.

Letters: A active classes, B batch, C classes, D dimension, T labels of a row.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedsvc.graph.fast import one_blas_thread
from embedsvc.outputs import kernels
from embedsvc.outputs.kernels import TILE, Table, Update
from partitions.errors import ConfigError
from partitions.registry import Registry

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


class RowOptimizer(Protocol):
    """What an update makes of a row and of its state; the kernel has the formulas."""

    @property
    def state_width(self) -> int:
        """float32 numbers a row."""

    def update(self, lr: float) -> Update: ...


ROW_OPTIMIZERS: Registry[RowOptimizer] = Registry("row optimizer")


@ROW_OPTIMIZERS.add("sgd")
@dataclass(frozen=True)
class Sgd:
    """w -= lr g"""

    state_width = 0

    def update(self, lr: float) -> Update:
        return Update(kernels.SGD, lr, 0.0)


@ROW_OPTIMIZERS.add("rowwise_adagrad")
@dataclass(frozen=True)
class RowwiseAdagrad:
    """G[c] += mean of g[c]^2 ;  w[c] -= lr g[c] / (sqrt(G[c]) + 1e-10)"""

    state_width = 1

    def update(self, lr: float) -> Update:
        return Update(kernels.ROWWISE_ADAGRAD, lr, 0.0)


@ROW_OPTIMIZERS.add("adam_lite")
@dataclass(frozen=True)
class AdamLite:
    """Adam without a first moment, and with one second moment a row: graph.optimizers.Adam(0).

    t[c] += 1 ;  v[c] = beta2 v[c] + (1 - beta2) mean of g[c]^2
    w[c] -= lr g[c] / (sqrt(v[c] / (1 - beta2^t[c])) + 1e-8)
    """

    beta2: float = 0.999
    state_width = 2

    def __post_init__(self) -> None:
        if not 0 <= self.beta2 < 1:
            raise ConfigError(
                f"adam_lite's beta2 is {self.beta2}; it must be at least 0 and below 1."
            )

    def update(self, lr: float) -> Update:
        return Update(kernels.ADAM_LITE, lr, self.beta2)


@dataclass
class Active:
    """The classes of a step; how they were chosen is active.py's matter."""

    ids: Ids  # [A], distinct
    shift: Floats  # [A], taken from the scores
    at: NDArray[np.int64]  # [B, T], places of the targets among them; -1 where there is none
    num_head: int = 0  # so many, the first ones, are of the head

    @property
    def others(self) -> Ids:
        """Outside the head."""
        return self.ids[self.num_head :]

    @property
    def goals(self) -> Ids:
        """Of these, the targets."""
        return self.ids[np.unique(self.at[self.at >= self.num_head])]


class Workspace:
    """Memory of one step, for the next one to use again."""

    def __init__(self) -> None:
        self._memory: dict[str, Floats] = {}

    def floats(self, name: str, *shape: int) -> Floats:
        """Not cleared."""
        size = int(np.prod(shape))
        if name not in self._memory or self._memory[name].size < size:
            self._memory[name] = np.empty(size, np.float32)
        return self._memory[name][:size].reshape(shape)

    @property
    def num_bytes(self) -> int:
        return sum(memory.nbytes for memory in self._memory.values())


class Scoring:
    """What the threads of a step's first half write, each of its slice of the classes.

    turned: [D, B], the hidden vectors; label: [B, T], the targets' scores; top, total: [slices, B],
    highest scores, and sums of exponentials of what is below them.
    """

    def __init__(
        self,
        hidden: Floats,
        at: NDArray[np.int64],
        bounds: list[tuple[int, int]],
        space: Workspace,
    ) -> None:
        """at: [B, T], what kernels know the targets by; -1 where there is none."""
        num, dim = hidden.shape
        self._at = at
        self.turned, self.label = space.floats("turned", dim, num), space.floats("label", *at.shape)
        self.turned[:], self.label[:] = hidden.T, 0
        self.top = space.floats("top", len(bounds), num)
        self.total = space.floats("total", len(bounds), num)

    def log_total(self) -> NDArray[np.float64]:
        """log Z [B]."""
        highest = self.top.max(0).astype(np.float64)
        with np.errstate(invalid="ignore"):  # what overflowed is NaN
            return np.asarray(highest + np.log((self.total * np.exp(self.top - highest)).sum(0)))

    def of_labels(
        self, log_total: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Mean log-probability of each row's targets (0 where there is none), and their number."""
        there = self._at >= 0
        num_labels = there.sum(1)
        with np.errstate(invalid="ignore"):
            found = np.where(there, self.label - log_total[:, None], 0).sum(1)
        return found / np.maximum(num_labels, 1), num_labels


@dataclass
class SparseStep:
    """A training step between its halves (fused.FusedStep)."""

    table: Table
    update: Update
    halves: bool  # products are of bfloat16
    active: Active
    hidden: Floats  # [B, D]
    log_prob: NDArray[np.float64]  # [B], of the targets; the mean over the labels of a row
    num_labels: NDArray[np.int64]  # [B]
    bounds: list[tuple[int, int]]  # the threads' slices
    rows: Floats  # [A, D]
    block: Floats  # [A, B]
    top: Floats  # [threads, B]
    log_total: NDArray[np.float64]  # [B]
    space: Workspace

    @classmethod
    def begin(
        cls,
        table: Table,
        update: Update,
        halves: bool,
        hidden: Floats,
        active: Active,
        space: Workspace,
        threads: int,
    ) -> "SparseStep":
        """hidden: float32 [B, D], C order, B > 0. A > 0."""
        (num, dim), size = hidden.shape, len(active.ids)
        bounds = slices(size, threads)
        rows, block = space.floats("rows", size, dim), space.floats("block", size, num)
        found = Scoring(hidden, active.at, bounds, space)

        def score(thread: int, first: int, last: int) -> None:
            kernels.score_active(
                table,
                halves,
                first,
                last,
                active.ids,
                active.shift,
                found.turned,
                active.at,
                rows,
                block,
                found.label,
                found.top[thread],
                found.total[thread],
            )

        in_threads(score, bounds)
        log_total = found.log_total()
        log_prob, num_labels = found.of_labels(log_total)
        return cls(
            table,
            update,
            halves,
            active,
            hidden,
            log_prob,
            num_labels,
            bounds,
            rows,
            block,
            found.top,
            log_total,
            space,
        )

    def finish(self, weight: Floats, wanted: bool) -> Floats | None:
        num, dim = self.hidden.shape
        weight, share = slopes(weight, self.num_labels)
        scale = (np.exp(self.top - self.log_total) * weight).astype(np.float32)
        work = self.space.floats("work", len(self.bounds), TILE + num, dim)
        grad = self.space.floats("grad", len(self.bounds), num if wanted else 0, dim)

        def learn(thread: int, first: int, last: int) -> None:
            kernels.update_active(
                self.table,
                self.update,
                self.halves,
                first,
                last,
                self.active.ids,
                self.hidden,
                self.active.at,
                scale[thread],
                share,
                self.rows,
                self.block,
                work[thread],
                grad[thread],
            )

        in_threads(learn, self.bounds)
        return grad.sum(0) if wanted else None


def slices(size: int, threads: int) -> list[tuple[int, int]]:
    """Of about equal length, none empty."""
    threads = max(1, min(threads, size // 64))
    ends = [size * t // threads for t in range(threads + 1)]
    return list(pairwise(ends))


def slopes(weight: Floats, num_labels: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """What minimising changes by with each row's log Z, and with the score of each of its targets,
    negated; [B], 0 where a row has no target."""
    weight = np.where(num_labels > 0, weight, 0).astype(np.float32)
    return weight, (weight / np.maximum(num_labels, 1)).astype(np.float32)


def in_threads(task: Callable[[int, int, int], Any], bounds: list[tuple[int, int]]) -> None:
    """task(thread, first, last) for each slice; the caller's thread takes the first."""
    with one_blas_thread():
        others = [
            _pool(len(bounds) - 1).submit(task, thread, *bounds[thread])
            for thread in range(1, len(bounds))
        ]
        try:
            task(0, *bounds[0])
        finally:
            for other in others:
                other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "softmax")


if hasattr(os, "register_at_fork"):  # a child has the pool, but none of its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
