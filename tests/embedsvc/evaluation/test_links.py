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
from embedsvc.evaluation.links import rank_links, train_degrees
from embedsvc.evaluation.tables import links_notes, links_table
from embedsvc.graph.comparators import COMPARATORS
from embedsvc.graph.operators import OPERATORS
from embedsvc.trained import Trained
from partitions.graph import Graph
from partitions.schema import SPLITS

MakeGraph = Callable[..., Graph]
MakeTrained = Callable[..., Trained]
Named = tuple[str, str, str]  # an edge by its keys
Counts = tuple[int, int, int, int]  # higher, equal; of candidates that are known, too

DIM = 4
TIES = ("pessimistic", "realistic")
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


def counts_by_name(trained: Trained, split: str = "test") -> dict[Named, tuple[Counts, Counts]]:
    edges = trained.edges(split)
    found = rank_links(trained, edges)
    keys = {t: trained.graph.all_keys(t).to_pylist() for t in trained.graph.entity_types}
    named = {}
    for at in range(len(edges)):
        relation = trained.graph.relations[int(edges.rel[at])]
        lhs, rhs = keys[relation.lhs][edges.lhs[at]], keys[relation.rhs][edges.rhs[at]]
        counts = tuple(
            (int(s.higher[at]), int(s.equal[at]), int(s.known_higher[at]), int(s.known_equal[at]))
            for s in found.sides.values()
        )
        assert named.setdefault((lhs, relation.name, rhs), counts) == counts
        assert found.rel[at] == edges.rel[at]
    return named


def counts_by_loop(
    plain: SimpleNamespace,
    model: ModelConfig,
    vector_of: Callable[[str, str], Any],
    parameters_of: Callable[[str, str], Any],
) -> dict[Named, tuple[Counts, Counts]]:
    """Every candidate of the type scored on its own, known edges of all splits kept apart."""
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
        of_lhs = {(e, rel, rhs): s for e, s in to_lhs.items()}
        of_rhs = {(lhs, rel, e): s for e, s in to_rhs.items()}
        ranks[lhs, rel, rhs] = (
            counts_of((lhs, rel, rhs), of_lhs, known),
            counts_of((lhs, rel, rhs), of_rhs, known),
        )
    return ranks


def counts_of(true: Named, scores: dict[Named, float], known: set[Named]) -> Counts:
    counts = [0, 0, 0, 0]
    for other, score in scores.items():
        if other != true and score >= scores[true]:
            counts[2 * (other in known) + (score == scores[true])] += 1
    return counts[0], counts[1], counts[2], counts[3]


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
    wanted = counts_by_loop(plain, model, real_numbers, real_numbers)
    assert len({counts[0] for pair in wanted.values() for counts in pair}) > 5
    for partitions, graph in graphs.items():
        trained = make_trained(graph, model, real_numbers, real_numbers, name=f"c-{partitions}")
        assert counts_by_name(trained) == wanted


