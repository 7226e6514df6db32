"""Estimates from drawn candidates are near what exact ranks give, and are named as estimates."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from embedsvc.config import ModelConfig
from embedsvc.edge_ids import EdgeIds
from embedsvc.evaluation import links, sampled
from embedsvc.evaluation.links import rank_links
from embedsvc.evaluation.sampled import METRICS, estimator, sample_links
from embedsvc.trained import Trained
from partitions.graph import Graph

MakeGraph = Callable[..., Graph]
MakeTrained = Callable[..., Trained]

DIM = 4
EDGES = 40_000


# --- the estimator -------------------------------------------------------------------------------


def chance_by_hand(rank: int, num_others: int, num_drawn: int, place: int) -> float:
    ways = math.comb(rank - 1, place) * math.comb(num_others - rank + 1, num_drawn - place)
    return ways / math.comb(num_others, num_drawn)


@pytest.mark.parametrize(("num_others", "num_drawn", "gamma"), [(9, 4, 0.1), (40, 7, 0.01)])
def test_an_estimator_solves_the_papers_equation_written_out_in_loops(
    num_others: int, num_drawn: int, gamma: float
) -> None:
    """Up to 64 every rank stands alone, so the prior is log((R + 1) / R)."""
    ranks, places = range(1, num_others + 2), range(num_drawn + 1)
    weights = [math.log((rank + 1) / rank) for rank in ranks]
    prior = [weight / math.fsum(weights) for weight in weights]
    chance = [[chance_by_hand(R, num_others, num_drawn, r) for r in places] for R in ranks]
    assert all(math.isclose(math.fsum(row), 1) for row in chance)
    left = np.zeros((num_drawn + 1, num_drawn + 1))
    for i in places:
        for j in places:
            products = [p * row[i] * row[j] for p, row in zip(prior, chance, strict=True)]
            left[i, j] = (1 - gamma) * math.fsum(products)
        left[i, i] += gamma * math.fsum(p * row[i] for p, row in zip(prior, chance, strict=True))
    found = estimator(num_others, num_drawn, gamma)
    metrics = {"mrr": lambda R: 1 / R} | {
        f"hits{k}": (lambda R, k=k: float(k >= R)) for k in (1, 3, 10)
    }
    assert set(found) == set(METRICS) == set(metrics)
    for name, f in metrics.items():
        right = [
            math.fsum(p * row[i] * f(R) for R, p, row in zip(ranks, prior, chance, strict=True))
            for i in places
        ]
        assert found[name] == pytest.approx(np.linalg.solve(left, right), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("num_others", [0, 1, 5, 300])
def test_where_all_candidates_are_drawn_the_estimate_is_the_metric(num_others: int) -> None:
    ranks = np.arange(1, num_others + 2)
    for num_drawn in (num_others, num_others + 1, 10_000):
        found = estimator(num_others, num_drawn)
        assert np.array_equal(found["mrr"], 1 / ranks)
        assert np.array_equal(found["hits3"], ranks <= 3)


@pytest.mark.parametrize("num_others", [63, 64, 65, 1000, 14_540, 10**8])
def test_the_grid_holds_every_rank_once(num_others: int) -> None:
    rank, prior = sampled._grid(num_others + 1)
    assert prior.sum() == pytest.approx(1) and (prior > 0).all()
    assert (np.diff(rank) >= 1).all() and rank[0] == 1 and rank[-1] <= num_others + 1
    assert len(rank) < 1000
    chance = sampled._chances(rank, num_others, 50)
    assert chance.sum(axis=1) == pytest.approx(1, abs=1e-5)
    if num_others > 10**6:  # few of many: the paper's binomial
        share = (rank[200] - 1) / num_others
        binomial = [math.comb(50, r) * share**r * (1 - share) ** (50 - r) for r in range(51)]
        assert chance[200] == pytest.approx(binomial, abs=1e-5)


def log_normal(rng: np.random.Generator, num: int) -> np.ndarray:
    return np.clip(np.exp(rng.normal(3.0, 2.2, EDGES)), 1, num)


def power_law(rng: np.random.Generator, num: int) -> np.ndarray:
    return np.clip(rng.random(EDGES) ** (-1 / 0.45), 1, num)


def beta(rng: np.random.Generator, num: int) -> np.ndarray:
    return 1 + rng.beta(0.3, 3, EDGES) * (num - 1)


def uniform(rng: np.random.Generator, num: int) -> np.ndarray:
    return rng.integers(1, num + 1, EDGES)


def mostly_first(rng: np.random.Generator, num: int) -> np.ndarray:
    return np.where(rng.random(EDGES) < 0.4, 1, log_normal(rng, num))


@pytest.mark.parametrize(("num", "drawn"), [(14_541, 1000), (2_000, 400), (100_000, 1000)])
@pytest.mark.parametrize("ranks_of", [log_normal, power_law, beta, uniform, mostly_first])
def test_the_estimate_is_nearer_the_exact_metric_than_that_of_the_sample(
    ranks_of: Callable[..., np.ndarray], num: int, drawn: int
) -> None:
    """By at least 2 times. But a model with 4 of 10 first is unlike the prior, and what is drawn
    can't tell the first of all from the next few: its Hits@1 is estimated too low."""
    rng = np.random.default_rng(7)
    ranks = ranks_of(rng, num).astype(np.int64)
    place = rng.hypergeometric(ranks - 1, num - ranks, drawn)
    found = estimator(num - 1, drawn)
    for name, f in METRICS.items():
        exact, plain = f(ranks).mean(), f(place + 1.0).mean()
        estimate = found[name][place]
        luck = 4 * estimate.std() / EDGES**0.5
        if ranks_of is mostly_first and name == "hits1":
            assert estimate.mean() < exact < plain
            continue
        times = 1 if ranks_of is mostly_first else 2
        assert abs(estimate.mean() - exact) < abs(plain - exact) / times + luck
        if ranks_of is not mostly_first and drawn * 20 > num:
            bias = 0.035 if name == "hits1" else 0.025
            assert abs(estimate.mean() - exact) < bias + luck


