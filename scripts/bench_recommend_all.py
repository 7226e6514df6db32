#!/usr/bin/env python3
"""How fast everybody gets their list: `embedsvc recommend-all`, beside torch's products and topk.

    scripts/bench_recommend_all.py             29,858 users x 40,981 items, as many as Gowalla has
    scripts/bench_recommend_all.py --quick     a tenth of each, within a minute

A graph of made-up events is imported and trained for one epoch by the product, then all lists of 20
are written as Parquet: exact, over all items, what each user had left out. The twin scores users by
512 against all items at once, writes -inf where they had something, and takes torch.topk; it keeps
the ids and writes nothing. Seconds are medians of rounds that take turns. `fraction_of_sgemm`: the
products alone at the speed of torch's own square products in the same run. `agree`: the share of
places with the twin's item, or one of equal score within rounding.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from facts import facts
from rich.console import Console

from embedsvc.evaluation.lists import had_before
from embedsvc.evaluation.recommend_all import write_all
from embedsvc.road import Road
from embedsvc.trained import Trained
from partitions.config import from_tables
from partitions.graph import Graph
from partitions.memory import peak_bytes
from partitions.schema import SPLITS

K = 20


def main() -> None:
    a = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        trained = made(a, Path(scratch))
        twin_ids, to = np.empty(0), Path(scratch) / "lists.parquet"
        rounds: list[tuple[float, float, float]] = []
        for at in range(-1, a.rounds):  # the first, uncounted, compiles and warms up
            seconds = timed(lambda: write_all(trained, "had", to, K))
            twin_s, twin_ids, twin_scores = twin(trained)
            if at >= 0:
                rounds.append((seconds, twin_s, sgemm()))
        middle = np.median(np.array(rounds), axis=0)
        agree = share_alike(to, trained, twin_ids, twin_scores)
    users, items = (trained.graph.num_entities(name) for name in ("user", "item"))
    gflop = 2e-9 * users * items * a.dim
    line = {
        "users": users,
        "items": items,
        "dim": a.dim,
        "k": K,
        "seconds": round(float(middle[0]), 2),
        "lists_per_s": round(users / middle[0]),
        "twin_s": round(float(middle[1]), 2),
        "ratio": round(float(middle[1] / middle[0]), 2),
        "fraction_of_sgemm": round(float(gflop / middle[2] / middle[0]), 3),
        "agree": round(agree, 6),
        "peak_mb": round(peak_bytes() / 1e6),
        "rounds": a.rounds,
        "seed": a.seed,
        **facts(),
    }
    print(json.dumps(line))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


def made(a: argparse.Namespace, folder: Path) -> Trained:
    """Popularity by Zipf's law, as in most catalogues; each user has at least one event."""
    users, items, events = (n // (10 if a.quick else 1) for n in (29_858, 40_981, 810_128))
    rng = np.random.default_rng(a.seed)
    popular = 1 / np.arange(10, items + 10)
    who = np.concatenate([np.arange(users), rng.integers(0, users, events - users)])
    what = np.concatenate(
        [np.arange(items), rng.choice(items, events - items, p=popular / popular.sum())]
    )
    table = pa.table({"user": pa.array(who).cast("string"), "item": pa.array(what).cast("string")})
    pq.write_table(table, folder / "events.parquet")
    tables = {
        "run": {"dir": str(folder / "run")},
        "graph": {
            "data": str(folder),
            "gate": False,
            "entities": {"user": {}, "item": {}},
            "relations": {"had": {"lhs": "user", "rhs": "item"}},
            "inputs": [
                {
                    "path": "events.parquet",
                    "relation": "had",
                    "columns": {"lhs": "user", "rhs": "item"},
                }
            ],
        },
        "model": {"dim": a.dim},
        "train": {"epochs": 1, "seed": a.seed},
    }
    road = Road(from_tables(tables), quiet=True)
    road.console = Console(stderr=True, quiet=True)
    road.import_graph()
    road.train()
    return Trained(Graph(folder / "run" / "graph"), folder / "run" / "checkpoint")


def timed(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


@torch.no_grad()
def twin(trained: Trained) -> tuple[float, np.ndarray, np.ndarray]:
    """Seconds, and int64 and float32 [users, K]."""
    graph = trained.graph
    everybody = np.arange(graph.num_entities("user"))
    start = perf_counter()
    had = had_before(graph, "had", everybody, SPLITS)
    user, item = (
        trained.gather(name, np.arange(graph.num_entities(name))) for name in ("user", "item")
    )
    ids, best = [], []
    for first in range(0, len(user), 512):
        scores = user[first : first + 512] @ item.T
        rows, columns = (
            torch.from_numpy(at.astype(np.int64)) for at in had[first : first + 512].nonzero()
        )
        scores[rows, columns] = -torch.inf
        top = scores.topk(K)
        ids.append(top.indices)
        best.append(top.values)
    seconds = perf_counter() - start
    return seconds, torch.cat(ids).numpy(), torch.cat(best).numpy()


def share_alike(to: Path, trained: Trained, ids: np.ndarray, scores: np.ndarray) -> float:
    table = pq.read_table(to)
    names = np.array(trained.graph.all_keys("item").to_pylist())
    found = np.array(table.column("rhs").to_pylist())
    values = np.array(table.column("score").to_pylist(), np.float32)
    same = found == names[ids]
    within = np.abs(values - scores) <= 1e-5 * np.abs(scores).max()
    return float((same | within).mean())


def sgemm(size: int = 3072) -> float:
    """GFLOP/s of torch's products of square matrices."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    return 2e-9 * size**3 * 3 / timed(lambda: [a @ b for _ in range(3)])


if __name__ == "__main__":
    main()