@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("comparator", ["dot", "l2"])
def test_ties_count_against_the_true_one_exactly(
    comparator: str,
    reciprocal: bool,
    graphs: dict[int, Graph],
    make_trained: MakeTrained,
    plain: SimpleNamespace,
) -> None:
    for operator in sorted(set(OPERATORS) - {"rotate"}):  # whose sines float32 doesn't know exactly
        model = ModelConfig(
            dim=DIM, operator=operator, comparator=comparator, reciprocal=reciprocal
        )
        wanted = counts_by_loop(plain, model, small_integers, small_integers)
        trained = make_trained(graphs[3], model, small_integers, small_integers, name=operator)
        assert counts_by_name(trained) == wanted


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
    wanted = counts_by_loop(plain, model, real_numbers, real_numbers)
    trained = make_trained(graphs[3], model, real_numbers, real_numbers)
    assert counts_by_name(trained) == wanted


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
    whole = counts_by_name(trained)
    for block, queries, candidates in ((1, 1, 1), (7, 2, 3), (5, 100, 2), (100, 3, 100)):
        monkeypatch.setattr(links, "BLOCK_EDGES", block)
        monkeypatch.setattr(links, "_TILE_QUERIES", queries)
        monkeypatch.setattr(links, "_TILE_CANDIDATES", candidates)
        assert counts_by_name(trained) == whole


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-9, 1e4])
@pytest.mark.parametrize("comparator", list(COMPARATORS))
def test_a_constant_scorer_gets_the_last_rank_or_realistically_the_middle_one(
    comparator: str, value: float, graphs: dict[int, Graph], make_trained: MakeTrained
) -> None:
    known = {edge for edges in random_edges().values() for edge in edges}
    sizes = num_entities(known)
    for partitions in (1, 3):
        trained = make_trained(
            graphs[partitions],
            ModelConfig(dim=DIM, comparator=comparator),
            lambda t, key: [value] * DIM,
            name=f"c-{partitions}",
        )
        for (lhs, rel, rhs), (of_lhs, of_rhs) in counts_by_name(trained).items():
            other_lhs = sum(e[1:] == (rel, rhs) and e[0] != lhs for e in known)
            other_rhs = sum(e[:2] == (lhs, rel) and e[2] != rhs for e in known)
            lhs_type, rhs_type = RELATIONS[rel]
            assert of_lhs == (0, sizes[lhs_type] - 1 - other_lhs, 0, other_lhs)
            assert of_rhs == (0, sizes[rhs_type] - 1 - other_rhs, 0, other_rhs)
        found = rank_links(trained, trained.edges("test"))
        for side in found.sides.values():
            num = side.num_left + 1
            assert np.array_equal(side.ranks(), num)
            assert np.array_equal(side.ranks("realistic"), (num + 1) / 2)
            everyone = num + side.known_equal
            assert np.array_equal(side.ranks(raw=True), everyone)
            assert np.array_equal(side.ranks("realistic", raw=True), (everyone + 1) / 2)
        assert found.num_unscored == found.num_beside_unscored == 0


@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("operator", list(OPERATORS))
def test_a_constant_scorer_is_constant_under_every_operator(
    operator: str, reciprocal: bool, graphs: dict[int, Graph], make_trained: MakeTrained
) -> None:
    model = ModelConfig(
        dim=DIM, operator=operator, reciprocal=reciprocal and operator != "identity"
    )
    trained = make_trained(graphs[3], model, lambda t, key: [0.1, 0.7, -0.3, 0.9], real_numbers)
    found = rank_links(trained, trained.edges("test"))
    for side in found.sides.values():
        assert np.array_equal(side.ranks("realistic"), (side.num_left + 2) / 2)


def num_entities(known: set[Named]) -> dict[str, int]:
    return {
        t: len({e[side * 2] for e in known for side in (0, 1) if RELATIONS[e[1]][side] == t})
        for t in SIZES
    }


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("comparator", list(COMPARATORS))
@pytest.mark.parametrize(("operator", "reciprocal"), [("translation", False), ("diagonal", True)])
def test_what_has_no_score_counts_as_higher_and_is_counted(
    operator: str,
    reciprocal: bool,
    comparator: str,
    odd: float,
    graphs: dict[int, Graph],
    make_trained: MakeTrained,
) -> None:
    """An entity whose vector is broken, beside the same model where it is whole."""

    def broken(entity_type: str, key: str) -> np.ndarray:
        vector = real_numbers(entity_type, key)
        vector[1] = odd if key in ("item3", "user2") else vector[1]
        return vector

    model = ModelConfig(dim=DIM, operator=operator, comparator=comparator, reciprocal=reciprocal)
    for partitions in (1, 3):
        graph = graphs[partitions]
        whole = make_trained(graph, model, real_numbers, real_numbers, name=f"whole-{partitions}")
        wanted = counts_by_name(whole)
        trained = make_trained(graph, model, broken, real_numbers, name=f"broken-{partitions}")
        edges = trained.edges("test")
        found = rank_links(trained, edges)
        keys = {t: graph.all_keys(t).to_pylist() for t in graph.entity_types}
        num_unscored = 0
        for at in range(len(edges)):
            relation = graph.relations[int(edges.rel[at])]
            ends = (keys[relation.lhs][edges.lhs[at]], keys[relation.rhs][edges.rhs[at]])
            unscored = bool({"item3", "user2"} & set(ends))
            num_unscored += unscored
            for place, (name, side) in enumerate(found.sides.items()):
                assert side.unscored[at] == unscored
                assert side.beside_unscored[at] == (getattr(relation, name) != "tag")
                if unscored:
                    assert side.higher[at] == side.num_left[at] and side.equal[at] == 0
                    continue
                before = wanted[ends[0], relation.name, ends[1]][place]
                left, known = side.higher[at] - before[0], side.known_higher[at] - before[2]
                assert left >= 0 and known >= 0 and left + known <= 1
                assert (side.equal[at], side.known_equal[at]) == (before[1], before[3])
        assert found.num_unscored == num_unscored > 0
        assert num_unscored < found.num_beside_unscored < len(edges) + 1
        assert np.isfinite(list(found.summary().values())).all()


