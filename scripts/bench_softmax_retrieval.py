"""`bench_softmax.py --only retrieval`: how well and how fast classes are found.

The 10 best classes of queries; r1 and r10 are the shares of the exact best one and of
the exact best 10 found. Weights are a generator's (embedsvc/outputs/generator.py). The `zipf` ones
are like those of a model that saw one example a class: of a million, the 4,000 most frequent hold
.97 of the best ones and .85 of the best ten, and rare ones have short rows. `flat` classes are
equally frequent, and so are `unclustered` ones, which are independent directions besides.
us_batched and us_single: microseconds a query, the scoring of candidates included, of all queries
at once and of one at a time; medians of rounds with their minima beside them, and cpu_us_batched,
of all cores, which stands on a busy machine too.
`partition, drifted`: the rows of the retriever moved, `drift_steps` of 3,200 touched by frequency,
without a rebuild; r1_fresh and r10_fresh are those of a fresh build, upkeep_us is a step's.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from time import perf_counter, process_time, thread_time
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from embedsvc.outputs.generator import Generator, exact_top
from embedsvc.outputs.retrievers import RETRIEVERS, Floats, Ids
from embedsvc.outputs.retrievers.partition import Partition

K = 10
CANDIDATES = 1024  # of the hashes, scored exactly
GENERATORS: dict[str, dict[str, Any]] = {
    "zipf": {"frequencies": "zipf", "noise": 3.0},
    "flat": {"frequencies": "flat", "noise": 2.0},
    "unclustered": {"frequencies": "flat", "noise": 2.0, "clusters": False},
}

Search = Callable[[Floats], Ids]
Line = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("retrieval")
    group.add_argument("--queries", type=int, default=4096, help="at once, and for recall")
    group.add_argument("--singles", type=int, default=300, help="queries timed one at a time")
    group.add_argument("--head", type=int, default=4000, help="most frequent classes")
    group.add_argument("--cells", type=int, default=1024)
    group.add_argument("--probes", type=int, nargs="+", default=[1, 4, 8, 12, 16, 32, 64])
    group.add_argument("--drift-steps", type=int, default=10_000)


def retrieval(a: argparse.Namespace) -> Iterator[Line]:
    if a.quick:
        a.classes, a.queries, a.singles, a.rounds = 50_000, 512, 50, 3
        a.cells, a.probes, a.head, a.drift_steps = 256, [4, 16], 500, 200
    for generator in a.generators or GENERATORS:
        for line in _of(a, generator):
            yield {"generator": generator, "classes": a.classes, "dim": a.dim} | line


class Truth:
    """Weights, queries, and the exact best of each."""

    def __init__(self, a: argparse.Namespace, name: str) -> None:
        seen = float(a.classes) if name == "zipf" else None
        self.generator = Generator(a.classes, a.dim, seen=seen, seed=a.seed, **GENERATORS[name])
        self.weight_CD, self.bias_C = self.generator.weights()
        self.queries_QD, self.target_Q = self.generator.examples(a.queries, a.seed)
        self.best_QK, _ = exact_top(self.weight_CD, self.bias_C, self.queries_QD, K)
        self.frequent = np.argsort(-self.generator.probability_C, kind="stable")

    def recall(self, ids_QK: Ids) -> tuple[float, float]:
        found = (self.best_QK[:, :, None] == ids_QK[:, None, :]).any(axis=2)
        return float((ids_QK[:, 0] == self.best_QK[:, 0]).mean()), float(found.mean())


def _of(a: argparse.Namespace, name: str) -> Iterator[Line]:
    truth = Truth(a, name)
    top1 = (truth.best_QK[:, 0] == truth.target_Q).mean()
    in_head = np.isin(truth.best_QK, truth.frequent[: a.head])
    yield {
        "method": "exact",
        **measure(a, truth, lambda x: exact_top(truth.weight_CD, truth.bias_C, x, K)[0], slow=True),
        "p1": round(float(top1), 4),
        "head": a.head,
        "head_share_r1": round(float(in_head[:, 0].mean()), 4),
        "head_share_r10": round(float(in_head.mean()), 4),
    }
    methods = [hashes, partitions, drifted, inverted_files, small_worlds]
    if a.quick:
        methods.remove(small_worlds)
    for method in methods:
        names = a.methods
        if not names or any(method.__name__.startswith(word) for word in names):
            yield from method(a, truth, name)


def measure(
    a: argparse.Namespace,
    truth: Truth,
    search: Search,
    slow: bool = False,
    queries: Floats | None = None,
) -> Line:
    """Recall, and microseconds a query. queries: truth's, in another form."""
    queries = truth.queries_QD if queries is None else queries
    r1, r10 = truth.recall(search(queries))
    rounds, cpu_rounds = [], []
    for _ in range(1 if slow else a.rounds):
        start, cpu = perf_counter(), process_time()
        search(queries)
        rounds.append((perf_counter() - start) / len(queries) * 1e6)
        cpu_rounds.append((process_time() - cpu) / len(queries) * 1e6)
    singles = []
    for q in range(3 if slow else a.singles):
        start = perf_counter()
        search(queries[q : q + 1])
        singles.append((perf_counter() - start) * 1e6)
    return {
        "r1": round(r1, 4),
        "r10": round(r10, 4),
        "us_batched": round(statistics.median(rounds), 1),
        "us_batched_min": round(min(rounds), 1),
        "cpu_us_batched": round(statistics.median(cpu_rounds), 1),
        "us_single": round(statistics.median(singles), 1),
        "us_single_min": round(min(singles), 1),
    }


