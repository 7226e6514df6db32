"""Link prediction: the exact rank of each edge's ends among all entities of their type.

    pessimistic rank = 1 + higher + equal        realistic rank = 1 + higher + equal / 2

of the other candidates, how many score higher than the true one, and how many the same. Pessimistic
is the default: ties count against the model, so a constant scorer gets the last rank. Realistic is
the rank to expect where ties are broken at random: there a constant scorer gets the middle one.
Filtered, candidates that complete another known edge (of any split) are left out; raw, they are
not. Both come of one pass. Candidates stream by partition in tiles, so memory is bounded by tiles
and not by entities.

Ranks do not depend on partitions or tiles: a float32 matrix product may differ in its last bits
with its shape, so whatever lies within its error bound of the true score is scored again, in
float64, pair by pair (the order of that sum depends on nothing but D).

A vector that has no length below 1e18, NaN and infinity among them, gives no score: a candidate
with one counts as higher, and an edge with one has the last rank. Such edges are counted.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedsvc.compiled import jit
from embedsvc.edge_ids import EdgeIds
from embedsvc.evaluation import significance
from embedsvc.evaluation.significance import Interval
from embedsvc.graph.comparators import Comparator
from embedsvc.trained import Trained
from partitions.graph import slots_of
from partitions.schema import SPLITS

BLOCK_EDGES = 32_768  # queries whose vectors are in memory at once
_TILE_QUERIES = 1_024
_TILE_CANDIDATES = 4_096  # a tile of scores: 16 MB
_LONGEST = 1e18  # whose square, times D, is a float32

Progress = Callable[[int], None]  # candidates x queries scored since the last call


Ties = Literal["pessimistic", "realistic"]
SIDES = ("lhs", "rhs")
_DEGREE_FIRST = (0, 1, 3, 10, 100, 1000)  # the lowest degree of each band
_HITS = (1, 3, 10)


@dataclass(frozen=True)
class SideRanks:
    """One end of each edge, against the other candidates. Arrays are [edges]."""

    higher: NDArray[np.int64]  # of those that are left: how many score higher
    equal: NDArray[np.int64]  # and how many the same
    known_higher: NDArray[np.int64]  # the same two of those that complete another known edge
    known_equal: NDArray[np.int64]
    num_left: NDArray[np.int64]  # all that are left
    unscored: NDArray[np.bool_]  # the true one has no score: all others count as higher
    beside_unscored: NDArray[np.bool_]  # some candidate of its type has none

    def ranks(self, ties: Ties = "pessimistic", *, raw: bool = False) -> NDArray[np.float64]:
        """From 1. raw: among all candidates."""
        higher, equal = self.higher, self.equal
        if raw:
            higher, equal = higher + self.known_higher, equal + self.known_equal
        return 1.0 + higher + equal * (1.0 if ties == "pessimistic" else 0.5)


@dataclass(frozen=True)
class LinkRanks:
    """The ranks of both ends of every edge; each mean is over both where nothing else is said."""

    sides: dict[str, SideRanks]  # "lhs", "rhs"
    rel: NDArray[np.int64]

    @property
    def lhs(self) -> NDArray[np.int64]:
        """Filtered and pessimistic."""
        return self.sides["lhs"].ranks().astype(np.int64)

    @property
    def rhs(self) -> NDArray[np.int64]:
        return self.sides["rhs"].ranks().astype(np.int64)

    def both(self, ties: Ties = "pessimistic", *, raw: bool = False) -> NDArray[np.float64]:
        """float64 [2, edges]"""
        return np.stack([self.sides[side].ranks(ties, raw=raw) for side in SIDES])

    def summary(self, ties: Ties = "pessimistic", *, raw: bool = False) -> dict[str, float]:
        """MRR, mean rank and Hits@k."""
        return summary(self.both(ties, raw=raw))

    def by_side(self, ties: Ties = "pessimistic") -> dict[str, dict[str, float]]:
        return {side: summary(self.sides[side].ranks(ties)) for side in SIDES}

    def by_relation(
        self, names: list[str], ties: Ties = "pessimistic"
    ) -> dict[str, dict[str, float]]:
        ranks = self.both(ties)
        return {
            names[rel]: {"edges": int(np.sum(self.rel == rel))} | summary(ranks[:, self.rel == rel])
            for rel in np.unique(self.rel)
        }

    def by_degree(
        self, degrees: NDArray[np.int64], ties: Ties = "pessimistic"
    ) -> list[dict[str, Any]]:
        """By how many training edges the entity has whose rank it is; of bands that have any.

        degrees: int64 [2, edges], see `train_degrees`.
        """
        ranks, bands = self.both(ties), bands_of(degrees)
        return [
            {"degree": name, "ranks": int(np.sum(band))} | summary(ranks[band])
            for name, band in bands.items()
        ]

    def intervals(self, ties: Ties = "pessimistic") -> dict[str, Interval]:
        """95 % intervals of MRR and Hits@k over edges, the two ends of one averaged first."""
        return intervals(self.both(ties))

    @property
    def num_unscored(self) -> int:
        """Edges of which an end has no score."""
        return int(np.sum(self.sides["lhs"].unscored | self.sides["rhs"].unscored))

    @property
    def num_beside_unscored(self) -> int:
        """Edges of which an end was compared with a candidate that has no score."""
        sides = self.sides.values()
        return int(np.sum(np.any([side.beside_unscored for side in sides], axis=0)))


def _values(ranks: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Whose mean over ranks is the metric."""
    return {
        "mrr": 1.0 / ranks,
        "mean_rank": ranks,
        **{f"hits{k}": (ranks <= k).astype(np.float64) for k in _HITS},
    }


