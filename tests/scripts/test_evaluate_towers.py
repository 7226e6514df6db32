"""The script's lines for generated events, where order tells what comes next, and bad calls."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate_towers.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_line_a_pooling_and_one_of_what_is_common() -> None:
    done = run("--quick", "--poolings", "mean", "gru", "--set", "train.epochs=2")
    assert done.returncode == 0, done.stderr
    mean, gru, common = map(json.loads, done.stdout.splitlines())
    assert (mean["pooling"], gru["pooling"]) == ("mean", "gru")
    for line in (mean, gru):
        assert 0 < line["ndcg20"] < line["recall20"] <= 1 and line["best_epoch"] in (1, 2)
        lists = sum(band["num_lists"] for band in line["by_history"])
        assert lists == common["lists"] == common["users"] == 900
        whole = sum(band["num_lists"] * band["recall"] for band in line["by_history"]) / lists
        assert whole == pytest.approx(line["recall20"], abs=2e-4)
        assert line["recall20"] > 3 * common["popular_recall20"]
    assert gru["ndcg20"] > mean["ndcg20"]  # it knows which item was the newest
    assert common["most_epochs"] == 2 and common["dataset"] == "generated"


def test_a_bad_call_ends_in_a_sentence(tmp_path: Path) -> None:
    done = run("--data", tmp_path)
    assert done.returncode == 2 and "name the folder that holds" in done.stderr
    done = run("--quick", "--set", "output.hed=3")
    assert done.returncode == 2 and "Did you mean head?" in done.stderr
