"""A learned partition: classes in cells by k-means (cells.py), of which a query looks into a few.

A query visits the `probes` cells (so many that they hold some 16,384 rows) with the highest

    <mean of the cell, [x, 1]> + reach * spread * |x|,

spread^2 being the mean squared distance from the cell's mean, per coordinate: about how high its
best row scores, not its mean one. With 1024 cells of a million classes of Zipf's frequencies, this
reads a third to a half of the rows that the usual rules read for equal recall (nearest centroid,
highest mean, k-means on directions alone).

A class is one int, its cell. It is looked at on every n-th touch, and on each by which it moved
far: it moves to the nearest cell of all, since rows in training go far, and that cell's mean and
spread follow it. Queries that come together are grouped by cell, so that each cell visited is one
product, rounded to bfloat16 where that is fast; the best of it are scored anew, exactly
(answers.py). While rows are not being trained, a copy of them in the order of cells is read
(packed.py).

Pinned classes are one more cell, which every query visits.

Letters: C classes, D dimension, K cells, Q queries.
"""

from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsvc.graph.fast import num_cores
from embedsvc.graph.products import fast_bfloat16
from embedsvc.outputs.retrievers import RETRIEVERS, Floats, Ids, answers
from embedsvc.outputs.retrievers.cell_kernels import View
from embedsvc.outputs.retrievers.cells import Cells, seen_from_mean
from embedsvc.outputs.retrievers.lists import BYTES_A_MEMBER, Lists
from embedsvc.outputs.retrievers.packed import Packed
from embedsvc.outputs.retrievers.proposals import union
from embedsvc.outputs.retrievers.settings import check_least, check_touches
from embedsvc.outputs.retrievers.touches import Touches
from embedsvc.outputs.retrievers.visits import Centers

_ANSWERED_BY, _FEWEST = 16_384, 16  # rows, and cells
_READ = 131_072  # rows, at some 60 ns each, that `hard` reads in a step of some milliseconds
_WIDEST = 8  # cells, of which a query looks into one at most


