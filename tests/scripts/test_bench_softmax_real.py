"""The benchmark on real data: its splits, and its lists against plain loops."""

import argparse
import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from embedsvc.ranking.examples import NextItem
from embedsvc.ranking.sequences import Ids
from scripts import bench_softmax_real as bench


def arguments(folder: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--seed", type=int, default=1)
    bench.add_arguments(parser)
    return parser.parse_args(["--data", str(folder), "--pycode", str(folder / "pycode"), *words])


def lines(path: Path, rows: list[list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(" ".join(map(str, r)) + "\n" for r in rows).encode()))


def asked(lists: bench.Lists) -> list[tuple[list[int], list[int]]]:
    return [
        (lists.history[at].tolist(), lists.goals[at].tolist()) for at in range(len(lists.goals))
    ]


def test_the_last_items_of_amazon_are_held_out(tmp_path: Path) -> None:
    """User 3 has two items, so trains only; user 4's last was there before: no list asks for it."""
    users = {1: [5, 6, 7, 8], 2: [9, 5, 6], 3: [7, 6], 4: [5, 7, 5]}
    path = tmp_path / "amazon-video-seq" / "Video.txt.gz"
    lines(path, [[user, item] for user, items in users.items() for item in items])
    task = bench.amazon(arguments(tmp_path))
    assert [task.train[s].tolist() for s in range(4)] == [[4, 5], [8], [6, 5], [4]]
    assert asked(task.valid) == [([4, 5], [6]), ([8], [4]), ([4], [6])]
    assert asked(task.test) == [([4, 5, 6], [7]), ([8, 4], [5])]
    assert task.classes == 9 and task.count_C.tolist() == [0, 0, 0, 0, 2, 2, 1, 0, 1]


def test_gowalla_is_asked_from_what_was_known(tmp_path: Path) -> None:
    folder = tmp_path / "gowalla-lightgcn"
    lines(folder / "train.txt.gz", [[0, 1, 2, 3, 4], [1, 2, 5]])
    lines(folder / "valid.txt.gz", [[0, 6], [1]])
    lines(folder / "test.txt.gz", [[0, 7, 8], [1, 9]])
    task = bench.gowalla(arguments(tmp_path))
    assert [sorted(task.train[s].tolist()) for s in range(2)] == [[1, 2, 3, 4], [2, 5]]
    assert [(sorted(h), g) for h, g in asked(task.valid)] == [([1, 2, 3, 4], [6])]
    wanted = [([1, 2, 3, 4, 6], [7, 8]), ([2, 5], [9])]
    assert [(sorted(h), g) for h, g in asked(task.test)] == wanted
    assert task.classes == 10 and not task.ordered


def some_task(seed: int = 0) -> bench.Task:
    """40 items; each list has 1 to 5 items of history, 1 to 3 goals."""
    rng = np.random.default_rng(seed)
    draws = [rng.permutation(40) for _ in range(30)]
    cuts = [(rng.integers(1, 6), rng.integers(1, 4)) for _ in draws]
    history = [draw[:a] for draw, (a, _) in zip(draws, cuts, strict=True)]
    goals = [draw[a : a + b] for draw, (a, b) in zip(draws, cuts, strict=True)]
    lists, train = bench.lists_of(history, goals), bench.joined(history)
    count_C = bench.counted(history, 40)
    return bench.Task("some", 40, NextItem(3), train, count_C, lists, lists, 8)


def test_lists_are_judged_as_by_a_plain_loop() -> None:
    task = some_task()
    score_QC = np.random.default_rng(1).random((30, 40))
    given: list[Ids] = []

    def answer(history: Ids, seen: bench.Places) -> Ids:
        given.append(history)
        return bench.best(torch.from_numpy(score_QC.copy()), seen)

    found = bench.evaluated(task, task.test, answer)
    recall, gain, first = [], [], []
    for q, (history, goals) in enumerate(asked(task.test)):
        assert given[0][q].tolist() == [-1] * (3 - len(history)) + history[-3:]
        order = sorted(set(range(40)) - set(history), key=lambda c: -score_QC[q, c])[:20]
        right = [item in goals for item in order]
        recall.append(sum(right) / len(goals))
        best = sum(1 / math.log2(at + 2) for at in range(len(goals)))
        gain.append(sum(1 / math.log2(at + 2) for at, yes in enumerate(right) if yes) / best)
        first.append(right[0])
    assert found["lists"] == 30
    assert found["p1"] == pytest.approx(np.mean(first), abs=1e-5)
    assert found["r20"] == pytest.approx(np.mean(recall), abs=1e-5)
    assert found["ndcg20"] == pytest.approx(np.mean(gain), abs=1e-5)


def test_answers_of_the_index_leave_out_what_was_seen() -> None:
    task = some_task()
    run = bench.Run(task, "lsh", 0.1, 0).train(1)
    rows = np.arange(30)
    history, seen = task.test.history.newest(rows, 5), bench.places(task.test.history, rows)
    by_index, by_scan = run.by_index(history, seen), run.by_scan(history, seen)
    assert np.array_equal(by_index, by_scan)  # so few classes are all in the head
    for found, known in zip(by_index, asked(task.test), strict=True):
        assert not set(found.tolist()) & set(known[0])


def test_data_that_is_not_there_is_left_out_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(bench.real(arguments(tmp_path, "--quick"))) == []
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert "amazon-video-seq is left out" in said[0] and "Video.txt.gz is missing" in said[0]
    assert "scripts/pycode.py" in said[2]


def test_both_methods_are_compared_at_equal_epochs_and_cpu_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    path = tmp_path / "amazon-video-seq" / "Video.txt.gz"
    rows = [
        [u, 1 + (start + t) % 60]
        for u in range(300)
        for start in [rng.integers(60)]
        for t in range(8)
    ]
    lines(path, rows)
    found = list(bench.real(arguments(tmp_path, "--datasets", "amazon-video-seq")))
    by = {(line.get("method"), line.get("stop")): line for line in found}
    sampled, exact = by["lsh", "epochs"], by["full", "epochs"]
    assert sampled["epochs"] == exact["epochs"] > 0
    assert by["full", "cpu seconds"]["epochs"] <= exact["epochs"]
    keys = {"dataset", "classes", "seconds", "p1", "r20", "ndcg20", "lr", "lists"}
    assert keys <= sampled.keys() and keys <= exact.keys()
    assert exact["r20"] > by["popular", None]["r20"]
