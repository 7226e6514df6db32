"""Ranks equal a plain loop over all entities, whatever the partitions and the tiles."""

from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedsvc.config import ModelConfig
from embedsvc.edge_ids import EdgeIds
from embedsvc.evaluation import links
from embedsvc.evaluation.links import rank_links
from embedsvc.graph.comparators import COMPARATORS
from embedsvc.graph.operators import OPERATORS
from embedsvc.trained import Trained
from partitions.graph import Graph
from partitions.schema import SPLITS

MakeGraph = Callable[..., Graph]
MakeTrained = Callable[..., Trained]
Named = tuple[str, str, str]  # an edge by its keys

DIM = 4
RELATIONS = {
    "buys": ("user", "item"),
    "like": ("item", "item"),
    "tagged": ("item", "tag"),
    "never": ("tag", "user"),  # declared, but no edge has it
}
SIZES = {"user": 13, "item": 9, "tag": 5}
KINDS = [
    kind
    for kind in product(list(OPERATORS), list(COMPARATORS), [False, True])
    if kind[0] != "identity" or not kind[2]
]


def random_edges() -> dict[str, list[Named]]:
    """Of all splits; some edges occur twice in a split, some in two or in all three."""
    rng = np.random.default_rng(1)
    edges: list[Named] = []
    for _ in range(110):
        relation = str(rng.choice(["buys", "like", "tagged"]))
        lhs, rhs = (f"{t}{rng.integers(SIZES[t])}" for t in RELATIONS[relation])
        edges.append((lhs, relation, rhs))
    everywhere = [(f"{t}{i}", *rest) for t, n, rest in ALL_KEYS for i in range(n)]
    return {
        "train": [*everywhere, *edges[:70], *edges[:5]],
        "valid": [*edges[65:85], edges[0]],
        "test": [*edges[80:110], edges[0], edges[1], edges[95]],
    }


# One edge with each key, so that a graph of any number of partitions knows all of them.
ALL_KEYS = [
    ("user", SIZES["user"], ("buys", "item0")),
    ("item", SIZES["item"], ("tagged", "tag0")),
]


@pytest.fixture(scope="module")
def graphs(make_graph: MakeGraph) -> dict[int, Graph]:
    """The same edges in 1, 3 and 4 partitions; the tag type always has one."""
    return {
        partitions: make_graph(random_edges(), RELATIONS, {"user": partitions, "item": partitions})
        for partitions in (1, 3, 4)
    }


def ranks_by_name(trained: Trained, split: str = "test") -> dict[Named, tuple[int, int]]:
    edges = trained.edges(split)
    found = rank_links(trained, edges)
    keys = {t: trained.graph.all_keys(t).to_pylist() for t in trained.graph.entity_types}
    named = {}
    for at in range(len(edges)):
        relation = trained.graph.relations[int(edges.rel[at])]
        lhs, rhs = keys[relation.lhs][edges.lhs[at]], keys[relation.rhs][edges.rhs[at]]
        ranks = (int(found.lhs[at]), int(found.rhs[at]))
        assert named.setdefault((lhs, relation.name, rhs), ranks) == ranks
        assert found.rel[at] == edges.rel[at]
    return named


def ranks_by_loop(
    plain: SimpleNamespace,
    model: ModelConfig,
    vector_of: Callable[[str, str], Any],
    parameters_of: Callable[[str, str], Any],
) -> dict[Named, tuple[int, int]]:
    """Every candidate of the type scored on its own, known edges of all splits left out."""
    splits = random_edges()
    known = {edge for edges in splits.values() for edge in edges}
    entities = {t: set() for t in SIZES}
    for lhs, rel, rhs in known:
        entities[RELATIONS[rel][0]].add(lhs)
        entities[RELATIONS[rel][1]].add(rhs)
    score = plain.comparators[model.comparator]

    def numbers(vector: Any) -> list[float]:
        return [float(x) for x in np.asarray(vector, np.float32)]

    vectors = {t: {k: numbers(vector_of(t, k)) for k in keys} for t, keys in entities.items()}
    ranks = {}
    for lhs, rel, rhs in splits["test"]:
        operator = model.operators.get(rel, model.operator)
        move = plain.operators[operator]
        no_params = operator == "identity"
        forward = [] if no_params else numbers(parameters_of(operator, rel))
        back = [] if no_params else numbers(parameters_of(f"{operator}.reverse", rel))
        lhs_type, rhs_type = RELATIONS[rel]
        moved = move(vectors[lhs_type][lhs], forward)
        to_rhs = {e: score(moved, v) for e, v in vectors[rhs_type].items()}
        x = vectors[rhs_type][rhs]
        if model.reciprocal:
            to_lhs = {e: score(move(x, back), v) for e, v in vectors[lhs_type].items()}
        else:
            to_lhs = {e: score(move(v, forward), x) for e, v in vectors[lhs_type].items()}
        rank_lhs = rank_rhs = 1
        for other, s in to_lhs.items():
            if other != lhs and (other, rel, rhs) not in known:
                rank_lhs += s >= to_lhs[lhs]
        for other, s in to_rhs.items():
            if other != rhs and (lhs, rel, other) not in known:
                rank_rhs += s >= to_rhs[rhs]
        ranks[lhs, rel, rhs] = (rank_lhs, rank_rhs)
    return ranks


