"""`bench_softmax.py --only real`: the sampled softmax beside the exact one on real data.

    scripts/bench_softmax.py --only real --data ../shared/data     all, with the settings below
    scripts/bench_softmax.py --only real --grid                    their grid, on validation

The model is a HistoryTower (mean of 64 numbers an item) under FullSoftmax, or under LSHSoftmax with
the partition retriever; a line for each method and stop.

amazon-video-seq  items of each user in the order of time: the last one is the test's, and the one
                  before it validation's. Examples: next_item of at most 50 before it.
gowalla-lightgcn  items of each user without an order: held-out ones (its valid and test files) from
                  those of the training file, which are shuffled once, so that their order tells
                  nothing. Examples: next_item, so each item from some of the others. (Published
                  figures train on valid too.)
pycode            item2vec: symbols that a file uses (scripts/pycode.py OUT, then --pycode OUT), in
                  the order of first use. Examples: skip_gram, window 5, of histories or of random
                  walks; a file is the mean of the vectors of what it uses. Held out: 5 % and 10 %.

r20 and ndcg20 are means over lists of all items but those that the user has already, by exact
scores; p1 is the share of lists whose first item is right. For the test, a history ends with the
validation's items. r20_index: by LSHSoftmax.topk, of its first 100. `popular`: the most frequent.
Stops: "epochs": as many for both; "cpu seconds": the exact one after those that the sampled one
took for these, and the sampled one after those that the exact one took, but not beyond epochs of
its own. CPU seconds, of all cores, since others may use the machine: `seconds` beside them are the
clock's. Both are those of training, the making of batches included, without compiling. lr (of rows,
in both tables) and epochs were chosen on validation, the rates from the same grid for both:
docs/log.md, "Next item".
"""

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

from embedsvc.evaluation import metrics
from embedsvc.outputs.full import FullSoftmax
from embedsvc.outputs.lsh_softmax import LSHSoftmax
from embedsvc.ranking.examples import Examples, NextItem, SkipGram
from embedsvc.ranking.sequences import Ids, Sequences, histories, walks
from embedsvc.ranking.towers import HistoryTower
from partitions import config as settings_file
from partitions import importer
from partitions.config import GraphConfig
from partitions.graph import Graph

ROOT = Path(__file__).resolve().parents[1]
DIM, K, DEEPER = 64, 20, 100
QUICK_EXAMPLES, QUICK_LISTS = 20_000, 1000
WIDEST = 1000  # items of a history, when lists are made
VALID_LISTS = 5000  # of the grid
RATES = (0.03, 0.1, 0.3)
METHODS = ("full", "lsh")

Line = dict[str, Any]
Places = tuple[Ids, Ids]  # rows and items
Answer = Callable[[Ids, Places], Ids]  # of histories, and what was seen: [rows, K], best first


@dataclass(frozen=True)
class Setting:
    lr: float
    epochs: float


# By --grid: docs/log.md, "Next item: settings chosen on validation".
CHOSEN = {
    ("amazon-video-seq", "full"): Setting(0.1, 3),
    ("amazon-video-seq", "lsh"): Setting(0.1, 6),
    ("gowalla-lightgcn", "full"): Setting(0.3, 0.5),
    ("gowalla-lightgcn", "lsh"): Setting(0.3, 2),
    ("pycode-histories", "full"): Setting(0.3, 0.25),
    ("pycode-histories", "lsh"): Setting(0.3, 1),
    ("pycode-walks", "full"): Setting(0.3, 0.25),
    ("pycode-walks", "lsh"): Setting(0.3, 1),
}


@dataclass(frozen=True)
class Lists:
    """Whom to ask about, row by row; each has a goal that was not seen."""

    history: Sequences  # none of it is listed again
    goals: Sequences


@dataclass(frozen=True)
class Task:
    dataset: str
    classes: int
    examples: Examples
    train: Sequences
    count_C: Ids  # how often an item was taken in training
    valid: Lists
    test: Lists
    batch_size: int
    ordered: bool = True  # so that a list is made of no more history than examples have


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("real")
    shared = ROOT.parent / "shared" / "data"
    group.add_argument("--data", type=Path, default=shared, help="folder of the data sets")
    pycode = ROOT / "runs" / "pycode" / "data"
    group.add_argument("--pycode", type=Path, default=pycode, help="what scripts/pycode.py wrote")
    group.add_argument("--datasets", nargs="+", choices=list(TASKS), default=list(TASKS))
    group.add_argument("--grid", action="store_true", help="on validation, instead of the test")
    group.add_argument("--rates", type=float, nargs="+", default=RATES, help="of the grid")
    group.add_argument("--points", type=float, nargs="+", default=(1, 2, 3), help="its epochs")


