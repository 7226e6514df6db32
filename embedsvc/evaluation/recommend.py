"""Top-k lists for every lhs of a relation, over all rhs, what training showed left out.

Recall@k and NDCG@k of the model beside a most-popular baseline, which it must beat to be of use.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedsvc.evaluation import metrics
from embedsvc.trained import EdgeIds, Trained
from partitions.graph import slots_of

HISTORY_FIRST = (0, 1, 3, 5, 10, 20, 50)  # the fewest known events of each band of histories

_TILE_QUERIES = 512
_TILE_CANDIDATES = 16_384  # a tile of scores: 32 MB


@dataclass(frozen=True)
class HistoryBand:
    """Means over the lists of those of whom so many events are known; repeated ones count."""

    events: str  # as people write it: "0", "1-2", "50+"
    num_lists: int  # at least 1
    recall: float
    recall_se: float
    ndcg: float


@dataclass(frozen=True)
class RecommendReport:
    """Means over lists, NaN where there is none; the standard error is over lists, which are the
    independent unit. by_history: bands that have lists, the shortest histories first."""

    relation: str
    k: int
    num_lists: int
    recall: float
    recall_se: float
    ndcg: float
    popular_recall: float
    popular_ndcg: float
    by_history: tuple[HistoryBand, ...] = ()


@torch.no_grad()
def evaluate_lists(trained: Trained, relation: str, split: str, k: int) -> RecommendReport:
    """Lists of the lhs that have an edge in `split`; train (for test also valid) edges are seen."""
    trained = trained.before(split)
    graph = trained.graph
    rel = graph.relation_id(relation)
    rhs_type = graph.relations[rel].rhs
    relevant = _of(trained.edges(split), rel)
    seen = [_of(trained.edges("train"), rel)]
    if split == "test":
        seen.append(_of(trained.edges("valid"), rel))
    seen_lhs = np.concatenate([part.lhs for part in seen])
    seen_rhs = np.concatenate([part.rhs for part in seen])
    num_known = np.bincount(seen_lhs, minlength=graph.num_entities(graph.relations[rel].lhs))
    if graph.relations[rel].lhs == rhs_type:  # nobody is recommended to themselves
        own = np.arange(graph.num_entities(rhs_type))
        seen_lhs, seen_rhs = np.concatenate([seen_lhs, own]), np.concatenate([seen_rhs, own])
    relevant = _distinct_new(relevant, seen_lhs, seen_rhs, graph.num_entities(rhs_type))
    lhs, num_relevant = np.unique(relevant.lhs, return_counts=True)
    if not len(lhs):
        nothing = float("nan")
        return RecommendReport(relation, k, 0, nothing, nothing, nothing, nothing, nothing)
    popular = np.bincount(seen[0].rhs, minlength=graph.num_entities(rhs_type)).astype(np.float32)
    model_hits, popular_hits = [], []
    for at in range(0, len(lhs), _TILE_QUERIES):
        block = lhs[at : at + _TILE_QUERIES]
        mask_query, mask_id = _rows_of(block, seen_lhs, seen_rhs)
        goal_query, goal_id = _rows_of(block, relevant.lhs, relevant.rhs)
        ids = _best(_model_scores(trained, rel, block), mask_query, mask_id, k)
        model_hits.append(_hits(ids, goal_query, goal_id))
        ids = _best(_equal_scores(popular, len(block)), mask_query, mask_id, k)
        popular_hits.append(_hits(ids, goal_query, goal_id))
    hits, baseline = np.concatenate(model_hits), np.concatenate(popular_hits)
    recall, ndcg = metrics.recall_at(hits, num_relevant), metrics.ndcg_at(hits, num_relevant)
    return RecommendReport(
        relation,
        k,
        len(lhs),
        float(recall.mean()),
        _standard_error(recall),
        float(ndcg.mean()),
        float(metrics.recall_at(baseline, num_relevant).mean()),
        float(metrics.ndcg_at(baseline, num_relevant).mean()),
        _by_history(num_known[lhs], recall, ndcg),
    )


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
            band = HistoryBand(
                _events(first, after),
                len(part),
                float(part.mean()),
                _standard_error(part),
                float(ndcg[some].mean()),
            )
            found.append(band)
    return tuple(found)


def _events(first: int, after: int | None) -> str:
    if after is None:
        return f"{first}+"
    return str(first) if after == first + 1 else f"{first}-{after - 1}"


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std() / np.sqrt(len(values)))


def _of(edges: EdgeIds, rel: int) -> EdgeIds:
    return edges.take(np.flatnonzero(edges.rel == rel))


def _distinct_new(
    edges: EdgeIds, seen_lhs: NDArray[np.int64], seen_rhs: NDArray[np.int64], span: int
) -> EdgeIds:
    """Each (lhs, rhs) once, sorted; none that was seen already, as it can't be recommended."""
    pairs = np.setdiff1d(edges.lhs * span + edges.rhs, seen_lhs * span + seen_rhs)
    rel = np.full(len(pairs), edges.rel[0] if len(edges) else 0)
    return EdgeIds(pairs // span, rel, pairs % span)


def _rows_of(
    block: NDArray[np.int64], lhs: NDArray[np.int64], rhs: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(place in block, rhs) of each edge whose lhs is in `block` (sorted)."""
    at = np.minimum(np.searchsorted(block, lhs), len(block) - 1)
    hit = np.flatnonzero(block[at] == lhs)
    return at[hit], rhs[hit]


def _model_scores(
    trained: Trained, rel: int, block: NDArray[np.int64]
) -> Iterator[tuple[int, Tensor]]:
    """Scores of candidates by each lhs of the block, tile by tile: the first one's id, [block, n].
    Partitions stream by."""
    graph, model = trained.graph, trained.model
    relation = graph.relations[rel]
    query = model.move(
        trained.gather(relation.lhs, block), torch.full((len(block),), rel, dtype=torch.int64)
    )
    starts = graph.starts[relation.rhs]
    for at, slot in enumerate(slots_of(graph.entity_types[relation.rhs])):
        vectors = torch.from_numpy(trained.vectors(slot))
        for tile in range(0, len(vectors), _TILE_CANDIDATES):
            rows = vectors[tile : tile + _TILE_CANDIDATES]
            yield int(starts[at]) + tile, model.comparator.blocks(query, rows)


def _equal_scores(scores: NDArray[np.float32], num_queries: int) -> Iterator[tuple[int, Tensor]]:
    """The same of scores that are equal for all."""
    for tile in range(0, len(scores), _TILE_CANDIDATES):
        part = torch.from_numpy(scores[tile : tile + _TILE_CANDIDATES])
        yield tile, part.repeat(num_queries, 1)


def _best(
    tiles: Iterator[tuple[int, Tensor]],
    mask_query: NDArray[np.int64],
    mask_id: NDArray[np.int64],
    k: int,
) -> NDArray[np.int64]:
    """int64 [queries, k] ids, best first and padded with -1; masked (query, id) are left out.
    Memory is bounded by a tile: of each only the best k are kept."""
    best_score, best_id = torch.empty(0), torch.empty(0)
    order = np.argsort(mask_id, kind="stable")
    mask_query, mask_id = mask_query[order], mask_id[order]
    for start, score in tiles:
        if not best_score.numel():
            best_score = score.new_empty(len(score), 0)
            best_id = torch.empty(len(score), 0, dtype=torch.int64)
        first, last = np.searchsorted(mask_id, [start, start + score.shape[1]])
        here = slice(first, last)
        masked = torch.from_numpy(mask_query[here]), torch.from_numpy(mask_id[here] - start)
        score[masked] = -torch.inf
        found, places = score.topk(min(k, score.shape[1]))
        score, ids = torch.cat([best_score, found], 1), torch.cat([best_id, start + places], 1)
        best_score, places = score.topk(min(k, score.shape[1]))
        best_id = ids.gather(1, places)
    lists: NDArray[np.int64] = best_id.masked_fill(best_score == -torch.inf, -1).numpy()
    return lists


def _hits(
    ids: NDArray[np.int64], goal_query: NDArray[np.int64], goal_id: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """bool like `ids`: whether the item at each place is a goal of its list."""
    span = max(int(ids.max(initial=0)), int(goal_id.max(initial=0))) + 1
    goals = goal_query * span + goal_id
    places = np.arange(len(ids))[:, None] * span + ids
    return np.isin(np.where(ids < 0, -1, places), goals)
