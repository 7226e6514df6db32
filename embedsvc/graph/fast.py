"""The fast CPU step: a bucket's edges over Hogwild threads, chunk by chunk in one kernel.

Each thread takes runs of chunks and updates the tables as it goes, without locks (Niu et al. 2011):
two threads seldom touch one row, and where they do, one update may be lost. Each chunk is an update
of its own; the exact step makes one of batch_size edges. With one thread the result is the same,
bit for bit, at every run; the negatives are the same with any number of threads.
"""

import ctypes
import os
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import scipy.linalg.cython_blas
from numpy.typing import NDArray
from scipy.linalg.blas import sgemm

from embedsvc.compiled import jit
from embedsvc.config import ModelConfig, TrainConfig
from embedsvc.graph import every, kernels
from embedsvc.graph.batches import Group
from embedsvc.graph.comparators import COMPARATORS, Cos, Dot
from embedsvc.graph.losses import (
    LOSSES,
    N3,
    REGULARIZERS,
    LogisticLoss,
    RankingLoss,
    SoftmaxLoss,
)
from embedsvc.graph.model import GraphModel, table_name
from embedsvc.graph.optimizers import OPTIMIZERS, RowwiseAdagrad
from embedsvc.graph.step import Rate, constant
from partitions.edges import Edges
from partitions.hashing import GOLDEN, mix
from partitions.schema import Slot
from partitions.tables import Table

_OPERATORS = {
    "identity": kernels.IDENTITY,
    "diagonal": kernels.DIAGONAL,
    "translation": kernels.TRANSLATION,
    "complex_diagonal": kernels.COMPLEX_DIAGONAL,
}
_COMPARATORS = {Dot: kernels.DOT, Cos: kernels.COS}
_LOSSES = {
    SoftmaxLoss: kernels.SOFTMAX,
    LogisticLoss: kernels.LOGISTIC,
    RankingLoss: kernels.RANKING,
}
RUN_EDGES = 20_000  # of a run of chunks: some 20 ms of work
_LEAST_RUN_EDGES = 1000


def uncovered(config: ModelConfig, train: TrainConfig, relations: Sequence[str] = ()) -> str | None:
    """What of a run the fast step can't do, in words; None: it can do all.

    relations: of the graph. `model.operator` may be that of none of them.
    """
    for name in sorted(config.operators_in_use(relations)):
        if name not in _OPERATORS:
            return f"model.operator = {name}"
    if type(COMPARATORS.build(config.comparator)) not in _COMPARATORS:
        return f"model.comparator = {config.comparator}"
    if type(LOSSES.build(config.loss)) not in _LOSSES:
        return f"model.loss = {config.loss}"
    if config.regularizer and type(REGULARIZERS.build(config.regularizer)) is not N3:
        return f"model.regularizer = {config.regularizer}"
    for name in ("dropout", "relation_dropout"):
        if getattr(config, name):
            return f"model.{name}"
    if train.negatives.degree:
        return "train.negatives.degree"
    if train.negatives.all and (reason := _not_every(config, relations)):
        return f"train.negatives.all with {reason}"
    if train.precision == "float16":
        return "train.precision = float16"
    if type(OPTIMIZERS.build(train.optimizer)) is not RowwiseAdagrad:
        return f"train.optimizer = {train.optimizer}"
    return None


def _not_every(config: ModelConfig, relations: Sequence[str]) -> str | None:
    if type(LOSSES.build(config.loss)) is not SoftmaxLoss:
        return f"model.loss = {config.loss}"
    if type(COMPARATORS.build(config.comparator)) is not Dot:
        return f"model.comparator = {config.comparator}"
    if not config.reciprocal and config.operators_in_use(relations) != {"identity"}:
        return "model.reciprocal = false"
    return None