def summary(ranks: NDArray[np.float64]) -> dict[str, float]:
    """MRR, mean rank and Hits@k of ranks counted from 1, whatever their shape; NaN for none."""
    return {
        name: float(np.mean(values)) if ranks.size else float("nan")
        for name, values in _values(ranks).items()
    }


def intervals(ranks: NDArray[np.float64]) -> dict[str, Interval]:
    """Of float64 [2, edges]."""
    values = {name: each.mean(axis=0) for name, each in _values(ranks).items()}
    del values["mean_rank"]  # a few lost edges decide it
    found = significance.intervals(np.stack(list(values.values()), axis=1))
    return dict(zip(values, found, strict=True))


def report(
    ranks: LinkRanks, names: list[str], degrees: NDArray[np.int64], ties: Ties
) -> dict[str, Any]:
    """What goes to the evaluation's JSON; names: of the relations, degrees: see `train_degrees`.

    Figures are filtered, with `ties` as asked for, where nothing else is said.
    """
    return {
        "edges": len(ranks.rel),
        "ties": ties,
        **ranks.summary(ties),
        "intervals": {name: asdict(found) for name, found in ranks.intervals(ties).items()},
        "pessimistic": ranks.summary(),
        "realistic": ranks.summary("realistic"),
        "raw": ranks.summary(ties, raw=True),
        "by_side": ranks.by_side(ties),
        "by_relation": ranks.by_relation(names, ties),
        "by_degree": ranks.by_degree(degrees, ties),
        "nan_edges": ranks.num_unscored,
        "nan_candidates": ranks.num_beside_unscored,
    }


