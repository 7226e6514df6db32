"""Signed random projections: a key's bits tell on which side of random planes a row lies.

Two rows at angle a agree in a bit with probability 1 - a / pi (Charikar 2002); K bits are the key
of one of L tables. Rows are [w, b] without their mean, which every class scores alike, and a query
is [x, 1], so that their inner product ranks as the score does. An angle forgets a row's length:
with mips = true a row gets one more coordinate, sqrt(m^2 - |row|^2) with m the longest row's
length, and a query gets 0 there. Then all rows are equally long, and the nearest by angle is the
one of the highest score (Neyshabur and Srebro 2015; Bachrach et al. 2014).

Letters: C classes, D dimension, E = D + 2, K bits, L tables, Q queries, n rows.
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

_CHUNK = 256  # rows: their projections are 0.5 MB


@RETRIEVERS.add("simhash")
class SimHash(Hashes):
    """K = bits, L = tables. A row is hashed again at each `check_every`-th touch."""

    def __init__(
        self,
        bits: int = 14,
        tables: int = 32,
        mips: bool = True,
        check_every: int = 128,  # touches of a row
        seed: int = 0,
    ) -> None:
        check_least("simhash", 1, bits=bits, tables=tables)
        check_least("simhash", 0, seed=seed)
        check_touches("simhash", check_every)
        check_num_keys("simhash", 2.0**bits)
        super().__init__(2**bits, check_every, seed)
        self.bits, self.num_tables, self.mips = bits, tables, mips

    @property
    def num_bytes(self) -> int:
        return super().num_bytes + self._planes_EK.nbytes + self._mean_D.nbytes

    @property
    def bytes_per_class(self) -> int:
        return self._bytes_per_class(self.num_tables)

    def _prepare(self, dim: int) -> None:
        rng = np.random.default_rng(self.seed)
        self._planes_EK = rng.standard_normal((dim + 2, self.bits * self.num_tables), np.float32)

    def _measure(self) -> None:
        self._mean_D = self._weight.mean(axis=0)
        self._mean_bias = np.float32(self._bias.mean())
        self._length = _longest(self._weight, self._bias, self._mean_D, self._mean_bias)

    def keys(self, ids: Ids) -> Keys:
        """The first bit of a key is its highest.

        A row that became longer than the longest at `fit` gets 0 at its end.
        """
        keys_nL = np.empty((len(ids), self.num_tables), np.uint32)
        length = self._length if self.mips else np.float32(0)
        rows = self._weight, self._bias, self._mean_D, self._mean_bias, length

        def work(part: slice) -> None:
            _hash_rows(*rows, ids[part], self._planes_EK, self.bits, keys_nL[part])

        in_parallel(len(ids), work, self.threads)
        return keys_nL

    def query_keys(self, queries_QD: Floats) -> Keys:
        ends = np.zeros((len(queries_QD), 2), np.float32)
        ends[:, 0] = 1
        keys_QL = np.empty((len(queries_QD), self.num_tables), np.uint32)
        rows = np.concatenate([queries_QD, ends], axis=1)

        def work(part: slice) -> None:
            _hash(rows[part], self._planes_EK, self.bits, keys_QL[part])

        in_parallel(len(rows), work, self.threads)
        return keys_QL

    def state(self) -> dict[str, NDArray[Any]]:
        scalars = np.array([self._mean_bias, self._length], np.float32)
        return super().state() | {"mean": self._mean_D, "scalars": scalars}

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        super().load_state(state)
        self._mean_D = state["mean"].copy()
        self._mean_bias, self._length = (np.float32(x) for x in state["scalars"])


@jit
def _longest(weight, bias, mean, mean_bias):  # type: ignore[no-untyped-def]
    most = np.float32(0)
    for c in range(bias.size):
        squares = (bias[c] - mean_bias) ** 2
        for d in range(mean.size):
            squares += (weight[c, d] - mean[d]) ** 2
        most = max(most, squares)
    return np.sqrt(most)


@jit
def _hash_rows(  # type: ignore[no-untyped-def]
    weight, bias, mean, mean_bias, length, ids, planes, bits, keys
):
    dim = mean.size
    rows = np.zeros((min(_CHUNK, ids.size), dim + 2), np.float32)
    for first in range(0, ids.size, _CHUNK):
        some = rows[: min(_CHUNK, ids.size - first)]
        for i in range(len(some)):
            c, squares = ids[first + i], np.float32(0)
            for d in range(dim):
                some[i, d] = weight[c, d] - mean[d]
            some[i, dim] = bias[c] - mean_bias
            for d in range(dim + 1):
                squares += some[i, d] * some[i, d]
            some[i, dim + 1] = np.sqrt(max(length * length - squares, np.float32(0)))
        _hash(some, planes, bits, keys[first : first + len(some)])


@jit
def _hash(rows, planes, bits, keys):  # type: ignore[no-untyped-def]
    sides = np.dot(rows, planes)
    for i in range(sides.shape[0]):
        for table in range(keys.shape[1]):
            key = np.uint32(0)
            for bit in range(bits):
                key = key << 1 | np.uint32(sides[i, table * bits + bit] > 0)
            keys[i, table] = key