def real(a: argparse.Namespace) -> Iterator[Line]:
    """A data set that is not there is a line on stderr."""
    for dataset in a.datasets:
        try:
            task = TASKS[dataset](a)
        except FileNotFoundError as error:
            hint = f"scripts/pycode.py {a.pycode}" if "pycode" in dataset else "--data FOLDER"
            print(f"{dataset} is left out: {error.filename} is missing ({hint}).", file=sys.stderr)
            continue
        for line in grid(task, a) if a.grid else compared(task, a):
            yield {"dataset": dataset, "classes": task.classes, "dim": DIM} | line


# --- methods --------------------------------------------------------------------------------------


class Run:
    """A model in training; `seconds` and `cpu_s` of that alone."""

    def __init__(self, task: Task, method: str, lr: float, seed: int) -> None:
        self.task, self.method, self.lr = task, method, lr
        self.tower = HistoryTower(task.classes, DIM, max_history=WIDEST, lr=lr, seed=seed)
        self.softmax: FullSoftmax
        if method == "full":
            self.softmax = FullSoftmax(DIM, task.classes, lr=lr, seed=seed)
        else:
            counts = task.examples.frequencies(task.train, task.classes)
            self.softmax = LSHSoftmax(
                DIM, task.classes, frequencies=counts.astype(float), lr=lr, seed=seed
            )
        self.optimizer = torch.optim.Adagrad(self.tower.dense_parameters(), lr=0.03)
        num = task.examples.num_examples(task.train)
        self.num_batches, self.an_epoch = 0, -(-num // task.batch_size)
        self.seconds = self.cpu_s = 0.0
        self._batches = self._endless(seed)

    def _endless(self, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        epoch = 0
        while True:
            yield from self.task.examples.batches(
                self.task.train, self.task.batch_size, seed, epoch
            )
            epoch += 1

    @property
    def epochs(self) -> float:
        return self.num_batches / self.an_epoch

    def train(self, epochs: float, cpu_s: float = float("inf")) -> "Run":
        """Up to as many of both, counted from the first batch on."""
        self.tower.train(), self.softmax.train()
        while self.num_batches < round(epochs * self.an_epoch) and self.cpu_s < cpu_s:
            start, cpu = perf_counter(), process_time()
            self._step()
            self.seconds += perf_counter() - start
            self.cpu_s += process_time() - cpu
        return self

    def _step(self) -> None:
        history, target = next(self._batches)
        self.optimizer.zero_grad()
        self.softmax(self.tower(history), target).loss.backward()
        self.optimizer.step()
        self.num_batches += 1

    def line(self, lists: Lists, stop: str) -> Line:
        line = {
            "method": self.method,
            "stop": stop,
            "epochs": round(self.epochs, 3),
            "seconds": round(self.seconds, 1),
            "cpu_s": round(self.cpu_s, 1),
            **evaluated(self.task, lists, self.by_scan),
            "lr": self.lr,
        }
        if self.method == "lsh" and stop != "grid":
            line["r20_index"] = evaluated(self.task, lists, self.by_index)["r20"]
        return line

    @torch.no_grad()
    def hidden(self, history: Ids) -> torch.Tensor:
        self.tower.eval(), self.softmax.eval()
        return self.tower(torch.from_numpy(history))

    @torch.no_grad()
    def by_scan(self, history: Ids, seen: Places) -> Ids:
        assert self.softmax.bias is not None
        return best(self.hidden(history) @ self.softmax.weight.T + self.softmax.bias, seen)

    def by_index(self, history: Ids, seen: Places) -> Ids:
        """Of the first DEEPER, those not seen; -1 where too few are left."""
        ids = self.softmax.topk(self.hidden(history), DEEPER).indices.numpy()
        keys = np.arange(len(ids))[:, None] * self.task.classes + ids
        known = np.isin(keys, seen[0] * self.task.classes + seen[1])
        first = np.argsort(known, axis=1, kind="stable")[:, :K]
        return np.where(np.take_along_axis(known, first, 1), -1, np.take_along_axis(ids, first, 1))


def best(scores: torch.Tensor, seen: Places) -> Ids:
    scores[torch.from_numpy(seen[0]), torch.from_numpy(seen[1])] = -torch.inf
    return scores.topk(K).indices.numpy()


def popular(task: Task) -> Answer:
    counts = torch.from_numpy(task.count_C).float()
    return lambda history, seen: best(counts.repeat(len(history), 1), seen)


def evaluated(task: Task, lists: Lists, answer: Answer) -> Line:
    hits, num = [], np.diff(lists.goals.starts)
    width = min(WIDEST, int(np.diff(lists.history.starts).max()))
    if isinstance(task.examples, NextItem) and task.ordered:
        width = min(width, task.examples.max_history)
    for begin in range(0, len(num), 256):
        rows = np.arange(begin, min(begin + 256, len(num)))
        (seen_row, seen_item), (row, item) = places(lists.history, rows), places(lists.goals, rows)
        found = answer(lists.history.newest(rows, width), (seen_row, seen_item))
        keys = np.where(found < 0, -1, np.arange(len(rows))[:, None] * task.classes + found)
        hits.append(np.isin(keys, row * task.classes + item))
    right = np.concatenate(hits)
    recall = metrics.recall_at(right, num)
    return {
        "lists": len(num),
        "p1": round(float(right[:, 0].mean()), 5),
        "r20": round(float(recall.mean()), 5),
        "r20_se": round(float(recall.std() / len(num) ** 0.5), 5),
        "ndcg20": round(float(metrics.ndcg_at(right, num).mean()), 5),
    }


def places(sequences: Sequences, rows: Ids) -> Places:
    """(place in rows, item) of each item of consecutive sequences."""
    starts = sequences.starts[rows[0] : rows[-1] + 2]
    return np.repeat(np.arange(len(rows)), np.diff(starts)), sequences.items[starts[0] : starts[-1]]


# --- comparisons ----------------------------------------------------------------------------------


def compared(task: Task, a: argparse.Namespace) -> Iterator[Line]:
    warm_up(task)
    test = first_lists(task.test, QUICK_LISTS) if a.quick else task.test
    yield {"method": "popular", **evaluated(task, test, popular(task))}
    full, lsh = (CHOSEN[task.dataset, method] for method in METHODS)
    epochs = full.epochs
    if a.quick:
        epochs = QUICK_EXAMPLES / task.examples.num_examples(task.train)
    sampled = Run(task, "lsh", lsh.lr, a.seed).train(epochs)
    yield sampled.line(test, "epochs")
    exact = Run(task, "full", full.lr, a.seed).train(epochs, sampled.cpu_s)
    yield exact.line(test, "cpu seconds")
    yield exact.train(epochs).line(test, "epochs")
    if lsh.epochs > epochs:
        yield sampled.train(lsh.epochs, exact.cpu_s).line(test, "cpu seconds")


def grid(task: Task, a: argparse.Namespace) -> Iterator[Line]:
    warm_up(task)
    lists = first_lists(task.valid, VALID_LISTS)
    yield {"method": "popular", **evaluated(task, lists, popular(task))}
    for method in a.methods or METHODS:
        for lr in a.rates:
            run = Run(task, method, lr, a.seed)
            for point in a.points:
                yield run.train(point).line(lists, "grid")


def warm_up(task: Task) -> None:
    """Compiles, or loads what was compiled."""
    for method in METHODS:
        run = Run(task, method, 0.1, 0)
        run.train(2 / run.an_epoch)


# --- data sets ------------------------------------------------------------------------------------


def amazon(a: argparse.Namespace) -> Task:
    items: dict[int, list[int]] = {}
    with gzip.open(a.data / "amazon-video-seq" / "Video.txt.gz", "rt") as file:
        for line in file:
            user, item = map(int, line.split())
            items.setdefault(user, []).append(item - 1)
    sequences = [np.array(found) for found in items.values()]
    if a.quick:
        sequences = sequences[:4000]
    classes = max(int(found.max()) for found in sequences) + 1
    train = [found if len(found) < 3 else found[:-2] for found in sequences]
    long = [found for found in sequences if len(found) > 2]
    valid = lists_of([found[:-2] for found in long], [found[-2:-1] for found in long])
    test = lists_of([found[:-1] for found in long], [found[-1:] for found in long])
    return Task(
        "amazon-video-seq",
        classes,
        NextItem(50),
        joined(train),
        counted(train, classes),
        valid,
        test,
        256,
    )


def gowalla(a: argparse.Namespace) -> Task:
    rng = np.random.default_rng(a.seed)
    parts = [
        lines_of(a.data / "gowalla-lightgcn" / f"{name}.txt.gz")
        for name in ("train", "valid", "test")
    ]
    users = range(2000 if a.quick else max(map(len, parts)))
    nothing = np.empty(0, np.int64)
    train, valid, test = ([part.get(user, nothing) for user in users] for part in parts)
    train = [rng.permutation(found) for found in train]
    both = [rng.permutation(np.concatenate(pair)) for pair in zip(train, valid, strict=True)]
    classes = max(int(found.max(initial=0)) for part in (train, valid, test) for found in part) + 1
    return Task(
        "gowalla-lightgcn",
        classes,
        NextItem(50),
        joined(train),
        counted(train, classes),
        lists_of(train, valid),
        lists_of(both, test),
        512,
        ordered=False,
    )


def lines_of(path: Path) -> dict[int, Ids]:
    """User -> items, of lines `user item item ...`."""
    with gzip.open(path, "rt") as file:
        rows = [np.array(line.split(), np.int64) for line in file]
    return {int(row[0]): row[1:] for row in rows}


def pycode(a: argparse.Namespace, walked: bool = False) -> Task:
    if not (a.pycode / "pycode.json").exists():
        raise FileNotFoundError(2, "", str(a.pycode / "pycode.json"))
    # One partition: a graph without times keeps the order of the file within a bucket.
    overrides = [f"graph.data={json.dumps(str(a.pycode))}"]
    overrides += [f"graph.entities.{name}.partitions=1" for name in ("module", "symbol")]
    settings = settings_file.load(ROOT / "scripts" / "examples" / "pycode.toml", overrides)
    with tempfile.TemporaryDirectory() as folder:
        importer.import_graph(settings.table("graph", GraphConfig), Path(folder) / "graph")
        graph = Graph(Path(folder) / "graph")
        train, valid, test = (histories(graph, "uses", s) for s in ("train", "valid", "test"))
        both = histories(graph, "uses", ["train", "valid"])
        learnt = walks(graph, ["uses"], "symbol", 11, 4, a.seed) if walked else train
        classes = graph.num_entities("symbol")
    each = [[part[s] for s in range(len(part))] for part in (train, valid, both, test)]
    return Task(
        "pycode-walks" if walked else "pycode-histories",
        classes,
        SkipGram(5),
        learnt,
        np.bincount(train.items, minlength=classes),
        lists_of(each[0], each[1]),
        lists_of(each[2], each[3]),
        1024,
    )


TASKS: dict[str, Callable[[argparse.Namespace], Task]] = {
    "amazon-video-seq": amazon,
    "gowalla-lightgcn": gowalla,
    "pycode-histories": pycode,
    "pycode-walks": partial(pycode, walked=True),
}


def joined(lists: Sequence[Ids]) -> Sequences:
    starts = np.cumsum([0, *map(len, lists)])
    return Sequences(starts, np.concatenate([np.empty(0, np.int64), *lists]))


def counted(lists: Sequence[Ids], classes: int) -> Ids:
    return np.bincount(joined(lists).items, minlength=classes)


def lists_of(history: Sequence[Ids], goals: Sequence[Ids]) -> Lists:
    """Of those who have a goal that is not in their history, which is what they have seen."""
    new = [np.setdiff1d(goal, seen) for seen, goal in zip(history, goals, strict=True)]
    asked = [at for at, goal in enumerate(new) if len(goal) and len(history[at])]
    return Lists(joined([history[at] for at in asked]), joined([new[at] for at in asked]))


def first_lists(lists: Lists, num: int) -> Lists:
    return Lists(first(lists.history, num), first(lists.goals, num))


def first(sequences: Sequences, num: int) -> Sequences:
    starts = sequences.starts[: num + 1]
    return Sequences(starts, sequences.items[: starts[-1]])
