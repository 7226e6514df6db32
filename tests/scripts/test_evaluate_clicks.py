"""Parts of the script, counted by hand; and all of it on generated rows."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedsvc.config import TrainConfig
from embedsvc.ranking.config import RankerConfig
from embedsvc.training.ranker import check_covered
from partitions.config import load
from scripts import evaluate_clicks
from scripts.evaluate_clicks import Dataset, Trained

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate_clicks.py"


def dataset(label: list[int], count: list[int], user: list[int] | None = None) -> Dataset:
    columns = {"click": label} | ({"user": user} if user else {})
    ranker = {"labels": ["click"]} | ({"user": "user"} if user else {})
    return Dataset("generated", Path(), {"ranker": ranker}, pa.table(columns), np.array(count))


def of(*probability: float) -> list[Trained]:
    return [Trained(np.array(probability), seconds=1.0, epochs=1)]


def test_counts_are_of_training_rows_with_both_values() -> None:
    train = pa.table({"a": ["x", "x", "y", None, "x"], "b": [1, 1, 1, 2, 2]})
    test = pa.table({"a": ["x", "y", "y", None, "new"], "b": [1, 2, 1, 2, 1]})
    rows = {"train": train, "test": test}
    assert evaluate_clicks.counts_of(rows, ("a", "b")).tolist() == [2, 0, 1, 1, 0]


def test_a_slice_judges_its_own_rows() -> None:
    """Of pairs seen once to thrice the wide part orders all, the deep part none; of others not."""
    data = dataset([1, 0, 1, 0], [1, 3, 4, 4])
    found = {"wide": of(0.9, 0.1, 0.1, 0.9), "deep": of(0.1, 0.9, 0.9, 0.1)}
    rare, more = evaluate_clicks.sliced(data, found | {"joint": of(0.5, 0.5, 0.5, 0.5)})
    assert (rare["seen"], rare["rows"]) == ([1, 3], 2)
    assert (rare["wide"], rare["deep"], rare["joint"]) == (1.0, 0.0, 0.5)
    assert rare["wide_less_deep"]["value"] == 1.0
    assert (more["seen"], more["wide"], more["deep"]) == ([4, 10], 0.0, 1.0)


def test_models_are_compared_over_the_same_drawn_users() -> None:
    rng = np.random.default_rng(0)
    label, user = (rng.random(600) < 0.5).astype(int), rng.integers(0, 60, 600)
    good, bad = label + rng.normal(0, 1, 600), label + rng.normal(0, 3, 600)
    data = dataset(label.tolist(), [1] * 600, user.tolist())
    one, other = (of(*(1 / (1 + np.exp(-score)))) for score in (good, bad))
    joint, wide = evaluate_clicks.compared(data, {"wide": other, "joint": one})
    assert (joint["model"], wide["model"]) == ("joint", "wide")
    less = wide["joint_less"]
    assert less["value"] == pytest.approx(joint["auc"]["mean"] - wide["auc"]["mean"], abs=2e-5)
    assert 0 < less["low"] < less["value"] < less["high"]
    assert joint["auc"]["low"] is None  # of one seed


def test_an_interval_over_seeds_is_students() -> None:
    found = evaluate_clicks.over_seeds([0.70, 0.72])
    assert found["mean"] == pytest.approx(0.71)
    assert found["high"] - found["mean"] == pytest.approx(12.706 * 0.01, rel=1e-3)


@pytest.mark.parametrize("name", list(evaluate_clicks.EXAMPLES))
def test_examples_and_their_variants_are_settings_of_a_ranker(name: str) -> None:
    path = SCRIPT.parent / "examples" / evaluate_clicks.EXAMPLES[name]
    parts = {}
    for model, overrides in evaluate_clicks.VARIANTS[name].items():
        settings = load(path, overrides)
        config = settings.table("ranker", RankerConfig)
        check_covered(path.name, settings.table("train", TrainConfig))
        parts[model] = (config.wide.enabled, config.deep.enabled)
    assert parts == {"wide": (True, False), "deep": (False, True), "joint": (True, True)}


@pytest.mark.slow
def test_quick_prints_a_line_of_each_kind() -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--seeds", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    models = {line["model"]: line for line in lines if "auc_low" in line}
    assert set(models) == {"wide", "deep", "joint"}
    assert models["joint"]["auc"]["mean"] > 0.65
    zeros = [line["zeros"] for line in lines if "l1" in line]
    assert zeros == sorted(zeros) and zeros[-1] > 0.5
    assert any("slice" in line for line in lines) and lines[-1]["seeds"] == [1]
