"""embedsvc.evaluation.neighbours: the nearest are those of a plain loop, on any partitions."""

from collections.abc import Callable

import numpy as np
import pytest

from embedsvc.config import ModelConfig
from embedsvc.evaluation.neighbours import hubs_of, names_of, nearest
from embedsvc.trained import Trained
from partitions.description import degrees_of
from partitions.graph import Graph

RELATIONS = {"likes": ("user", "item"), "knows": ("user", "user")}


def edges_of(num: int) -> dict[str, list[tuple[str, str, str]]]:
    likes = [(f"u{n % 7}", "likes", f"i{n % 11}") for n in range(num)]
    return {"train": [*likes, ("u0", "knows", "u1"), ("u0", "knows", "u2"), ("u1", "knows", "u0")]}


@pytest.mark.parametrize("comparator", ["dot", "cos", "l2"])
@pytest.mark.parametrize("partitions", [1, 3])
def test_the_nearest_are_those_of_a_plain_loop(
    make_graph: Callable[..., Graph],
    make_trained: Callable[..., Trained],
    vector_from: Callable[..., np.ndarray],
    comparator: str,
    partitions: int,
) -> None:
    graph = make_graph(edges_of(60), RELATIONS, {"item": partitions})
    config = ModelConfig(dim=4, comparator=comparator)
    trained = make_trained(graph, config, lambda *names: vector_from(1, 4, *names))
    keys = graph.all_keys("item").to_pylist()
    vectors = [vector_from(1, 4, "item", key).astype(np.float64) for key in keys]

    def like(a: int, b: int) -> float:
        x, y = vectors[a], vectors[b]
        if comparator == "l2":
            return -float(np.sqrt(((x - y) ** 2).sum()))
        return float(x @ y / np.sqrt((x @ x) * (y @ y)))

    ids = np.array([2, 0, 7])
    best = nearest(trained, "item", ids, 20)
    for row, this in enumerate(ids.tolist()):
        scores = {other: like(this, other) for other in range(len(keys)) if other != this}
        right = sorted(scores, key=lambda other: -scores[other])
        assert best.ids[row].tolist() == right + [-1] * (20 - len(right))
        assert best.scores[row, :10] == pytest.approx([scores[n] for n in right], abs=1e-5)


def test_hubs_are_those_with_the_most_edges_and_their_names_are_right(
    make_graph: Callable[..., Graph],
    make_trained: Callable[..., Trained],
    vector_from: Callable[..., np.ndarray],
) -> None:
    graph = make_graph(edges_of(20), RELATIONS, {"user": 2, "item": 2})
    trained = make_trained(
        graph, ModelConfig(dim=4), lambda *names: vector_from(1, 4, *names[:1], names[1][-1])
    )
    degrees = degrees_of(graph)
    hubs = hubs_of(trained, "user", degrees["user"], num_hubs=2, k=3)
    assert [(hub.entity.key, hub.degree) for hub in hubs] == [("u0", 6), ("u1", 5)]
    keys = graph.all_keys("user").to_pylist()
    best = nearest(trained, "user", np.array([keys.index("u0"), keys.index("u1")]), 3)
    for row, hub in enumerate(hubs):
        found = [near.key for near, _ in hub.neighbours]
        assert found == [keys[at] for at in best.ids[row]]
        assert [score for _, score in hub.neighbours] == pytest.approx(best.scores[row].tolist())


def test_fewer_entities_than_asked_for_are_all_there_is(
    make_graph: Callable[..., Graph], make_trained: Callable[..., Trained]
) -> None:
    graph = make_graph({"train": [("a", "r", "b")]}, {"r": ("n", "n")})
    trained = make_trained(graph, ModelConfig(dim=2), lambda t, key: [1.0, float("nan")])
    [first, second] = hubs_of(trained, "n", degrees_of(graph)["n"])
    assert first.neighbours == second.neighbours == ()  # a vector that is not finite is near none


def test_names_come_in_the_order_that_was_asked_for(make_graph: Callable[..., Graph]) -> None:
    graph = make_graph(edges_of(40), RELATIONS, {"item": 3})
    keys = graph.all_keys("item").to_pylist()
    ids = np.array([5, 0, 9, 5])
    assert [named.key for named in names_of(graph, "item", ids)] == [keys[at] for at in ids]
    assert str(names_of(graph, "item", ids)[0]) == keys[5]
