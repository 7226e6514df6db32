#!/usr/bin/env python3
"""How fast `embedsvc import` is, and how much memory it takes.

    scripts/bench_import.py                  20 M edges over 2 M entities, 8 partitions
    scripts/bench_import.py --quick          2 M edges over 200,000 entities, within a minute
    scripts/bench_import.py --rounds 5       medians of five

Users buy and see items: keys of 15 bytes, half of the edges drawn evenly, half with a power law.
The same edges are written as Parquet and as TSV, and each is imported by a fresh process. Prints
one JSON line per format, then the Parquet line once more as the last one. `identical` says whether
what was written is what was drawn: counts, degrees of every entity, relations.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from facts import facts
from numpy.typing import NDArray

FORMATS = {"tsv": "edges.tsv", "parquet": "edges.parquet"}  # the last one's line is the summary
BLOCK_ROWS = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--edges", type=int, default=20_000_000)
    parser.add_argument("--entities", type=int, default=2_000_000)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--threads", type=int, help="of the import; all cores unless given")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, help="keep the generated edges here, to use again")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(import_once(json.loads(arguments.child))))
        return
    if arguments.quick:
        arguments.edges, arguments.entities = 2_000_000, 200_000
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        data = folder / f"{arguments.edges}-{arguments.entities}-{arguments.seed}"
        if not (data / "degrees.npz").exists():
            generate(data, arguments.edges, arguments.entities, arguments.seed)
        warm_up(Path(temporary))
        for name in FORMATS:
            line = measure(name, data, Path(temporary), arguments)
            print(json.dumps(line), flush=True)
        print(json.dumps(line))


# --- the edges ------------------------------------------------------------------------------------


def generate(folder: Path, num_edges: int, num_entities: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"user": num_entities * 3 // 4, "item": num_entities // 4}
    keys = {name: numbered(name, size) for name, size in sizes.items()}
    degrees = {name: np.zeros(size, np.int64) for name, size in sizes.items()}
    schema = pa.schema([(name, pa.string()) for name in ("lhs", "rel", "rhs")])
    options = pyarrow.csv.WriteOptions(
        include_header=False, delimiter="\t", quoting_style="none", batch_size=BLOCK_ROWS
    )
    with (
        pq.ParquetWriter(folder / FORMATS["parquet"], schema) as parquet,
        pyarrow.csv.CSVWriter(folder / FORMATS["tsv"], schema, write_options=options) as tsv,
    ):
        for lhs, rel, rhs in drawn(num_edges, sizes["user"], sizes["item"], seed):
            degrees["user"] += np.bincount(lhs, minlength=sizes["user"])
            degrees["item"] += np.bincount(rhs, minlength=sizes["item"])
            names = pa.array(["bought", "saw"]).take(pa.array(rel))
            columns = [keys["user"].take(pa.array(lhs)), names, keys["item"].take(pa.array(rhs))]
            table = pa.table(columns, schema=schema)
            parquet.write_table(table)
            tsv.write_table(table)
    np.savez(folder / "degrees.npz", **degrees)  # type: ignore[arg-type]


def numbered(name: str, size: int) -> pa.Array:
    numbers = pc.utf8_lpad(pa.array(np.arange(size)).cast(pa.string()), 15 - len(name), "0")
    return pc.binary_join_element_wise(pa.scalar(name), numbers, "")


def drawn(
    num_edges: int, num_users: int, num_items: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    rng = np.random.default_rng(seed)
    shuffled = {size: rng.permutation(size) for size in (num_users, num_items)}
    for start in range(0, num_edges, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, num_edges - start)
        ends = []
        for size in (num_users, num_items):
            share = rng.random(rows)
            power = np.where(rng.random(rows) < 0.5, 1, 4)  # evenly, or P(rank) ~ rank^-3/4
            ends.append(shuffled[size][(share**power * size).astype(np.int64)])
        yield ends[0], (rng.random(rows) < 0.8).astype(np.int64), ends[1]


# --- the import -----------------------------------------------------------------------------------


def config_of(file: Path, partitions: int, threads: int | None) -> dict[str, Any]:
    return {
        "data": str(file.parent),
        "entities": {name: {"partitions": partitions} for name in ("user", "item")},
        "relations": {name: {"lhs": "user", "rhs": "item"} for name in ("bought", "saw")},
        "inputs": [{"path": file.name}],
        "threads": threads,
    }


def run_child(task: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", json.dumps(task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def warm_up(folder: Path) -> None:
    """Compiles what numba keeps on disk, so that no figure holds the compiler."""
    generate(folder / "warm", 10_000, 1000, 1)
    for name in FORMATS.values():
        config = config_of(folder / "warm" / name, 2, None)
        run_child({"config": config, "graph": str(folder / "warm" / "graph"), "entities": {}})


def import_once(task: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: import, and say what it took."""
    from partitions.config import GraphConfig
    from partitions.import_plan import plan_import
    from partitions.importer import import_graph
    from partitions.memory import peak_bytes

    config = GraphConfig.model_validate(task["config"])
    sampled = plan_import(config)
    plan = plan_import(config, task["entities"])
    start, cpu = monotonic(), process_time()
    report = import_graph(config, Path(task["graph"]))
    return {
        "wall_s": monotonic() - start,
        "cpu_s": process_time() - cpu,
        "peak_rss_mb": peak_bytes() / 1e6,
        "planned_mb": plan.total_bytes / 1e6,
        "planned_by_sample_mb": sampled.total_bytes / 1e6,
        "num_edges": sum(report.num_edges.values()),
        "num_entities": report.num_entities,
    }


