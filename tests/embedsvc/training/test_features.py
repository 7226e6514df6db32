"""Training where items have features instead of vectors."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedsvc.config import ModelConfig, TrainConfig
from embedsvc.export import export
from embedsvc.trained import Trained
from embedsvc.training import trainer
from embedsvc.training.plan import advise, plan_memory
from embedsvc.training.trainer import train
from partitions import embeddings
from partitions.config import GraphConfig
from partitions.errors import ConfigError
from partitions.graph import Graph
from partitions.importer import import_graph
from partitions.schema import Slot

Content = Callable[[Graph, Path], dict[Any, bytes]]

ITEM, FEATURE, USER = Slot("item", 0), Slot("item-feature", 0), Slot("user", 0)
MODEL = ModelConfig(dim=8, operator="diagonal", reciprocal=True, init_scale=0.1)
CONFIG = TrainConfig(
    epochs=2, batch_size=20, chunk_size=5, negatives={"uniform": 4}, threads=1, commit_every_s=0
)


def but(config: TrainConfig, **changes: object) -> TrainConfig:
    return TrainConfig.model_validate(config.model_dump() | changes)


def edge_lines(num_edges: int, users: int = 20, items: int = 12, seed: int = 1) -> str:
    rng = np.random.default_rng(seed)
    pairs = zip(
        rng.integers(users, size=num_edges), rng.integers(items, size=num_edges), strict=True
    )
    return "".join(f"u{user}\ti{item}\n" for user, item in pairs)


def config_of(folder: Path, *, features: bool = True, user: int = 1) -> GraphConfig:
    item = {"features": {"path": "tags.tsv", "separator": "|"}} if features else {}
    return GraphConfig.model_validate(
        {
            "data": folder,
            "gate": False,
            "entities": {"user": {"partitions": user}, "item": item},
            "relations": {"buys": {"lhs": "user", "rhs": "item"}},
            "inputs": [{"path": "e*.tsv", "relation": "buys"}],
            "holdout": {"valid": 0.2},
        }
    )


def a_graph(folder: Path, name: str = "graph", *, tags: str | None = None, user: int = 1) -> Graph:
    """Items with two of five tags each, unless said else."""
    folder.mkdir(exist_ok=True)
    (folder / "e.tsv").write_text(edge_lines(150))
    lines = [f"i{n}\tt{n % 5}|t{n % 3}\n" for n in range(12)]
    (folder / "tags.tsv").write_text("".join(lines) if tags is None else tags)
    import_graph(config_of(folder, user=user), folder / name)
    return Graph(folder / name)


def test_bags_of_one_own_feature_train_like_vectors_to_the_last_bit(
    tmp_path: Path, content_of: Content
) -> None:
    """Features with the items' names begin at the items' vectors."""
    (tmp_path / "e.tsv").write_text(edge_lines(150))
    import_graph(config_of(tmp_path, features=False), tmp_path / "plain")
    plain = Graph(tmp_path / "plain")
    tags = "".join(f"{key}\t{key}\n" for key in plain.all_keys("item").to_pylist())
    bagged = a_graph(tmp_path, "bagged", tags=tags)
    config = but(CONFIG, step="exact")
    first = train(plain, tmp_path / "a", MODEL, config)
    second = train(bagged, tmp_path / "b", MODEL, config)
    assert first.loss == second.loss
    a, b = content_of(plain, tmp_path / "a"), content_of(bagged, tmp_path / "b")
    assert b[ITEM, "vectors"] == a[ITEM, "vectors"]
    for kind in ("vectors", "state", "shared"):
        assert b.pop((FEATURE, kind)) == a[ITEM, kind]
    assert (ITEM, "state") not in b  # it has none of its own
    del a[ITEM, "state"], a[ITEM, "shared"]
    assert a == b


def test_entities_are_at_the_mean_of_their_features_and_those_without_at_0(tmp_path: Path) -> None:
    graph = a_graph(tmp_path, tags="i0\tt0|t1|t1\ni1\tt1\n")
    train(graph, tmp_path / "c", MODEL, CONFIG)
    trained = Trained(graph, tmp_path / "c")
    tags = dict(zip(graph.keys(FEATURE).to_pylist(), trained.vectors(FEATURE), strict=True))
    items = dict(zip(graph.keys(ITEM).to_pylist(), trained.vectors(ITEM), strict=True))
    np.testing.assert_allclose(items["i0"], (tags["t0"] + 2 * tags["t1"]) / 3, rtol=1e-5)
    np.testing.assert_array_equal(items["i1"], tags["t1"])
    assert all(not items[f"i{n}"].any() for n in range(2, 12))
    ids = np.array([graph.keys(ITEM).to_pylist().index("i0")])
    np.testing.assert_array_equal(trained.gather("item", ids)[0], items["i0"])


@pytest.mark.parametrize("broken_at", [None, 3])
def test_a_resumed_run_ends_in_the_same_bits(
    broken_at: int | None, tmp_path: Path, content_of: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off between two epochs, and in the middle of one: two buckets an epoch."""
    graph = a_graph(tmp_path, user=2)
    train(graph, tmp_path / "whole", MODEL, CONFIG)
    if broken_at is None:
        train(graph, tmp_path / "parts", MODEL, but(CONFIG, epochs=1))
    else:
        real, left = trainer._Trainer._train_bucket, [broken_at]

        def until(self: Any, *arguments: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            real(self, *arguments)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(trainer._Trainer, "_train_bucket", until)
            train(graph, tmp_path / "parts", MODEL, CONFIG)
    assert train(graph, tmp_path / "parts", MODEL, CONFIG).resumed
    assert content_of(graph, tmp_path / "parts") == content_of(graph, tmp_path / "whole")


def test_training_goes_on_after_new_items_with_new_features(tmp_path: Path) -> None:
    before = a_graph(tmp_path)
    train(before, tmp_path / "c", MODEL, CONFIG)
    old = Trained(before, tmp_path / "c").vectors(FEATURE).copy()
    (tmp_path / "e2.tsv").write_text("u0\ti99\nu1\ti98\n")
    tags = (tmp_path / "tags.tsv").read_text()
    (tmp_path / "tags.tsv").write_text(f"{tags}i99\tt0|new\ni97\tt1\n")
    import_graph(config_of(tmp_path), tmp_path / "graph", append=True)
    grown = Graph(tmp_path / "graph")
    trained = Trained(grown, tmp_path / "c")
    np.testing.assert_array_equal(trained.vectors(FEATURE)[: len(old)], old)
    assert len(trained.vectors(FEATURE)) == len(old) + 1
    assert len(trained.vectors(ITEM)) == before.num_rows(ITEM) + 3
    report = train(grown, tmp_path / "c", MODEL, but(CONFIG, epochs=3))
    assert report.resumed and report.num_edges == grown.num_edges("train")


def test_early_stopping_judges_the_means(tmp_path: Path) -> None:
    graph = a_graph(tmp_path)
    stopping = {"patience": 1, "max_edges": 20}
    report = train(graph, tmp_path / "c", MODEL, but(CONFIG, early_stopping=stopping))
    assert report.best_epoch is not None


def test_the_fast_step_says_that_it_does_not_cover_features(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = a_graph(tmp_path)
    with pytest.raises(ConfigError, match="fast does not cover graph\\.entities\\.item"):
        train(graph, tmp_path / "c", MODEL, but(CONFIG, step="fast"))
    with caplog.at_level(logging.INFO):
        train(graph, tmp_path / "c", MODEL, CONFIG)
    assert "exact step: the fast one does not cover graph.entities.item.features" in caplog.text


def test_vectors_to_begin_with_are_the_features(tmp_path: Path) -> None:
    graph = a_graph(tmp_path)
    train(graph, tmp_path / "first", MODEL, CONFIG)
    first = Trained(graph, tmp_path / "first")
    export(first, tmp_path / "out")
    found = {path.stem: embeddings.read(path) for path in (tmp_path / "out").iterdir()}
    assert set(found) == {"user", "item", "item-feature"}
    np.testing.assert_array_equal(found["item"].vectors, first.vectors(ITEM))
    files = {"item-feature": tmp_path / "out/item-feature.parquet"}
    model = MODEL.model_copy(update={"init_from": files})
    train(graph, tmp_path / "second", model, but(CONFIG, lr=1e-20))
    second = Trained(graph, tmp_path / "second")
    np.testing.assert_allclose(second.vectors(ITEM), first.vectors(ITEM), atol=1e-6)
    model = MODEL.model_copy(update={"init_from": {"item": tmp_path / "out/item.parquet"}})
    with pytest.raises(ConfigError, match="item: its vectors are made of those of item-feature"):
        train(graph, tmp_path / "third", model, CONFIG)


def test_the_plan_counts_features_and_bags_and_no_table_of_items(tmp_path: Path) -> None:
    graph = a_graph(tmp_path)
    plan = plan_memory(graph, MODEL, CONFIG)
    rows = graph.num_rows(USER) + graph.num_rows(FEATURE)
    bags = 8 * (12 + 1) + 4 * 24
    assert plan.tables == rows * 9 * 4 + bags
    (tmp_path / "other").mkdir()
    (tmp_path / "other/e.tsv").write_text(edge_lines(150))
    import_graph(config_of(tmp_path / "other", features=False), tmp_path / "other/graph")
    plain = plan_memory(Graph(tmp_path / "other/graph"), MODEL, but(CONFIG, step="exact"))
    assert plan.batch > plain.batch
    lines = "\n".join(advise(graph, MODEL, CONFIG))
    assert "item: 12 entities, made of item-feature" in lines
    assert "item-feature: 5 entities, vectors" in lines
