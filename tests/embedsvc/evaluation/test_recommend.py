"""Top-k lists equal a plain sort of all items, whatever the partitions."""

import io
import math
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from embedsvc.config import EvalConfig, ModelConfig
from embedsvc.eval_road import Evaluation
from embedsvc.evaluation import lists, recommend, sources
from embedsvc.evaluation.recommend import evaluate_lists
from embedsvc.graph.comparators import COMPARATORS
from embedsvc.graph.operators import OPERATORS
from embedsvc.trained import Trained
from partitions.errors import DataError
from partitions.graph import Graph

MakeGraph, MakeTrained = Callable[..., Graph], Callable[..., Trained]
Named = tuple[str, str, str]

DIM, NUM_USERS, NUM_ITEMS = 4, 14, 12
RELATIONS = {"buys": ("user", "item"), "like": ("item", "item")}


def real_numbers(*names: str) -> np.ndarray:
    seed = [9, *"/".join(names).encode()]
    return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)


def random_edges() -> dict[str, list[Named]]:
    """Some edges occur twice in a split and in several; item popularity has no ties at the top."""
    rng = np.random.default_rng(2)
    share = np.arange(1, NUM_ITEMS + 1) / sum(range(1, NUM_ITEMS + 1))

    def draw(count: int) -> list[Named]:
        buys = [
            (f"user{rng.integers(NUM_USERS)}", "buys", f"item{rng.choice(NUM_ITEMS, p=share)}")
            for _ in range(count)
        ]
        likes = [
            (f"item{rng.integers(NUM_ITEMS)}", "like", f"item{rng.integers(NUM_ITEMS)}")
            for _ in range(count)
        ]
        return buys + likes

    all_keys = [(f"user{u}", "buys", f"item{u % NUM_ITEMS}") for u in range(NUM_USERS)]
    train, valid, test = [*all_keys, *draw(30)], draw(15), draw(40)
    return {
        "train": train + train[:3],
        "valid": valid + train[20:22],
        "test": [*test, *test[:5], train[15], valid[0]],
    }


@pytest.fixture(scope="module")
def graphs(make_graph: MakeGraph) -> dict[int, Graph]:
    """The same edges in 1 and 3 partitions."""
    return {
        partitions: make_graph(random_edges(), RELATIONS, {"user": partitions, "item": partitions})
        for partitions in (1, 3)
    }


def lists_by_loop(
    plain: SimpleNamespace, model: ModelConfig, relation: str, split: str, k: int
) -> dict[str, Any]:
    splits = random_edges()
    before = {"valid": ["train"], "test": ["train", "valid"]}[split]
    seen = {(a, b) for s in before for a, r, b in splits[s] if r == relation}
    lhs_type, rhs_type = RELATIONS[relation]
    if lhs_type == rhs_type:
        seen |= {(f"item{i}", f"item{i}") for i in range(NUM_ITEMS)}
    goals: dict[str, set[str]] = {}
    for a, r, b in splits[split]:
        if r == relation and (a, b) not in seen:
            goals.setdefault(a, set()).add(b)
    count = {f"item{i}": 0 for i in range(NUM_ITEMS)}
    for _, r, b in splits["train"]:
        count[b] += r == relation
    score, move = plain.comparators[model.comparator], plain.operators[model.operator]
    params = [] if model.operator == "identity" else real_numbers(model.operator, relation)

    def numbers(*names: str) -> list[float]:
        return [float(x) for x in real_numbers(*names)]

    def judge(listed: list[str], goal: set[str]) -> tuple[float, float]:
        hits = [item in goal for item in listed[:k]]
        gain = sum(1 / math.log2(at + 2) for at, hit in enumerate(hits) if hit)
        places = min(len(goal), k, NUM_ITEMS)
        return sum(hits) / len(goal), gain / sum(1 / math.log2(at + 2) for at in range(places))

    model_marks, popular_marks = [], []
    bands: dict[str, list[tuple[float, float]]] = {}
    for lhs, goal in goals.items():
        query = move(numbers(lhs_type, lhs), [float(p) for p in params])
        new = [item for item in count if (lhs, item) not in seen]
        by_score = sorted(new, key=lambda i: -score(query, numbers(rhs_type, i)))
        by_count = sorted(new, key=lambda i: -count[i])
        model_marks.append(judge(by_score, goal))
        popular_marks.append(judge(by_count, goal))
        known = sum((a, r) == (lhs, relation) for s in before for a, r, _ in splits[s])
        bands.setdefault(band_of(known), []).append(model_marks[-1])
    recalls = [recall for recall, _ in model_marks]
    return {
        "num_lists": len(goals),
        "recall": float(np.mean(recalls)),
        "recall_se": float(np.std(recalls) / math.sqrt(len(recalls))),
        "ndcg": float(np.mean([n for _, n in model_marks])),
        "popular_recall": float(np.mean([r for r, _ in popular_marks])),
        "popular_ndcg": float(np.mean([n for _, n in popular_marks])),
        "by_history": {
            band: [len(marks), *np.mean(marks, axis=0).tolist()] for band, marks in bands.items()
        },
    }