def measure(name: str, data: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    graph = folder / name / "graph"  # the data gate keeps what it knows beside it
    config = config_of(data / FORMATS[name], arguments.partitions, arguments.threads)
    with np.load(data / "degrees.npz") as degrees:
        expected = {kind: int((degrees[kind] > 0).sum()) for kind in degrees.files}
    task = {"config": config, "graph": str(graph), "entities": expected}
    rounds = [run_child(task) for _ in range(arguments.rounds)]
    middle = {
        key: statistics.median(r[key] for r in rounds) for key in rounds[0] if key[:4] != "num_"
    }
    speeds = [arguments.edges / r["wall_s"] for r in rounds]
    edge_bytes = sum(file.stat().st_size for file in (graph / "edges").rglob("*.arrow"))
    common = facts()
    return {
        "format": name,
        "edges": arguments.edges,
        "entities": sum(expected.values()),
        "partitions": arguments.partitions,
        "edges_per_s": round(statistics.median(speeds)),
        "edges_per_s_spread": [round(min(speeds)), round(max(speeds))],
        "edges_per_cpu_s": round(arguments.edges / middle["cpu_s"]),
        "wall_s": round(middle["wall_s"], 2),
        "cpu_s": round(middle["cpu_s"], 2),
        "bytes_per_edge": round(edge_bytes / arguments.edges, 2),
        "identical": is_identical(graph, data, rounds[-1], arguments.edges),
        "peak_rss_mb": round(middle["peak_rss_mb"]),
        "planned_mb": round(middle["planned_mb"]),
        "planned_by_sample_mb": round(middle["planned_by_sample_mb"]),
        **common,
        "cores": arguments.threads or common["cores"],
        "rounds": arguments.rounds,
        "seed": arguments.seed,
    }


def is_identical(graph: Path, data: Path, result: dict[str, Any], num_edges: int) -> bool:
    """Whether every entity has the degree that was drawn, and no edge came or went."""
    from partitions.graph import Graph

    read = Graph(graph)
    found = {name: np.zeros(read.num_entities(name), np.int64) for name in ("user", "item")}
    for bucket in read.buckets("train"):
        edges = read.edges("train", bucket)
        for name, part, side in (
            ("user", bucket.lhs, edges.lhs),
            ("item", bucket.rhs, edges.rhs),
        ):
            start = read.starts[name][part]
            counts = np.bincount(side)
            found[name][start : start + len(counts)] += counts
    with np.load(data / "degrees.npz") as degrees:
        for name, counts in found.items():
            digits = pc.utf8_slice_codeunits(read.all_keys(name), len(name), 15)
            drawn_degrees = degrees[name][digits.cast(pa.int64()).to_numpy()]
            if not np.array_equal(counts, drawn_degrees) or counts.sum() != num_edges:
                return False
    return result["num_edges"] == num_edges


if __name__ == "__main__":
    main()
