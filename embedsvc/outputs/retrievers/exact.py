"""The exact retriever scores all classes, in chunks: what the others are measured against."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embedsvc.graph.fast import num_cores
from embedsvc.outputs.retrievers import RETRIEVERS, Floats, Ids
from embedsvc.outputs.retrievers.proposals import union
from embedsvc.outputs.retrievers.settings import check_least

_CHUNK = 16_384  # classes


@RETRIEVERS.add("exact")
class Exact:
    """The best classes by a scan of all rows: 2 C D operations a query.

    It is torch that multiplies, on as many threads as torch was told, whatever `threads` says.
    """

    def __init__(self, seed: int = 0) -> None:
        check_least("exact", 0, seed=seed)
        self.upkeep_s, self.threads = 0.0, num_cores()
        self._weight: Floats = np.empty((0, 0), np.float32)
        self._bias: Floats | None = None
        self._live = np.empty(0, np.bool_)
        self._pinned = np.empty(0, np.int64)

    @property
    def num_bytes(self) -> int:
        return self._live.nbytes

    @property
    def bytes_per_class(self) -> int:
        return 1

    def fit(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        self._live = np.ones(len(weight_CD), np.bool_)
        self._pinned = np.empty(0, np.int64)
        self._weight, self._bias = weight_CD, bias_C

    def rebind(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        self._live = np.append(self._live, np.zeros(len(weight_CD) - len(self._live), np.bool_))
        self._weight, self._bias = weight_CD, bias_C

    def touch(self, ids: Ids, far: Ids | None = None) -> None:
        pass

    def add(self, ids: Ids) -> None:
        self._live[ids] = True

    def remove(self, ids: Ids) -> None:
        self._live[ids] = False

    def pin(self, ids: Ids) -> None:
        self._pinned = ids.copy()

    def retrieve(self, queries_QD: Floats, limit: int) -> Ids:
        """The first is the best; of equal scores any."""
        return self._best(queries_QD, limit, self._live)[0]

    def top(
        self, queries_QD: Floats, k: int, limit: int = 0, settled: bool = False
    ) -> tuple[Ids, Floats]:
        return self._best(queries_QD, k, self._live)

    def _best(
        self, queries_QD: Floats, limit: int, live_C: NDArray[np.bool_]
    ) -> tuple[Ids, Floats]:
        out = np.full((len(queries_QD), limit), -1, np.int64)
        out_scores = np.full((len(queries_QD), limit), -np.inf, np.float32)
        k = min(limit, int(live_C.sum()))
        if not k or not len(queries_QD):
            return out, out_scores
        queries = torch.from_numpy(queries_QD)
        best = torch.empty((len(queries), 0))
        ids = torch.empty((len(queries), 0), dtype=torch.int64)
        for start in range(0, len(self._weight), _CHUNK):
            rows = slice(start, start + _CHUNK)
            scores = queries @ torch.from_numpy(self._weight[rows]).T
            if self._bias is not None:
                scores += torch.from_numpy(self._bias[rows])
            scores[:, torch.from_numpy(~live_C[rows])] = -torch.inf
            top, at = scores.topk(min(k, scores.shape[1]))
            best, ids = torch.cat([best, top], 1), torch.cat([ids, at + start], 1)
            best, at = best.topk(min(k, best.shape[1]))
            ids = ids.gather(1, at)
        out[:, :k], out_scores[:, :k] = ids.numpy(), best.numpy()
        return out, out_scores

    def hard(self, queries_QD: Floats, per_query: int, probes: int | None = None) -> Ids:
        return union(self._best(queries_QD, per_query, self._others())[0])

    def _others(self) -> NDArray[np.bool_]:
        """bool [C]: classes that are not pinned."""
        others = self._live.copy()
        others[self._pinned] = False
        return others

    def state(self) -> dict[str, NDArray[Any]]:
        return {"live": self._live.astype(np.uint8)}

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        self._live = state["live"].astype(np.bool_)
