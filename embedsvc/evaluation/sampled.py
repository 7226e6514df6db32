"""Link prediction estimated from a sample of candidates, where exact ranks would take too long.

Among n drawn candidates the true one's place r is better than its rank R among all: metrics of r
say little about metrics of R, and may order two models the other way. After Krichene and Rendle (On
Sampled Metrics for Item Recommendation, KDD 2020) a metric f(R) is estimated by the function of r
whose squared bias and gamma times variance, averaged over a prior p of R, are the least:

    f_hat = ((1 - gamma) A' diag(p) A + gamma diag(c))^-1 A' diag(p) f,     c = p A

    A[R, r] = P(r | R): r - 1 of the n drawn ones are among the R - 1 that score at least as high

Drawn without replacement, r - 1 is hypergeometric (the paper's binomial is its limit for few of
many), so where all candidates are drawn f_hat is f, exactly. The prior is p(R) ~ 1 / R, as ranks of
a model worth evaluating crowd at the top, and gamma is 0.01: docs/evaluate.md says what bias is
left. Ranks above 64 stand in groups that grow by 2 %. Ties are pessimistic. The mean rank needs no
prior: 1 + (number of others) (r - 1) / n is unbiased.

An estimate is no rank, and none of its names is that of an exact metric. It has no interval: one
over edges would leave out the bias and the draw, and so often the truth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln

from embedsvc.edge_ids import EdgeIds
from embedsvc.evaluation.links import (
    BLOCK_EDGES,
    SIDES,
    Pairs,
    Progress,
    Queries,
    Scorer,
    by_candidate_type,
)
from embedsvc.trained import Trained

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

GAMMA = 0.01
METRICS: dict[str, Callable[[Floats], Floats]] = {
    "mrr": lambda ranks: 1.0 / ranks,
    "hits1": lambda ranks: (ranks <= 1).astype(np.float64),
    "hits3": lambda ranks: (ranks <= 3).astype(np.float64),
    "hits10": lambda ranks: (ranks <= 10).astype(np.float64),
}
MEASURES = (*METRICS, "mean_rank")
_ALONE = 64  # ranks up to here stand alone
_GROWTH = 1.02
_LEVEL = 0.99  # numbers of candidates closer than this share an estimator


def name_of(metric: str) -> str:
    return f"sampled_{metric}_estimate"


def estimator(num_others: int, num_drawn: int, gamma: float = GAMMA) -> dict[str, Floats]:
    """By metric: float64 [num_drawn + 1], the estimate for each place r - 1 of the true candidate,
    among num_drawn of its num_others."""
    if num_drawn >= num_others:
        return {name: f(np.arange(1.0, num_others + 2)) for name, f in METRICS.items()}
    rank, prior = _grid(num_others + 1)
    chance = _chances(rank, num_others, num_drawn)
    reached = prior @ chance
    # Solved on the side of R, where there are hundreds, and not of r, where there may be thousands:
    # (a W'W + b C)^-1 W' = C^-1 W' (a W C^-1 W' + b I)^-1, with W = diag(p)^1/2 A.
    root = np.sqrt(prior)
    weighted = root[:, None] * chance
    inner = (1 - gamma) * (weighted / reached) @ weighted.T + gamma * np.eye(len(rank))
    wanted = np.stack([root * f(rank) for f in METRICS.values()], axis=1)
    found = (weighted.T @ np.linalg.solve(inner, wanted)) / reached[:, None]
    return dict(zip(METRICS, found.T, strict=True))


def _grid(num: int) -> tuple[Floats, Floats]:
    """Ranks from 1 to num, those above 64 by the middle of their group; and the prior, 1 / R."""
    starts = list(range(1, min(num, _ALONE) + 1))
    at = starts[-1] + 1
    while at <= num:
        starts.append(at)
        at = max(at + 1, round(at * _GROWTH))
    first = np.array(starts)
    after = np.append(first[1:], num + 1)
    prior = np.log(after / first)
    return np.floor((first + after - 1) / 2), prior / prior.sum()


def _chances(rank: Floats, num_others: int, num_drawn: int) -> Floats:
    """float64 [ranks, num_drawn + 1]: of (rank - 1) among num_others, so many are drawn."""
    above, place = rank[:, None] - 1, np.arange(num_drawn + 1.0)
    logs = _log_choose(above, place) + _log_choose(num_others - above, num_drawn - place)
    return np.exp(logs - _log_choose(num_others, num_drawn))


def _log_choose(num: Any, of: Any) -> Floats:
    """log of the number of ways to choose; -inf where there are none."""
    possible = (of >= 0) & (of <= num)
    of = np.where(possible, of, 0)
    ways = gammaln(num + 1.0) - gammaln(of + 1.0) - gammaln(num - of + 1.0)
    return np.where(possible, ways, -np.inf)


@dataclass(frozen=True)
class Places:
    """One end of each edge. int64 [edges]."""

    above: Ids  # drawn candidates that score at least as high as the true one: r - 1
    num_drawn: Ids  # n: how many were drawn
    num_others: Ids  # how many there are
    unscored: NDArray[np.bool_]  # the true one has no score: it is the last

    def values(self) -> dict[str, Floats]:
        """By metric: the estimate of each edge; of its mean rank, too."""
        level = np.round(np.log(self.num_others.clip(1) / self._most) / np.log(_LEVEL))
        whole = self.num_drawn >= self.num_others
        groups, group_of = np.unique(
            np.stack([self.num_drawn, np.where(whole, -1, level)]), axis=1, return_inverse=True
        )
        found: dict[str, Floats] = {name: np.empty(len(self.above)) for name in METRICS}
        for at, (num_drawn, level_) in enumerate(groups.T.astype(np.int64).tolist()):
            near = round(self._most * _LEVEL**level_)
            num_others = num_drawn if level_ < 0 else max(num_drawn, near)
            ours = np.flatnonzero(group_of.ravel() == at)
            for name, table in estimator(num_others, num_drawn).items():
                found[name][ours] = table[self.above[ours]]
        # Where nothing could be drawn, nothing is known: the middle.
        share = np.where(self.num_drawn > 0, self.above / self.num_drawn.clip(1), 0.5)
        found["mean_rank"] = np.asarray(1.0 + self.num_others * share)
        return found

    def is_short(self, num_candidates: int) -> NDArray[np.bool_]:
        """Where fewer were drawn than could have been."""
        return np.asarray(self.num_drawn < np.minimum(num_candidates, self.num_others))

    @property
    def _most(self) -> int:
        return int(self.num_others.max(initial=1))


@dataclass(frozen=True)
class SampledLinks:
    sides: dict[str, Places]
    num_candidates: int  # how many were asked for
    seed: int

    def report(self) -> dict[str, Any]:
        """What goes to the evaluation's JSON: means over both ends of every edge."""
        both = [places.values() for places in self.sides.values()]
        places = self.sides.values()
        return {
            "edges": len(both[0]["mrr"]),
            "sampled_candidates": self.num_candidates,
            "sampled_seed": self.seed,
            **{name_of(name): _mean([side[name] for side in both]) for name in MEASURES},
            "sampled_short": int(
                sum(np.sum(side.is_short(self.num_candidates)) for side in places)
            ),
            "nan_edges": int(np.sum(np.any([side.unscored for side in places], axis=0))),
        }


