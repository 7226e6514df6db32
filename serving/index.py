"""A FAISS index with this project's scores: higher is better, whatever the metric."""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from partitions.errors import DataError
from partitions.published import Index


@dataclass(frozen=True)
class SearchIndex:
    """`dot` and `cos` are FAISS's inner product; for `l2` it gives squared distances."""

    faiss: Any
    metric: str
    normalised: bool  # rows have unit length, so queries get it too
    scale: float  # of scores

    @classmethod
    def parse(cls, data: Any, described: Index) -> "SearchIndex":
        """data: what faiss.serialize_index gave. Raises DataError for what doesn't fit."""
        try:
            index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
        except RuntimeError:
            raise DataError(
                f"{described.file} is no index that faiss {faiss.__version__} can read. "
                "Publish again with the faiss that serves."
            ) from None
        expected = faiss.METRIC_L2 if described.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        if index.metric_type != expected:
            raise DataError(
                f"{described.file} was not built for the metric {described.metric}. Publish again."
            )
        return cls(index, described.metric, described.normalised, described.scale)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        excluded: NDArray[np.int64],
        own: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best ids of each query, best first, and their scores: [Q, at most k] each.

        queries: float32 [Q, D]. excluded: ids that no query returns, each once. own: int64 [Q],
        the id that this query doesn't return. Ids end in -1 where fewer exist. Exact on flat
        indexes; an approximate one may find fewer than there are.
        """
        if self.normalised:
            queries = unit_length(queries)
        flat = isinstance(self.faiss, faiss.IndexFlat)
        # An approximate index with a selector loses results: there, look further and drop.
        further = (own is not None) + (0 if flat else len(excluded))
        wanted = min(k + further, self.faiss.ntotal - (len(excluded) if flat else 0))
        if wanted <= 0:
            return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        params = None
        if flat and len(excluded):
            selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(excluded))
            params = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        scores, ids = self.faiss.search(queries, wanted, params=params)
        if further:
            dropped = np.isin(ids, excluded)
            if own is not None:
                dropped |= ids == own[:, None]
            kept_first = np.argsort(dropped, axis=1, kind="stable")[:, :k]
            ids = np.take_along_axis(np.where(dropped, -1, ids), kept_first, axis=1)
            scores = np.take_along_axis(scores, kept_first, axis=1)
        if self.metric == "l2":
            scores = np.float32(0) - np.sqrt(np.maximum(scores, 0))  # 0 - x: 0 gives 0, not -0
        elif self.scale != 1:
            scores = scores * np.float32(self.scale)
        return ids, scores


def unit_length(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1, a new array; a row of zeros stays."""
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.asarray(x / np.where(length > 0, length, 1), np.float32)
