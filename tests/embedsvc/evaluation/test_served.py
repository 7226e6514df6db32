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
    hits = hits_of(ids, GOALS)
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


def test_better_scores_than_the_best_fail() -> None:
    found = judged([[0, 1], [5, 0], [0, 1], [0, 1]], [[9, 5], [10, 9], [9, 5], [9, 5]])
    gap = gap_between(EXACT, found)
    assert gap.too_good == 1 and gap.failed


def test_a_negative_gap_fails() -> None:
    """The server missed the best, and what it lists instead is by luck what was looked for."""
    exact = judged([[0, 3]] * 4, [[9.0, 5.0]] * 4)
    found = judged([[0, 1], [0, 3], [0, 3], [0, 3]], [[9, 4], [9, 5], [9, 5], [9, 5]])
    gap = gap_between(exact, found)
    assert gap.too_good == 0 and gap.recall.difference.value < 0 and gap.failed


@pytest.mark.parametrize("url", ["", "localhost:1", "http://localhost:1", "grpc://", "grpc"])
def test_a_url_that_nobody_asks_is_one_sentence(url: str) -> None:
    with pytest.raises(ConfigError, match=r"expected grpc://HOST:PORT"):
        connect(url)
