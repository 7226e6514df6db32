"""Gradual pruning: the schedule of the paper, and a model of which only the layers change."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from embedsvc.evaluation.clicks import auc
from embedsvc.ranking.trained import TrainedRanker, predict
from embedsvc.training import pruning
from embedsvc.training.pruning import prune, zeros_at
from partitions.encoded import EncodedFile
from partitions.errors import ConfigError
from tests.toy_ranker import road, write_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_rows(folder)
    road(folder).train()
    return folder / "run/ranker"


def opened(run: Path, split: str = "train") -> tuple[TrainedRanker, EncodedFile]:
    trained = TrainedRanker(run / "checkpoint")
    return trained, EncodedFile(run / f"encoded/{split}.arrow", trained.features)


def test_zeros_follow_the_cubic_schedule() -> None:
    ramp, share = 40, 0.8
    for step in range(60):
        left = (1 - step / ramp) ** 3 if step < ramp else 0.0
        assert zeros_at(step, ramp, share) == pytest.approx(share + (0 - share) * left)


def test_the_smallest_weights_go_and_stay_away() -> None:
    weight = nn.Parameter(torch.tensor([[3.0, -1.0, 0.5], [-0.2, 2.0, 4.0]]))
    mask = torch.ones(2, 3, dtype=torch.bool)
    pruning._choose(weight, mask, 0.5)
    assert mask.tolist() == [[True, False, False], [False, True, True]]
    with torch.no_grad():
        weight[0, 1] = 9.0  # it learnt on, but it is gone
    pruning._choose(weight, mask, 4 / 6)
    assert mask.tolist() == [[True, False, False], [False, False, True]]


def test_only_layers_change_and_zeros_are_as_many_as_asked(run: Path) -> None:
    trained, rows = opened(run)
    before = TrainedRanker(run / "checkpoint").model
    assert prune(trained.model, rows, 0.7, 2, 64, seed=1) == pytest.approx(0.7, abs=0.01)
    model = trained.model
    for mine, its in zip(model.slots.tables, before.slots.tables, strict=True):
        assert np.array_equal(mine.values, its.values) and np.array_equal(mine.wide, its.wide)
    assert np.array_equal(model.bias, before.bias)
    assert np.array_equal(model.wide_dense, before.wide_dense)
    assert model.body is not None and not model.body.training
    for name, parameter in model.body.named_parameters():
        zeros = float((parameter == 0).float().mean())
        hidden = name.startswith("layers") and name.endswith("weight")
        assert abs(zeros - 0.7) < 0.01 if hidden else zeros < 0.5, name


def test_learning_on_mends_what_cutting_at_once_breaks(tmp_path: Path) -> None:
    write_rows(tmp_path)
    road(tmp_path, {"wide": {"enabled": False}}).train()
    run, found = tmp_path / "run/ranker", {}
    for name in ("gradual", "at once"):
        trained, rows = opened(run)
        model = trained.model
        if name == "gradual":
            prune(model, rows, 0.9, 10, 64, seed=1)
        else:
            for layer in pruning._layers(model):
                mask = torch.ones_like(layer.weight, dtype=torch.bool)
                pruning._choose(layer.weight, mask, 0.9)
                with torch.no_grad():
                    layer.weight.mul_(mask)
        logits, labels, _ = predict(model, opened(run)[1])
        found[name] = auc(logits[:, 0].astype(np.float64), labels[:, 0].astype(np.float64))
    assert found["gradual"] > found["at once"] + 0.01


def test_pruning_is_repeatable(run: Path) -> None:
    ends = []
    for _ in range(2):
        trained, rows = opened(run)
        prune(trained.model, rows, 0.5, 1, 64, seed=3)
        assert trained.model.body is not None
        ends.append([p.detach().clone() for p in trained.model.body.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_without_layers_there_is_nothing_to_prune(tmp_path: Path) -> None:
    write_rows(tmp_path)
    road(tmp_path, {"deep": {"enabled": False}}).train()
    trained, rows = opened(tmp_path / "run/ranker")
    with pytest.raises(ConfigError, match="has none"):
        prune(trained.model, rows, 0.5, 1, 64, seed=1)