def built(retriever: Any, truth: Truth) -> Line:
    start = perf_counter()
    retriever.fit(truth.weight_CD, truth.bias_C)
    return {"fit_s": round(perf_counter() - start, 1), "mb": round(retriever.num_bytes / 1e6)}


def hashes(a: argparse.Namespace, truth: Truth, name: str) -> Iterator[Line]:
    settings: dict[str, dict[str, Any]] = {
        "wta": {"name": "wta", "permutations": 160, "window": 8, "bands": 32},
        "simhash": {"name": "simhash", "bits": 14, "tables": 32, "mips": False},
        "simhash-mips": {"name": "simhash", "bits": 14, "tables": 32, "mips": True},
    }
    for method, setting in settings.items():
        retriever = RETRIEVERS.build({**setting, "seed": a.seed})
        cost = built(retriever, truth)

        def search(x: Floats, retriever: Any = retriever) -> Ids:
            ids: Ids = retriever.top(x, K, CANDIDATES)[0]
            return ids

        rest = {"candidates": CANDIDATES} | {k: v for k, v in setting.items() if k != "name"}
        yield {"method": method, **measure(a, truth, search), **cost, **rest}


def partitions(a: argparse.Namespace, truth: Truth, name: str) -> Iterator[Line]:
    partition = Partition(cells=a.cells, seed=a.seed)
    cost = built(partition, truth)
    for head in (0, a.head) if name == "zipf" else (0,):
        if head:
            partition.pin(truth.frequent[:head])
        for probes in a.probes:
            partition.probes = probes
            line = measure(a, truth, lambda x: partition.top(x, K, settled=True)[0])
            method = "head + partition" if head else "partition"
            cost["mb"] = round(partition.num_bytes / 1e6)  # with the copy of rows
            setting = {"cells": a.cells, "probes": probes, "head": head}
            yield {"method": method, **line, **cost, **setting}


