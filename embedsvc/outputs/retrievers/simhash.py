"""Signed random projections: a key's bits tell on which side of random planes a row lies.

Two rows at angle a agree in a bit with probability 1 - a / pi (Charikar 2002); K bits are the key
of one of L tables. Rows are [w, b] without their mean, which every class scores alike, and a query
is [x, 1], so that their inner product ranks as the score does. An angle forgets a row's length:
with mips = true a row gets one more coordinate, sqrt(m^2 - |row|^2) with m the longest row's
length, and a query gets 0 there. Then all rows are equally long, and the nearest by angle is the
one of the highest score (Neyshabur and Srebro 2015; Bachrach et al. 2014).

Letters: C classes, D dimension, E = D + 2, K bits, L tables, Q queries, n rows.
"""

from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embedsvc.compiled import jit
from embedsvc.outputs.retrievers import RETRIEVERS, Floats, Ids
from embedsvc.outputs.retrievers.proposals import NONE, OF_A_PROBE, best_of, union
from embedsvc.outputs.retrievers.tables import Keys, Tables, check_num_keys
from embedsvc.outputs.retrievers.touches import Touches
from partitions.errors import ConfigError

_CHUNK = 16_384  # rows


@RETRIEVERS.add("simhash")
class SimHash:
    """K = bits, L = tables. A row is hashed again at each `check_every`-th touch."""

    def __init__(
        self,
        bits: int = 14,
        tables: int = 32,
        mips: bool = True,
        check_every: int = 20,  # touches of a row
        seed: int = 0,
    ) -> None:
        if bits < 1 or tables < 1 or not 1 <= check_every <= 255:
            raise ConfigError(
                f"retriever simhash: expected bits and tables of 1 or more and check_every of 1 to "
                f"255, found {bits}, {tables} and {check_every}."
            )
        check_num_keys("simhash", 2.0**bits)
        self.bits, self.num_tables, self.mips = bits, tables, mips
        self.check_every, self.seed = check_every, seed
        self.upkeep_s = 0.0

    @property
    def num_bytes(self) -> int:
        own = self._planes_EK.nbytes + self._mean_D.nbytes + self._touches.left_C.nbytes
        return self.tables.num_bytes + own

    def fit(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        self._bind(weight_CD, bias_C)
        self._mean_D = weight_CD.mean(axis=0)
        self._mean_bias = 0.0 if bias_C is None else float(bias_C.mean())
        self._length = 0.0
        longest = 0.0
        for begin in range(0, len(weight_CD), _CHUNK):
            rows = self._augmented(np.arange(begin, min(begin + _CHUNK, len(weight_CD))))
            longest = max(longest, float(np.linalg.norm(rows, axis=1).max()))
        self._length = longest
        keys = [
            self.keys(np.arange(begin, min(begin + _CHUNK, len(weight_CD))))
            for begin in range(0, len(weight_CD), _CHUNK)
        ]
        self.tables = Tables(2**self.bits, np.concatenate(keys))
        self._touches = Touches(len(weight_CD), self.check_every, self.seed)
        self._pinned = np.empty(0, np.int64)

    def rebind(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        self._bind(weight_CD, bias_C)
        if hasattr(self, "tables"):
            self.tables.resize(len(weight_CD))
            self._touches.resize(len(weight_CD))

    def _bind(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        dim = weight_CD.shape[1]
        rng = np.random.default_rng(self.seed)
        shape = (dim + 2, self.bits * self.num_tables)
        self._planes_EK = rng.standard_normal(shape, np.float32)
        self._weight, self._bias = weight_CD, bias_C

    def keys(self, ids: Ids) -> Keys:
        """uint32 [n, L] of classes: the first bit of a key is its highest."""
        return self._pack(self._augmented(ids))

    def query_keys(self, queries_QD: Floats) -> Keys:
        ends = np.zeros((len(queries_QD), 2), np.float32)
        ends[:, 0] = 1
        return self._pack(np.concatenate([queries_QD, ends], axis=1))

    def _augmented(self, ids: Ids) -> Floats:
        """float32 [n, E]; a row that became longer than the longest at `fit` gets 0 at its end."""
        dim = self._weight.shape[1]
        rows = np.zeros((len(ids), dim + 2), np.float32)
        np.subtract(self._weight[ids], self._mean_D, out=rows[:, :dim])
        if self._bias is not None:
            rows[:, dim] = self._bias[ids] - np.float32(self._mean_bias)
        if self.mips:
            missing = np.float32(self._length) ** 2 - np.einsum("nd,nd->n", rows, rows)
            rows[:, dim + 1] = np.sqrt(np.maximum(missing, 0))
        return rows

    def _pack(self, rows_nE: Floats) -> Keys:
        sides = torch.from_numpy(rows_nE) @ torch.from_numpy(self._planes_EK)
        keys = np.empty((len(rows_nE), self.num_tables), np.uint32)
        _pack(sides.numpy(), self.bits, keys)
        return keys

    def touch(self, ids: Ids) -> None:
        start = perf_counter()
        due = self._touches.due(ids)
        due = due[self.tables.are_live(due)]
        self.tables.put(due, self.keys(due))
        self.upkeep_s += perf_counter() - start

    def add(self, ids: Ids) -> None:
        start = perf_counter()
        self.tables.put(ids, self.keys(ids))
        self.upkeep_s += perf_counter() - start

    def remove(self, ids: Ids) -> None:
        start = perf_counter()
        self.tables.remove(ids)
        self._pinned = np.setdiff1d(self._pinned, ids)
        self.upkeep_s += perf_counter() - start

    def pin(self, ids: Ids) -> None:
        """Tables do without them."""
        back = np.setdiff1d(self._pinned, ids)
        self.tables.put(back, self.keys(back))
        self.tables.remove(ids)
        self._pinned = ids.copy()

    def top(
        self, queries_QD: Floats, k: int, limit: int, settled: bool = False
    ) -> tuple[Ids, Floats]:
        found = self.retrieve(queries_QD, limit)
        return best_of(self._weight, self._bias, self._pinned, found, queries_QD, k)

    def retrieve(self, queries_QD: Floats, limit: int) -> Ids:
        """Classes that share no table are not proposed."""
        return self.tables.most_shared(self.query_keys(queries_QD), limit)

    def shared(self, queries_QD: Floats, limit: int) -> Ids:
        return self.tables.most_shared_by_all(self.query_keys(queries_QD), limit)

    def hard(self, queries_QD: Floats, per_query: int, probes: int) -> Ids:
        """The best of 256 proposals a probe."""
        found = self.retrieve(queries_QD, OF_A_PROBE * probes)
        return union(best_of(self._weight, self._bias, NONE, found, queries_QD, per_query)[0])

    def state(self) -> dict[str, NDArray[Any]]:
        return {
            "keys": self.tables.keys_CT,
            "left": self._touches.left_C,
            "mean": self._mean_D,
            "scalars": np.array([self._mean_bias, self._length]),
        }

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        self.tables = Tables(2**self.bits, state["keys"].copy())
        self._touches = Touches(len(state["left"]), self.check_every, self.seed)
        self._touches.left_C[:] = state["left"]
        self._pinned = np.empty(0, np.int64)
        self._mean_D = state["mean"].copy()
        self._mean_bias, self._length = (float(x) for x in state["scalars"])


@jit
def _pack(sides, bits, keys):  # type: ignore[no-untyped-def]
    for i in range(sides.shape[0]):
        for table in range(keys.shape[1]):
            key = np.uint32(0)
            for bit in range(bits):
                key = key << 1 | np.uint32(sides[i, table * bits + bit] > 0)
            keys[i, table] = key