def _mean(sides: list[Floats]) -> float:
    return float(np.mean(sides)) if sides[0].size else float("nan")


@torch.no_grad()
def sample_links(
    trained: Trained,
    edges: EdgeIds,
    num_candidates: int,
    seed: int = 1,
    progress: Progress = lambda scored: None,
) -> SampledLinks:
    """Both ends of `edges` against that many candidates, drawn once for all of a type.

    Twice as many are drawn, and each query takes the first of them that complete no known edge: a
    query most of whose candidates are known may have fewer. One pass, no partition is read whole.
    """
    drawn = {
        name: _draw(trained.graph.num_entities(name), 2 * num_candidates, [seed, at])
        for at, name in enumerate(trained.graph.entity_types)
    }
    sides = {}
    for side in SIDES:
        above, drawn_, others = np.zeros((3, len(edges)), np.int64)
        places = Places(above, drawn_, others, np.zeros(len(edges), np.bool_))
        for candidate_type, rows in by_candidate_type(trained, edges, side):
            if not len(rows):
                continue
            ids = drawn[candidate_type]
            vectors = trained.gather(candidate_type, ids)
            for at in range(0, len(rows), BLOCK_EDGES):
                block = rows[at : at + BLOCK_EDGES]
                queries = Queries.build(trained, edges.take(block), side)
                scorer = Scorer(trained, queries)
                into = block[queries.order]
                num_entities = trained.graph.num_entities(candidate_type)
                places.num_others[into] = num_entities - queries.num_known()
                places.unscored[into] = scorer.unscored_Q
                known = _known_places(queries, ids)
                for start, stop, candidates in scorer.tiles(vectors):
                    left = _first_left(known, start, stop, len(ids), num_candidates)
                    out = Pairs(*np.nonzero(~left))
                    none = np.zeros(len(out.query), np.bool_)
                    needed = candidates[: left.shape[1]]
                    higher, equal, *_ = scorer.count(start, stop, needed, out, none)
                    num_drawn = left.sum(axis=1)
                    unscored = scorer.unscored_Q[start:stop]
                    places.above[into[start:stop]] = np.where(unscored, num_drawn, higher + equal)
                    places.num_drawn[into[start:stop]] = num_drawn
                    progress(left.size)
        sides[side] = places
    return SampledLinks(sides, num_candidates, seed)


def _draw(num_entities: int, num: int, seed: list[int]) -> Ids:
    """Distinct ids in random order; all where there are no more."""
    rng = np.random.default_rng(seed)
    return rng.choice(num_entities, min(num, num_entities), replace=False).astype(np.int64)


def _known_places(queries: Queries, ids: Ids) -> Pairs:
    """Where among the drawn ids each query's known ones are, the true one with them; by query."""
    order = np.argsort(ids)
    at = np.minimum(np.searchsorted(ids[order], queries.known_id), len(ids) - 1)
    found = np.flatnonzero(ids[order][at] == queries.known_id)
    found = found[np.argsort(queries.known_query[found], kind="stable")]
    return Pairs(queries.known_query[found], order[at[found]])


def _first_left(known: Pairs, start: int, stop: int, num_drawn: int, num: int) -> NDArray[np.bool_]:
    """bool [queries, up to num_drawn]: of each query, the first `num` that are not known; as far as
    the last query needs."""
    lo, hi = np.searchsorted(known.query, [start, stop])
    left = np.ones((stop - start, num_drawn), np.bool_)
    left[known.query[lo:hi] - start, known.row[lo:hi]] = False
    so_far = np.cumsum(left, axis=1, dtype=np.int32)
    needed = 1 + int(np.max(np.sum(so_far < num, axis=1)))
    return (left & (so_far <= num))[:, :needed]