def band_of(known: int) -> str:
    if known < 3:
        return "0" if not known else "1-2"
    return "3-4" if known < 5 else "5-9" if known < 10 else "10-19"


MODEL_PART = ("num_lists", "recall", "recall_se", "ndcg")


@pytest.mark.parametrize("comparator", list(COMPARATORS))
@pytest.mark.parametrize("operator", list(OPERATORS))
def test_lists_equal_a_plain_sort_for_any_number_of_partitions(
    operator: str,
    comparator: str,
    graphs: dict[int, Graph],
    make_trained: MakeTrained,
    plain: SimpleNamespace,
) -> None:
    model = ModelConfig(dim=DIM, operator=operator, comparator=comparator)
    for partitions, graph in graphs.items():
        trained = make_trained(graph, model, real_numbers, real_numbers, name=f"c-{partitions}")
        # valid: only train was seen; 100: more items than there are.
        for relation, split, k in product(RELATIONS, ("valid", "test"), (3, 100)):
            report = asdict(evaluate_lists(trained, relation, split, k))
            assert report.pop("relation") == relation and report.pop("k") == k
            wanted = lists_by_loop(plain, model, relation, split, k)
            by_history = wanted.pop("by_history")
            bands = {band.pop("events"): band for band in report.pop("by_history")}
            assert bands.keys() == by_history.keys()
            for name, band in bands.items():
                found = [band["num_lists"], band["recall"], band["ndcg"]]
                assert found == pytest.approx(by_history[name])
            for name in MODEL_PART:  # equally popular items have an order that the loop lacks
                assert report[name] == pytest.approx(wanted[name])
            assert report["metrics"][f"recall@{k}"]["value"] == pytest.approx(wanted["recall"])
            if k == 100:  # everything is in the list: every relevant item is found
                assert report["recall"] == report["popular_recall"] == 1


def test_the_popular_baseline_by_hand(make_graph: MakeGraph, make_trained: MakeTrained) -> None:
    """a is bought 3 times, b twice, c once, d never."""
    train = [("u1", "a"), ("u2", "a"), ("u3", "a"), ("u1", "b"), ("u2", "b"), ("u4", "c")]
    test = [
        ("u4", "a"),  # list a, b: found in the first place
        ("u1", "c"),  # a and b are seen: list c, d: found in the first place
        ("u3", "d"),  # a is seen: list b, c: not found
        ("u3", "c"),  # found in the second place
    ]
    graph = make_graph(
        {
            "train": [(u, "buys", i) for u, i in train],
            "test": [(u, "buys", i) for u, i in test],
        },
        {"buys": ("user", "item")},
    )
    trained = make_trained(graph, ModelConfig(dim=DIM), real_numbers)
    report = evaluate_lists(trained, "buys", "test", k=2)
    assert report.num_lists == 3
    assert report.popular_recall == pytest.approx((1 + 1 + 1 / 2) / 3)
    second = 1 / math.log2(3)
    assert report.popular_ndcg == pytest.approx((1 + 1 + second / (1 + second)) / 3)