def test_a_broken_model_has_the_last_rank_everywhere(
    graphs: dict[int, Graph], make_trained: MakeTrained
) -> None:
    trained = make_trained(graphs[3], ModelConfig(dim=DIM), lambda t, key: [np.nan] * DIM)
    edges = trained.edges("test")
    found = rank_links(trained, edges)
    for ties in TIES:
        for side in found.sides.values():
            assert np.array_equal(side.ranks(ties), side.num_left + 1)
    assert found.num_unscored == found.num_beside_unscored == len(edges)


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
    assert counts_by_name(scaled) == counts_by_name(one)


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
    edges = EdgeIds(none, none, none)
    found = rank_links(trained, edges)
    assert len(found.lhs) == len(found.rhs) == 0
    assert np.isnan(found.summary()["mrr"])
    assert found.by_relation(list(RELATIONS)) == {}
    assert np.isnan(found.intervals()["mrr"].value)
    assert found.by_degree(train_degrees(trained, edges)) == []
    assert found.num_unscored == found.num_beside_unscored == 0


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


def test_ranks_of_a_case_worked_by_hand() -> None:
    """Two candidates higher, three equal; of known ones, one higher and two equal."""
    side = side_of(higher=[2], equal=[3], known_higher=[1], known_equal=[2])
    assert side.ranks().tolist() == [6.0]
    assert side.ranks("realistic").tolist() == [4.5]
    assert side.ranks(raw=True).tolist() == [9.0]
    assert side.ranks("realistic", raw=True).tolist() == [6.5]
    found = links.LinkRanks({"lhs": side, "rhs": side_of([0], [0], [9], [0])}, np.array([0]))
    assert found.lhs.tolist() == [6] and found.rhs.tolist() == [1]
    assert found.summary() == {
        "mrr": (1 / 6 + 1) / 2,
        "mean_rank": 3.5,
        "hits1": 0.5,
        "hits3": 0.5,
        "hits10": 1.0,
    }
    assert found.summary("realistic", raw=True)["mrr"] == (1 / 6.5 + 1 / 10) / 2


def side_of(
    higher: list[int], equal: list[int], known_higher: list[int], known_equal: list[int]
) -> links.SideRanks:
    none = np.zeros(len(higher), np.bool_)
    counts = (np.array(each) for each in (higher, equal, known_higher, known_equal, higher))
    return links.SideRanks(*counts, none, none)


def test_the_realistic_rank_is_the_mean_over_ways_to_break_ties() -> None:
    rng = np.random.default_rng(3)
    drawn = [2 + 1 + int(rng.permutation(8).tolist().index(0)) for _ in range(4000)]
    side = side_of([2], [7], [0], [0])
    assert side.ranks("realistic")[0] == pytest.approx(np.mean(drawn), abs=0.15)


@pytest.mark.parametrize("partitions", [1, 4])
def test_degree_bands_equal_a_plain_count(
    partitions: int, graphs: dict[int, Graph], make_trained: MakeTrained
) -> None:
    """A band's name holds the training edges that the ranked entity is an end of."""
    trained = make_trained(graphs[partitions], ModelConfig(dim=DIM), real_numbers)
    train = random_edges()["train"]
    edges = trained.edges("test")
    keys = {t: trained.graph.all_keys(t).to_pylist() for t in trained.graph.entity_types}
    found = rank_links(trained, edges)
    degrees = train_degrees(trained, edges)
    bands: dict[str, list[int]] = {}
    for at in range(len(edges)):
        relation = trained.graph.relations[int(edges.rel[at])]
        for row, side in enumerate(("lhs", "rhs")):
            key = keys[getattr(relation, side)][getattr(edges, side)[at]]
            degree = sum((e[0] == key) + (e[2] == key) for e in train)
            assert degrees[row, at] == degree
            name = "0" if degree < 1 else "1-2" if degree < 3 else "3-9" if degree < 10 else "10-99"
            bands.setdefault(name, []).append(int(getattr(found, side)[at]))
    report = {band["degree"]: band for band in found.by_degree(degrees)}
    assert len(report) > 2 and set(report) == set(bands)
    assert list(report) == [name for name in ("0", "1-2", "3-9", "10-99") if name in report]
    for name, ranks in bands.items():
        assert report[name]["ranks"] == len(ranks)
        assert report[name]["mrr"] == pytest.approx(np.mean([1 / r for r in ranks]))
        assert report[name]["hits3"] == pytest.approx(np.mean([r <= 3 for r in ranks]))


