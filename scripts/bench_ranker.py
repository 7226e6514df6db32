#!/usr/bin/env python3
"""Wide & Deep against a public peer on MovieLens-1M's clicks: examples a second, memory, AUC.

    scripts/bench_ranker.py --peer-python PEERS/bin/python      a quarter of an hour
    scripts/bench_ranker.py --only memory       30 million ids, and a table of 1 M x 256
    scripts/bench_ranker.py --quick             generated rows, without the peer: within a minute

PEERS is an environment of its own: python3 -m venv PEERS, then PEERS/bin/pip install deepctr-torch
pyarrow requests.
The peer is no dependency; without --peer-python it is left out.

Both learn from the same rows and features (user, movie, gender, age, occupation, zip3, year, first
genre and genres: a list for us, a category of sets for the peer), with embeddings of 16, batches of
4,096 and as many epochs; layers of 32-16-8 and of 256-128. Each trains in a process of its own. The
peer is DeepCTR-Torch's WDL, compiled with Adam at its default rate.

A JSON line a network: examples_per_s of training, without reading and encoding (prepare_s, which
the peer leaves to its caller); peak_mb of the process; auc of the test rows; ratio: ours by the
peer's speed, and cpu_ratio the same of CPU seconds, which a busy machine changes less (ours count
reading and writing too); auc_less_peer with its 95 % interval, by drawing users anew. Then what all
have in common. Our settings were chosen on the validation part (docs/ranker.md).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from facts import facts

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

NETWORKS = {"32-16-8": [32, 16, 8], "256-128": [256, 128]}
Line = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=["clicks", "memory"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--as-one", help=argparse.SUPPRESS)  # what a process of its own does
    a = parser.parse_args()
    if a.as_one:
        print(json.dumps(ONES[json.loads(a.as_one)["one"]](**json.loads(a.as_one))))
        return
    common = {"bench": "ranker", "seed": a.seed} | facts()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        if a.only != "memory":
            lines += [*clicks(a, Path(folder))]
        if a.only != "clicks":
            lines += [*memory(a, Path(folder))]
    print(json.dumps(common | {"ratios": [line.get("ratio") for line in lines]}))


def _in_a_process(python: Path | str, **task: Any) -> Line:
    command = [str(python), __file__, "--as-one", json.dumps(task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Line = json.loads(done.stdout.splitlines()[-1])
    return found


# --- clicks ---------------------------------------------------------------------------------------


def clicks(a: argparse.Namespace, folder: Path) -> Iterator[Line]:
    from click_data import load, write

    from embedsvc.evaluation.clicks import paired_auc

    dataset = "generated" if a.quick else "movielens-1m"
    write(folder, load(dataset, a.seed))
    task: Line = {"folder": str(folder), "dataset": dataset, "epochs": a.epochs, "seed": a.seed}
    task["batch_size"] = 1024 if a.quick else a.batch_size
    for name in a.networks:
        ours = _in_a_process(sys.executable, one="ours", hidden=NETWORKS[name], **task)
        line = {"model": name, "dataset": dataset, "epochs": a.epochs} | ours
        if a.peer_python:
            peer = _in_a_process(a.peer_python, one="peer", hidden=NETWORKS[name], **task)
            line |= {"peer": "DeepCTR-Torch WDL"} | {f"peer_{key}": peer[key] for key in peer}
            line["ratio"] = round(ours["examples_per_s"] / peer["examples_per_s"], 2)
            line["cpu_ratio"] = round(ours["examples_per_cpu_s"] / peer["examples_per_cpu_s"], 2)
            test = pq.read_table(folder / "test.parquet")
            scores = [np.load(folder / f"{who}.npy") for who in ("ours", "peer")]
            label = test["click"].to_numpy().astype(np.float64)
            _, (less,) = paired_auc(scores, label, test["user"].to_numpy(), seed=a.seed)
            line["auc_less_peer"] = [round(x, 4) for x in (less.value, less.low, less.high)]
        print(json.dumps(line), flush=True)
        yield line


def _features(dataset: str) -> Line:
    if dataset == "generated":
        names = ["user", "item", "user_kind", "item_kind", "age"]
        return {name: {"kind": "category"} for name in names}
    names = ["user", "movie", "gender", "age", "occupation", "zip3", "year", "first_genre"]
    lists = {"genres": {"kind": "category", "list": True, "separator": "|"}}
    return {name: {"kind": "category"} for name in names} | lists


def ours(
    folder: str, dataset: str, epochs: int, seed: int, batch_size: int, hidden: list[int], **_: Any
) -> Line:
    from embedsvc.config import TrainConfig
    from embedsvc.evaluation.clicks import auc
    from embedsvc.ranking.config import RankerConfig
    from embedsvc.ranking.encoding import Encoding, examples
    from embedsvc.ranking.trained import TrainedRanker
    from embedsvc.training.ranker import RankerFolders, train
    from partitions.memory import peak_bytes

    config = RankerConfig.model_validate(
        {split: f"{folder}/{split}.parquet" for split in ("train", "test")}
        | {"labels": ["click"], "features": _features(dataset), "batch_size": batch_size}
        | {"deep": {"hidden": hidden, "optimizer": "adam", "lr": 0.001, "row_lr": 0.1}}
    )
    with tempfile.TemporaryDirectory(dir=folder) as run:
        folders = RankerFolders(Path(run))
        start = perf_counter()
        Encoding.prepare(folders.encoded, config)
        prepare_s = perf_counter() - start
        settings = TrainConfig(epochs=epochs, seed=seed, commit_every_s=3600)
        start_cpu = process_time()
        report = train(folders, config, settings)
        cpu_s, peak = process_time() - start_cpu, peak_bytes()
        trained = TrainedRanker(folders.checkpoint)
        parts = list(examples(config, "test"))
    said = [trained.probabilities(trained.features.encode(part.rows))[:, 0] for part in parts]
    score = np.concatenate(said)
    label = np.concatenate([part.labels[:, 0] for part in parts]).astype(np.float64)
    np.save(f"{folder}/ours.npy", score)
    return {
        "examples_per_s": round(report.num_edges / report.train_s),
        "examples_per_cpu_s": round(report.num_edges / cpu_s),
        "prepare_s": round(prepare_s, 2),
        "peak_mb": round(peak / 1e6),
        "auc": round(auc(score, label), 4),
    }


def peer(
    folder: str, dataset: str, epochs: int, seed: int, batch_size: int, hidden: list[int], **_: Any
) -> Line:
    """In the peer's environment, which has pyarrow and numpy, and not ours."""
    import torch
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models import WDL

    splits = {name: pq.read_table(f"{folder}/{name}.parquet") for name in ("train", "test")}
    columns = []
    inputs: dict[str, Line] = {name: {} for name in splits}
    for name in _features(dataset):
        known = {
            value: at + 1 for at, value in enumerate(splits["train"][name].unique().to_pylist())
        }
        columns.append(SparseFeat(name, len(known) + 1, embedding_dim=16))
        for split, table in splits.items():
            whole = table[name].to_pylist()
            inputs[split][name] = np.array([known.get(value, 0) for value in whole])
    label = {split: table["click"].to_numpy() for split, table in splits.items()}
    model = WDL(
        columns, columns, dnn_hidden_units=tuple(hidden), task="binary", device="cpu", seed=seed
    )
    model.compile("adam", "binary_crossentropy")
    torch.manual_seed(seed)
    start, start_cpu = perf_counter(), process_time()
    model.fit(inputs["train"], label["train"], batch_size=batch_size, epochs=epochs, verbose=0)
    seconds, cpu_s = perf_counter() - start, process_time() - start_cpu
    score = model.predict(inputs["test"], batch_size)[:, 0].astype(np.float64)
    np.save(f"{folder}/peer.npy", score)
    order = np.argsort(score, kind="stable")
    rank = np.empty(len(score))
    rank[order] = np.arange(1, len(score) + 1)
    ones = label["test"].sum()
    area = (rank[label["test"] > 0].sum() - ones * (ones + 1) / 2) / (ones * (len(score) - ones))
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return {
        "examples_per_s": round(epochs * len(label["train"]) / seconds),
        "examples_per_cpu_s": round(epochs * len(label["train"]) / cpu_s),
        "peak_mb": round(peak * 1024 / 1e6),
        "auc": round(float(area), 4),
    }