@dataclass(frozen=True)
class FastStep:
    """A Step for every model that is not `uncovered`."""

    model: GraphModel
    lr: float
    relation_lr: float
    chunk_size: int
    in_batch: bool
    num_uniform: int
    threads: int
    versus_all: bool = False  # each entity is a negative, in place of the other kinds
    halves: bool = False  # products of bfloat16

    def __post_init__(self) -> None:
        _reserve_blas()

    def __call__(
        self,
        tables: Mapping[Slot, Table],
        edges: Edges,
        groups: Sequence[Group],
        seeds: Sequence[int],
        rate: Rate = constant,
    ) -> Generator[tuple[int, float], None, None]:
        key, order_key = np.random.SeedSequence(seeds).generate_state(2, np.uint64)
        runs = chunk_runs(
            edges, groups, self.chunk_size, order_key, by_relation=self.model.moves_candidates
        )
        work = (
            partial(self.train_run, tables, edges, run, key, rate(len(run.rows))) for run in runs
        )
        with one_blas_thread():
            if self.threads == 1:
                yield from (task() for task in work)
                return
            with ThreadPoolExecutor(self.threads, "hogwild") as pool:
                waiting: deque[Future[tuple[int, float]]] = deque()
                try:
                    for task in work:
                        waiting.append(pool.submit(task))
                        if len(waiting) > 2 * self.threads:  # each holds its run's rows
                            yield waiting.popleft().result()
                    while waiting:
                        yield waiting.popleft().result()
                finally:
                    for future in waiting:
                        future.cancel()

    def train_run(
        self,
        tables: Mapping[Slot, Table],
        edges: Edges,
        run: "Run",
        key: np.uint64,
        rate: float = 1.0,
    ) -> tuple[int, float]:
        group, rows = run.group, run.rows
        left, right = tables[group.lhs], tables[group.rhs]
        rel = edges.rel[rows].astype(np.uint32)
        weight = np.ones(len(rows), np.float32) if edges.weight is None else edges.weight[rows]
        if self.model.relation_weights is not None:
            weight = weight * self.model.relation_weights[rel]
        arguments = (
            self._kind(group.operator, rate),
            key,
            run.first_chunk,
            run.starts,
            edges.lhs[rows],
            rel,
            edges.rhs[rows],
            weight,
            kernels.Rows(left.vectors, left.state),
            kernels.Rows(right.vectors, right.state),
            group.lhs == group.rhs,
            self._parameters(table_name(group.operator, reverse=False)),
            self._parameters(table_name(group.operator, reverse=self.model.reciprocal)),
        )
        if not self.versus_all:
            return len(rows), kernels.train_chunks(*arguments)
        longest = int(np.diff(run.starts).max())
        kept = every.room_for(len(left.state), len(right.state), longest, self.halves)
        return len(rows), every.train_chunks(*arguments, kept)

    def _kind(self, operator: str, rate: float) -> kernels.Kind:
        model = self.model
        return kernels.Kind(
            operator=_OPERATORS[operator],
            # The identity has no parameters: both directions ask the same.
            reciprocal=model.reciprocal and operator != "identity",
            comparator=_COMPARATORS[type(model.comparator)],
            scale=float(getattr(model.comparator, "scale", 1.0)),
            loss=_LOSSES[type(model.loss)],
            margin=float(getattr(model.loss, "margin", 0.0)),
            n3=float(model.regularizer.weight) if isinstance(model.regularizer, N3) else 0.0,
            in_batch=self.in_batch,
            num_uniform=self.num_uniform,
            halves=self.halves,
            lr=rate * self.lr,
            relation_lr=rate * self.relation_lr,
        )

    def _parameters(self, name: str) -> kernels.Rows:
        parameters = self.model.parameters
        return kernels.Rows(parameters.values[name].numpy(), parameters.state[name].numpy())


# --- runs of chunks -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Consecutive chunks of one group; a chunk's number is its place in the bucket's order."""

    group: Group
    first_chunk: int
    starts: NDArray[np.int64]  # [chunks + 1], places in rows
    rows: NDArray[np.uint32]  # numbers of edges


