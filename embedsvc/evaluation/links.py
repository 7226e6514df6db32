"""Link prediction: the exact filtered rank of each edge's ends among all entities of their type.

    rank = 1 + number of other candidates that score at least as high as the true one,
               candidates that complete another known edge left out

Ties count against the model, so a constant scorer gets the last rank. Known edges are those of all
splits. Candidates stream by partition in tiles, so memory is bounded by tiles and not by entities.

Ranks do not depend on partitions or tiles: a float32 matrix product may differ in its last bits
with its shape, so whatever lies within its error bound of the true score is scored again, in
float64, pair by pair (the order of that sum depends on nothing but D).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedsvc.compiled import jit
from embedsvc.edge_ids import EdgeIds
from embedsvc.evaluation import metrics
from embedsvc.trained import Trained
from partitions.graph import slots_of
from partitions.schema import SPLITS

_BLOCK_EDGES = 32_768  # queries whose vectors are in memory at once
_TILE_QUERIES = 1_024
_TILE_CANDIDATES = 4_096  # a tile of scores: 16 MB

Progress = Callable[[int], None]  # candidates x queries scored since the last call


@dataclass(frozen=True)
class LinkRanks:
    """int64 [edges] ranks of each side, and the relation of each edge."""

    lhs: NDArray[np.int64]
    rhs: NDArray[np.int64]
    rel: NDArray[np.int64]

    def summary(self) -> dict[str, float]:
        """MRR, mean rank and Hits@k over both sides of every edge."""
        return _summary(np.concatenate([self.lhs, self.rhs]))

    def by_side(self) -> dict[str, dict[str, float]]:
        return {"lhs": _summary(self.lhs), "rhs": _summary(self.rhs)}

    def by_relation(self, names: list[str]) -> dict[str, dict[str, float]]:
        return {
            names[rel]: {"edges": int(np.sum(self.rel == rel))}
            | _summary(np.concatenate([self.lhs[self.rel == rel], self.rhs[self.rel == rel]]))
            for rel in np.unique(self.rel)
        }


def _summary(ranks: NDArray[np.int64]) -> dict[str, float]:
    hits = {f"hits{k}": metrics.hits_at(k, ranks) for k in (1, 3, 10)}
    return {
        "mrr": metrics.mean_reciprocal_rank(ranks),
        "mean_rank": metrics.mean_rank(ranks),
        **hits,
    }


def sample(edges: EdgeIds, max_edges: int | None) -> EdgeIds:
    """A seeded sample of so many edges, in their order; all where there are no more, or unset."""
    if max_edges is None or len(edges) <= max_edges:
        return edges
    return edges.take(np.sort(np.random.default_rng(1).permutation(len(edges))[:max_edges]))


@torch.no_grad()
def rank_links(
    trained: Trained, edges: EdgeIds, progress: Progress = lambda scored: None
) -> LinkRanks:
    """Rank both ends of `edges`, which must be edges of the graph (of any split)."""
    ranks = {"lhs": np.empty(len(edges), np.int64), "rhs": np.empty(len(edges), np.int64)}
    for side in ("rhs", "lhs"):
        for candidate_type, rows in _by_candidate_type(trained, edges, side):
            for at in range(0, len(rows), _BLOCK_EDGES):
                block = rows[at : at + _BLOCK_EDGES]
                queries = _Queries.build(trained, edges.take(block), side)
                ranks[side][block] = _rank_block(trained, queries, candidate_type, progress)
    return LinkRanks(ranks["lhs"], ranks["rhs"], edges.rel)


def _by_candidate_type(
    trained: Trained, edges: EdgeIds, side: str
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    types = np.array([getattr(relation, side) for relation in trained.graph.relations])
    for name in dict.fromkeys(types.tolist()):
        yield name, np.flatnonzero(types[edges.rel] == name)


@dataclass(frozen=True)
class _Queries:
    """One side of a block of edges, sorted so that queries of one relation lie together.

    A query scores candidate c as comparator(x, c), or, where `moved` (the operator has to be
    applied to candidates), as comparator(x, operator_rel(c)).
    """

    x_QD: Tensor
    rel: NDArray[np.int64]
    true: NDArray[np.int64]  # id of the true candidate
    true_QD: Tensor  # its vector, moved where `moved`
    moved: bool
    order: NDArray[np.int64]  # the edge of each query
    known_query: NDArray[np.int64]  # pairs (query, candidate id) of known edges, by candidate
    known_id: NDArray[np.int64]

    @staticmethod
    def build(trained: Trained, edges: EdgeIds, side: str) -> "_Queries":
        order = np.argsort(edges.rel, kind="stable")
        edges = edges.take(order)
        model, relations = trained.model, trained.graph.relations
        rel = torch.from_numpy(edges.rel)
        lhs = _gather(trained, edges.lhs, edges.rel, [r.lhs for r in relations])
        rhs = _gather(trained, edges.rhs, edges.rel, [r.rhs for r in relations])
        moved = side == "lhs" and model.moves_candidates
        if side == "rhs":
            x, true, true_x = model.move(lhs, rel), edges.rhs, rhs
        elif moved:
            x, true, true_x = rhs, edges.lhs, model.move(lhs, rel)
        else:
            back = model.move(rhs, rel, reverse=True) if model.reciprocal else rhs
            x, true, true_x = back, edges.lhs, lhs
        known_query, known_id = _known(trained, edges, side)
        return _Queries(x, edges.rel, true, true_x, moved, order, known_query, known_id)


def _gather(
    trained: Trained, ids: NDArray[np.int64], rel: NDArray[np.int64], types: list[str]
) -> Tensor:
    """The vectors of one end, whose entity type depends on the relation."""
    out = torch.empty(len(ids), trained.model.dim)
    type_of_edge = np.array(types)[rel]
    for name in dict.fromkeys(type_of_edge.tolist()):
        rows = np.flatnonzero(type_of_edge == name)
        out[torch.from_numpy(rows)] = trained.gather(name, ids[rows])
    return out


def _known(
    trained: Trained, edges: EdgeIds, side: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(query, candidate id) pairs to leave out: every known edge that completes a query.

    One pass over all bucket files; memory follows the pairs found.
    """
    other = "rhs" if side == "lhs" else "lhs"
    span = max(trained.graph.num_entities(name) for name in trained.graph.entity_types)
    wanted = edges.rel * span + getattr(edges, other)
    names, query_to_name = np.unique(wanted, return_inverse=True)
    found_name, found_id = [], []
    for split in SPLITS:
        for bucket in trained.graph.buckets(split):
            known = trained.bucket_edges(split, bucket)
            name = known.rel * span + getattr(known, other)
            at = np.minimum(np.searchsorted(names, name), max(len(names) - 1, 0))
            hit = np.flatnonzero(names[at] == name) if len(names) else np.empty(0, np.int64)
            found_name.append(at[hit])
            found_id.append(getattr(known, side)[hit])
    name_all = np.concatenate(found_name) if found_name else np.empty(0, np.int64)
    id_all = np.concatenate(found_id) if found_id else np.empty(0, np.int64)
    # Join: every query of a name meets every id of that name.
    by_name = np.argsort(name_all, kind="stable")
    counts = np.bincount(name_all, minlength=len(names))
    starts = np.cumsum(counts) - counts
    per_query = counts[query_to_name]
    query = np.repeat(np.arange(len(edges)), per_query)
    within = np.arange(len(query)) - np.repeat(np.cumsum(per_query) - per_query, per_query)
    ids = id_all[by_name][np.repeat(starts[query_to_name], per_query) + within]
    by_id = np.argsort(ids, kind="stable")
    return query[by_id], ids[by_id]


