"""A learned partition: classes in cells by k-means, of which a query looks into a few.

Rows are r = [w, b] without their mean, which every class scores alike; a query is [x, 1]. Nearness
is not a high inner product, as long rows win from afar, so k-means sees one more coordinate, the
length that a row lacks (Bachrach et al. 2014): r' = [w, b, sqrt(m^2 - |r|^2)]. The longest tenth of
the rows lacks nothing: m is the length that nine tenths do not reach, since a few very long ones
would leave all others nothing but that coordinate. So cells hold rows alike in direction and in
length.

A query visits the `probes` cells with the highest

    <mean of the cell, [x, 1]> + reach * spread * |x|,

spread^2 being the mean squared distance from the cell's mean, per coordinate: about how high its
best row scores, not its mean one. With 1024 cells of a million classes of Zipf's frequencies, this
reads a third to a half of the rows that the usual rules read for equal recall (nearest centroid,
highest mean, k-means on directions alone).

A class is one int, its cell. It is looked at on every n-th touch: it moves if one of the cells near
its own is nearer, and its cell's mean and spread follow it. Queries that come
together are grouped by cell, so that each cell visited is one product, rounded to bfloat16 where
that is fast; the best of it are scored anew, exactly. While rows are not being trained, `packed`
keeps a copy of them in the order of cells: else they are gathered from all over the weights.

Pinned classes are one more cell, which every query visits.

Letters: C classes, D dimension, K cells, Q queries, P probes, n rows, m rows of a tile.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsvc.outputs.retrievers import RETRIEVERS, Floats, Ids
from embedsvc.outputs.retrievers import cell_kernels as kernels
from embedsvc.outputs.retrievers.lists import Lists
from embedsvc.outputs.retrievers.products import (
    multiply,
    one_thread_each,
    pack,
    packed_dtype,
    round_rows,
)
from embedsvc.outputs.retrievers.proposals import union
from embedsvc.outputs.retrievers.touches import Touches
from embedsvc.outputs.retrievers.visits import best_in_cells
from embedsvc.outputs.sparse import in_threads
from partitions.errors import ConfigError

_CHUNK = 16_384  # rows read at a time
_TILE_ROWS, _TILE_QUERIES = 1024, 256  # their scores: 1 MB
_FEW = 32  # queries that one thread answers sooner than two
_NEAR = 16  # cells that a touched class may move to at once
_LONGEST = 0.9  # of the rows are no longer than m


@RETRIEVERS.add("partition")
class Partition:
    """k-means cells over [w, b]; the first id retrieved is the best."""

    def __init__(
        self,
        cells: int | None = None,  # unset: the root of the number of classes
        probes: int = 16,  # cells that a query visits
        check_every: int = 32,  # touches of a class
        reach: float = 3.0,  # spreads
        hard_rows: int = 2**31 - 1,  # of a cell, as many as `hard` looks at
        rounds: int = 6,  # of k-means
        sample: int = 64,  # rows a cell that k-means sees
        packed: bool = True,  # a copy of rows for answers, half their size in bfloat16
        seed: int = 0,
    ) -> None:
        if min(probes, hard_rows, cells or 1) < 1 or cells == 0 or not 1 <= check_every <= 255:
            raise ConfigError(
                f"retriever partition: expected cells, probes and hard_rows of 1 or more and "
                f"check_every of 1 to 255, found {cells}, {probes}, {hard_rows} and {check_every}."
            )
        self.cells, self.probes, self.check_every, self.reach = cells, probes, check_every, reach
        self.hard_rows, self._num_hard = hard_rows, 0
        self.rounds, self.sample, self.packed, self.seed = rounds, sample, packed, seed
        self.upkeep_s = 0.0

    @property
    def num_bytes(self) -> int:
        own = (self.cell_C, self._touches.left_C, self._center_KE, self._center_KD, self._near_KN)
        copy = (self._rows, self._offset)
        return self._lists.num_bytes + sum(a.nbytes for a in (*own, *copy) if a is not None)

    # --- building ---------------------------------------------------------------------------------

    def fit(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        self.rebind(weight_CD, bias_C)
        num_classes, dim = weight_CD.shape
        rng = np.random.default_rng(self.seed)
        num_cells = min(self.cells or max(1, round(num_classes**0.5)), max(1, num_classes))
        self._mean_D = weight_CD.mean(axis=0, dtype=np.float32)
        self._mean_bias = np.float32(0 if bias_C is None or not num_classes else bias_C.mean())
        sample = rng.permutation(num_classes)[: self.sample * num_cells]
        self._length = np.float32(np.inf)
        lengths = np.linalg.norm(self._augmented(sample)[:, : dim + 1], axis=1)
        self._length = np.float32(np.quantile(lengths, _LONGEST) if len(lengths) else 0)
        rows = self._augmented(np.sort(sample))
        self._center_KE = rows[rng.permutation(len(rows))[:num_cells]]
        if not num_classes:
            self._center_KE = np.zeros((1, dim + 2), np.float32)
        for _ in range(self.rounds):
            self._use_centers()
            cell = self._nearest(rows)
            size = np.bincount(cell, minlength=len(self._center_KE))
            sums = np.zeros(self._center_KE.shape)
            kernels.add_to(sums, cell, rows)
            self._center_KE = (sums / np.maximum(size, 1)[:, None]).astype(np.float32)
            # Cells of next to nothing are better used where the crowd is.
            small = np.flatnonzero(size < len(rows) / len(size) / 8)
            crowded = rng.choice(len(rows), len(small), p=size[cell] / size[cell].sum())
            self._center_KE[small] = rows[crowded]
        self._use_centers()
        self.cell_C = np.empty(num_classes, np.int32)
        for begin in range(0, num_classes, _CHUNK):
            ids = np.arange(begin, min(begin + _CHUNK, num_classes))
            self.cell_C[ids] = self._nearest(self._augmented(ids))
        self._measure_cells()
        self._touches = Touches(num_classes, self.check_every, self.seed)
        self._fill_lists()

    def _measure_cells(self) -> None:
        """Means and spreads of all cells, from all rows."""
        num_cells, width = self._center_KE.shape
        size = np.bincount(self.cell_C, minlength=num_cells)
        sums, squares = np.zeros((num_cells, width)), np.zeros(num_cells)
        for begin in range(0, len(self.cell_C), _CHUNK):
            cell = self.cell_C[begin : begin + _CHUNK]
            rows = self._augmented(np.arange(begin, begin + len(cell)))
            kernels.add_to(sums, cell, rows)
            squares += np.bincount(cell, (rows[:, :-1] ** 2).sum(axis=1), num_cells)
        full = size > 0
        self._center_KE[full] = sums[full] / size[full, None]
        inner = (self._center_KE[:, :-1].astype(np.float64) ** 2).sum(axis=1)
        variance = np.maximum(squares / np.maximum(size, 1) - inner, 0) / (width - 2)
        self._variance_K = np.where(full, variance, 0).astype(np.float32)
        self._use_centers()

    def _use_centers(self) -> None:
        self._center_KD = pack(np.ascontiguousarray(self._center_KE[:, :-2]))
        self._half_K = (self._center_KE**2).sum(axis=1) / 2
        self._kept_reach: Floats | None = None

    def _fill_lists(self) -> None:
        """The last list is of pinned classes."""
        self._near_KN = self._near_cells()
        live = np.flatnonzero(self.cell_C >= 0)
        self._lists = Lists(len(self._center_KE) + 1, live, self.cell_C[live])
        self._rows: Any = None
        self._offset: Any = None
        self._stale = np.zeros(0, np.bool_)

    def _near_cells(self) -> NDArray[np.int32]:
        """int32 [K, N]: of each center the nearest ones, itself among them."""
        num_cells = len(self._center_KE)
        near = np.empty((num_cells, min(_NEAR, num_cells)), np.int32)
        for begin in range(0, num_cells, _TILE_ROWS):
            some = self._center_KE[begin : begin + _TILE_ROWS]
            distance = self._half_K - some @ self._center_KE.T
            near[begin : begin + len(some)] = np.argpartition(distance, near.shape[1] - 1, axis=1)[
                :, : near.shape[1]
            ]
        return near

    def rebind(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        self._weight = weight_CD
        self._bias = np.zeros(len(weight_CD), np.float32) if bias_C is None else bias_C
        if hasattr(self, "cell_C"):
            new = len(weight_CD) - len(self.cell_C)
            self.cell_C = np.concatenate([self.cell_C, np.full(new, -1, np.int32)])
            self._touches.resize(len(weight_CD))

    def _augmented(self, ids: Ids) -> Floats:
        """float32 [n, D + 2]: w, b, and the length that is lacking; the mean taken off."""
        dim = self._weight.shape[1]
        rows = np.empty((len(ids), dim + 2), np.float32)
        kernels.augment(
            self._weight, self._bias, ids, self._mean_D, self._mean_bias, self._length, rows
        )
        return rows

    def _nearest(self, rows_nE: Floats) -> NDArray[np.int32]:
        """The cell whose center is nearest to each of the rows."""
        out = np.empty(len(rows_nE), np.int32)
        ends_2K = np.ascontiguousarray(self._center_KE[:, -2:].T)

        def work(part: slice) -> None:
            with one_thread_each():
                for begin in range(part.start, part.stop, _TILE_QUERIES):
                    tile = slice(begin, min(begin + _TILE_QUERIES, part.stop))
                    rows = rows_nE[tile]
                    scores = np.empty((len(rows), len(self._center_KE)), np.float32)
                    packed = pack(np.ascontiguousarray(rows[:, :-2]))
                    multiply(packed, self._center_KD, scores)
                    kernels.nearest(scores, rows, ends_2K, self._half_K, out[tile])

        _in_parallel(len(rows_nE), work)
        return out

    # --- upkeep -----------------------------------------------------------------------------------

    def touch(self, ids: Ids) -> None:
        start = perf_counter()
        self._stale[:] = True  # all cells soon are, and finding which costs more than marking
        self._look_around(self._touches.due(ids))
        self.upkeep_s += perf_counter() - start

    def add(self, ids: Ids) -> None:
        start = perf_counter()
        self._place(ids)
        self.upkeep_s += perf_counter() - start

    def remove(self, ids: Ids) -> None:
        start = perf_counter()
        self._move(ids, np.full(len(ids), -1, np.int32))
        self.upkeep_s += perf_counter() - start

    def pin(self, ids: Ids) -> None:
        pinned = self._lists.members(len(self._center_KE)).astype(np.int64)
        self._place(np.setdiff1d(pinned, ids))
        self._move(ids, np.full(len(ids), len(self._center_KE), np.int32))

    def _look_around(self, ids: Ids) -> None:
        """Into the nearest of the cells near the present one: all of them cost far more."""
        cell = np.empty(len(ids), np.int32)
        kernels.relocate(
            *(self._weight, self._bias, ids, self._mean_D, self._mean_bias, self._length),
            *(self._near_KN, self._lists.space.size, self._center_KE, self._variance_K),
            *(self._half_K, self._center_KD, self.cell_C, cell),
        )
        self._move(ids, cell)

    def _place(self, ids: Ids) -> None:
        """Into the cells nearest now, whose means and spreads take notice."""
        if len(ids):
            rows = self._augmented(ids)
            cell = self._nearest(rows)
            self._move(ids, cell)
            seen = self._lists.space.size
            centers = self._center_KE, self._variance_K, self._half_K, self._center_KD
            kernels.follow(rows, cell, seen, *centers)

    def _move(self, ids: Ids, cell: NDArray[np.int32]) -> None:
        self._kept_reach = None
        moved = np.flatnonzero(self.cell_C[ids] != cell)
        if not len(moved):
            return
        ids, cell = ids[moved], cell[moved]
        old = self.cell_C[ids]
        before = self._lists.space
        self._lists.remove(ids[old >= 0], old[old >= 0])
        self._lists.insert(ids[cell >= 0], cell[cell >= 0])
        self.cell_C[ids] = cell
        if self._rows is not None:
            self._stale[old[old >= 0]] = True
            self._stale[cell[cell >= 0]] = True
            if self._lists.space is not before:
                self._rows = None

    def _refresh(self) -> None:
        """Bring the copy of the rows up to date, before it is read."""
        space = self._lists.space
        if self._rows is None:
            self._rows = np.empty((len(space.ids), self._weight.shape[1]), packed_dtype())
            self._offset = np.empty(len(space.ids), np.float32)
            self._stale = np.ones(len(space.start), np.bool_)
        for cell in np.flatnonzero(self._stale).tolist():
            begin = space.start[cell]
            place = slice(begin, begin + space.size[cell])
            self._gather(space.ids[place], self._rows[place], self._offset[place])
        self._stale[:] = False

    def _gather(self, ids: NDArray[np.int32], rows: Any, offset: Floats) -> None:
        """Rows and biases without their means."""
        plain = rows if rows.dtype == np.float32 else np.empty(rows.shape, np.float32)
        kernels.centered(
            self._weight, self._bias, ids, self._mean_D, self._mean_bias, plain, offset
        )
        if rows is not plain:
            round_rows(plain, rows)

    # --- answering --------------------------------------------------------------------------------

    def retrieve(self, queries_QD: Floats, limit: int) -> Ids:
        """Best first, pinned ones as well."""
        return self.top(queries_QD, limit)[0]

    def top(
        self, queries_QD: Floats, k: int, limit: int = 0, settled: bool = False
    ) -> tuple[Ids, Floats]:
        """Asked for as many as there are, it looks everywhere; limit: means nothing here."""
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        num_queries = len(queries_QD)
        ids = np.full((num_queries, k), -1, np.int64)
        scores = np.full((num_queries, k), -np.inf, np.float32)
        if not num_queries or not k:
            return ids, scores
        copied = settled and self.packed
        if copied:
            self._refresh()
            if num_queries == 1 and self._rows.dtype == np.uint16:
                self._top_one(queries_QD, ids, scores)
                return ids, scores
        packed = pack(queries_QD)
        grouped, ends = self._group(queries_QD, packed, self._num_probes(k))
        # Candidates by the rounded scores, of each thread those of its own cells; some to spare.
        spare = _spare(k)
        work_K = np.diff(ends, prepend=0) * self._lists.space.size
        visited = np.flatnonzero(work_K)
        cells = iter(visited[np.argsort(-work_K[visited])].tolist())
        lock = threading.Lock()
        found: list[tuple[Floats, Ids]] = []

        def work(_: int) -> None:
            best = np.full((num_queries, spare), -np.inf, np.float32)
            which = np.full((num_queries, spare), -1, np.int64)
            found.append((best, which))
            with one_thread_each():
                for cell in _shared_out(cells, lock):
                    begin = ends[cell - 1] if cell else 0
                    self._visit(cell, packed, grouped[begin : ends[cell]], copied, best, which)

        threads = min(_num_cores(), max(1, num_queries // _FEW))
        if threads == 1:
            work(0)
        else:
            with ThreadPoolExecutor(threads, "retrieve") as pool:
                list(pool.map(work, range(threads)))
        best = found[0][0] if threads == 1 else np.concatenate([f[0] for f in found], axis=1)
        which = found[0][1] if threads == 1 else np.concatenate([f[1] for f in found], axis=1)

        def finish(part: slice) -> None:
            kernels.finish(
                *(best[part], which[part], spare, queries_QD[part], self._weight, self._bias),
                *(ids[part], scores[part]),
            )

        _in_parallel(num_queries, finish)
        return ids, scores

    def _top_one(self, query_1D: Floats, ids: Ids, scores: Floats) -> None:
        """The same for one query, with one pass over its rows and no products."""
        spare = _spare(ids.shape[1])
        best = np.full((1, spare), -np.inf, np.float32)
        which = np.full((1, spare), -1, np.int64)
        probes = self._num_probes(ids.shape[1])
        space = self._lists.space
        kernels.scan_cells(
            *(query_1D, self._center_KD, self._reach_2K(), probes, self._rows, self._offset),
            *(space.ids, space.start, space.size, best, which),
        )
        kernels.finish(best, which, spare, query_1D, self._weight, self._bias, ids, scores)

    def _num_probes(self, k: int) -> int:
        num_cells = len(self._center_KE)
        everywhere = k >= int(self._lists.space.size.sum())
        return num_cells if everywhere else min(self.probes, num_cells)

    def _group(self, queries_QD: Floats, packed_QD: Any, probes: int) -> tuple[Any, Any]:
        """Queries by the cells they visit: those of cell c end at ends[c]. All visit the last."""
        num_queries, num_cells = len(queries_QD), len(self._center_KE)
        probe_QP = np.full((num_queries, probes), -1, np.int64)

        def work(part: slice) -> None:
            with one_thread_each():
                for begin in range(part.start, part.stop, _TILE_QUERIES):
                    tile = slice(begin, min(begin + _TILE_QUERIES, part.stop))
                    scores = self._cell_scores(queries_QD[tile], packed_QD[tile])
                    kernels.choose(scores, probe_QP[tile])

        _in_parallel(num_queries, work)
        grouped = np.empty(probe_QP.size + num_queries, np.int32)
        return grouped, kernels.group(probe_QP, num_cells, grouped)

    def _cell_scores(self, queries_QD: Floats, packed_QD: Any) -> Floats:
        """float32 [Q, K]; -inf for cells of nothing."""
        scores = np.empty((len(queries_QD), len(self._center_KE)), np.float32)
        multiply(packed_QD, self._center_KD, scores)
        kernels.add_reach(queries_QD, self._reach_2K(), scores)
        return scores

    def _reach_2K(self) -> Floats:
        """float32 [2, K]: what a cell's mean adds to each query's score, and its reach."""
        if self._kept_reach is None:
            bias_K = np.where(self._lists.space.size[:-1] > 0, self._center_KE[:, -2], -np.inf)
            reach_K = np.float32(self.reach) * np.sqrt(self._variance_K)
            self._kept_reach = np.stack([bias_K, reach_K]).astype(np.float32)
        return self._kept_reach

    def _visit(
        self, cell: int, packed: Any, queries: Any, copied: bool, best: Floats, which: Ids
    ) -> None:
        """Score a cell's classes for the queries that visit it, and keep the best of each."""
        space = self._lists.space
        first, size = int(space.start[cell]), int(space.size[cell])
        if not size or not len(queries):
            return
        all_of_them = len(queries) == len(packed)
        for begin in range(first, first + size, _TILE_ROWS):
            place = slice(begin, min(begin + _TILE_ROWS, first + size))
            ids = space.ids[place]
            if copied:
                rows, offset = self._rows[place], self._offset[place]
            else:
                rows = np.empty((len(ids), packed.shape[1]), packed.dtype)
                offset = np.empty(len(ids), np.float32)
                self._gather(ids, rows, offset)
            for start in range(0, len(queries), _TILE_QUERIES):
                some = queries[start : start + _TILE_QUERIES]
                left = packed[start : start + len(some)] if all_of_them else packed[some]
                scores = np.empty((len(some), len(ids)), np.float32)
                multiply(left, rows, scores)
                kernels.keep(scores, offset, ids, some, best, which)

    def shared(self, queries_QD: Floats, limit: int) -> Ids:
        """The cells that queries give most to, their scores as by softmax."""
        if not len(queries_QD):
            return np.empty(0, np.int64)
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        with one_thread_each():
            scores = self._cell_scores(queries_QD, pack(queries_QD))
        scores -= scores.max(axis=1, keepdims=True)
        share_K = np.exp(scores, out=scores).sum(axis=0)
        size = self._lists.space.size
        order = np.argsort(-share_K, kind="stable")
        last = int(np.searchsorted(np.cumsum(size[order]), limit))
        chosen = [self._lists.members(cell) for cell in order[:last].tolist()]
        missing = limit - sum(len(members) for members in chosen)
        if last < len(order) and missing:
            chosen.append(np.sort(self._lists.members(int(order[last])))[:missing])
        return np.sort(np.concatenate([*chosen, np.empty(0, np.int32)])).astype(np.int64)

    def hard(self, queries_QD: Floats, per_query: int, probes: int) -> Ids:
        """At most `hard_rows` of each cell visited are looked at, others at each call.

        Rows are rounded to bfloat16 where that is fast, so that of nearly equal ones either is
        found. The time is that of reading the rows, and at a million rows in 1,000 cells most of
        a step's: with 4,000 cells about as many of the best are found in a quarter of the rows.
        """
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        num_cells = len(self._center_KE)
        if not len(queries_QD) or not per_query:
            return np.empty(0, np.int64)
        grouped, ends = self._group(queries_QD, pack(queries_QD), min(probes, num_cells))
        self._num_hard += 1
        seed = self.seed + 1_000_003 * self._num_hard
        best_QN = best_in_cells(
            *(self._weight, self._bias, self._lists.space, queries_QD, grouped, ends[:num_cells]),
            num_best=per_query,
            threads=_num_cores(),
            most_rows=self.hard_rows,
            seed=seed,
        )
        return union(best_QN)

    # --- saving -----------------------------------------------------------------------------------

    def state(self) -> dict[str, NDArray[Any]]:
        return {
            "cell": self.cell_C,
            "left": self._touches.left_C,
            "center": self._center_KE,
            "variance": self._variance_K,
            "mean": self._mean_D,
            "scalars": np.array([self._mean_bias, self._length], np.float32),
            "num_hard": np.array(self._num_hard),
        }

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        self.cell_C = state["cell"].copy()
        self._touches = Touches(len(self.cell_C), self.check_every, self.seed)
        self._touches.left_C[:] = state["left"]
        self._center_KE, self._variance_K = state["center"].copy(), state["variance"].copy()
        self._mean_D = state["mean"].copy()
        self._mean_bias, self._length = state["scalars"]
        self._num_hard = int(state["num_hard"])
        self._use_centers()
        self._fill_lists()


def _spare(k: int) -> int:
    """How many candidates by rounded scores hold the k best by exact ones, almost surely."""
    return k + 3 + k // 2


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_parallel(count: int, work: Callable[[slice], None]) -> None:
    """work(slice) of range(count), a slice for each core."""
    threads = min(_num_cores(), max(1, count // _FEW))
    edges = [count * i // threads for i in range(threads + 1)]
    in_threads(lambda _, first, last: work(slice(first, last)), list(pairwise(edges)))


def _shared_out(items: Iterator[int], lock: threading.Lock) -> Iterator[int]:
    while True:
        with lock:
            item = next(items, None)
        if item is None:
            return
        yield item
