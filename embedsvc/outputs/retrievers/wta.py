"""Winner-take-all hashing: the 2015 paper (arXiv 1412.7479), parameter by parameter.

P permutations of the D coordinates each give a code: of the first m coordinates in that order, the
place of the greatest. P / M codes in a row, a band, are the key of one of M hash tables. A query's
shortlist are the K classes that share most bands with it, of equal ones the lowest. Rows that
changed are hashed again at intervals, not at every step.

A code tells only which coordinates are large, so that neither a row's length nor its bias count:
on trained weights other retrievers find far more. It is here as the method that it is.

Letters: C classes, D dimension, P permutations, M bands (tables), m window, Q queries, n rows.
"""

from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsvc.compiled import jit
from embedsvc.outputs.retrievers import RETRIEVERS, Floats, Ids
from embedsvc.outputs.retrievers.proposals import NONE, OF_A_PROBE, best_of, union
from embedsvc.outputs.retrievers.tables import Keys, Tables, check_num_keys
from embedsvc.outputs.retrievers.threads import in_parallel
from partitions.errors import ConfigError


@RETRIEVERS.add("wta")
class WTA:
    """P = permutations, m = window, M = bands; K is the limit of a call."""

    def __init__(
        self,
        permutations: int = 160,
        window: int = 8,
        bands: int = 32,
        rebuild_every: int = 1000,  # calls of touch, of which a training step makes one
        seed: int = 0,
    ) -> None:
        if window < 2 or bands < 1 or permutations < bands or permutations % bands:
            raise ConfigError(
                f"retriever wta: {permutations} permutations make no {bands} bands of equally "
                f"many codes of a window of {window}. Take a multiple of bands, and a window of 2 "
                f"or more."
            )
        if rebuild_every < 1:
            raise ConfigError("retriever wta: rebuild_every must be 1 or more calls of touch.")
        self.permutations, self.window, self.bands = permutations, window, bands
        self.rebuild_every, self.seed = rebuild_every, seed
        self.num_keys = window ** (permutations // bands)
        check_num_keys("wta", self.num_keys)
        self.upkeep_s = 0.0
        self._touches = 0

    @property
    def num_bytes(self) -> int:
        return self.tables.num_bytes + self._stale_C.nbytes

    def fit(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        self._bind(weight_CD, bias_C)
        self.tables = Tables(self.num_keys, self.keys(weight_CD))
        self._pinned = np.empty(0, np.int64)
        self._stale_C = np.zeros(len(weight_CD), np.bool_)
        self._touches = 0

    def rebind(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        self._bind(weight_CD, bias_C)
        if hasattr(self, "tables"):
            self.tables.resize(len(weight_CD))
            new = np.zeros(len(weight_CD) - len(self._stale_C), np.bool_)
            self._stale_C = np.concatenate([self._stale_C, new])

    def _bind(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        dim = weight_CD.shape[1]
        if self.window > dim:
            raise ConfigError(
                f"retriever wta: a window of {self.window} is more than the rows' {dim} numbers."
            )
        rng = np.random.default_rng(self.seed)
        orders = (rng.permutation(dim) for _ in range(self.permutations))
        self.windows_Pm = np.stack([order[: self.window] for order in orders]).astype(np.int32)
        self._weight, self._bias = weight_CD, bias_C

    def keys(self, rows_nD: Floats) -> Keys:
        """uint32 [n, M]: a band's codes are the digits of its key, the first one the highest."""
        keys_nM = np.empty((len(rows_nD), self.bands), np.uint32)
        in_parallel(len(rows_nD), lambda part: _hash(rows_nD[part], self.windows_Pm, keys_nM[part]))
        return keys_nM

    def touch(self, ids: Ids) -> None:
        start = perf_counter()
        self._stale_C[ids] = True
        self._touches += 1
        if self._touches % self.rebuild_every == 0:
            stale = np.flatnonzero(self._stale_C)  # of all C, but only at a rebuild
            stale = stale[self.tables.are_live(stale)]
            self.tables.put(stale, self.keys(self._weight[stale]))
            self._stale_C[:] = False
        self.upkeep_s += perf_counter() - start

    def add(self, ids: Ids) -> None:
        start = perf_counter()
        self.tables.put(ids, self.keys(self._weight[ids]))
        self._stale_C[ids] = False
        self.upkeep_s += perf_counter() - start

    def remove(self, ids: Ids) -> None:
        start = perf_counter()
        self.tables.remove(ids)
        self._pinned = np.setdiff1d(self._pinned, ids)
        self.upkeep_s += perf_counter() - start

    def pin(self, ids: Ids) -> None:
        """Tables do without them."""
        back = np.setdiff1d(self._pinned, ids)
        self.tables.put(back, self.keys(self._weight[back]))
        self.tables.remove(ids)
        self._pinned = ids.copy()

    def top(
        self, queries_QD: Floats, k: int, limit: int, settled: bool = False
    ) -> tuple[Ids, Floats]:
        found = self.retrieve(queries_QD, limit)
        return best_of(self._weight, self._bias, self._pinned, found, queries_QD, k)

    def retrieve(self, queries_QD: Floats, limit: int) -> Ids:
        """Classes that share no band are not proposed."""
        return self.tables.most_shared(self.keys(queries_QD), limit)

    def shared(self, queries_QD: Floats, limit: int) -> Ids:
        return self.tables.most_shared_by_all(self.keys(queries_QD), limit)

    def hard(self, queries_QD: Floats, per_query: int, probes: int) -> Ids:
        """The best of 256 proposals a probe."""
        found = self.retrieve(queries_QD, OF_A_PROBE * probes)
        return union(best_of(self._weight, self._bias, NONE, found, queries_QD, per_query)[0])

    def state(self) -> dict[str, NDArray[Any]]:
        return {
            "keys": self.tables.keys_CT,
            "stale": self._stale_C.astype(np.uint8),
            "touches": np.array(self._touches),
        }

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        self.tables = Tables(self.num_keys, state["keys"].copy())
        self._stale_C = state["stale"].astype(np.bool_)
        self._pinned = np.empty(0, np.int64)
        self._touches = int(state["touches"])


@jit
def _hash(rows, windows, keys):  # type: ignore[no-untyped-def]
    """Of equal coordinates, the first one of the window wins."""
    num_codes = windows.shape[0] // keys.shape[1]
    window = windows.shape[1]
    for i in range(rows.shape[0]):
        for band in range(keys.shape[1]):
            key = np.int64(0)
            for p in range(band * num_codes, (band + 1) * num_codes):
                code, best = 0, rows[i, windows[p, 0]]
                for j in range(1, window):
                    value = rows[i, windows[p, j]]
                    if value > best:
                        code, best = j, value
                key = key * window + code
            keys[i, band] = key
