"""The best k of tiles equal a sort of everything, whatever the tiles, with NaN, ties and gaps."""

from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedsvc.evaluation.topk import Best

ODD = np.array([0, -0.0, 1, 1, 2, -3, np.nan, np.inf, -np.inf, 5], np.float32)


def by_sorting(
    scores: NDArray[np.float32], left_out: NDArray[np.bool_], k: int
) -> tuple[list[list[int]], list[list[float]]]:
    ids, best = [], []
    for row, gone in zip(scores, left_out, strict=True):
        listed = [at for at in range(len(row)) if not gone[at] and row[at] > -np.inf]
        listed = sorted(listed, key=lambda at: (-row[at], at))[:k]
        ids.append(listed + [-1] * (k - len(listed)))
        best.append([float(row[at]) for at in listed] + [-np.inf] * (k - len(listed)))
    return ids, best


@given(st.data())
def test_the_best_of_tiles_equal_a_sort_of_all(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    num_queries, num, k = (data.draw(st.integers(0, high)) for high in (5, 300, 12))
    if data.draw(st.booleans()):
        scores = rng.choice(ODD, (num_queries, num))
    else:
        scores = rng.standard_normal((num_queries, num)).astype(np.float32)
        scores[rng.random(scores.shape) < 0.1] = np.nan
    left_out = rng.random(scores.shape) < data.draw(st.sampled_from([0, 0.1, 0.9]))
    ends = sorted({0, num, *data.draw(st.lists(st.integers(0, num), max_size=3))})
    best = Best(num_queries, k)
    mask = sp.csr_matrix(left_out, dtype=np.int8)
    for first, last in pairwise(ends):
        middle = data.draw(st.integers(0, num_queries))
        for begin, end in [(0, middle), (middle, num_queries)]:
            tile = np.ascontiguousarray(scores[begin:end, first:last])
            best.add(tile, mask, begin, first)
    ids, values = by_sorting(scores, left_out, k)
    assert best.ids.tolist() == ids
    assert best.scores.tolist() == values