def bands_of(degrees: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """By the name of each band that any of these is in: which are."""
    band = np.searchsorted(_DEGREE_FIRST, degrees, side="right") - 1
    return {_band_name(at): band == at for at in np.unique(band).tolist()}


def _band_name(at: int) -> str:
    """ "0", "1-2", "1000+": as people write it."""
    first, after = _DEGREE_FIRST[at], [*_DEGREE_FIRST, None][at + 1]
    if after is None:
        return f"{first}+"
    return f"{first}-{after - 1}" if after - 1 > first else f"{first}"


def train_degrees(trained: Trained, edges: EdgeIds) -> NDArray[np.int64]:
    """int64 [2, edges]: the training edges that the lhs, and the rhs, of each edge is an end of.

    One pass over the training edges; memory follows `edges`.
    """
    graph = trained.graph
    types = {side: np.array([getattr(r, side) for r in graph.relations]) for side in SIDES}
    found = np.zeros((2, len(edges)), np.int64)
    for name in graph.entity_types:
        ours = [types[side][edges.rel] == name for side in SIDES]
        wanted = [getattr(edges, side)[rows] for side, rows in zip(SIDES, ours, strict=True)]
        ids, place = np.unique(np.concatenate(wanted), return_inverse=True)
        if not len(ids):
            continue
        counts = np.zeros(len(ids), np.int64)
        for bucket in graph.buckets("train"):
            known = trained.bucket_edges("train", bucket)
            for side in SIDES:
                ends = getattr(known, side)[types[side][known.rel] == name]
                at = np.minimum(np.searchsorted(ids, ends), len(ids) - 1)
                counts += np.bincount(at[ids[at] == ends], minlength=len(ids))
        for row, part in zip((0, 1), np.split(counts[place], [len(wanted[0])]), strict=True):
            found[row, ours[row]] = part
    return found


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
    sides = {side: _nothing_counted(len(edges)) for side in SIDES}
    for side, found in sides.items():
        for candidate_type, rows in by_candidate_type(trained, edges, side):
            for at in range(0, len(rows), BLOCK_EDGES):
                block = rows[at : at + BLOCK_EDGES]
                queries = Queries.build(trained, edges.take(block), side)
                _rank_block(trained, queries, candidate_type, found, block, progress)
    return LinkRanks(sides, edges.rel)


def _nothing_counted(num_edges: int) -> SideRanks:
    counts = np.zeros((5, num_edges), np.int64)
    unscored = np.zeros((2, num_edges), np.bool_)
    return SideRanks(
        counts[0], counts[1], counts[2], counts[3], counts[4], unscored[0], unscored[1]
    )


def by_candidate_type(
    trained: Trained, edges: EdgeIds, side: str
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    types = np.array([getattr(relation, side) for relation in trained.graph.relations])
    for name in dict.fromkeys(types.tolist()):
        yield name, np.flatnonzero(types[edges.rel] == name)


@dataclass(frozen=True)
class Queries:
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
    known_query: NDArray[np.int64]  # distinct pairs (query, id) of known edges, by id; the true
    known_id: NDArray[np.int64]  # one is one of them

    @staticmethod
    def build(trained: Trained, edges: EdgeIds, side: str) -> "Queries":
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
        return Queries(x, edges.rel, true, true_x, moved, order, known_query, known_id)

    def num_known(self) -> NDArray[np.int64]:
        """int64 [Q]: candidates that complete a known edge, the true one among them."""
        return np.bincount(self.known_query, minlength=len(self.rel))


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
    """Distinct pairs (query, candidate id): every known edge that completes a query.

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
    name_all, id_all = np.divmod(np.unique(name_all * span + id_all), span)
    # Join: every query of a name meets every id of that name.
    counts = np.bincount(name_all, minlength=len(names))
    starts = np.cumsum(counts) - counts
    per_query = counts[query_to_name]
    query = np.repeat(np.arange(len(edges)), per_query)
    within = np.arange(len(query)) - np.repeat(np.cumsum(per_query) - per_query, per_query)
    ids = id_all[np.repeat(starts[query_to_name], per_query) + within]
    by_id = np.argsort(ids, kind="stable")
    return query[by_id], ids[by_id]


def _rank_block(
    trained: Trained,
    queries: Queries,
    candidate_type: str,
    found: SideRanks,
    block: NDArray[np.int64],
    progress: Progress,
) -> None:
    """Fills `found` at the rows of `block`."""
    counts = np.zeros((4, len(queries.rel)), np.int64)
    scorer = Scorer(trained, queries)
    starts = trained.graph.starts[candidate_type]
    other = queries.known_id != queries.true[queries.known_query]
    for at, slot in enumerate(slots_of(trained.graph.entity_types[candidate_type])):
        vectors = torch.from_numpy(trained.vectors(slot))
        for row in range(0, len(vectors), _TILE_CANDIDATES):
            tile = vectors[row : row + _TILE_CANDIDATES]
            first_id = int(starts[at]) + row
            lo, hi = np.searchsorted(queries.known_id, [first_id, first_id + len(tile)])
            known = Pairs(queries.known_query[lo:hi], queries.known_id[lo:hi] - first_id)
            for start, stop, candidates in scorer.tiles(tile):
                inside = (known.query >= start) & (known.query < stop)
                counts[:, start:stop] += scorer.count(
                    *(start, stop, candidates),
                    known.take(inside).less(start),
                    other[lo:hi][inside],
                )
                progress((stop - start) * len(tile))
    num_known = queries.num_known() - 1
    num_left = trained.graph.num_entities(candidate_type) - 1 - num_known
    last = np.stack([num_left, 0 * num_left, num_known, 0 * num_known])
    counts = np.where(scorer.unscored_Q, last, counts)
    rows = block[queries.order]
    into = (found.higher, found.equal, found.known_higher, found.known_equal)
    for array, values in zip(into, counts, strict=True):
        array[rows] = values
    found.num_left[rows] = num_left
    found.unscored[rows] = scorer.unscored_Q
    found.beside_unscored[rows] = scorer.beside_unscored_Q


@jit
def _count(score, low, high, surely, maybe):  # type: ignore[no-untyped-def]
    """Per row: scores above `high`, and those not below `low`; NaN is both. One pass over a tile:
    torch's comparisons and sums of booleans took twice as long as the product that made it."""
    for query in range(score.shape[0]):
        row, least, most = score[query], low[query], high[query]
        above = reach = np.int32(0)
        for candidate in range(row.size):
            above += np.int32(not row[candidate] <= most)
            reach += np.int32(not row[candidate] < least)
        surely[query], maybe[query] = above, reach


@dataclass(frozen=True)
class Pairs:
    """Places of a tile of scores."""

    query: NDArray[np.int64]
    row: NDArray[np.int64]

    def take(self, which: NDArray[Any]) -> "Pairs":
        return Pairs(self.query[which], self.row[which])

    def less(self, start: int) -> "Pairs":
        """Queries counted from `start`."""
        return Pairs(self.query - start, self.row)


class Scorer:
    def __init__(self, trained: Trained, queries: Queries) -> None:
        self.model, self.queries = trained.model, queries
        self.compare = trained.model.comparator
        self.true_Q = self.compare.pairs(queries.x_QD.double(), queries.true_QD.double())
        scored_Q = _scored(queries.x_QD) & _scored(queries.true_QD)
        self.unscored_Q: NDArray[np.bool_] = (~scored_Q).numpy()
        self.beside_unscored_Q = np.zeros(len(queries.rel), np.bool_)

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

    def count(
        self,
        start: int,
        stop: int,
        candidates_ND: Tensor,
        left_out: Pairs,
        counted: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        """int64 [4, queries]: of queries [start, stop), how many candidates score higher than the
        true one, and how many the same; then the same two of `left_out`, where `counted`."""
        x_QD, true_Q = self.queries.x_QD[start:stop], self.true_Q[start:stop]
        scored_N = _scored(candidates_ND)
        sound = bool(scored_N.all())
        score_QN = self.compare.blocks(x_QD, candidates_ND)
        # Twice the bound: once for the product, once for rounding the true score to float32.
        bound_Q = torch.zeros(len(x_QD))
        if scored_N.any():
            within_ND = candidates_ND if sound else candidates_ND[scored_N]
            bound_Q = 2 * self.compare.error_bound(x_QD, within_ND)
        if not sound:
            score_QN[:, ~scored_N] = torch.nan
            self.beside_unscored_Q[start:stop] = True
        near = _Near(self.compare, x_QD, true_Q, candidates_ND, bound_Q)
        counts = torch.zeros(4, len(x_QD), dtype=torch.int64)
        query, row = torch.from_numpy(left_out.query), torch.from_numpy(left_out.row)
        which = torch.from_numpy(counted)
        near.add(score_QN[query, row][which], query[which], row[which], counts[2:])
        score_QN[query, row] = -torch.inf
        maybe_Q = torch.empty(len(x_QD), dtype=torch.int64)
        _count(*(t.numpy() for t in (score_QN, near.low_Q, near.high_Q, counts[0], maybe_Q)))
        unsure = torch.nonzero(counts[0] != maybe_Q).squeeze(1)
        if len(unsure):
            score_UN = score_QN[unsure]
            low_U1, high_U1 = near.low_Q[unsure, None], near.high_Q[unsure, None]
            pairs = torch.nonzero((score_UN >= low_U1) & (score_UN <= high_U1))
            near.add_exactly(unsure[pairs[:, 0]], pairs[:, 1], counts)
        found: NDArray[np.int64] = counts.numpy()
        return found


def _scored(x_ND: Tensor) -> Tensor:
    """bool [N]: whether a vector has scores."""
    return x_ND.norm(dim=-1) < _LONGEST


class _Near:
    """Tells from the true score what lies within `bound` of it."""

    def __init__(
        self,
        compare: Comparator,
        x_QD: Tensor,
        true_Q: Tensor,
        candidates_ND: Tensor,
        bound_Q: Tensor,
    ) -> None:
        self._compare, self._x_QD, self._true_Q = compare, x_QD, true_Q
        self._candidates_ND = candidates_ND
        self.low_Q, self.high_Q = true_Q.float() - bound_Q, true_Q.float() + bound_Q

    def add(self, score: Tensor, query: Tensor, row: Tensor, counts: Tensor) -> None:
        """Of float32 scores of pairs: to counts[0] those that are higher, to [1] the equal ones."""
        low, high = self.low_Q[query], self.high_Q[query]
        counts[0].index_add_(0, query, (~(score <= high)).long())  # NaN is higher
        close = (score >= low) & (score <= high)
        self.add_exactly(query[close], row[close], counts)

    def add_exactly(self, query: Tensor, row: Tensor, counts: Tensor) -> None:
        for at in range(0, len(query), _TILE_QUERIES * 16):
            q, r = query[at : at + _TILE_QUERIES * 16], row[at : at + _TILE_QUERIES * 16]
            exact = self._compare.pairs(self._x_QD[q].double(), self._candidates_ND[r].double())
            counts[0].index_add_(0, q, (exact > self._true_Q[q]).long())
            counts[1].index_add_(0, q, (exact == self._true_Q[q]).long())
