"""Early stopping keeps the best epoch, stops in time, and decides the same after any break."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedsvc.config import ModelConfig, TrainConfig
from embedsvc.evaluation.links import rank_links, sample
from embedsvc.graph.step import ExactStep
from embedsvc.trained import Trained
from embedsvc.training import trainer
from embedsvc.training.ledger import read_records
from embedsvc.training.plan import plan_memory
from embedsvc.training.stopping import HISTORY
from embedsvc.training.trainer import METRICS, TrainReport, train
from partitions.checkpoint import BEST, MANIFEST
from partitions.errors import ConfigError
from partitions.graph import Graph

MakeGraph = Callable[..., Graph]
MODEL = ModelConfig(dim=8, init_scale=0.1)
SETTINGS: dict[str, Any] = {
    "epochs": 12,
    "batch_size": 40,
    "chunk_size": 10,
    "negatives": {"uniform": 5},
    "threads": 1,
    "commit_every_s": 0,
    "buffer": 3,
}


@pytest.fixture(scope="module")
def graph(make_graph: MakeGraph) -> Graph:
    """Random edges: what is learnt of them helps validation for a while, and then hurts it."""
    rng = np.random.default_rng(4)
    edges = [
        (f"a{x}", "r", f"b{(x + rng.integers(8)) % 30}") for x in rng.integers(0, 30, 260).tolist()
    ]
    splits = {"train": edges[:200], "valid": edges[200:]}
    return make_graph(splits, {"r": ("a", "b")}, {"a": 2, "b": 2})


def config(**changes: Any) -> TrainConfig:
    stopping = {"patience": 2, "metric": "mrr"}
    return TrainConfig.model_validate(SETTINGS | {"early_stopping": stopping} | changes)


def history(folder: Path) -> list[tuple[int, float]]:
    return [(e, v) for e, v in json.loads((folder / HISTORY).read_text())["history"]]


def vectors(trained: Trained) -> dict[Any, bytes]:
    return {slot: trained.vectors(slot).tobytes() for slot in trained.graph.slots()}


def test_training_stops_and_the_best_epoch_is_what_is_evaluated(
    graph: Graph, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    report = train(graph, folder, MODEL, config(epochs=60))
    found = history(folder)
    assert [epoch for epoch, _ in found] == list(range(1, len(found) + 1))
    best, value = max(found, key=lambda one: one[1])
    assert report.stopped_early and report.best_epoch == best == len(found) - 2
    assert 1 < best < 58, "the graph does not overfit: this test tests nothing"
    trained = Trained(graph, folder)
    assert trained.manifest.progress.epoch == best
    assert rank_links(trained, trained.edges("valid")).summary()["mrr"] == value
    # That epoch, trained without any stopping, has the same bits.
    plain = TrainConfig.model_validate(SETTINGS | {"epochs": best})
    train(graph, tmp_path / "plain", MODEL, plain)
    assert vectors(trained) == vectors(Trained(graph, tmp_path / "plain"))
    # The newest commit is there, too, and the same command finds nothing left to do.
    assert Trained(graph, folder, newest=True).manifest.progress.epoch == len(found)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}
    again = train(graph, folder, MODEL, config(epochs=60))
    assert again.num_edges == 0 and again.stopped_early
    assert before == {p: p.read_bytes() for p in before}


def test_more_patience_goes_on_from_the_newest_commit(graph: Graph, tmp_path: Path) -> None:
    impatient = config(epochs=60, early_stopping={"patience": 1})
    first = train(graph, tmp_path / "a", MODEL, impatient)
    assert first.stopped_early
    train(graph, tmp_path / "a", MODEL, config(epochs=60))
    train(graph, tmp_path / "b", MODEL, config(epochs=60))
    assert history(tmp_path / "a") == history(tmp_path / "b")
    assert vectors(Trained(graph, tmp_path / "a")) == vectors(Trained(graph, tmp_path / "b"))


@pytest.mark.parametrize("moment", ["before", "kept", "after"])
def test_a_break_around_an_evaluation_changes_no_decision(
    moment: str, graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(graph, tmp_path / "whole", MODEL, config())
    for epoch in range(1, 5):
        with monkeypatch.context() as patch:
            _break(patch, moment, epoch)
            with pytest.raises(KeyboardInterrupt):
                train(graph, tmp_path / "broken", MODEL, config())
    train(graph, tmp_path / "broken", MODEL, config())
    assert history(tmp_path / "broken") == history(tmp_path / "whole")
    judged = [
        [(r["epoch"], r["mrr"]) for r in read_records(tmp_path / name / METRICS) if "mrr" in r]
        for name in ("broken", "whole")
    ]
    assert judged[0] == judged[1] == history(tmp_path / "whole")
    for newest in (False, True):
        found = [Trained(graph, tmp_path / n, newest=newest) for n in ("broken", "whole")]
        assert found[0].manifest.progress.epoch == found[1].manifest.progress.epoch
        assert vectors(found[0]) == vectors(found[1])


def _break(patch: pytest.MonkeyPatch, moment: str, epoch: int) -> None:
    judge = trainer.EarlyStopping.judge

    def broken(self: Any, now: int) -> None:
        if now == epoch and moment == "before":
            raise KeyboardInterrupt
        if now == epoch and moment == "kept":
            patch.setattr("partitions.durable.write_json", _interrupt)
        judge(self, now)
        if now == epoch:
            raise KeyboardInterrupt

    patch.setattr(trainer.EarlyStopping, "judge", broken)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_only_every_so_many_epochs_are_judged(graph: Graph, tmp_path: Path) -> None:
    stopping = {"patience": 9, "every_epochs": 3, "metric": "hits10", "max_edges": 20}
    report = train(graph, tmp_path / "c", MODEL, config(epochs=8, early_stopping=stopping))
    found = history(tmp_path / "c")
    assert [epoch for epoch, _ in found] == [3, 6] and not report.stopped_early
    trained = Trained(graph, tmp_path / "c")
    edges = sample(trained.edges("valid"), 20)
    assert len(edges) == 20
    best = max(found, key=lambda one: one[1])
    assert rank_links(trained, edges).summary()["hits10"] == best[1]


def test_values_of_another_measure_are_not_compared(graph: Graph, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    train(graph, folder, MODEL, config(epochs=2))
    train(graph, folder, MODEL, config(epochs=3, early_stopping={"metric": "hits10"}))
    assert [epoch for epoch, _ in history(folder)] == [2, 3]


def test_without_early_stopping_the_newest_commit_counts_again(
    graph: Graph, tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    train(graph, folder, MODEL, config(epochs=60))
    assert (folder / BEST).exists()
    epoch = json.loads((folder / MANIFEST).read_text())["epoch"]
    train(graph, folder, MODEL, TrainConfig.model_validate(SETTINGS | {"epochs": epoch + 1}))
    assert not (folder / BEST).exists() and not (folder / HISTORY).exists()
    assert Trained(graph, folder).manifest.progress.epoch == epoch + 1
    left = list((folder / "tables").iterdir())
    assert len(left) <= 2 * len(graph.slots()), "the best epoch's tables are swept"


def test_without_validation_edges_it_is_refused(make_graph: MakeGraph, tmp_path: Path) -> None:
    graph = make_graph({"train": [("a", "r", "b")]}, {"r": ("e", "e")})
    with pytest.raises(ConfigError, match="early_stopping needs a validation split"):
        train(graph, tmp_path / "c", MODEL, config())


def test_the_plan_counts_the_evaluation(graph: Graph) -> None:
    without = plan_memory(graph, MODEL, TrainConfig.model_validate(SETTINGS))
    assert plan_memory(graph, MODEL, config()).total > without.total
    assert "evaluation" in str(plan_memory(graph, MODEL, config()))


# --- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0.0, 0.75])
def test_a_schedule_is_followed_bit_by_bit_over_a_resume(
    warmup: float, graph: Graph, tmp_path: Path, content_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = {"lr_schedule": {"name": "linear", "epochs": 2}, "warmup_epochs": warmup}
    rates: list[float] = []
    step = ExactStep.__call__

    def noted(self: Any, *args: Any) -> float:
        rates.append(self.lr)
        return step(self, *args)

    monkeypatch.setattr(ExactStep, "__call__", noted)

    def run(name: str, epochs: int) -> TrainReport:
        chosen = TrainConfig.model_validate(
            SETTINGS | schedule | {"epochs": epochs, "lr": 0.5, "step": "exact"}
        )
        return train(graph, tmp_path / name, MODEL, chosen)

    run("whole", 3)
    whole, rates = rates, []
    run("parts", 1)
    run("parts", 3)
    assert rates == whole
    assert content_of(graph, tmp_path / "parts") == content_of(graph, tmp_path / "whole")
    per_epoch = len(whole) // 3
    assert whole[2 * per_epoch :] == [0.0] * per_epoch
    falling = whole[: 2 * per_epoch]
    if warmup:
        assert falling[0] < 0.1 and max(falling) < 0.5 * (1 - warmup / 2) + 0.02
    else:
        assert falling == sorted(falling, reverse=True) and 0.45 < falling[0] < 0.5
        # Twelve edges' worth of middle points: on average half way down.
        assert np.mean(falling) == pytest.approx(0.25, abs=0.02)
