"""The script's lines for a generated graph, what it reads of the data sets, and bad calls."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_matrix

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate_nodes.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


SETTINGS = ["eval.classify.shares=[0.2,0.8]", "eval.classify.repeats=10"]


@pytest.mark.slow
def test_a_line_a_share_and_the_largest_over_seeds() -> None:
    done = run("--quick", "--seeds", 2, "--set", *SETTINGS)
    assert done.returncode == 0, done.stderr
    *lines, last = map(json.loads, done.stdout.splitlines())
    assert [(line["seed"], line["share"]) for line in lines] == [
        (1, 0.2),
        (1, 0.8),
        (2, 0.2),
        (2, 0.8),
    ]
    for line in lines:
        low, high = line["interval"]["micro_f1"]
        assert 0.5 < low <= line["micro_f1"] <= high <= 1, "six groups: chance is a sixth"
        assert line["taught"] + line["judged"] == 600 and line["dataset"] == "generated"
    mean = (lines[1]["macro_f1"] + lines[3]["macro_f1"]) / 2
    assert (last["share"], last["seed"]) == (0.8, [1, 2])
    assert last["macro_f1"] == pytest.approx(mean, abs=1e-4)


def test_blogcatalog_is_converted_edge_by_edge(tmp_path: Path) -> None:
    network = np.array([[0, 1, 1], [1, 0, 0], [1, 0, 0]], float)
    group = np.array([[1, 0], [0, 1], [1, 1]], float)
    (tmp_path / "blogcatalog").mkdir()
    path = tmp_path / "blogcatalog" / "blogcatalog.mat"
    savemat(path, {"network": csc_matrix(network), "group": csc_matrix(group)})
    done = run("blogcatalog", "--data", tmp_path, "--only-convert", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    edges, labels = ((tmp_path / "out" / f"{n}.tsv").read_text() for n in ("edges", "labels"))
    assert sorted(edges.splitlines()) == ["0\t1", "0\t2"]
    assert sorted(labels.splitlines()) == ["0\t0", "1\t1", "2\t0", "2\t1"]
    savemat(path, {"network": csc_matrix(network)})
    done = run("blogcatalog", "--data", tmp_path, "--only-convert", tmp_path / "out")
    assert done.returncode == 2 and "not as it was published" in done.stderr


def test_musae_github_is_converted(tmp_path: Path) -> None:
    folder = tmp_path / "musae-github"
    folder.mkdir()
    with gzip.open(folder / "git_edges.csv.gz", "wt") as file:
        file.write("id_1,id_2\n0,1\n1,2\n")
    with gzip.open(folder / "git_target.csv.gz", "wt") as file:
        file.write("id,name,ml_target\n0,ann,0\n1,bob,1\n2,cy,0\n")
    done = run("musae-github", "--data", tmp_path, "--only-convert", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "edges.tsv").read_text() == "0\t1\n1\t2\n"
    labels = (tmp_path / "out" / "labels.tsv").read_text()
    assert labels == "0\tweb\n1\tmachine learning\n2\tweb\n"


def test_a_bad_call_ends_in_a_sentence(tmp_path: Path) -> None:
    done = run("blogcatalog", "--data", tmp_path)
    assert done.returncode == 2 and "name the folder that holds the data sets'" in done.stderr
