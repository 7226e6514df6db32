"""The exact retriever against a plain sort."""

import numpy as np

from embedsvc.outputs.retrievers import RETRIEVERS


def test_exact_retriever_finds_what_a_sort_finds() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((40_000, 3)).astype(np.float32)
    bias = rng.standard_normal(40_000).astype(np.float32)
    queries = rng.standard_normal((5, 3)).astype(np.float32)
    exact = RETRIEVERS.build("exact")
    exact.fit(weight, bias)
    exact.remove(np.arange(0, 40_000, 2))
    exact.add(np.array([8]))
    scores = queries @ weight.T + bias
    scores[:, ::2] = -np.inf
    scores[:, 8] = queries @ weight[8] + bias[8]
    assert (exact.retrieve(queries, 7) == np.argsort(-scores, axis=1)[:, :7]).all()
    other = RETRIEVERS.build("exact")
    other.rebind(weight, bias)
    other.load_state(exact.state())
    assert (other.retrieve(queries, 7) == exact.retrieve(queries, 7)).all()


def test_missing_places_are_padded() -> None:
    exact = RETRIEVERS.build("exact")
    exact.fit(np.ones((2, 1), np.float32), None)
    exact.remove(np.array([0]))
    assert exact.retrieve(np.ones((1, 1), np.float32), 3).tolist() == [[1, -1, -1]]
