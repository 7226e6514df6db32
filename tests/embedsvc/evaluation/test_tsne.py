"""embedsvc.evaluation.tsne: by its definition, and as good as scikit-learn's."""

import math

import numpy as np
import pytest

from embedsvc.evaluation import tsne


def groups(num: int, dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(6, dim))[np.arange(num) % 6] + 0.8 * rng.normal(size=(num, dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def start_of(vectors: np.ndarray) -> np.ndarray:
    middle = vectors - vectors.mean(axis=0)
    found = middle @ np.linalg.svd(middle, full_matrices=False)[2][:2].T
    return found / found[:, 0].std() * 1e-4


def test_each_point_picks_among_as_many_neighbours_as_perplexity_says() -> None:
    vectors, perplexity = groups(60, 5), 12.0
    p = tsne.picked(vectors, perplexity)
    assert p.sum() == pytest.approx(1, abs=1e-5)
    assert (p == p.T).all() and (np.diag(p) == 0).all()
    # A plain loop: halve the interval of one sharpness a point.
    apart = [[float(((a - b) ** 2).sum()) for b in vectors.astype(float)] for a in vectors]
    right = np.zeros((60, 60))
    for i, row in enumerate(apart):
        low, high = 0.0, 1e3
        for _ in range(200):
            sharp = (low + high) / 2
            shares = [math.exp(-sharp * d) if j != i else 0.0 for j, d in enumerate(row)]
            shares = [share / sum(shares) for share in shares]
            entropy = -sum(share * math.log(share) for share in shares if share > 0)
            low, high = (sharp, high) if entropy > math.log(perplexity) else (low, sharp)
        right[i] = shares
    assert p == pytest.approx((right + right.T) / 120, abs=1e-6)


def test_forces_are_the_gradient_of_the_divergence() -> None:
    p = tsne.picked(groups(20, 4), 5.0)
    y = np.random.default_rng(1).normal(size=(20, 2))
    force = np.empty((5, 20), np.float32)
    tsne._pull_and_push(0, 20, np.ascontiguousarray(y.T, np.float32), p, force)
    gradient = 4 * (force[:2] - force[2:4] / force[4].sum()).T
    for i, axis in ((0, 0), (7, 1), (19, 0)):
        near = [y.copy(), y.copy()]
        near[0][i, axis] -= 1e-4
        near[1][i, axis] += 1e-4
        less, more = (tsne.kl_divergence(p, one) for one in near)
        assert gradient[i, axis] == pytest.approx((more - less) / 2e-4, abs=1e-4)


def test_places_are_as_good_as_those_of_scikit_learn() -> None:
    from sklearn.manifold import TSNE

    vectors = groups(240, 16)
    start, p = start_of(vectors), tsne.picked(vectors, 30.0)
    ours = tsne.kl_divergence(p, tsne.placed(p, start, 500))
    peer = TSNE(init=start.astype(np.float32), perplexity=30, max_iter=500, random_state=0)
    theirs = tsne.kl_divergence(p, peer.fit_transform(vectors))
    assert ours < 1.03 * theirs


def test_points_that_are_the_same_have_finite_places() -> None:
    vectors = np.repeat(groups(20, 4), 5, axis=0)
    places = tsne.placed(tsne.picked(vectors, 25.0), start_of(vectors), 300)
    assert np.isfinite(places).all()
