"""Search equals brute force for every metric and what is left out; scores are higher for nearer."""

from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from partitions.errors import DataError
from partitions.published import Index
from serving.index import SearchIndex, unit_length

DIM, ROWS = 6, 200
NONE = np.empty(0, np.int64)


def described(metric: Any) -> Index:
    return Index(file="x.faiss", metric=metric, normalised=metric == "cos", kind="exact")


def index_of(rows: NDArray[np.float32], metric: str, kind: str = "Flat") -> SearchIndex:
    by = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    index = faiss.index_factory(DIM, kind, by)
    added = unit_length(rows) if metric == "cos" else rows
    index.train(added)
    index.add(added)
    return SearchIndex.parse(faiss.serialize_index(index), described(metric))


def truth(queries: NDArray[Any], rows: NDArray[Any], metric: str) -> NDArray[np.float64]:
    q, x = queries.astype(np.float64), rows.astype(np.float64)
    if metric == "l2":
        return -np.sqrt(((q[:, None] - x[None]) ** 2).sum(-1))
    if metric == "cos":
        q, x = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (q, x))
    return q @ x.T


@pytest.mark.parametrize("metric", ["dot", "cos", "l2"])
@pytest.mark.parametrize("num_queries", [1, 40])
@pytest.mark.parametrize("num_excluded", [0, 1, 150, ROWS])
@pytest.mark.parametrize("with_own", [False, True])
def test_search_equals_brute_force(
    metric: str, num_queries: int, num_excluded: int, with_own: bool
) -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((ROWS, DIM), np.float32)
    queries = rows[:num_queries] + 0
    excluded = np.unique(rng.choice(ROWS, num_excluded, replace=False))
    own = np.arange(num_queries) if with_own else None
    ids, scores = index_of(rows, metric).search(queries, 100, excluded, own)
    assert scores.dtype == np.float32
    for at, true in enumerate(truth(queries, rows, metric)):
        barred = {*excluded.tolist(), *([at] if with_own else [])}
        expected = [id for id in np.argsort(-true).tolist() if id not in barred][:100]
        found = ids[at][ids[at] >= 0]
        assert found.tolist() == expected
        np.testing.assert_allclose(scores[at][: len(found)], true[expected], rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["IVF4,Flat", "HNSW16,Flat"])
def test_an_approximate_index_leaves_out_what_it_must_and_still_fills_k(kind: str) -> None:
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((ROWS, DIM), np.float32)
    index = index_of(rows, "l2", kind)
    if kind.startswith("IVF"):
        index.faiss.nprobe = 4
    own = np.arange(5)
    plain, _ = index.search(rows[:5], 30, NONE, own)
    excluded = np.unique(plain[:, :5])
    ids, _ = index.search(rows[:5], 10, excluded, own)
    assert (ids >= 0).all() and not np.isin(ids, excluded).any() and not (ids == own[:, None]).any()
    exact, _ = index_of(rows, "l2").search(rows[:5], 10, excluded, own)
    assert np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(ids, exact, strict=True)]) > 0.9


def test_equal_vectors_have_distance_zero() -> None:
    rows = np.ones((3, DIM), np.float32)
    _, scores = index_of(rows, "l2").search(rows[:1], 3, NONE)
    assert [str(score) for score in scores[0]] == ["0.0"] * 3


def test_an_index_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match=r"x\.faiss is no index that faiss"):
        SearchIndex.parse(np.arange(100, dtype=np.uint8), described("dot"))
    data = faiss.serialize_index(faiss.IndexFlatL2(DIM))
    with pytest.raises(DataError, match=r"x\.faiss was not built for the metric cos"):
        SearchIndex.parse(data, described("cos"))
