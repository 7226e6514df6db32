"""What all recommenders promise, over the registry; and each one against plain NumPy."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from embedsvc.ranking.recommenders import RECOMMENDERS, Fitted, Vectors, binary
from embedsvc.ranking.recommenders.best import best_of, blocks, top_items
from embedsvc.ranking.recommenders.products import times, times_sparse
from embedsvc.ranking.recommenders.spectral import normalised, right_singular
from partitions.errors import ConfigError

SMALL: dict[str, dict[str, object]] = {
    "spectral": {"rank": 6},
    "ials": {"dim": 3},
    "ease": {"ridge": 20.0},
    "propagation": {"dim": 8, "batch": 40, "temperature": 0.5},
    "blend": {"dim": 8, "epochs": 6, "rank": 3},  # of three groups
}


def communities(num_users: int = 120, num_items: int = 60, seed: int = 0) -> sp.csr_matrix:
    """Users of three groups, who take a third of their group's items and a few of all."""
    rng = np.random.default_rng(seed)
    same = rng.integers(0, 3, num_users)[:, None] == np.arange(num_items) % 3
    return binary(sp.csr_matrix(rng.random((num_users, num_items)) < np.where(same, 0.35, 0.02)))


def fit(name: str, matrix: sp.csr_matrix) -> Fitted:
    return RECOMMENDERS.build({"name": name, **SMALL.get(name, {})}).fit(matrix)


@pytest.mark.parametrize("name", list(RECOMMENDERS))
def test_scores_are_finite_repeatable_and_of_the_matrix_shape(name: str) -> None:
    dense = communities().toarray()
    dense[5], dense[:, 7] = 0, 0  # a user and an item without events
    matrix = binary(sp.csr_matrix(dense))
    one, other = (fit(name, matrix).scores(np.array([5, 0, 119])) for _ in range(2))
    assert one.shape == (3, 60) and one.dtype == np.float32 and np.isfinite(one).all()
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", sorted(set(RECOMMENDERS) - {"popularity"}))
def test_hidden_items_of_the_own_group_come_first(name: str) -> None:
    matrix = communities()
    users = np.arange(matrix.shape[0])
    items = top_items(fit(name, matrix), users, 10)
    group = np.array([np.bincount(row.indices % 3).argmax() for row in matrix])
    assert (items % 3 == group[:, None]).mean() > 0.9


@pytest.mark.parametrize("name", list(RECOMMENDERS))
def test_a_stranger_with_a_users_events_is_ranked_much_like_that_user(name: str) -> None:
    matrix = communities()
    fitted = fit(name, matrix)
    users = np.arange(matrix.shape[0])
    known, strange = top_items(fitted, users, 10), top_items(fitted, matrix, 10)
    assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(known, strange, strict=True)]) > 7


@pytest.mark.parametrize("name", list(RECOMMENDERS))
def test_lists_leave_out_what_the_user_has(name: str) -> None:
    matrix = communities()
    hidden = communities(seed=1)
    lists = top_items(fit(name, matrix), np.arange(matrix.shape[0]), 40, hidden)
    for row, items in enumerate(lists):
        shown = set(items[items >= 0])
        assert len(shown) == (items >= 0).sum() == min(40, 60 - (matrix + hidden)[row].nnz)
        assert not shown & set(matrix[row].indices) and not shown & set(hidden[row].indices)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 30), st.integers(0, 5))
def test_the_best_are_those_of_a_stable_sort(seed: int, num_items: int, k: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, (rows, num_items)).astype(np.float32)  # mostly ties
    left_out = binary(sp.csr_matrix(rng.random((rows, num_items)) < rng.random()))
    masked = np.where(left_out.toarray() > 0, -np.inf, scores)
    order = np.argsort(-masked, axis=1, kind="stable")[:, :k]
    expected = np.full((rows, k), -1)
    expected[:, : order.shape[1]] = np.where(
        np.take_along_axis(masked, order, 1) == -np.inf, -1, order
    )
    np.testing.assert_array_equal(best_of(scores, left_out, k), expected)


def test_no_list_names_an_item_whose_score_is_not_a_number() -> None:
    scores = np.array([[np.nan, 1, np.nan, 2]], np.float32)
    items = best_of(scores, sp.csr_matrix((1, 4)), 3)
    assert set(items[0]) <= {1, 3, -1}


def test_blocks_of_users_join_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = fit("item-knn", communities())
    whole = top_items(fitted, np.arange(120), 7)
    monkeypatch.setattr("embedsvc.ranking.recommenders.best._BLOCK_BYTES", 4 * 60 * 7)
    parts = list(blocks(fitted, np.arange(120), 7))
    assert len(parts) == 18
    np.testing.assert_array_equal(np.concatenate([items for _, items in parts]), whole)


def test_products_equal_scipys() -> None:
    rng = np.random.default_rng(0)
    left = sp.random(700, 300, 0.1, "csr", np.float32, rng)
    right = sp.random(300, 200, 0.1, "csr", np.float32, rng)
    dense = rng.standard_normal((300, 33), np.float32)
    np.testing.assert_allclose(times(left, dense), left @ dense, rtol=1e-4, atol=1e-5)
    out = np.ones((700, 200), np.float32)
    times_sparse(left, right, out)
    np.testing.assert_allclose(out, 1 + (left @ right).toarray(), rtol=1e-4, atol=1e-5)