@RETRIEVERS.add("partition")
class Partition:
    """k-means cells over [w, b]; the first id retrieved is the best."""

    def __init__(
        self,
        cells: int | None = None,  # unset: the root of the number of classes
        probes: int | None = None,  # cells that a query visits; unset: of some 16,384 rows
        check_every: int = 64,  # touches of a class
        reach: float = 3.0,  # spreads
        hard_rows: int = 2**31 - 1,  # of a cell, as many as `hard` looks at
        rounds: int = 6,  # of k-means
        sample: int = 64,  # rows a cell that k-means sees
        packed: bool = True,  # a copy of rows for answers, half their size in bfloat16
        seed: int = 0,
    ) -> None:
        least = {"cells": cells, "probes": probes, "hard_rows": hard_rows, "sample": sample}
        check_least("partition", 1, **{k: v for k, v in least.items() if v is not None})
        check_least("partition", 0, rounds=rounds, reach=reach, seed=seed)
        check_touches("partition", check_every)
        self.cells, self.probes, self.check_every, self.reach = cells, probes, check_every, reach
        self.hard_rows, self.rounds, self.sample = hard_rows, rounds, sample
        self.packed, self.seed = packed, seed
        self.upkeep_s, self.threads = 0.0, num_cores()
        self._num_hard = 0  # calls
        self._tiled = fast_bfloat16()
        self._copy = Packed(self._tiled)

    @property
    def num_bytes(self) -> int:
        own = self.cell_C.nbytes + self._touches.left_C.nbytes
        return own + self._lists.num_bytes + self._cells.num_bytes + self._copy.num_bytes

    @property
    def bytes_per_class(self) -> int:
        """Its cell, touches and place in a list; a mean and its tiles are of very many classes."""
        return round(4 + 1 + BYTES_A_MEMBER + 1)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no rows before `rebind`, whose owner keeps them: they aren't copied twice."""
        kept = self.__dict__ | {"_kept_centers": None}
        kept.pop("_rows", None)
        return kept

    @property
    def _bound(self) -> Cells:
        """Compiled code would read beyond the end of rows that aren't there."""
        assert len(self._cells.view.bias) >= len(self.cell_C), "a copy needs rebind before its use"
        return self._cells

    # --- building ---------------------------------------------------------------------------------

    def fit(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        num_classes = len(weight_CD)
        num_cells = min(self.cells or max(1, round(num_classes**0.5)), max(1, num_classes))
        self._cells, self.cell_C = Cells.by_means(
            seen_from_mean(weight_CD, _biases(weight_CD, bias_C)),
            num_cells,
            self.sample,
            self.rounds,
            self.seed,
            self._tiled,
            self.threads,
        )
        self._touches = Touches(num_classes, self.check_every, self.seed)
        self._num_hard = 0
        self._set_lists(np.arange(num_classes), self.cell_C)

    def _set_lists(self, ids: NDArray[Any], cell: NDArray[np.int32]) -> None:
        """The last list is of pinned classes."""
        self._lists = Lists(len(self._cells) + 1, ids, cell)
        self._copy.forget()
        self._kept_centers: Centers | None = None

    def rebind(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        self._rows = weight_CD, _biases(weight_CD, bias_C)
        if hasattr(self, "_cells"):
            self._cells.view = self._cells.view._replace(weight=self._rows[0], bias=self._rows[1])
            new = len(weight_CD) - len(self.cell_C)
            self.cell_C = np.concatenate([self.cell_C, np.full(new, -1, np.int32)])
            self._touches.resize(len(weight_CD))

    # --- upkeep -----------------------------------------------------------------------------------

    def touch(self, ids: Ids, far: Ids | None = None) -> None:
        """Those that moved far are looked at in any case."""
        start = perf_counter()
        self._copy.mark_all()  # all cells soon are, and finding which costs more than marking
        due = self._touches.due(ids)
        if far is not None:
            due = np.union1d(due, far)
        own = self.cell_C[due]
        self._place(due[(own >= 0) & (own < len(self._cells))])
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
        pinned = self._lists.members(len(self._cells)).astype(np.int64)
        self._place(np.setdiff1d(pinned, ids))
        self._move(ids, np.full(len(ids), len(self._cells), np.int32))

    def _place(self, ids: Ids) -> None:
        """Into the cells nearest now, whose means and spreads take notice."""
        if len(ids):
            self._move(ids, self._bound.look_at(ids, self._lists.space.size, self.threads))

    def _move(self, ids: Ids, cell: NDArray[np.int32]) -> None:
        self._kept_centers = None
        moved = np.flatnonzero(self.cell_C[ids] != cell)
        if not len(moved):
            return
        ids, cell = ids[moved], cell[moved]
        old = self.cell_C[ids]
        self._lists.remove(ids[old >= 0], old[old >= 0])
        self._lists.insert(ids[cell >= 0], cell[cell >= 0])
        self.cell_C[ids] = cell
        self._copy.mark(old[old >= 0])
        self._copy.mark(cell[cell >= 0])

    # --- answering --------------------------------------------------------------------------------

    def retrieve(self, queries_QD: Floats, limit: int) -> Ids:
        """Best first, pinned ones as well."""
        return self.top(queries_QD, limit)[0]

    def top(
        self, queries_QD: Floats, k: int, limit: int = 0, settled: bool = False
    ) -> tuple[Ids, Floats]:
        """Asked for as many as there are, it looks everywhere; limit: means nothing here."""
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        ids = np.full((len(queries_QD), k), -1, np.int64)
        scores = np.full((len(queries_QD), k), -np.inf, np.float32)
        if ids.size:
            view, space = self._bound.view, self._lists.space
            copy = self._copy.current if settled and self.packed else self._copy.none
            everywhere = k >= int(space.size.sum())
            probes = len(self._cells) if everywhere else self._visited()
            source = copy(view, space)
            answers.top(queries_QD, probes, self._centers(), source, self.threads, ids, scores)
        return ids, scores

    def hard(self, queries_QD: Floats, per_query: int, probes: int | None = None) -> Ids:
        """At most `hard_rows` of each cell visited are looked at, others at each call.

        probes = None: as many cells as let all queries together read some 131,072 rows, one at
        least, and an eighth of them at most.

        Rows are rounded to bfloat16 where that is fast, so that of nearly equal ones either is
        found. The time is that of reading the rows, and at a million rows in 1,000 cells most of
        a step's: with 4,000 cells about as many of the best are found in a quarter of the rows.
        """
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        if not len(queries_QD) or not per_query:
            return np.empty(0, np.int64)
        self._num_hard += 1
        best_QN = answers.hard(
            queries_QD,
            per_query,
            min(probes or self._affordable(len(queries_QD)), len(self._cells)),
            self._centers(),
            self._copy.none(self._bound.view, self._lists.space),
            self.hard_rows,
            self.seed + 1_000_003 * self._num_hard,
            self.threads,
        )
        return union(best_QN)

    def _visited(self) -> int:
        """By a query that is answered: at a million classes in 1,000 cells 16, as a rule."""
        num_cells, rows = len(self._cells), int(self._lists.space.size[:-1].sum())
        own = self.probes or max(_FEWEST, round(_ANSWERED_BY * num_cells / max(rows, 1)))
        return min(own, num_cells)

    def _affordable(self, num_queries: int) -> int:
        """Each of Q P visits falls on any of the cells, which is then read once."""
        num_cells, rows = len(self._cells), int(self._lists.space.size[:-1].sum())
        most = max(1, num_cells // _WIDEST)
        if rows <= _READ or num_cells == 1:
            return most
        visits = np.log1p(-_READ / rows) / np.log1p(-1 / num_cells)
        return int(min(max(1, round(visits / num_queries)), most))

    def _centers(self) -> Centers:
        """A cell's offset is what its mean adds to each query's score: -inf if it is empty."""
        if self._kept_centers is None:
            means, size = self._cells.means, self._lists.space.size[:-1]
            offset_K = np.where(size > 0, means.center[:, -2], np.float32(-np.inf))
            extra_2K = np.zeros((2, len(size)), np.float32)
            extra_2K[0] = self.reach * np.sqrt(means.variance)
            self._kept_centers = Centers(means.tiles, means.plain, offset_K, extra_2K)
        return self._kept_centers

    # --- saving -----------------------------------------------------------------------------------

    def state(self) -> dict[str, NDArray[Any]]:
        view = self._cells.view
        members, size = self._lists.in_order()
        return self._cells.state() | {
            "members": members,
            "size": size,
            "left": self._touches.left_C,
            "mean": view.mean,
            "scalars": np.array([view.mean_bias, view.length], np.float32),
            "num_hard": np.array(self._num_hard),
        }

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        view = View(*self._rows, state["mean"].copy(), *state["scalars"])
        self._cells = Cells.of_state(view, state, self._tiled)
        cell = np.repeat(np.arange(len(state["size"]), dtype=np.int32), state["size"])
        self.cell_C = np.full(len(state["left"]), -1, np.int32)
        self.cell_C[state["members"]] = cell
        self._touches = Touches(len(self.cell_C), self.check_every, self.seed)
        self._touches.left_C[:] = state["left"]
        self._num_hard = int(state["num_hard"])
        self._set_lists(state["members"], cell)


def _biases(weight_CD: Floats, bias_C: Floats | None) -> Floats:
    return np.zeros(len(weight_CD), np.float32) if bias_C is None else bias_C
