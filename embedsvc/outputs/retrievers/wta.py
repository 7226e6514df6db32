"""Winner-take-all hashing: the 2015 paper (arXiv 1412.7479), parameter by parameter.

P permutations of the D coordinates each give a code: of the first m coordinates in that order, the
place of the greatest. P / M codes in a row, a band, are the key of one of M hash tables. A query's
shortlist are the K classes that share most bands with it, of equal ones the lowest. Rows that
changed are hashed again at intervals, not at every step: with `rebuild_every` all at once as in the
paper, and without it each at its own n-th touch, so that no step stands still.

A code tells only which coordinates are large, so that neither a row's length nor its bias count:
on trained weights other retrievers find far more. It is here as the method that it is.

Letters: C classes, D dimension, P permutations, M bands (tables), m window, Q queries, n rows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsvc.compiled import jit
from embedsvc.outputs.retrievers import RETRIEVERS, Floats, Ids
from embedsvc.outputs.retrievers.hashes import Hashes
from embedsvc.outputs.retrievers.settings import check_least, check_touches
from embedsvc.outputs.retrievers.tables import Keys, check_num_keys
from embedsvc.outputs.retrievers.threads import in_parallel
from partitions.errors import ConfigError


@RETRIEVERS.add("wta")
class WTA(Hashes):
    """P = permutations, m = window, M = bands; K is the limit of a call."""

    def __init__(
        self,
        permutations: int = 160,
        window: int = 8,
        bands: int = 32,
        rebuild_every: int | None = None,  # calls of touch, of which a training step makes one
        check_every: int = 128,  # touches of a row, where rebuild_every is unset
        seed: int = 0,
    ) -> None:
        if window < 2 or bands < 1 or permutations < bands or permutations % bands:
            raise ConfigError(
                f"retriever wta: {permutations} permutations make no {bands} bands of equally "
                f"many codes of a window of {window}. Take a multiple of bands, and a window of 2 "
                f"or more."
            )
        if rebuild_every is not None and rebuild_every < 1:
            raise ConfigError("retriever wta: rebuild_every must be 1 or more calls of touch.")
        check_least("wta", 0, seed=seed)
        check_touches("wta", check_every)
        num_keys = window ** (permutations // bands)
        check_num_keys("wta", num_keys)
        super().__init__(num_keys, check_every, seed)
        self.permutations, self.window, self.bands = permutations, window, bands
        self.rebuild_every = rebuild_every
        self._stale_C = np.empty(0, np.bool_)
        self._num_touches = 0

    @property
    def num_bytes(self) -> int:
        return super().num_bytes + self._stale_C.nbytes

    @property
    def bytes_per_class(self) -> int:
        return self._bytes_per_class(self.bands) + 1  # whether it is stale

    def fit(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        super().fit(weight_CD, bias_C)
        self._stale_C = np.zeros(len(weight_CD), np.bool_)
        self._num_touches = 0

    def rebind(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        super().rebind(weight_CD, bias_C)
        new = np.zeros(len(weight_CD) - len(self._stale_C), np.bool_)
        self._stale_C = np.concatenate([self._stale_C, new])

    def _prepare(self, dim: int) -> None:
        if self.window > dim:
            raise ConfigError(
                f"retriever wta: a window of {self.window} is more than the rows' {dim} numbers."
            )
        rng = np.random.default_rng(self.seed)
        orders = (rng.permutation(dim) for _ in range(self.permutations))
        self.windows_Pm = np.stack([order[: self.window] for order in orders]).astype(np.uint32)

    def _measure(self) -> None:
        """Nothing: which of a row's numbers is greatest depends on no other row."""

    def keys(self, ids: Ids) -> Keys:
        """A band's codes are the digits of its key, the first one the highest."""
        return self._hash(self._weight, ids)

    def query_keys(self, queries_QD: Floats) -> Keys:
        return self._hash(queries_QD, np.arange(len(queries_QD)))

    def _hash(self, rows_nD: Floats, ids: Ids) -> Keys:
        keys_nM = np.empty((len(ids), self.bands), np.uint32)
        windows = self.windows_Pm

        def work(part: slice) -> None:
            _hash(rows_nD, ids[part], windows, keys_nM[part])

        in_parallel(len(ids), work, self.threads)
        return keys_nM

    def _due(self, touched: Ids) -> Ids:
        if self.rebuild_every is None:
            return super()._due(touched)
        self._stale_C[touched] = True
        self._num_touches += 1
        if self._num_touches % self.rebuild_every:
            return touched[:0]
        stale = np.flatnonzero(self._stale_C)  # of all C, but only at a rebuild
        self._stale_C[:] = False
        return stale

    def state(self) -> dict[str, NDArray[Any]]:
        stale = self._stale_C.astype(np.uint8)
        return super().state() | {"stale": stale, "touches": np.array(self._num_touches)}

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        super().load_state(state)
        self._stale_C = state["stale"].astype(np.bool_)
        self._num_touches = int(state["touches"])


@jit
def _hash(rows, ids, windows, keys):  # type: ignore[no-untyped-def]
    """windows: uint32 [P, m]. Of equal coordinates, the first one of the window wins.

    32 rows at a time, turned, so that comparisons are of numbers side by side.
    """
    num_codes, window = windows.shape
    each = num_codes // keys.shape[1]
    block = np.zeros((rows.shape[1], 32), np.float32)
    best, code, key = np.empty(32, np.float32), np.empty(32, np.uint32), np.empty(32, np.uint32)
    for first in range(0, ids.size, 32):
        some = ids[first : first + 32]
        for i in range(some.size):
            block[:, i] = rows[some[i]]
        for band in range(keys.shape[1]):
            key[:] = 0
            for p in range(band * each, (band + 1) * each):
                best[:] = block[windows[p, 0]]
                code[:] = 0
                for j in range(1, window):
                    _compare(block[windows[p, j]], np.uint32(j), best, code)
                for i in range(32):
                    key[i] = key[i] * np.uint32(window) + code[i]
            for i in range(some.size):
                keys[first + i, band] = key[i]


@jit
def _compare(value, j, best, code):  # type: ignore[no-untyped-def]
    for i in range(value.size):
        above = value[i] > best[i]
        code[i] = j if above else code[i]
        best[i] = value[i] if above else best[i]
