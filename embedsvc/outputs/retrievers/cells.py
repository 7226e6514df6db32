"""Cells of rows by k-means, and their means, which follow the rows.

Rows are r = [w, b] without their mean, which every class scores alike; a query is [x, 1]. Nearness
is not a high inner product, as long rows win from afar, so k-means sees one more coordinate, the
length that a row lacks (Bachrach et al. 2014): r' = [w, b, sqrt(m^2 - |r|^2)]. The longest tenth of
the rows lacks nothing: m is the length that nine tenths do not reach, since a few very long ones
would leave all others nothing but that coordinate. So cells hold rows alike in direction and in
length.

Letters: C classes, D dimension, E = D + 2, K cells, n rows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsvc.outputs.retrievers import Floats, Ids
from embedsvc.outputs.retrievers import cell_kernels as kernels
from embedsvc.outputs.retrievers.cell_kernels import Means, View
from embedsvc.outputs.retrievers.threads import in_parallel
from embedsvc.outputs.retrievers.visits import GROUP, Centers, choose, rows_for_products

_CHUNK = 16_384  # rows read at a time
_LONGEST = 0.9  # of the rows are no longer than m


class Cells:
    """A partition of space. view: of the rows, which whoever allocates them anew sets anew."""

    def __init__(self, view: View, center_KE: Floats, variance_K: Floats, tiled: bool) -> None:
        self.view = view
        tiles, plain = rows_for_products(len(center_KE), center_KE.shape[1] - 2, tiled)
        self.means = Means(center_KE, variance_K, np.empty_like(variance_K), tiles, plain)
        kernels.derive(0, len(center_KE), self.means)

    @classmethod
    def of_state(cls, view: View, state: dict[str, NDArray[Any]], tiled: bool) -> "Cells":
        cells = cls(view, state["center"].copy(), state["variance"].copy(), tiled)
        cells.means.half[:] = state["half"]
        return cells

    def state(self) -> dict[str, NDArray[Any]]:
        """Half lengths as well, which may have been summed otherwise."""
        center, variance, half, *_ = self.means
        return {"center": center, "variance": variance, "half": half}

    def __getstate__(self) -> dict[str, Any]:
        """For copies: tiles begin with a cache line, which a copied array may not.

        Rows are their owner's to keep: whoever copies this sets the view anew.
        """
        none = np.empty((0, len(self.view.mean)), np.float32)
        view = self.view._replace(weight=none, bias=none[:, 0])
        return {"view": view, "tiled": self.means.tiles.size > 0, "state": self.state()}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__ |= Cells.of_state(kept["view"], kept["state"], kept["tiled"]).__dict__

    @classmethod
    def by_means(
        cls,
        view: View,
        num_cells: int,
        sample: int,
        rounds: int,
        seed: int,
        tiled: bool,
        threads: int,
    ) -> tuple["Cells", NDArray[np.int32]]:
        """k-means of `sample` rows a cell; and the cell of each row, int32 [C]."""
        num_rows, dim = view.weight.shape
        rng = np.random.default_rng(seed)
        some = rng.permutation(num_rows)[: sample * num_cells]
        lengths = np.linalg.norm(_augmented(view, some)[:, : dim + 1], axis=1)
        longest = np.float32(np.quantile(lengths, _LONGEST) if len(lengths) else 0)
        view = view._replace(length=longest)
        rows = _augmented(view, np.sort(some))
        center_KE = rows[rng.permutation(len(rows))[:num_cells]]
        if not num_rows:
            center_KE = np.zeros((1, dim + 2), np.float32)
        cells = cls(view, center_KE, np.zeros(len(center_KE), np.float32), tiled)
        for _ in range(rounds):
            cells._move_means(rows, rng, threads)
        cell_C = np.empty(num_rows, np.int32)
        for begin in range(0, num_rows, _CHUNK):
            ids = np.arange(begin, min(begin + _CHUNK, num_rows))
            cell_C[ids] = cells.nearest(ids, threads)
        cells._measure(cell_C)
        return cells, cell_C

    def __len__(self) -> int:
        return len(self.means.center)

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self.means)

    def _move_means(self, rows: Floats, rng: np.random.Generator, threads: int) -> None:
        """A round of k-means."""
        center_KE = self.means.center
        cell = self._nearest(rows, threads)
        size = np.bincount(cell, minlength=len(center_KE))
        sums = np.zeros(center_KE.shape)
        kernels.add_to(sums, cell, rows)
        center_KE[:] = sums / np.maximum(size, 1)[:, None]
        # Cells of next to nothing are better used where the crowd is.
        small = np.flatnonzero(size < len(rows) / len(size) / 8)
        if len(small):
            crowded = rng.choice(len(rows), len(small), p=size[cell] / size[cell].sum())
            center_KE[small] = rows[crowded]
        kernels.derive(0, len(center_KE), self.means)

    def _measure(self, cell_C: NDArray[np.int32]) -> None:
        """Means and variances of all cells, from all rows."""
        center_KE = self.means.center
        num_cells, width = center_KE.shape
        size = np.bincount(cell_C, minlength=num_cells)
        sums, squares = np.zeros((num_cells, width)), np.zeros(num_cells)
        for begin in range(0, len(cell_C), _CHUNK):
            cell = cell_C[begin : begin + _CHUNK]
            rows = _augmented(self.view, np.arange(begin, begin + len(cell)))
            kernels.add_to(sums, cell, rows)
            squares += np.bincount(cell, (rows[:, :-1] ** 2).sum(axis=1), num_cells)
        full = size > 0
        center_KE[full] = sums[full] / size[full, None]
        inner = (center_KE[:, :-1].astype(np.float64) ** 2).sum(axis=1)
        variance = np.maximum(squares / np.maximum(size, 1) - inner, 0) / (width - 2)
        self.means.variance[:] = np.where(full, variance, 0)
        kernels.derive(0, num_cells, self.means)

    def nearest(self, ids: Ids, threads: int) -> NDArray[np.int32]:
        """The cell, of all, whose mean is nearest to each of these rows."""
        return self._nearest(_augmented(self.view, ids), threads)

    def _nearest(self, rows_nE: Floats, threads: int) -> NDArray[np.int32]:
        means, dim = self.means, rows_nE.shape[1] - 2
        ends_2K = np.ascontiguousarray(means.center[:, dim:].T)
        centers = Centers(means.tiles, means.plain, -means.half, ends_2K)
        rows, ends = np.ascontiguousarray(rows_nE[:, :dim]), rows_nE[:, dim:].copy()
        found = np.zeros((len(rows), 1), np.int64)

        def work(part: slice) -> None:
            best = np.full((part.stop - part.start, 1), -np.inf, np.float32)
            choose(rows[part], ends[part], centers, best, found[part])

        if len(rows) <= GROUP:  # a touch: waking a thread costs as much
            work(slice(0, len(rows)))
        else:
            in_parallel(len(rows), work, threads)
        return found[:, 0].astype(np.int32)

    def look_at(self, ids: Ids, size: Any, threads: int) -> NDArray[np.int32]:
        """The same, and means and variances take notice. size: of the cells."""
        rows = _augmented(self.view, ids)
        cell = self._nearest(rows, threads)
        kernels.follow(rows, cell, size, self.means)
        return cell


def seen_from_mean(weight_CD: Floats, bias_C: Floats) -> View:
    mean_bias = np.float32(bias_C.mean() if len(bias_C) else 0)
    mean_D = weight_CD.mean(axis=0, dtype=np.float32)
    return View(weight_CD, bias_C, mean_D, mean_bias, np.float32(np.inf))


def _augmented(view: View, ids: Ids) -> Floats:
    """float32 [n, E]: w, b, and the length that is lacking; the mean taken off."""
    rows = np.empty((len(ids), view.weight.shape[1] + 2), np.float32)
    kernels.augment(view, ids, rows)
    return rows