def real_numbers(*names: str) -> np.ndarray:
    seed = [5, *"/".join(names).encode()]
    return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)


def small_integers(*names: str) -> np.ndarray:
    """Many exact ties, and products and sums that float32 knows exactly."""
    seed = [6, *"/".join(names).encode()]
    return np.random.default_rng(seed).integers(-1, 2, DIM).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k)))
def test_ranks_equal_a_plain_loop_for_any_number_of_partitions(
    kind: tuple[str, str, bool],
    graphs: dict[int, Graph],
    make_trained: MakeTrained,
    plain: SimpleNamespace,
) -> None:
    operator, comparator, reciprocal = kind
    model = ModelConfig(dim=DIM, operator=operator, comparator=comparator, reciprocal=reciprocal)
    wanted = ranks_by_loop(plain, model, real_numbers, real_numbers)
    assert len({rank for pair in wanted.values() for rank in pair}) > 5
    for partitions, graph in graphs.items():
        trained = make_trained(graph, model, real_numbers, real_numbers, name=f"c-{partitions}")
        assert ranks_by_name(trained) == wanted


@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("comparator", ["dot", "l2"])
def test_ties_count_against_the_true_one_exactly(
    comparator: str,
    reciprocal: bool,
    graphs: dict[int, Graph],
    make_trained: MakeTrained,
    plain: SimpleNamespace,
) -> None:
    for operator in OPERATORS:
        model = ModelConfig(
            dim=DIM, operator=operator, comparator=comparator, reciprocal=reciprocal
        )
        wanted = ranks_by_loop(plain, model, small_integers, small_integers)
        trained = make_trained(graphs[3], model, small_integers, small_integers, name=operator)
        assert ranks_by_name(trained) == wanted


@pytest.mark.parametrize("reciprocal", [False, True])
def test_each_relation_is_ranked_by_its_own_operator(
    reciprocal: bool, graphs: dict[int, Graph], make_trained: MakeTrained, plain: SimpleNamespace
) -> None:
    model = ModelConfig(
        dim=DIM,
        operator="translation",
        operators={"buys": "complex_diagonal", "like": "identity"},
        reciprocal=reciprocal,
    )
    wanted = ranks_by_loop(plain, model, real_numbers, real_numbers)
    trained = make_trained(graphs[3], model, real_numbers, real_numbers)
    assert ranks_by_name(trained) == wanted


