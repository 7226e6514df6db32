"""What retrievers by hash tables share: classes lie under keys, and a query proposes its own.

Which class a row is like is for a key to tell (simhash.py, wta.py). A key changes with its row, but
seldom: of the keys of an updated row some hundredth. So a row is hashed again at each n-th touch.

Letters: C classes, D dimension, Q queries, T tables, n rows.
"""

from abc import ABC, abstractmethod
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsvc.graph.fast import num_cores
from embedsvc.outputs.retrievers import Floats, Ids
from embedsvc.outputs.retrievers.lists import BYTES_A_LIST, BYTES_A_MEMBER
from embedsvc.outputs.retrievers.proposals import best_of, union
from embedsvc.outputs.retrievers.tables import Keys, Tables
from embedsvc.outputs.retrievers.touches import Touches

_OF_A_PROBE = 256  # proposals that `hard` scores
_MANY = 200_000  # classes
_NO_IDS = np.empty(0, np.int64)


class Hashes(ABC):
    """All of a Retriever but its keys.

    A base class of two, since all but their keys is the same and much.
    """

    def __init__(self, num_keys: int, check_every: int, seed: int) -> None:
        self.num_keys, self.check_every, self.seed = num_keys, check_every, seed
        self.upkeep_s, self.threads = 0.0, num_cores()
        self._pinned = _NO_IDS

    @abstractmethod
    def _prepare(self, dim: int) -> None:
        """For rows of so many numbers."""

    @abstractmethod
    def _measure(self) -> None:
        """What keys need to know of all rows, before they are made."""

    @abstractmethod
    def keys(self, ids: Ids) -> Keys:
        """uint32 [n, T], of classes."""

    @abstractmethod
    def query_keys(self, queries_QD: Floats) -> Keys:
        """uint32 [Q, T]"""

    @property
    @abstractmethod
    def bytes_per_class(self) -> int: ...

    @property
    def num_bytes(self) -> int:
        return self.tables.num_bytes + self._touches.left_C.nbytes

    def _bytes_per_class(self, num_tables: int) -> int:
        """Keys, places in lists and touches; and of lists, which are as many for few classes."""
        of_lists = num_tables * self.num_keys * BYTES_A_LIST / _MANY
        return round(num_tables * (4 + BYTES_A_MEMBER) + 1 + of_lists)

    # --- building and upkeep ----------------------------------------------------------------------

    def fit(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        self._bind(weight_CD, bias_C)
        self._measure()
        self.tables = Tables(self.num_keys, self.keys(np.arange(len(weight_CD))))
        self._touches = Touches(len(weight_CD), self.check_every, self.seed)
        self._pinned = _NO_IDS

    def rebind(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        self._bind(weight_CD, bias_C)
        if hasattr(self, "tables"):
            self.tables.resize(len(weight_CD))
            self._touches.resize(len(weight_CD))

    def _bind(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        self._prepare(weight_CD.shape[1])
        self._weight = weight_CD
        self._bias = np.zeros(len(weight_CD), np.float32) if bias_C is None else bias_C

    def touch(self, ids: Ids, far: Ids | None = None) -> None:
        start = perf_counter()
        due = self._due(ids)
        due = due[self.tables.are_live(due)]
        if len(due):
            self.tables.put(due, self.keys(due))
        self.upkeep_s += perf_counter() - start

    def _due(self, touched: Ids) -> Ids:
        return self._touches.due(touched)

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

    # --- answering --------------------------------------------------------------------------------

    def top(
        self, queries_QD: Floats, k: int, limit: int, settled: bool = False
    ) -> tuple[Ids, Floats]:
        found = self.retrieve(queries_QD, limit)
        rows = self._weight, self._bias, self._pinned
        return best_of(*rows, found, queries_QD, k, self.threads)

    def retrieve(self, queries_QD: Floats, limit: int) -> Ids:
        """Classes that share no key are not proposed."""
        return self.tables.most_shared(self.query_keys(queries_QD), limit, self.threads)

    def hard(self, queries_QD: Floats, per_query: int, probes: int | None = None) -> Ids:
        """The best of 256 proposals a probe; None: of one."""
        found = self.retrieve(queries_QD, _OF_A_PROBE * (probes or 1))
        rows = self._weight, self._bias, _NO_IDS
        return union(best_of(*rows, found, queries_QD, per_query, self.threads)[0])

    # --- saving -----------------------------------------------------------------------------------

    def state(self) -> dict[str, NDArray[Any]]:
        return {"keys": self.tables.keys_CT, "left": self._touches.left_C}

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        self.tables = Tables(self.num_keys, state["keys"].copy())
        self._touches = Touches(len(state["left"]), self.check_every, self.seed)
        self._touches.left_C[:] = state["left"]
        self._pinned = _NO_IDS