def _rank_block(
    trained: Trained, queries: _Queries, candidate_type: str, progress: Progress
) -> NDArray[np.int64]:
    """int64 [edges of the block], in their order."""
    better = np.zeros(len(queries.rel), np.int64)
    scorer = _Scorer(trained, queries)
    starts = trained.graph.starts[candidate_type]
    for at, slot in enumerate(slots_of(trained.graph.entity_types[candidate_type])):
        vectors = torch.from_numpy(trained.vectors(slot))
        for row in range(0, len(vectors), _TILE_CANDIDATES):
            tile = vectors[row : row + _TILE_CANDIDATES]
            first_id = int(starts[at]) + row
            lo, hi = np.searchsorted(queries.known_id, [first_id, first_id + len(tile)])
            known_query = queries.known_query[lo:hi]
            known_row = queries.known_id[lo:hi] - first_id
            for start, stop, candidates in scorer.tiles(tile):
                inside = (known_query >= start) & (known_query < stop)
                better[start:stop] += scorer.count_better(
                    start, stop, candidates, known_query[inside] - start, known_row[inside]
                )
                progress((stop - start) * len(tile))
    ranks = np.empty_like(better)
    ranks[queries.order] = better + 1
    return ranks


@jit
def _count(score, low, high, surely, maybe):  # type: ignore[no-untyped-def]
    """Per row: scores above `high`, and those not below `low`. One pass over a tile: torch's
    comparisons and sums of booleans took twice as long as the product that made it."""
    for query in range(score.shape[0]):
        row, least, most = score[query], low[query], high[query]
        above = reach = np.int32(0)
        for candidate in range(row.size):
            above += np.int32(row[candidate] > most)
            reach += np.int32(row[candidate] >= least)
        surely[query], maybe[query] = above, reach