# --- memory ---------------------------------------------------------------------------------------


def memory(a: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """Of ids drawn evenly, which is the worst there is: hardly any is met twice."""
    rows = 50_000 if a.quick else 2_000_000
    rng = np.random.default_rng(a.seed)
    cases: dict[str, Line] = {
        "wide of 30 M ids": {
            "feature": {"kind": "hash", "buckets": 30_000_001},
            "deep": {"enabled": False},
        },
        "table of 1 M x 256": {
            "feature": {"kind": "hash", "buckets": 1_000_001},
            "deep": {"dim": 256, "hidden": [64]},
        },
    }
    for name, case in cases.items():
        ids = rng.integers(0, case["feature"]["buckets"], rows)
        table = pa.table({"id": ids, "click": (ids * 7919 % 11 < 4).astype(np.int8)})
        pq.write_table(table, folder / "ids.parquet")
        found = _in_a_process(sys.executable, one="memory", folder=str(folder), seed=a.seed, **case)
        line = {"model": name, "rows": rows} | found
        print(json.dumps(line), flush=True)
        yield line


def of_memory(folder: str, feature: Line, deep: Line, seed: int, **_: Any) -> Line:
    from embedsvc.config import TrainConfig
    from embedsvc.ranking.config import RankerConfig
    from embedsvc.training.ranker import RankerFolders, train
    from partitions.memory import peak_bytes

    config = RankerConfig.model_validate(
        {"train": f"{folder}/ids.parquet", "labels": ["click"], "batch_size": 4096}
        | {"features": {"id": feature}, "deep": deep}
    )
    with tempfile.TemporaryDirectory(dir=folder) as run:
        report = train(RankerFolders(Path(run)), config, TrainConfig(epochs=1, seed=seed))
    return {
        "examples_per_s": round(report.num_edges / report.train_s),
        "peak_mb": round(peak_bytes() / 1e6),
        "planned_mb": round(report.planned_bytes / 1e6),
    }


ONES: dict[str, Callable[..., Line]] = {"ours": ours, "peer": peer, "memory": of_memory}

if __name__ == "__main__":
    main()