def test_lists_by_length_of_history_by_hand(
    make_graph: MakeGraph, make_trained: MakeTrained
) -> None:
    """All want c, which the model has second, so that it is first for who has had a."""
    train = [("u2", "a"), ("u2", "b"), ("u3", "a"), ("u3", "a"), ("u3", "a"), ("u1", "d")]
    valid = [("u4", "a"), ("u4", "b"), ("u4", "b"), ("u4", "d"), ("u4", "d")]
    test = [(f"u{user}", "c") for user in range(5)] + [("u1", "b")]
    splits = {"train": train, "valid": valid, "test": test}
    graph = make_graph(
        {name: [(u, "buys", i) for u, i in split] for name, split in splits.items()},
        {"buys": ("user", "item")},
    )
    liked = {"a": 3.0, "c": 2.0, "d": 1.0, "b": 0.0}
    trained = make_trained(graph, ModelConfig(dim=1), lambda t, key: [liked.get(key, 1.0)])
    report = asdict(evaluate_lists(trained, "buys", "test", k=1))
    none = dict.fromkeys(("recall_low", "recall_high"), pytest.approx(math.nan, nan_ok=True))
    assert report["by_history"] == (
        {"events": "0", "num_lists": 1, "recall": 0, "recall_se": 0, "ndcg": 0} | none,  # u0: a
        # u1 has d: a is listed for c and b; u2 has a and b: c is listed
        {
            "events": "1-2",
            "num_lists": 2,
            "recall": 0.5,
            "recall_se": pytest.approx(0.5 / math.sqrt(2)),
            "ndcg": 0.5,
        }
        | none,
        # u3 has a thrice, u4 five events in valid
        {"events": "3-4", "num_lists": 1, "recall": 1, "recall_se": 0, "ndcg": 1} | none,
        {"events": "5-9", "num_lists": 1, "recall": 1, "recall_se": 0, "ndcg": 1} | none,
    )
    assert report["recall"] == pytest.approx(3 / 5)
    before = evaluate_lists(trained, "buys", "valid", k=1).by_history
    assert [(band.events, band.num_lists) for band in before] == [("0", 1)]  # u4 has none in train


def test_bands_of_histories_have_every_length_once() -> None:
    lengths = np.arange(60)
    bands = recommend._by_history(lengths, lengths.astype(float), lengths.astype(float))
    assert [band.events for band in bands] == ["0", "1-2", "3-4", "5-9", "10-19", "20-49", "50+"]
    assert [band.num_lists for band in bands] == [1, 2, 2, 5, 10, 30, 10]
    assert [band.recall for band in bands] == [0, 1.5, 3.5, 7, 14.5, 34.5, 54.5]


def test_more_lists_than_a_tile_holds_change_nothing(
    graphs: dict[int, Graph], make_trained: MakeTrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make_trained(graphs[3], ModelConfig(dim=DIM), real_numbers)
    whole = evaluate_lists(trained, "buys", "test", 3)
    monkeypatch.setattr(lists, "BLOCK", 5)
    monkeypatch.setattr(sources, "_TILE_QUERIES", 2)
    monkeypatch.setattr(sources, "_TILE_CANDIDATES", 3)
    assert evaluate_lists(trained, "buys", "test", 3) == whole


def test_what_was_seen_is_never_in_a_list(make_graph: MakeGraph, make_trained: MakeTrained) -> None:
    """The model likes nothing better than what the user has bought: it may not profit from it."""
    edges = {"train": [("u", "buys", "a"), ("v", "buys", "b")], "test": [("u", "buys", "b")]}
    graph = make_graph(edges, {"buys": ("user", "item")})
    vectors = {"u": [1.0, 0], "a": [9.0, 0], "v": [0.0, 1], "b": [-9.0, 0]}
    trained = make_trained(graph, ModelConfig(dim=2), lambda t, key: vectors[key])
    assert evaluate_lists(trained, "buys", "test", k=1).recall == 1


def test_a_relation_without_edges_in_the_split_has_no_lists(
    make_graph: MakeGraph, make_trained: MakeTrained
) -> None:
    edges = {"train": [("u", "buys", "a")], "test": [("a", "like", "a")]}
    trained = make_trained(make_graph(edges, RELATIONS), ModelConfig(dim=DIM), real_numbers)
    report = evaluate_lists(trained, "buys", "test", k=3)
    assert report.num_lists == 0 and math.isnan(report.recall) and math.isnan(report.popular_ndcg)


def test_an_unknown_relation_is_refused_with_a_hint(
    make_graph: MakeGraph, make_trained: MakeTrained
) -> None:
    trained = make_trained(
        make_graph({"train": [("u", "buys", "a")]}, {"buys": ("user", "item")}),
        ModelConfig(dim=DIM),
        real_numbers,
    )
    with pytest.raises(DataError, match=r"has no relation buy\. Did you mean buys\?"):
        evaluate_lists(trained, "buy", "test", k=3)


def test_lists_of_nothing_are_told_in_a_sentence(
    make_graph: MakeGraph, make_trained: MakeTrained
) -> None:
    graph = make_graph({"train": [("u", "buys", "a")]}, {"buys": ("user", "item")})
    trained = make_trained(graph, ModelConfig(dim=DIM), real_numbers)
    console = Console(file=io.StringIO())
    Evaluation(trained, EvalConfig(), console).lists("buys")
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said == "eval: no list for buys: the split has no edge of it to find\n"
