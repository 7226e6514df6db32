"""The script's answer to a split whose right lists are known, and to bad calls."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from partitions.errors import ConfigError
from scripts import evaluate_topn

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate_topn.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Item 0 is the most popular one; test and valid hide items by number."""
    train = ["0 1", "1 0 2", "2 0 3", "3 0 " + " ".join(map(str, range(4, 30)))]
    (tmp_path / "train.txt").write_text("\n".join(train))
    (tmp_path / "valid.txt").write_text("1 29\n")
    (tmp_path / "test.txt").write_text("0 0 28\n")
    return tmp_path


def test_recall_and_ndcg_are_those_counted_by_hand(folder: Path) -> None:
    done = run(folder, "--methods", "popularity")
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    # user 0 gets 0, then 29, and 2, 3, 4, ... 19: 28 comes too late
    assert (line["method"], line["recall20"]) == ("popularity", 0.5)
    assert line["ndcg20"] == round(1 / (1 + 1 / np.log2(3)), 4)
    assert (line["users"], line["part"], line["dataset"]) == (1, "test", folder.name)
    assert {"seconds", "peak_mb", "seed", "commit", "cores", "recall20_se"} <= set(line)


def test_valid_is_judged_on_a_fit_to_train_alone(folder: Path) -> None:
    line = json.loads(run(folder, "--methods", "popularity", "--valid").stdout.splitlines()[-1])
    # user 1 gets 1, 3, 4, ... 21: 29 is no more popular than they
    assert (line["recall20"], line["part"], line["users"]) == (0.0, "valid", 1)


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("popularty", "Did you mean popularity"),
        ("spectral:rank=a", "expected key=value, found 'rank=a'"),
        ("spectral:rnk=2", "Did you mean rank"),
    ],
)
def test_a_mistyped_method_is_named(method: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        evaluate_topn.built(method, 0)


def test_settings_of_a_method_are_read(folder: Path) -> None:
    found = evaluate_topn.built("ials:dim=4,ridge=0.5", 3)
    assert vars(found) == {**vars(evaluate_topn.built("ials", 3)), "dim": 4, "ridge": 0.5}


def test_a_folder_without_lists_ends_in_a_sentence(tmp_path: Path) -> None:
    done = run(tmp_path, "--methods", "popularity")
    assert done.returncode == 2 and "has no train.txt" in done.stderr
    assert "Traceback" not in done.stderr