def chunk_runs(
    edges: Edges, groups: Sequence[Group], chunk_size: int, key: np.uint64, *, by_relation: bool
) -> Iterator[Run]:
    """Every edge once, shuffled; a chunk's edges share their group, and relation where asked.

    Takes 4 bytes an edge for the order, and 4 more where there is more than one group.
    """
    kinds = list(dict.fromkeys(groups))
    kind_of_rel = np.array([kinds.index(group) for group in groups])
    shared = np.arange(len(groups)) if by_relation else kind_of_rel
    order = np.empty(len(edges), np.uint32)
    _shuffle(key, order)
    if shared.max(initial=0) > 0:
        order, sizes = _grouped(order, edges.rel, shared.astype(np.uint32))
    else:
        sizes = np.array([len(edges)])
    kind_of_group = np.zeros(len(sizes), np.int64)
    kind_of_group[shared] = kind_of_rel

    num_chunks = -(-sizes // chunk_size)
    group_of_chunk = np.repeat(np.arange(len(sizes)), num_chunks)
    number = np.arange(len(group_of_chunk)) - np.repeat(
        np.cumsum(num_chunks) - num_chunks, num_chunks
    )
    begins = (np.cumsum(sizes) - sizes)[group_of_chunk] + number * chunk_size
    lengths = np.minimum(sizes[group_of_chunk] - number * chunk_size, chunk_size)

    run_edges = np.clip(len(edges) // 64, _LEAST_RUN_EDGES, RUN_EDGES)
    per_run = max(1, int(run_edges) // chunk_size)
    rng = np.random.default_rng(key)
    runs = []
    for kind in range(len(kinds)):
        chunks = np.flatnonzero(kind_of_group[group_of_chunk] == kind)
        if len(sizes) > 1:  # a lone group is shuffled as it is
            chunks = rng.permutation(chunks)
        runs += [(kind, chunks[at : at + per_run]) for at in range(0, len(chunks), per_run)]
    first_chunk = 0
    for at in rng.permutation(len(runs)):
        kind, chunks = runs[at]
        starts = np.concatenate([[0], np.cumsum(lengths[chunks])])
        places = np.repeat(begins[chunks] - starts[:-1], lengths[chunks]) + np.arange(starts[-1])
        yield Run(kinds[kind], first_chunk, starts, order[places])
        first_chunk += len(chunks)


@jit
def _shuffle(key, order):  # type: ignore[no-untyped-def]
    """A random permutation of 0 .. n - 1 (Fisher and Yates)."""
    state = np.uint64(key)
    for i in range(order.size):
        state += np.uint64(GOLDEN)
        j = np.int64(mix(state) % np.uint64(i + 1))
        order[i] = order[j]
        order[j] = i


@jit
def _grouped(order, rel, group_of_rel):  # type: ignore[no-untyped-def]
    """The order, stably sorted by group, and the number of edges in each."""
    sizes = np.zeros(group_of_rel.max() + 1, np.int64)
    for edge in order:
        sizes[group_of_rel[rel[edge]]] += 1
    at = np.cumsum(sizes) - sizes
    out = np.empty_like(order)
    for edge in order:
        group = group_of_rel[rel[edge]]
        out[at[group]] = edge
        at[group] += 1
    return out, sizes


# --- BLAS -----------------------------------------------------------------------------------------


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Numba's products come from scipy's OpenBLAS, whose own threads would stand in ours' way.

    Its number of threads is the process's: the first of those inside sets it and the last puts it
    back, whichever threads they are.
    """
    blas = _scipy_openblas()
    if blas is None:
        yield
        return
    with _INSIDE.lock:
        if not _INSIDE.depth:
            _INSIDE.before = blas.scipy_openblas_get_num_threads()
            blas.scipy_openblas_set_num_threads(1)
        _INSIDE.depth += 1
    try:
        yield
    finally:
        with _INSIDE.lock:
            _INSIDE.depth -= 1
            if not _INSIDE.depth:
                blas.scipy_openblas_set_num_threads(_INSIDE.before)


@cache
def _reserve_blas() -> None:
    """OpenBLAS takes some 34 MB with its first large product, and where memory is short asks for
    them for ever. So it gets them before tables do, for which there is a sentence."""
    square = np.ones((512, 512), np.float32)
    with one_blas_thread():
        sgemm(1.0, square, square)


@dataclass
class _Inside:
    """Those inside `one_blas_thread`."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    depth: int = 0
    before: int = 1  # threads


_INSIDE = _Inside()


@cache
def _scipy_openblas() -> ctypes.CDLL | None:
    """The library that scipy's wheels bring along; None where scipy was built otherwise.

    There, its number of threads is what the environment says (OPENBLAS_NUM_THREADS=1 and the like).
    """
    package = Path(scipy.linalg.cython_blas.__file__).parents[1]
    for folder in (package.parent / "scipy.libs", package / ".dylibs"):
        for path in folder.glob("libscipy_openblas*"):
            return ctypes.CDLL(str(path))
    return None


def num_cores() -> int:
    """Those this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
