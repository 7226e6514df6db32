#!/usr/bin/env python3
"""Node classification: labels told from vectors that never saw them, by DeepWalk's protocol.

    scripts/evaluate_nodes.py blogcatalog --data SHARED/data
    scripts/evaluate_nodes.py musae-github --data SHARED/data --seeds 3
    scripts/evaluate_nodes.py blogcatalog --split valid --set train.epochs=20 model.dim=64
    scripts/evaluate_nodes.py --quick                  a generated graph, within a minute

Converts a data set into edges and labels, and walks the ordinary road over them: import, train and
`[eval.classify]` with the settings of scripts/examples/blogcatalog.toml, changed by --set. Choose
settings with --split valid, which looks at no label that the test judges by.

    blogcatalog   10,312 bloggers, 333,983 edges, 39 groups, one or more each (blogcatalog.mat)
    musae-github  37,700 developers, 289,003 edges, of the web or of machine learning
                  (git_edges.csv.gz, git_target.csv.gz)

Prints a JSON line a seed of training and share of labels that teach; the last line is the largest
share over all seeds. `micro_f1`, `macro_f1` and `auc` (of two labels) are means over shuffles,
`interval` their 95 % bootstrap intervals over shuffles (of the last line: over shuffles' means of
each seed, where there are several).
"""

import argparse
import gzip
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from facts import facts

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from embedsvc.evaluation.significance import interval
from embedsvc.road import Road
from partitions import durable
from partitions.errors import DataError, InputError

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "scripts" / "examples" / "blogcatalog.toml"
METRICS = ("micro_f1", "macro_f1", "auc")
Line = dict[str, Any]
Rows = tuple[Iterable[tuple[Any, Any]], Iterable[tuple[Any, Any]]]  # edges; keys and labels


def main() -> None:
    a = _arguments()
    logging.getLogger("embedsvc").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        folder = a.only_convert or Path(scratch)
        write(folder, *DATASETS[a.dataset](a.data / a.dataset))
        if a.only_convert:
            print(f"{folder}: edges.tsv, labels.tsv")
            return
        lines = [line for seed in range(1, a.seeds + 1) for line in measured(a, folder, seed)]
    print(json.dumps(durable.without_nan(over_seeds(lines))))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", nargs="?", choices=list(DATASETS), default="blogcatalog")
    parser.add_argument("--data", type=Path, default=Path("data"), help="of the data sets' folders")
    parser.add_argument("--only-convert", type=Path, metavar="FOLDER", help="write the two files")
    parser.add_argument("--split", choices=["test", "valid"], default="test")
    parser.add_argument("--seeds", type=int, default=1, help="of training: how many")
    parser.add_argument("--set", nargs="+", default=[], metavar="TABLE.KEY=VALUE")
    parser.add_argument("--quick", action="store_true", help="a generated graph")
    a = parser.parse_args()
    if a.quick:
        a.dataset = "generated"
    return a


def measured(a: argparse.Namespace, folder: Path, seed: int) -> Iterator[Line]:
    """A line a share, printed."""
    run = folder / f"seed {seed}"
    overrides = [f"graph.data={json.dumps(str(folder))}", f"run.dir={json.dumps(str(run))}"]
    overrides += [f"train.seed={seed}", f"eval.split={a.split}", "graph.gate=false"]
    overrides += QUICK if a.dataset == "generated" else []
    road = Road.open(EXAMPLE, [*overrides, *a.set])
    road.console.quiet = True
    road.import_graph()
    start = perf_counter()
    report = road.train()
    train_s = perf_counter() - start
    found = road.evaluate()["classify"]
    for share in found["shares"]:
        known = {name: share[name] for name in METRICS if share[name] is not None}
        line = {
            "dataset": a.dataset,
            "share": share["share"],
            **{name: round(value["value"], 4) for name, value in known.items()},
            "interval": {
                name: [round(value["low"], 4), round(value["high"], 4)]
                for name, value in known.items()
            },
            "taught": share["num_taught"],
            "judged": share["num_judged"],
            "split": a.split,
            "seed": seed,
            "edges_trained": report.num_edges,
            "train_s": round(train_s, 1),
            "set": a.set,
            **facts(),
        }
        print(json.dumps(durable.without_nan(line)), flush=True)
        yield line


def over_seeds(lines: list[Line]) -> Line:
    """Of the largest share: means over seeds; with several, their intervals over seeds."""
    share = max(line["share"] for line in lines)
    chosen = [line for line in lines if line["share"] == share]
    found = dict(chosen[0])
    if len(chosen) > 1:
        for name in set(METRICS) & set(found):
            over = interval(np.array([line[name] for line in chosen]))
            found[name] = round(over.value, 4)
            found["interval"] = found["interval"] | {
                name: [round(over.low, 4), round(over.high, 4)]
            }
        found["seed"] = [line["seed"] for line in chosen]
        found["train_s"] = round(float(np.mean([line["train_s"] for line in chosen])), 1)
    return found


# --- data -----------------------------------------------------------------------------------------


def write(folder: Path, edges: Iterable[Any], labels: Iterable[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("edges.tsv", edges), ("labels.tsv", labels)):
        with durable.replacing(folder / name) as file:
            file.write("".join(f"{a}\t{b}\n" for a, b in rows).encode())


def blogcatalog(data: Path) -> Rows:
    from scipy.io import loadmat
    from scipy.sparse import triu

    path = _there(data / "blogcatalog.mat")
    try:
        tables = loadmat(path)
        network, group = triu(tables["network"], 1).tocoo(), tables["group"].tocoo()
    except (KeyError, AttributeError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} is not as it was published: {error!r}. It has two sparse tables, network and "
            "group."
        ) from None
    return zip(network.row, network.col, strict=True), zip(group.row, group.col, strict=True)


def musae_github(data: Path) -> Rows:
    edges = _cells(data / "git_edges.csv.gz", "id_1,id_2")
    targets = _cells(data / "git_target.csv.gz", "id,name,ml_target")
    named = {"0": "web", "1": "machine learning"}
    return ((a, b) for a, b in edges), ((row[0], named[row[-1]]) for row in targets)


def _cells(path: Path, header: str) -> list[list[str]]:
    with gzip.open(_there(path), "rt") as file:
        first, *lines = file.read().splitlines()
    if first != header:
        raise DataError(f"{path}: expected the header {header}, found {first}.")
    return [line.split(",") for line in lines]


def _there(path: Path) -> Path:
    if not path.is_file():
        raise DataError(
            f"{path} is not there: name the folder that holds the data sets' with --data."
        )
    return path


_GROUPS, _SIZE = 6, 100


def generated(data: Path) -> Rows:
    """600 nodes of six groups, 20 edges each, of which half are drawn within the group."""
    rng = np.random.default_rng(1)
    group = rng.permutation(np.arange(_GROUPS * _SIZE) % _GROUPS)
    edges = []
    for node in range(len(group)):
        inside = np.flatnonzero(group == group[node])
        for _ in range(10):
            other = rng.choice(inside) if rng.random() < 0.5 else rng.integers(len(group))
            edges.append((node, int(other)))
    return edges, [(node, f"g{of}") for node, of in enumerate(group)]


QUICK = ["model.dim=16", "train.batch_size=100", "train.epochs=20", "train.threads=1"]
QUICK += ["eval.classify.repeats=5"]
DATASETS: dict[str, Callable[[Path], Rows]] = {
    "blogcatalog": blogcatalog,
    "musae-github": musae_github,
    "generated": generated,
}

if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