@pytest.mark.parametrize(
    ("comparator", "reciprocal"), [("dot", False), ("cos", True), ("l2", False)]
)
def test_small_tiles_and_blocks_change_no_rank(
    comparator: str,
    reciprocal: bool,
    graphs: dict[int, Graph],
    make_trained: MakeTrained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = ModelConfig(dim=DIM, operator="diagonal", comparator=comparator, reciprocal=reciprocal)
    trained = make_trained(graphs[3], model, small_integers, small_integers)
    whole = ranks_by_name(trained)
    for block, queries, candidates in ((1, 1, 1), (7, 2, 3), (5, 100, 2), (100, 3, 100)):
        monkeypatch.setattr(links, "_BLOCK_EDGES", block)
        monkeypatch.setattr(links, "_TILE_QUERIES", queries)
        monkeypatch.setattr(links, "_TILE_CANDIDATES", candidates)
        assert ranks_by_name(trained) == whole


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-9, 1e4])
@pytest.mark.parametrize("comparator", list(COMPARATORS))
def test_a_constant_scorer_gets_the_last_rank(
    comparator: str, value: float, graphs: dict[int, Graph], make_trained: MakeTrained
) -> None:
    known = {edge for edges in random_edges().values() for edge in edges}
    sizes = {
        t: len({e[side * 2] for e in known for side in (0, 1) if RELATIONS[e[1]][side] == t})
        for t in SIZES
    }
    for partitions in (1, 3):
        trained = make_trained(
            graphs[partitions],
            ModelConfig(dim=DIM, comparator=comparator),
            lambda t, key: [value] * DIM,
            name=f"c-{partitions}",
        )
        for (lhs, rel, rhs), (lhs_rank, rhs_rank) in ranks_by_name(trained).items():
            other_lhs = sum(e[1:] == (rel, rhs) and e[0] != lhs for e in known)
            other_rhs = sum(e[:2] == (lhs, rel) and e[2] != rhs for e in known)
            assert lhs_rank == sizes[RELATIONS[rel][0]] - other_lhs
            assert rhs_rank == sizes[RELATIONS[rel][1]] - other_rhs


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e3])
@pytest.mark.parametrize("comparator", list(COMPARATORS))
def test_the_scale_of_the_vectors_does_not_touch_the_ranks(
    comparator: str, scale: float, graphs: dict[int, Graph], make_trained: MakeTrained
) -> None:
    """Scores within rounding of each other are told apart, in float64, as a power of two shows."""
    power = 2.0 ** round(np.log2(scale))
    graph, model = graphs[1], ModelConfig(dim=DIM, comparator=comparator)
    one = make_trained(graph, model, real_numbers, name="one")
    scaled = make_trained(graph, model, lambda *names: real_numbers(*names) * power, name="scaled")
    assert ranks_by_name(scaled) == ranks_by_name(one)


@pytest.mark.parametrize("split", SPLITS)
def test_any_split_can_be_ranked(
    split: str, graphs: dict[int, Graph], make_trained: MakeTrained
) -> None:
    trained = make_trained(graphs[1], ModelConfig(dim=DIM), real_numbers)
    found = rank_links(trained, trained.edges(split))
    assert len(found.lhs) == len(found.rhs) == len(random_edges()[split])
    assert (found.lhs >= 1).all() and (found.rhs >= 1).all()


def test_a_sample_of_edges_has_the_ranks_it_has_among_all(
    graphs: dict[int, Graph], make_trained: MakeTrained
) -> None:
    """Filtering knows the whole graph, not only the edges that are ranked."""
    trained = make_trained(graphs[3], ModelConfig(dim=DIM), real_numbers)
    edges = trained.edges("test")
    whole = rank_links(trained, edges)
    rows = np.array([7, 3, 20])
    found = rank_links(trained, edges.take(rows))
    assert np.array_equal(found.lhs, whole.lhs[rows])
    assert np.array_equal(found.rhs, whole.rhs[rows])


def test_no_edges_have_no_ranks(graphs: dict[int, Graph], make_trained: MakeTrained) -> None:
    trained = make_trained(graphs[3], ModelConfig(dim=DIM), real_numbers)
    none = np.empty(0, np.int64)
    found = rank_links(trained, EdgeIds(none, none, none))
    assert len(found.lhs) == len(found.rhs) == 0
    assert np.isnan(found.summary()["mrr"])
    assert found.by_relation(list(RELATIONS)) == {}


def test_the_report_adds_up(graphs: dict[int, Graph], make_trained: MakeTrained) -> None:
    trained = make_trained(graphs[1], ModelConfig(dim=DIM), real_numbers)
    scored = []
    found = rank_links(trained, trained.edges("test"), scored.append)
    relations = [relation.name for relation in trained.graph.relations]
    counts = {name: trained.graph.num_entities(name) for name in SIZES}
    assert sum(scored) == sum(
        counts[t] for _, rel, _ in random_edges()["test"] for t in RELATIONS[rel]
    )
    sides, parts = found.by_side(), found.by_relation(relations)
    for name, value in found.summary().items():
        assert value == pytest.approx((sides["lhs"][name] + sides["rhs"][name]) / 2)
        weighted = sum(part["edges"] * part[name] for part in parts.values())
        assert value == pytest.approx(weighted / len(found.rel))
    assert set(parts) == {"buys", "like", "tagged"}
    assert sum(part["edges"] for part in parts.values()) == len(found.rel)