def test_degree_bands_have_the_names_that_people_give_them() -> None:
    side = side_of(*(np.zeros((4, 4), int).tolist()))
    found = links.LinkRanks({"lhs": side, "rhs": side}, np.zeros(4, np.int64))
    degrees = np.array([[0, 2, 9, 99], [999, 1000, 10, 100_000]])
    bands = {band["degree"]: band["ranks"] for band in found.by_degree(degrees)}
    assert bands == {"0": 1, "1-2": 1, "3-9": 1, "10-99": 2, "100-999": 1, "1000+": 2}


def test_intervals_are_over_edges_and_not_over_their_ends() -> None:
    """Both ends of an edge alike: twice the ranks, but no more is known."""
    higher = np.random.default_rng(0).integers(0, 20, 50).tolist()
    none = [0] * 50
    side = side_of(higher, none, none, none)
    found = links.LinkRanks({"lhs": side, "rhs": side}, np.zeros(50, np.int64)).intervals()
    alone = 1 / (1 + np.array(higher))
    assert set(found) == {"mrr", "hits1", "hits3", "hits10"}
    assert found["mrr"].value == pytest.approx(alone.mean())
    width = found["mrr"].high - found["mrr"].low
    assert width == pytest.approx(2 * 1.96 * alone.std() / 50**0.5, rel=0.15)


def test_the_report_has_both_ways_to_count_ties_and_both_settings() -> None:
    sides = {
        "lhs": side_of([0, 4, 9], [1, 0, 2], [0, 3, 0], [2, 0, 0]),
        "rhs": side_of([0, 0, 1], [0, 3, 0], [0, 0, 5], [0, 0, 0]),
    }
    ranks = links.LinkRanks(sides, np.array([0, 1, 1]))
    degrees = np.array([[0, 5, 5], [7, 7, 0]])
    found, other = (links.report(ranks, ["a", "b"], degrees, ties) for ties in TIES)
    assert found["edges"] == 3 and (found["ties"], other["ties"]) == TIES
    pessimistic, realistic = [2, 5, 12, 1, 4, 2], [1.5, 5, 11, 1, 2.5, 2]
    raw, raw_realistic = [4, 8, 12, 1, 4, 7], [2.5, 8, 11, 1, 2.5, 7]
    for report, wanted in ((found, pessimistic), (other, realistic)):
        assert report["mrr"] == pytest.approx(np.mean([1 / rank for rank in wanted]))
        assert report["mean_rank"] == pytest.approx(np.mean(wanted))
        assert report["hits3"] == pytest.approx(np.mean([rank <= 3 for rank in wanted]))
        assert report["by_side"]["lhs"]["mrr"] == pytest.approx(np.mean(1 / np.array(wanted[:3])))
        by_b = np.array([wanted[i] for i in (1, 2, 4, 5)])
        assert report["by_relation"]["b"]["mrr"] == pytest.approx(np.mean(1 / by_b))
        assert report["by_degree"][0]["mean_rank"] == pytest.approx((wanted[0] + wanted[5]) / 2)
        assert report["intervals"]["mrr"]["value"] == pytest.approx(report["mrr"])
        assert report["pessimistic"]["mean_rank"] == pytest.approx(np.mean(pessimistic))
        assert report["realistic"]["mean_rank"] == pytest.approx(np.mean(realistic))
    assert found["raw"]["mean_rank"] == pytest.approx(np.mean(raw))
    assert other["raw"]["mean_rank"] == pytest.approx(np.mean(raw_realistic))
    assert found["nan_edges"] == found["nan_candidates"] == 0
    assert links_notes(found) == []
    assert len(links_notes(found | {"nan_edges": 2, "nan_candidates": 3})) == 2
    table = links_table(found, "test")
    assert table.row_count == 1 + 2 + 2 + 2 + len(found["by_degree"]) + 2