@pytest.mark.parametrize("ranks_of", [log_normal, uniform, mostly_first])
def test_the_mean_rank_is_estimated_without_bias(ranks_of: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(9)
    ranks = ranks_of(rng, 5000).astype(np.int64)
    place = rng.hypergeometric(ranks - 1, 5000 - ranks, 200)
    drawn, others = np.full(EDGES, 200), np.full(EDGES, 4999)
    places = sampled.Places(place, drawn, others, np.zeros(EDGES, np.bool_))
    estimate = places.values()["mean_rank"]
    assert abs(estimate.mean() - ranks.mean()) < 4 * (estimate - ranks).std() / EDGES**0.5


# --- of a graph ----------------------------------------------------------------------------------


def vector(*names: str) -> np.ndarray:
    seed = [5, *"/".join(names).encode()]
    return np.random.default_rng(seed).integers(-2, 3, DIM).astype(np.float32)


@pytest.fixture(scope="module")
def graph(make_graph: MakeGraph) -> Graph:
    rng = np.random.default_rng(2)
    pairs = [("user", "item", "buys"), ("item", "item", "like")]
    edges = []
    for _ in range(400):
        lhs, rhs, relation = pairs[rng.integers(2)]
        edges.append((f"{lhs}{rng.integers(60)}", relation, f"{rhs}{rng.integers(70)}"))
    edges += [(f"user{i}", "buys", "item0") for i in range(60)]  # item0 has all of them
    types = {"buys": ("user", "item"), "like": ("item", "item")}
    splits = {"train": edges[:330] + edges[400:], "valid": edges[330:340], "test": edges[340:400]}
    return make_graph(splits, types, {"user": 3, "item": 3})


MODELS = [
    ModelConfig(dim=DIM),
    ModelConfig(dim=DIM, operator="translation", comparator="l2"),
    ModelConfig(dim=DIM, operator="diagonal", reciprocal=True),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.operator)
@pytest.mark.parametrize("drawn", [70, 500])
def test_all_candidates_give_the_exact_metrics(
    model: ModelConfig, drawn: int, graph: Graph, make_trained: MakeTrained
) -> None:
    trained = make_trained(graph, model, vector, vector)
    edges = trained.edges("test")
    exact = rank_links(trained, edges).summary()
    report = sample_links(trained, edges, drawn).report()
    for name, value in exact.items():
        assert report[f"sampled_{name}_estimate"] == pytest.approx(value)
    assert report["sampled_short"] == 0


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.operator)
def test_places_equal_a_plain_loop_over_what_was_drawn(
    model: ModelConfig,
    graph: Graph,
    make_trained: MakeTrained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of each query the first nine drawn ones that complete no known edge."""
    trained = make_trained(graph, model, vector, vector)
    edges = trained.edges("test")
    known: dict[tuple[str, int, int], set[int]] = {}
    for split in ("train", "valid", "test"):
        found = trained.edges(split)
        for lhs, rel, rhs in zip(found.lhs, found.rel, found.rhs, strict=True):
            known.setdefault(("rhs", rel, lhs), set()).add(int(rhs))
            known.setdefault(("lhs", rel, rhs), set()).add(int(lhs))
    types = graph.relations
    drawn = {
        name: sampled._draw(graph.num_entities(name), 2 * 9, [3, at]).tolist()
        for at, name in enumerate(graph.entity_types)
    }
    everyone = {n: trained.gather(n, np.arange(graph.num_entities(n))) for n in graph.entity_types}
    result = sample_links(trained, edges, 9, seed=3)
    move, score = trained.model.move, trained.model.comparator.pairs
    for at in range(len(edges)):
        rel = edges.rel[at : at + 1]
        ends = {"lhs": int(edges.lhs[at]), "rhs": int(edges.rhs[at])}
        for side in ("lhs", "rhs"):
            other = "rhs" if side == "lhs" else "lhs"
            name = getattr(types[int(rel[0])], side)
            taken = known[side, int(rel[0]), ends[other]]
            left = [id for id in drawn[name] if id not in taken][:9]

            lhs_id, rhs_id = np.array([*left, ends[side]]), np.array([ends[other]])
            if side == "rhs":
                lhs_id, rhs_id = rhs_id, lhs_id
            relation, numbers = types[int(rel[0])], torch.from_numpy(rel)
            lhs, rhs = everyone[relation.lhs][lhs_id], everyone[relation.rhs][rhs_id]
            if side == "lhs" and model.reciprocal:
                scores = score(lhs, move(rhs, numbers, reverse=True))
            else:
                scores = score(move(lhs, numbers.expand(len(lhs))), rhs)
            places = result.sides[side]
            assert places.num_drawn[at] == len(left)
            assert places.above[at] == sum(scores[:-1] >= scores[-1])
            assert places.num_others[at] == graph.num_entities(name) - len(taken)


def test_blocks_and_tiles_change_nothing(
    graph: Graph, make_trained: MakeTrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make_trained(graph, MODELS[1], vector, vector)
    edges = trained.edges("test")
    whole = sample_links(trained, edges, 9)
    monkeypatch.setattr(sampled, "BLOCK_EDGES", 7)
    monkeypatch.setattr(links, "_TILE_QUERIES", 3)
    again = sample_links(trained, edges, 9)
    for side, places in whole.sides.items():
        assert np.array_equal(places.above, again.sides[side].above)
        assert np.array_equal(places.num_drawn, again.sides[side].num_drawn)


def test_the_seed_draws_the_candidates(graph: Graph, make_trained: MakeTrained) -> None:
    trained = make_trained(graph, MODELS[0], vector)
    edges = trained.edges("test")
    one, same, other = (sample_links(trained, edges, 9, seed).report() for seed in (1, 1, 2))
    assert one == same
    assert one["sampled_mrr_estimate"] != other["sampled_mrr_estimate"]


def test_no_name_of_an_estimate_is_that_of_an_exact_metric(
    graph: Graph, make_trained: MakeTrained
) -> None:
    trained = make_trained(graph, MODELS[0], vector)
    edges = trained.edges("test")
    exact = rank_links(trained, edges)
    names = set(links.report(exact, ["buys", "like"], links.train_degrees(trained, edges),
                             "pessimistic"))  # fmt: skip
    found = sample_links(trained, edges, 9).report()
    assert set(found) & names == {"edges", "nan_edges"}
    assert found["edges"] == len(edges)
    assert {f"sampled_{name}_estimate" for name in exact.summary()} <= set(found)


def test_who_has_too_few_candidates_left_is_counted(
    make_graph: MakeGraph, make_trained: MakeTrained
) -> None:
    """All but two of 40 items are known: neither of the two drawn ones is left."""
    train = [("u", "buys", f"i{n}") for n in range(38)]
    train += [("w", "buys", f"i{n}") for n in (38, 39)]
    splits = {"train": train, "test": [("u", "buys", "i0")]}
    graph = make_graph(splits, {"buys": ("user", "item")}, {"item": 1})
    trained = make_trained(graph, MODELS[0], vector)
    result = sample_links(trained, trained.edges("test"), 1, seed=5)
    side = result.sides["rhs"]
    assert side.num_others.tolist() == [2] and side.num_drawn.tolist() == [0]
    assert side.values()["mean_rank"].tolist() == [2.0]
    assert result.report()["sampled_short"] == 1


def test_an_edge_without_a_score_is_behind_all_that_were_drawn(
    graph: Graph, make_trained: MakeTrained
) -> None:
    def broken(*names: str) -> np.ndarray:
        return vector(*names) * np.nan

    trained = make_trained(graph, MODELS[0], broken)
    edges = trained.edges("test")
    result = sample_links(trained, edges, 9)
    for places in result.sides.values():
        assert np.array_equal(places.above, places.num_drawn)
    assert result.report()["nan_edges"] == len(edges)


def test_no_edges_have_no_estimate(graph: Graph, make_trained: MakeTrained) -> None:
    trained = make_trained(graph, MODELS[0], vector)
    none = np.empty(0, np.int64)
    report = sample_links(trained, EdgeIds(none, none, none), 9).report()
    assert report["edges"] == 0 and np.isnan(report["sampled_mrr_estimate"])
