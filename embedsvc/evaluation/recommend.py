"""How good a model's lists are, in all numbers that people quote, beside the most popular.

report = evaluate_lists(trained, "bought", "test", 20)
report.metrics["recall@20"]             value, low, high
"""

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from embedsvc.evaluation import metrics, significance
from embedsvc.evaluation.lists import Asked, Judged, Progress, judge
from embedsvc.evaluation.significance import Interval
from embedsvc.evaluation.sources import OfCheckpoint, OfPopularity
from embedsvc.trained import Trained

HISTORY_FIRST = (0, 1, 3, 5, 10, 20, 50)  # the fewest known events of each band of histories


@dataclass(frozen=True)
class HistoryBand:
    """Means over the lists of those of whom so many events are known; repeated ones count."""

    events: str  # as people write it: "0", "1-2", "50+"
    num_lists: int  # at least 1
    recall: float
    recall_se: float
    ndcg: float
    recall_low: float  # 95 % interval; NaN of fewer than 10 lists
    recall_high: float


@dataclass(frozen=True)
class ColdItems:
    """Goals without any training edge, which lists of vectors seldom find."""

    num_goals: int
    found: int  # of these, in a list
    num_warm: int
    found_warm: int


@dataclass(frozen=True)
class RecommendReport:
    """Means over lists, NaN where there is none; the standard error is over lists, which are the
    independent unit. by_history: bands that have lists, the shortest histories first; the first
    one, of "0" events, are cold askers."""

    relation: str
    k: int
    num_lists: int
    recall: float
    recall_se: float
    ndcg: float
    popular_recall: float
    popular_ndcg: float
    by_history: tuple[HistoryBand, ...] = ()
    metrics: dict[str, Interval] = field(default_factory=dict)  # "recall@20" -> 95 % interval
    popular: dict[str, float] = field(default_factory=dict)  # the same of the most popular
    catalogue: dict[str, float] = field(default_factory=dict)  # coverage@k and so on
    cold_items: ColdItems = ColdItems(0, 0, 0, 0)
    num_without_goals: int = 0  # askers left out: all that was held out of them they had before
    short_lists: int = 0  # with fewer than k places filled


def evaluate_lists(
    trained: Trained,
    relation: str,
    split: str,
    k: int,
    progress: Progress = lambda answered: None,
) -> RecommendReport:
    """Lists of the lhs that have an edge in `split`; train (for test also valid) edges are seen."""
    trained = trained.before(split)
    asked = Asked.of(trained.graph, relation, split)
    return report_of(judge(OfCheckpoint(trained, relation), asked, k, progress), asked)


def report_of(judged: Judged, asked: Asked, popular: Judged | None = None) -> RecommendReport:
    """popular: what is most popular, where that was judged already."""
    k = judged.k
    if popular is None:
        popular = judge(OfPopularity(asked.popularity), asked, k)
    recall, ndcg = judged.values[f"recall@{k}"], judged.values[f"ndcg@{k}"]
    baseline = {name: _mean(values) for name, values in popular.values.items()}
    return RecommendReport(
        asked.relation,
        k,
        len(asked),
        _mean(recall),
        _standard_error(recall),
        _mean(ndcg),
        baseline[f"recall@{k}"],
        baseline[f"ndcg@{k}"],
        _by_history(asked.num_known, recall, ndcg),
        intervals(judged),
        baseline,
        catalogue(judged, asked) if len(asked) else {},
        _cold_items(judged, asked),
        asked.num_without_goals,
        int(np.sum(judged.found.ids[:, -1:] < 0)),
    )


def intervals(judged: Judged) -> dict[str, Interval]:
    """Of each metric over the same drawn askers."""
    found = significance.intervals(np.stack(list(judged.values.values()), axis=1))
    return dict(zip(judged.values, found, strict=True))


def catalogue(judged: Judged, asked: Asked) -> dict[str, float]:
    """What lists do to the catalogue, by the name of the metric."""
    ids, popularity, k = judged.found.ids, asked.popularity, judged.k
    return {
        f"coverage@{k}": metrics.coverage_at(ids, len(popularity)),
        f"novelty@{k}": metrics.novelty_at(ids, popularity),
        f"gini@{k}": metrics.gini(ids, len(popularity)),
        f"popularity_lift@{k}": metrics.popularity_lift(ids, popularity),
    }


def _cold_items(judged: Judged, asked: Asked) -> ColdItems:
    ids, hits = judged.found.ids, judged.hits
    listed = sp.csr_matrix(
        (np.ones(hits.sum(), np.int8), (np.nonzero(hits)[0], ids[hits])), asked.goals.shape
    )
    cold = asked.popularity == 0
    num_cold, found_cold = (int(part[:, cold].sum()) for part in (asked.goals, listed))
    return ColdItems(num_cold, found_cold, asked.goals.nnz - num_cold, listed.nnz - found_cold)


def _by_history(
    num_known: NDArray[np.int64], recall: NDArray[np.float64], ndcg: NDArray[np.float64]
) -> tuple[HistoryBand, ...]:
    """Of each list: how many events its asker has, and its two numbers."""
    found = []
    for first, after in zip(HISTORY_FIRST, (*HISTORY_FIRST[1:], None), strict=True):
        some = num_known >= first
        if after is not None:
            some &= num_known < after
        if some.any():
            part = recall[some]
            around = significance.interval(part)
            band = HistoryBand(
                _events(first, after),
                len(part),
                float(part.mean()),
                _standard_error(part),
                float(ndcg[some].mean()),
                around.low,
                around.high,
            )
            found.append(band)
    return tuple(found)


def _events(first: int, after: int | None) -> str:
    if after is None:
        return f"{first}+"
    return str(first) if after == first + 1 else f"{first}-{after - 1}"


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _standard_error(values: NDArray[np.float64]) -> float:
    return _mean((values - _mean(values)) ** 2) ** 0.5 / max(len(values), 1) ** 0.5
