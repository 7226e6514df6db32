"""embedsvc.evaluation.maps: what is alike lies together, and nothing is left out unsaid."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedsvc.config import ModelConfig
from embedsvc.evaluation import maps
from embedsvc.trained import Trained
from partitions import importer
from partitions.config import GraphConfig
from partitions.description import degrees_of
from partitions.graph import Graph


def test_the_entities_with_the_most_edges_are_on_the_map_and_a_seeded_sample() -> None:
    degrees = np.random.default_rng(0).permutation(1000)
    ids = maps.chosen(degrees, 100)
    assert len(ids) == 100 and (np.diff(ids) > 0).all()
    assert {*np.argsort(-degrees)[:50]} <= {*ids}
    assert min(degrees[ids]) < 400
    assert ids.tolist() == maps.chosen(degrees, 100).tolist()
    assert maps.chosen(degrees, 100, seed=1).tolist() != ids.tolist()
    assert maps.chosen(degrees, 2000).tolist() == list(range(1000))


@pytest.mark.parametrize("num", [30, 120])
def test_groups_of_like_vectors_lie_apart(num: int) -> None:
    rng = np.random.default_rng(0)
    group = np.arange(num) % 3
    vectors = rng.normal(size=(3, 16))[group] + 0.3 * rng.normal(size=(num, 16))
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    places = maps.placed(unit)
    assert places.shape == (num, 2)
    apart = ((places[:, None] - places[None]) ** 2).sum(axis=2)
    np.fill_diagonal(apart, np.inf)
    assert np.mean(group[apart.argmin(axis=1)] == group) > 0.95
    assert places.tolist() == maps.placed(unit).tolist()


@pytest.mark.parametrize("num", [0, 1, 2, 60])
def test_few_vectors_and_vectors_that_are_all_alike_have_places(num: int) -> None:
    places = maps.placed(np.full((num, 4), 0.5, np.float32))
    assert places.shape == (num, 2) and np.isfinite(places).all()


def test_vectors_that_point_nowhere_are_counted(
    make_graph: Callable[..., Graph], make_trained: Callable[..., Trained]
) -> None:
    graph = make_graph(
        {"train": [(f"a{n}", "r", f"a{n + 1}") for n in range(9)]}, {"r": ("n", "n")}
    )
    vectors = {"a0": [0.0, 0.0], "a1": [float("nan"), 1.0], "a2": [float("inf"), 1.0]}
    trained = make_trained(graph, ModelConfig(dim=2), lambda _, key: vectors.get(key, [1.0, 2.0]))
    found = maps.map_of(trained, "n", degrees_of(graph)["n"], 100)
    assert found.left_out == 3
    assert {entity.key for entity in found.entities} == {f"a{n}" for n in range(3, 10)}
    assert len(found.places) == len(found.degrees) == 7 and found.colours is None


def attributed(tmp_path: Path, values: list[str]) -> Graph:
    (tmp_path / "edges.tsv").write_text("".join(f"i{n}\thub\n" for n in range(len(values))))
    lines = "".join(f"i{n}\tname {n}\t{value}\n" for n, value in enumerate(values))
    (tmp_path / "items.tsv").write_text(lines)
    attributes = {"path": "items.tsv", "columns": {"key": 0, "title": 1, "kind": 2}}
    config = GraphConfig.model_validate(
        {
            "data": tmp_path,
            "gate": False,
            "entities": {"item": {"attributes": attributes}, "hub": {}},
            "relations": {"in": {"lhs": "item", "rhs": "hub"}},
            "inputs": [{"path": "edges.tsv", "relation": "in", "columns": {"lhs": 0, "rhs": 1}}],
        }
    )
    importer.import_graph(config, tmp_path / "graph")
    return Graph(tmp_path / "graph")


def test_colours_are_of_the_first_attribute_with_a_few_values(
    tmp_path: Path, make_trained: Callable[..., Trained]
) -> None:
    graph = attributed(tmp_path, ["fish"] * 12 + ["fowl"] * 6 + ["odd"])
    trained = make_trained(graph, ModelConfig(dim=2), lambda *_: [1.0, 2.0])
    found = maps.map_of(trained, "item", degrees_of(graph)["item"], 100)
    assert (found.coloured_by, found.groups) == ("kind", ("fish", "fowl", "odd"))
    assert found.colours is not None
    for entity, colour in zip(found.entities, found.colours, strict=True):
        at = int(entity.key[1:])
        assert entity.attribute == f"name {at}"
        assert found.groups[colour] == ("fish" if at < 12 else "fowl" if at < 18 else "odd")


def test_rare_values_share_a_colour_and_many_have_none(
    tmp_path: Path, make_trained: Callable[..., Trained]
) -> None:
    graph = attributed(tmp_path, [f"k{n % 7}" for n in range(70)] + [f"rare{n}" for n in range(5)])
    trained = make_trained(graph, ModelConfig(dim=2), lambda *_: [1.0, 2.0])
    found = maps.map_of(trained, "item", degrees_of(graph)["item"], 100)
    assert len(found.groups) == 8 and found.groups[-1] == "other"
    assert found.colours is not None and np.bincount(found.colours).tolist() == [10] * 7 + [5]
