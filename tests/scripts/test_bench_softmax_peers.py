"""The benchmark beside peers: one core means one, for threads that are there already, too."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from embedsvc.outputs.full import FullSoftmax
from embedsvc.outputs.lsh_softmax import LSHSoftmax
from embedsvc.ranking.row_embedding import RowEmbedding
from scripts import bench_softmax_peers as bench


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads can't be bound here")
def test_one_core_binds_every_thread_and_lets_them_go() -> None:
    before = os.sched_getaffinity(0)
    with ThreadPoolExecutor(2) as pool:

        def cores() -> list[int]:
            return [len(pool.submit(os.sched_getaffinity, 0).result()) for _ in range(4)]

        assert cores() == [len(before)] * 4
        with bench.one_core():
            assert cores() == [1] * 4
        assert cores() == [len(before)] * 4
    assert os.sched_getaffinity(0) == before


class _Sets:
    """Three test users."""

    def __init__(self) -> None:
        features = [np.array([1, 2]), np.array([3]), np.array([4, 5])]
        self.test = features, features
        self.weights = lambda items: np.full(len(items), 0.5)


def test_an_index_has_its_own_seconds_and_a_scan_has_none() -> None:
    table = RowEmbedding(300, 4, seed=1).eval()
    found = {}
    for layer in (LSHSoftmax(4, 300, head=10, frequencies=np.ones(300)), FullSoftmax(4, 300)):
        with torch.no_grad():
            best, spent = bench.answers(_Sets(), table, layer.eval())  # type: ignore[arg-type]
        assert best.shape == (3, bench.K + 2)
        found[type(layer)] = spent["index_seconds"]
    assert found[LSHSoftmax] > 0 == found[FullSoftmax]
