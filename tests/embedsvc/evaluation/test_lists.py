"""Who is asked about, what a list is worth, and the same lists from every source."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from embedsvc.config import ModelConfig, PublishConfig
from embedsvc.evaluation.lists import Asked, Found, ask, had_before, hits_of, judge
from embedsvc.evaluation.recommend import report_of
from embedsvc.evaluation.sources import OfCheckpoint, OfPopularity, OfVersion
from embedsvc.graph.comparators import COMPARATORS
from embedsvc.publish import publish
from embedsvc.trained import Trained
from partitions import published
from partitions.graph import Graph

MakeGraph, MakeTrained = Callable[..., Graph], Callable[..., Trained]
BUYS = {"buys": ("user", "item")}
DIM = 4


def buys(*pairs: str) -> list[tuple[str, str, str]]:
    """ "u a" is the user u buying a."""
    return [(lhs, "buys", rhs) for lhs, rhs in (pair.split() for pair in pairs)]


def numbers(*names: str) -> np.ndarray:
    rng = np.random.default_rng([7, *"/".join(names).encode()])
    return rng.standard_normal(DIM).astype(np.float32)


@pytest.fixture(scope="module")
def graph(make_graph: MakeGraph) -> Graph:
    """u4 has nothing new to find; u5 is cold, as is the item f."""
    splits = {
        "train": buys("u1 a", "u1 a", "u2 a", "u2 b", "u3 c", "u4 d", "u6 e"),
        "valid": buys("u1 b"),
        "test": buys("u1 a", "u1 b", "u1 c", "u2 d", "u4 d", "u5 a", "u5 f", "u5 f"),
    }
    return make_graph(splits, BUYS, {"user": 3, "item": 3})


def names(graph: Graph, entity_type: str, ids: Any) -> list[str]:
    keys = graph.all_keys(entity_type).to_pylist()
    return [keys[at] for at in np.ravel(ids).tolist()]


def test_asked_are_those_with_something_new_to_find(graph: Graph) -> None:
    asked = Asked.of(graph, "buys", "test")
    found = {}
    for row, lhs in enumerate(names(graph, "user", asked.lhs)):
        goals, had = asked.goals[row].indices, asked.left_out[row].indices
        found[lhs] = (
            sorted(names(graph, "item", goals)),
            sorted(names(graph, "item", had)),
            int(asked.num_known[row]),
        )
    assert found == {
        "u1": (["c"], ["a", "b"], 3),
        "u2": (["d"], ["a", "b"], 2),
        "u5": (["a", "f"], [], 0),
    }
    assert asked.num_without_goals == 1
    items = names(graph, "item", np.arange(6))
    popularity = dict(zip(items, asked.popularity.tolist(), strict=True))
    assert popularity == {"a": 3, "b": 1, "c": 1, "d": 1, "e": 1, "f": 0}


def test_of_valid_only_train_was_seen(graph: Graph) -> None:
    asked = Asked.of(graph, "buys", "valid")
    assert names(graph, "user", asked.lhs) == ["u1"]
    assert names(graph, "item", asked.left_out.indices) == ["a"]


def test_nobody_is_recommended_to_themselves(make_graph: MakeGraph) -> None:
    edges = {"train": [("a", "like", "b")], "test": [("a", "like", "a"), ("b", "like", "a")]}
    asked = Asked.of(make_graph(edges, {"like": ("item", "item")}), "like", "test")
    assert len(asked) == 1 and asked.num_without_goals == 1
    assert asked.left_out[0].indices.tolist() == asked.lhs.tolist()


class Fixed:
    """Lists by hand."""

    def __init__(self, ids: dict[int, list[int]], k: int) -> None:
        self.ids, self.k = ids, k

    def top(self, lhs: Any, k: int, left_out: sp.csr_matrix) -> Found:
        rows = [(self.ids[at] + [-1] * k)[:k] for at in lhs.tolist()]
        return Found(np.array(rows), np.zeros((len(rows), k), np.float32))


def test_lists_are_judged_by_hand(graph: Graph) -> None:
    asked = Asked.of(graph, "buys", "test")
    u1, u2, u5 = (names(graph, "user", asked.lhs).index(u) for u in ("u1", "u2", "u5"))
    item = {name: at for at, name in enumerate(graph.all_keys("item").to_pylist())}
    lists = {
        int(asked.lhs[u1]): [item["d"], item["c"]],  # found in the second place
        int(asked.lhs[u2]): [],  # nothing listed
        int(asked.lhs[u5]): [item["f"], item["a"]],  # both found
    }
    judged = judge(Fixed(lists, 2), asked, 2)
    by_user = {
        name: [round(float(values[u]), 4) for u in (u1, u2, u5)]
        for name, values in judged.values.items()
    }
    assert by_user == {
        "recall@2": [1, 0, 1],
        "capped_recall@2": [1, 0, 1],
        "ndcg@2": [0.6309, 0, 1],
        "map@2": [0.5, 0, 1],
        "hit_rate@2": [1, 0, 1],
        "mrr@2": [0.5, 0, 1],
        "precision@2": [0.5, 0, 1],
    }
    report = report_of(judged, asked)
    assert report.metrics["mrr@2"].value == pytest.approx(0.5)
    cold = report.cold_items  # f alone has no training edge
    assert (cold.num_goals, cold.found, cold.num_warm, cold.found_warm) == (1, 1, 3, 2)
    assert report.short_lists == 1 and report.num_without_goals == 1
    assert report.catalogue["coverage@2"] == pytest.approx(4 / 6)
    assert report.by_history[0].events == "0" and report.by_history[0].recall == 1


def test_the_most_popular_skip_what_was_had(graph: Graph) -> None:
    asked = Asked.of(graph, "buys", "test")
    found = ask(OfPopularity(asked.popularity), asked.lhs, 3, asked.left_out)
    order = np.argsort(-asked.popularity, kind="stable").tolist()
    for row, ids in enumerate(found.ids.tolist()):
        had = asked.left_out[row].indices.tolist()
        assert ids == [at for at in order if at not in had][:3]


@pytest.mark.parametrize("comparator", list(COMPARATORS))
@pytest.mark.parametrize("operator", ["identity", "rotate", "affine"])
def test_a_published_version_lists_what_its_checkpoint_lists(
    operator: str,
    comparator: str,
    graph: Graph,
    make_trained: MakeTrained,
    tmp_path: Path,
) -> None:
    model = ModelConfig(dim=DIM, operator=operator, comparator=comparator)
    trained = make_trained(graph, model, numbers, numbers, name=f"v-{operator}-{comparator}")
    publish(trained, tmp_path, PublishConfig(), {}, {})
    version = OfVersion(published.open_version(tmp_path), graph, "buys", "test")
    asked = Asked.of(graph, "buys", "test")
    for k in (1, 3, 10):
        wanted = ask(OfCheckpoint(trained, "buys"), asked.lhs, k, asked.left_out)
        found = ask(version, asked.lhs, k, asked.left_out)
        assert found.ids.tolist() == wanted.ids.tolist()
    assert (version.unknown_lhs, version.unknown_rhs) == (0, 0)


def test_a_version_of_other_entities_lists_what_both_know(
    graph: Graph, make_graph: MakeGraph, make_trained: MakeTrained, tmp_path: Path
) -> None:
    """The older version knows u1, u5 and u9, and a, c and z."""
    old = make_graph({"train": buys("u1 a", "u5 c", "u9 z")}, BUYS)
    model = ModelConfig(dim=DIM)
    publish(make_trained(old, model, numbers), tmp_path, PublishConfig(), {}, {})
    version = OfVersion(published.open_version(tmp_path), graph, "buys", "test")
    assert (version.unknown_lhs, version.unknown_rhs) == (4, 1)
    asked = Asked.of(graph, "buys", "test")
    found = ask(version, asked.lhs, 3, asked.left_out)
    for row, lhs in enumerate(names(graph, "user", asked.lhs)):
        listed = [at for at in found.ids[row].tolist() if at >= 0]
        had = asked.left_out[row].indices.tolist()
        known = [name for name in ("a", "c") if lhs in ("u1", "u5")]
        score = {name: float(numbers("user", lhs) @ numbers("item", name)) for name in known}
        best = sorted(known, key=lambda name: -score[name])
        assert names(graph, "item", listed) == [
            name for name in best if names(graph, "item", had).count(name) == 0
        ]


def test_what_was_had_is_read_for_part_of_the_lhs_only(graph: Graph) -> None:
    everybody = np.arange(graph.num_entities("user"))
    whole = had_before(graph, "buys", everybody, ("train", "valid")).toarray()
    for some in (everybody[:2], everybody[3:5], everybody[:0], everybody[::2]):
        found = had_before(graph, "buys", some, ("train", "valid"))
        assert found.toarray().tolist() == whole[some].tolist()


def test_hits_are_goals_of_the_same_row() -> None:
    goals = sp.csr_matrix(np.array([[1, 0, 1], [0, 1, 0]], np.int8))
    ids = np.array([[2, 1, -1], [0, 1, 2]])
    assert hits_of(ids, goals).tolist() == [[True, False, False], [False, True, False]]


def test_an_empty_split_has_no_lists(graph: Graph, make_graph: MakeGraph) -> None:
    empty = make_graph({"train": buys("u1 a")}, BUYS)
    asked = Asked.of(empty, "buys", "test")
    judged = judge(OfPopularity(asked.popularity), asked, 5)
    assert len(asked) == 0 and judged.values["recall@5"].shape == (0,)
    assert np.isnan(report_of(judged, asked).recall)