def drifted(a: argparse.Namespace, truth: Truth, name: str) -> Iterator[Line]:
    """Each touch takes a row a two-hundredth of its way to that of another class."""
    rng = np.random.default_rng(a.seed)
    batch, head = 3200, a.head if name == "zipf" else 0
    first = truth.weight_CD.copy()
    partition = Partition(cells=a.cells, seed=a.seed)
    partition.fit(truth.weight_CD, truth.bias_C)
    partition.pin(truth.frequent[:head])
    towards = rng.permutation(a.classes)
    partition.touch(truth.frequent[head : head + batch])  # compiles
    partition.upkeep_s, cpu_spent = 0.0, 0.0
    num_touched = np.zeros(a.classes, np.int32)
    for _ in range(a.drift_steps):
        _, target = truth.generator.examples(128, int(rng.integers(2**31)))
        more = rng.integers(0, a.classes, batch - len(target))
        if name == "zipf":  # log-uniform, as negatives are drawn
            rank = a.classes ** rng.random(len(more))
            more = truth.frequent[rank.astype(np.int64) - 1]
        ids = np.unique(np.concatenate([target, more]))
        share = np.float32(0.005) * (num_touched[ids] < 60)
        truth.weight_CD[ids] += share[:, None] * (first[towards[ids]] - first[ids])
        num_touched[ids] += 1
        start = thread_time()
        partition.touch(ids, np.unique(target))
        cpu_spent += thread_time() - start
    spent = partition.upkeep_s / a.drift_steps
    before, truth.best_QK = (
        truth.best_QK,
        exact_top(truth.weight_CD, truth.bias_C, truth.queries_QD, K)[0],
    )
    changed = 1 - truth.recall(before)[0]
    kept = {}
    for how in ("kept", "fresh"):
        retriever = partition
        if how == "fresh":
            retriever = Partition(cells=a.cells, seed=a.seed)
            retriever.fit(truth.weight_CD, truth.bias_C)
            retriever.pin(truth.frequent[:head])
        retriever.probes = 16
        kept[how] = truth.recall(retriever.retrieve(truth.queries_QD, K))
    truth.weight_CD[:] = first
    truth.best_QK = before
    yield {
        "method": "partition, drifted",
        "r1": round(kept["kept"][0], 4),
        "r10": round(kept["kept"][1], 4),
        "r1_fresh": round(kept["fresh"][0], 4),
        "r10_fresh": round(kept["fresh"][1], 4),
        "changed_best": round(changed, 4),
        "drift_steps": a.drift_steps,
        "touched_a_step": batch,
        "upkeep_us": round(spent * 1e6, 1),
        "cpu_upkeep_us": round(cpu_spent / a.drift_steps * 1e6, 1),
        "cells": a.cells,
        "probes": 16,
        "head": head,
    }


def with_bias(truth: Truth) -> tuple[Floats, Floats]:
    """Rows [w, b] and queries [x, 1], for indexes that know inner products only."""
    rows = np.concatenate([truth.weight_CD, truth.bias_C[:, None]], axis=1)
    return rows, np.pad(truth.queries_QD, ((0, 0), (0, 1)), constant_values=1)


def found_by(index: Any) -> Search:
    def search(x: Floats) -> Ids:
        ids: NDArray[np.int64] = index.search(x, K)[1]
        return ids

    return search


def inverted_files(a: argparse.Namespace, truth: Truth, name: str) -> Iterator[Line]:
    rows, queries = with_bias(truth)
    start = perf_counter()
    flat = faiss.IndexFlatIP(rows.shape[1])
    index = faiss.IndexIVFFlat(flat, rows.shape[1], a.cells, faiss.METRIC_INNER_PRODUCT)
    index.train(rows[:: max(1, len(rows) // (64 * a.cells))])
    index.add(rows)
    fit_s = round(perf_counter() - start, 1)
    for probes in a.probes[-3:]:
        index.nprobe = probes
        line = measure(a, truth, found_by(index), queries=queries)
        yield {"method": "faiss ivf", **line, "fit_s": fit_s, "cells": a.cells, "probes": probes}


def small_worlds(a: argparse.Namespace, truth: Truth, name: str) -> Iterator[Line]:
    rows, queries = with_bias(truth)
    start = perf_counter()
    index = faiss.IndexHNSWFlat(rows.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 40
    index.add(rows)
    fit_s = round(perf_counter() - start, 1)
    for effort in (16, 64, 256):
        index.hnsw.efSearch = effort
        line = measure(a, truth, found_by(index), queries=queries)
        yield {"method": "faiss hnsw", **line, "fit_s": fit_s, "links": 16, "ef": effort}