def test_the_spectral_filter_equals_dense_algebra() -> None:
    matrix = communities()
    found = fit("spectral", matrix).scores(np.arange(120))
    dense = matrix.toarray().astype(np.float64)
    of_user, of_item = np.maximum(dense.sum(1), 1), np.maximum(dense.sum(0), 1)
    normal = dense / np.sqrt(of_user)[:, None] / np.sqrt(of_item)
    vectors = np.linalg.svd(normal)[2][:6].T
    ideal = (vectors / np.sqrt(of_item)[:, None]) @ (vectors.T * np.sqrt(of_item))
    # some singular values crowd
    np.testing.assert_allclose(found, dense @ (normal.T @ normal + 0.3 * ideal), atol=0.02)
    linear = RECOMMENDERS.build({"name": "spectral", "rank": 0}).fit(matrix)
    np.testing.assert_allclose(linear.scores(np.arange(120)), dense @ normal.T @ normal, rtol=1e-5)


def test_singular_values_and_vectors_are_those_of_a_full_decomposition() -> None:
    normal, _ = normalised(communities(200, 150))
    values, vectors = right_singular(normal, 4)
    _, expected, turned = np.linalg.svd(normal.toarray().astype(np.float64))
    np.testing.assert_allclose(values, expected[:4], rtol=1e-4)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(4), atol=1e-4)
    gap = np.abs(vectors[:, :3].T @ turned[:3].T)  # three groups stand out
    np.testing.assert_allclose(np.linalg.svd(gap)[1], 1, atol=1e-3)


def test_item_neighbours_equal_a_plain_loop() -> None:
    matrix = communities()
    found = RECOMMENDERS.build({"name": "item-knn", "neighbours": 5}).fit(matrix)
    dense = matrix.toarray().astype(np.float64)
    unit = dense / np.maximum(np.linalg.norm(dense, axis=0), 1)
    similar = unit.T @ unit
    np.fill_diagonal(similar, -1)
    expected = np.zeros_like(similar)
    for item, row in enumerate(similar):
        best = np.argsort(-row, kind="stable")[:5]
        expected[item, best] = row[best]
    np.testing.assert_allclose(
        np.sort(found.scores(np.arange(120))), np.sort(dense @ expected), atol=0.35
    )
    kept = found.similarity
    assert np.diff(kept.indptr).max() == 5 and kept.diagonal().max() == 0
    np.testing.assert_allclose(
        np.sort(kept.toarray(), 1)[:, -5:], np.sort(similar, 1)[:, -5:], atol=1e-5
    )


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"name": "spectrl"}, "Did you mean spectral?"),
        ({"name": "spectral", "rank": -1}, "must not be negative"),
        ({"name": "item-knn", "neighbours": 0}, "at least 1"),
    ],
)
def test_bad_settings_are_refused(spec: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence.replace("?", r"\?")):
        RECOMMENDERS.build(spec)


def test_vectors_score_by_inner_products() -> None:
    users, items = np.eye(2, 3, dtype=np.float32), np.arange(12, dtype=np.float32).reshape(4, 3)
    found = Vectors(sp.csr_matrix((2, 4)), users, items).scores(np.array([1]))
    np.testing.assert_array_equal(found, [[1, 4, 7, 10]])


def of_low_rank() -> dict[str, sp.csr_matrix]:
    def drawn(users: int, items: int, events: int) -> sp.csr_matrix:
        rng = np.random.default_rng(0)
        at = rng.integers(0, users, events), rng.integers(0, items, events)
        return binary(sp.csr_matrix((np.ones(events), at), (users, items)))

    block = np.zeros((200, 300))
    block[:50, :60] = 1
    return {
        "few events": drawn(100, 100, 300),
        "fewer than items": drawn(300, 400, 700),
        "one block": binary(sp.csr_matrix(block)),
        "one event": binary(sp.csr_matrix(([1.0], ([2], [3])), (5, 7))),
        "empty": binary(sp.csr_matrix((5, 7))),
    }


@pytest.mark.parametrize("events", list(of_low_rank()))
@pytest.mark.parametrize("name", ["spectral", "blend", "propagation"])
def test_a_matrix_of_low_rank_is_fitted_with_the_default_settings(name: str, events: str) -> None:
    matrix = of_low_rank()[events]
    short = {} if name == "spectral" else {"epochs": 1}
    scores = RECOMMENDERS.build({"name": name, **short}).fit(matrix).scores(np.arange(5))
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("events", list(of_low_rank()))
def test_singular_vectors_span_the_rows_of_a_matrix_of_low_rank_and_no_more(events: str) -> None:
    normal, _ = normalised(of_low_rank()[events])
    dense = normal.toarray().astype(np.float64)
    values, vectors = right_singular(normal, min(dense.shape))
    _, expected, turned = np.linalg.svd(dense)
    rank = int((expected > 2e-3).sum())
    assert len(values) == vectors.shape[1] == rank
    np.testing.assert_allclose(values, expected[:rank], atol=2e-3)
    np.testing.assert_allclose(vectors @ vectors.T, turned[:rank].T @ turned[:rank], atol=5e-3)
