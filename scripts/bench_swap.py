"""`scripts/bench_train.py --swap`: training with tables that come and go, beside all in memory.

One entity type in 16 partitions, trained once with `train.buffer` = 4 and once with all 16 tables
in memory, the same graph and settings otherwise, commits included. Runs take turns, each in a
process of its own, and the ratio is that of two neighbours' whole time. Table files are read past
the page cache (`train.page_cache = false`); `disk_read_mb` is what the system says it fetched for
the swapped process, `table_read_mb` what was asked of it. Entities form communities of 16; of the
15 neighbours of each, 4 are held out for the MRR, and as many edges as are left are noise.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedsvc.config import ModelConfig, TrainConfig
from embedsvc.evaluation.links import rank_links, sample
from embedsvc.trained import Trained
from embedsvc.training.trainer import train
from partitions.config import GraphConfig
from partitions.graph import Graph
from partitions.importer import import_graph
from partitions.memory import peak_bytes

COMMUNITY = 16
HELD_OUT = 4  # of an entity's 15 neighbours
PARTITIONS, BUFFER = 16, 4
JUDGED = 4000


def measure_swaps(a: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=a.folder) as temporary:
        folder = Path(temporary)
        warm = make_graph(folder / "warm", 100 * COMMUNITY, a.seed)
        graph = make_graph(folder / "graph", a.swap_entities, a.seed)
        run_child(a, warm, warm, folder / "run", BUFFER)  # compiles what numba keeps on disk
        rounds = []
        for at in range(a.swap_rounds):
            buffers = (PARTITIONS, BUFFER) if at % 2 else (BUFFER, PARTITIONS)
            found = {b: run_child(a, graph, warm, folder / "run", b) for b in buffers}
            rounds.append((found[PARTITIONS], found[BUFFER]))
    return summary(rounds)


def summary(rounds: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    def middle(values: Any) -> float:
        return statistics.median(values)

    ratios = [memory["wall_s"] / swapped["wall_s"] for memory, swapped in rounds]
    swapped = {key: middle(s[key] for _, s in rounds) for key in rounds[0][1]}
    memory = {key: middle(m[key] for m, _ in rounds) for key in rounds[0][0]}
    return {
        "in_memory_edges_per_s": round(memory["edges"] / memory["wall_s"]),
        "swapped_edges_per_s": round(swapped["edges"] / swapped["wall_s"]),
        "ratio": round(middle(ratios), 3),
        "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "ratio_by_cpu_s": round(middle(m["cpu_s"] / s["cpu_s"] for m, s in rounds), 3),
        "stall_s": round(swapped["stall_s"], 2),
        "in_memory_stall_s": round(memory["stall_s"], 2),
        "wall_s": round(swapped["wall_s"], 2),
        "swaps": round(swapped["swaps"]),
        "lower_bound": round(swapped["lower_bound"]),
        "table_mb": round(swapped["table_mb"], 1),
        "table_read_mb": round(swapped["table_read_mb"]),
        "disk_read_mb": round(swapped["disk_read_mb"]),
        "peak_rss_mb": round(swapped["peak_rss_mb"]),
        "planned_mb": round(swapped["planned_mb"]),
        "in_memory_peak_rss_mb": round(memory["peak_rss_mb"]),
        "in_memory_planned_mb": round(memory["planned_mb"]),
        "mrr_in_memory": round(memory["mrr"], 4),
        "mrr_swapped": round(swapped["mrr"], 4),
    }


# --- the graph ------------------------------------------------------------------------------------


def make_graph(folder: Path, num_entities: int, seed: int) -> Path:
    """Import it from Parquet; returns where the graph is."""
    folder.mkdir()
    size = num_entities // COMMUNITY * COMMUNITY
    rng = np.random.default_rng(seed)
    lhs, step = np.divmod(np.arange(size * (COMMUNITY - 1)), COMMUNITY - 1)
    rhs = lhs // COMMUNITY * COMMUNITY + (lhs + step + 1) % COMMUNITY
    held_out = rng.random(len(lhs)) < HELD_OUT / (COMMUNITY - 1)
    kept = np.stack([lhs[~held_out], rhs[~held_out]])
    edges = {
        "train": np.concatenate([kept, rng.integers(0, size, kept.shape)], axis=1),
        "test": np.stack([lhs[held_out], rhs[held_out]]),
    }
    for split, ends in edges.items():
        lhs_keys, rhs_keys = (pa.array(end).cast(pa.string()) for end in ends)
        columns = {"lhs": lhs_keys, "rel": pa.repeat("near", len(lhs_keys)), "rhs": rhs_keys}
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    config = {
        "data": str(folder),
        "gate": False,
        "entities": {"node": {"partitions": PARTITIONS}},
        "relations": {"near": {"lhs": "node", "rhs": "node"}},
        "inputs": [{"path": f"{split}.parquet", "split": split} for split in edges],
    }
    import_graph(GraphConfig.model_validate(config), folder / "graph")
    return folder / "graph"


# --- one run --------------------------------------------------------------------------------------


def run_child(
    a: argparse.Namespace, graph: Path, warm: Path, folder: Path, buffer: int
) -> dict[str, Any]:
    """Train in a process of its own, then judge what it made."""
    task = {
        "graph": str(graph),
        "warm": str(warm),
        "folder": str(folder),
        "dim": a.dim,
        "train": {
            "epochs": a.epochs,
            "chunk_size": a.chunk,
            "negatives": {"uniform": a.uniform},
            "threads": a.threads,
            "products": a.products,
            "buffer": buffer,
            "page_cache": False,
            "seed": a.seed,
        },
    }
    command = [sys.executable, __file__, json.dumps(task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    trained = Trained(Graph(graph), folder / "run")
    ranks = rank_links(trained, sample(trained.edges("test"), JUDGED))
    found["mrr"] = ranks.summary()["mrr"]
    shutil.rmtree(folder)
    return found


def train_once(task: dict[str, Any]) -> dict[str, Any]:
    model, config = ModelConfig(dim=task["dim"]), TrainConfig.model_validate(task["train"])
    folder, graph = Path(task["folder"]), Graph(Path(task["warm"]))
    train(graph, folder / "warm", model, config)  # loads the kernels
    graph = Graph(Path(task["graph"]))
    fetched, cpu, start = disk_read_bytes(), process_time(), perf_counter()
    report = train(graph, folder / "run", model, config)
    wall_s, cpu_s = perf_counter() - start, process_time() - cpu
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "edges": report.num_edges,
        "stall_s": report.wait_s,
        "swaps": report.swaps,
        "lower_bound": report.least_swaps,
        "table_mb": max(map(graph.num_rows, graph.slots())) * (model.dim + 1) * 4 / 1e6,
        "table_read_mb": report.read_bytes / 1e6,
        "disk_read_mb": (disk_read_bytes() - fetched) / 1e6,
        "peak_rss_mb": peak_bytes() / 1e6,
        "planned_mb": report.planned_bytes / 1e6,
    }


def disk_read_bytes() -> int:
    """What the system fetched from the disk for this process; the page cache does not count."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(json.dumps(train_once(json.loads(sys.argv[1]))))
