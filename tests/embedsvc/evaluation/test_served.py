"""What is said of a server's lists, by hand: the same, within rounding, worse, too good."""

import numpy as np
import pytest
import scipy.sparse as sp

from embedsvc.evaluation.lists import Found, Judged, hits_of
from embedsvc.evaluation.metrics import recall_at
from embedsvc.evaluation.served import connect, gap_between
from partitions.errors import ConfigError

GOALS = sp.csr_matrix(np.array([[0, 1, 0, 0, 0, 0]] * 4, np.int8))


def judged(lists: list[list[int]], scores: list[list[float]]) -> Judged:
    ids = np.array(lists)
    found = Found(ids, np.array(scores, np.float32))
    hits = hits_of(ids, sp.vstack([GOALS[:1]] * len(ids)).tocsr())
    values = {"recall@2": recall_at(hits, np.ones(len(ids), np.int64))}
    return Judged(2, found, hits, values)


EXACT = judged([[0, 1]] * 4, [[9.0, 5.0]] * 4)


def test_the_same_lists_have_no_gap() -> None:
    gap = gap_between(EXACT, EXACT)
    assert (gap.lists, gap.identical, gap.alike, gap.too_good) == (4, 4, 4, 0)
    assert gap.recall.difference.value == 0 and not gap.failed


def test_equal_scores_may_swap_places() -> None:
    """Which of two equal ones is listed says nothing of an index, so it is no gap either."""
    found = judged([[0, 1], [1, 0], [0, 4], [0, 1]], [[9, 5], [9, 9 - 4], [9, 5.0001], [9, 5]])
    gap = gap_between(EXACT, found)
    assert (gap.identical, gap.alike, gap.failed) == (2, 4, False)
    assert gap.recall.difference.value == 0


def test_what_an_index_misses_is_the_gap() -> None:
    found = judged([[0, 1], [0, 3], [0, -1], [0, 1]], [[9, 5], [9, 4], [9, -np.inf], [9, 5]])
    gap = gap_between(EXACT, found)
    assert (gap.identical, gap.alike, gap.too_good, gap.failed) == (2, 2, 0, False)
    assert gap.recall.difference.value == pytest.approx(0.5)
    assert gap.retrieved == pytest.approx(6 / 8)


def test_better_scores_than_the_best_fail() -> None:
    found = judged([[0, 1], [5, 0], [0, 1], [0, 1]], [[9, 5], [10, 9], [9, 5], [9, 5]])
    gap = gap_between(EXACT, found)
    assert gap.too_good == 1 and gap.failed


def test_a_negative_gap_by_luck_is_none_to_fail_for() -> None:
    """The server missed the best, and what it lists instead is by luck what was looked for."""
    exact = judged([[0, 3]] * 4, [[9.0, 5.0]] * 4)
    found = judged([[0, 1], [0, 3], [0, 3], [0, 3]], [[9, 4], [9, 5], [9, 5], [9, 5]])
    gap = gap_between(exact, found)
    assert gap.too_good == 0 and gap.recall.difference.value < 0 and not gap.failed


def test_a_negative_gap_beyond_luck_fails() -> None:
    """Ten times out of ten the server lists in place of the best what was looked for."""
    exact = judged([[0, 3]] * 10, [[9.0, 5.0]] * 10)
    gap = gap_between(exact, judged([[0, 1]] * 10, [[9.0, 4.0]] * 10))
    assert gap.too_good == 0 and gap.recall.p <= 0.05 and gap.failed


def test_an_honest_index_seldom_fails() -> None:
    """In 1 of 20 lists it misses one, whether or not that was looked for, and lists the next."""
    failed, k = 0, 20
    for seed in range(100):
        rng = np.random.default_rng(seed)
        looked_for = rng.random((500, k + 1)) < 0.1
        ids = np.tile(np.arange(k), (500, 1))
        scores = np.linspace(1, 0.5, k, dtype=np.float32) + np.zeros_like(ids, np.float32)
        served, served_scores = ids.copy(), scores.copy()
        for row in np.flatnonzero(rng.random(500) < 0.05):
            missed = rng.integers(k)
            served[row] = np.append(np.delete(ids[row], missed), k)
            served_scores[row] = np.append(np.delete(scores[row], missed), np.float32(0.49))
        both = []
        for found in (Found(ids, scores), Found(served, served_scores)):
            hits = np.take_along_axis(looked_for, found.ids, axis=1)
            both.append(Judged(k, found, hits, {"recall@20": hits.sum(axis=1) / 5}))
        gap = gap_between(*both)
        assert gap.too_good == 0 and 0.99 < gap.retrieved < 1
        failed += gap.failed
    assert failed <= 8  # 2.5 are expected


@pytest.mark.parametrize("address", ["grpc://localhost:1", "localhost:1"])
def test_there_is_one_client_so_an_address_may_do(address: str) -> None:
    connect(address).close()


@pytest.mark.parametrize("url", ["", "http://localhost:1", "grpc://", "grpc"])
def test_a_url_that_nobody_asks_is_one_sentence(url: str) -> None:
    with pytest.raises(ConfigError, match=r"expected grpc://HOST:PORT"):
        connect(url)