class _Scorer:
    def __init__(self, trained: Trained, queries: _Queries) -> None:
        self.model, self.queries = trained.model, queries
        self.compare = trained.model.comparator
        self.true_Q = self.compare.pairs(queries.x_QD.double(), queries.true_QD.double())

    def tiles(self, tile_ND: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """(first query, end, candidates as those queries see them)."""
        num = len(self.queries.rel)
        if not self.queries.moved:
            for start in range(0, num, _TILE_QUERIES):
                yield start, min(start + _TILE_QUERIES, num), tile_ND
            return
        edges = np.flatnonzero(np.diff(self.queries.rel, prepend=-1, append=-1))
        for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            rel = torch.full((len(tile_ND),), int(self.queries.rel[begin]))
            moved_ND = self.model.move(tile_ND, rel)
            for start in range(begin, end, _TILE_QUERIES):
                yield start, min(start + _TILE_QUERIES, end), moved_ND

    def count_better(
        self,
        start: int,
        stop: int,
        candidates_ND: Tensor,
        known_query: NDArray[np.int64],
        known_row: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Of queries [start, stop): candidates that score at least as high as the true one."""
        x_QD, true_Q = self.queries.x_QD[start:stop], self.true_Q[start:stop]
        score_QN = self.compare.blocks(x_QD, candidates_ND)
        score_QN[torch.from_numpy(known_query), torch.from_numpy(known_row)] = -torch.inf
        # Twice the bound: once for the product, once for rounding the true score to float32.
        bound_Q = 2 * self.compare.error_bound(x_QD, candidates_ND)
        low_Q, high_Q = true_Q.float() - bound_Q, true_Q.float() + bound_Q
        surely_Q, maybe_Q = (torch.empty(len(x_QD), dtype=torch.int64) for _ in range(2))
        _count(*(t.numpy() for t in (score_QN, low_Q, high_Q, surely_Q, maybe_Q)))
        unsure = torch.nonzero(surely_Q != maybe_Q).squeeze(1)
        if len(unsure):
            score_UN = score_QN[unsure]
            between_UN = (score_UN >= low_Q[unsure, None]) & (score_UN <= high_Q[unsure, None])
            pairs = torch.nonzero(between_UN)
            query, row = unsure[pairs[:, 0]], pairs[:, 1]
            for at in range(0, len(query), _TILE_QUERIES * 16):
                q, r = query[at : at + _TILE_QUERIES * 16], row[at : at + _TILE_QUERIES * 16]
                exact = self.compare.pairs(x_QD[q].double(), candidates_ND[r].double())
                surely_Q.index_add_(0, q, (exact >= true_Q[q]).to(surely_Q.dtype))
        found: NDArray[Any] = surely_Q.numpy()
        return found
