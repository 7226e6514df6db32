#!/usr/bin/env python3
"""Which pooling of a history tells best what comes next? Each, at equal epochs, on one split.

    scripts/evaluate_towers.py --data FOLDER                       all poolings
    scripts/evaluate_towers.py --data FOLDER --poolings mean gru
    scripts/evaluate_towers.py --data FOLDER --set output.tower_lr=0.05
    scripts/evaluate_towers.py --quick                             generated events

FOLDER holds amazon-video-seq/Video.txt.gz, a line "user item" an event, each user's in the order
of time. The settings are those of scripts/examples/nextitem.toml, but for the pooling and what
--set changes; choose by valid_recall20. Each user's last item is for the test, the one before it
for validation, by which training stops early. The file has no times, so the events can't all be
cut at one moment: a model may learn of one user what happened after another's test item.

Prints one JSON line a pooling: recall20 and ndcg20 are of the test, of all items but those that the
user had, with a standard error over users; by_history the same by how many items were known.
seconds (by the clock) and cpu_s (of all cores) are of training, the evaluations after each epoch
included. The last line is what is common to all.
"""

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from facts import facts

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from embedsvc.config import OutputConfig, TrainConfig
from embedsvc.evaluation.recommend import RecommendReport, evaluate_lists
from embedsvc.ranking.towers import POOLINGS
from embedsvc.trained import Trained
from embedsvc.training import outputs
from embedsvc.training.trainer import METRICS
from partitions import config as settings_file
from partitions import durable, importer
from partitions.config import GraphConfig, Settings
from partitions.errors import DataError, InputError
from partitions.graph import Graph

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "scripts" / "examples" / "nextitem.toml"
EVENTS = Path("amazon-video-seq") / "Video.txt.gz"
K = 20
Line = dict[str, Any]


def main() -> None:
    a = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_events(folder, generated(a.seed) if a.quick else read(a.data / EVENTS))
        settings = settings_of(a, folder)
        importer.import_graph(settings.table("graph", GraphConfig), folder / "graph")
        graph = Graph(folder / "graph")
        for pooling in a.poolings:
            line, report = measure(graph, settings, pooling, folder / pooling)
            print(json.dumps(durable.without_nan(line)), flush=True)
        print(json.dumps(common(a, graph, settings, report)), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="FOLDER")
    parser.add_argument("--poolings", nargs="+", default=list(POOLINGS), choices=list(POOLINGS))
    parser.add_argument("--set", nargs="+", default=[], metavar="TABLE.KEY=VALUE")
    parser.add_argument("--quick", action="store_true", help="generated events")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def settings_of(a: argparse.Namespace, folder: Path) -> Settings:
    overrides = [f"graph.data={json.dumps(str(folder))}", f"train.seed={a.seed}"]
    if a.quick:
        overrides += ["output.dim=16", "output.batch_size=32", "output.lr=0.3", "train.epochs=6"]
        overrides += ["output.head=50", "output.samples=50"]
    return settings_file.load(EXAMPLE, [*overrides, *a.set])


def measure(
    graph: Graph, settings: Settings, pooling: str, folder: Path
) -> tuple[Line, RecommendReport]:
    """Trained into `folder`."""
    output = settings.table("output", OutputConfig)
    if name_of(output.tower) != pooling:
        output = output.model_copy(update={"tower": pooling})
    start, cpu = perf_counter(), process_time()
    trained = outputs.train(graph, folder, output, settings.table("train", TrainConfig))
    seconds, cpu_s = perf_counter() - start, process_time() - cpu
    report = evaluate_lists(Trained(graph, folder), graph.relations[0].name, "test", K)
    bands = [asdict(band) for band in report.by_history]
    line = {
        "pooling": pooling,
        "recall20": round(report.recall, 4),
        "recall20_se": round(report.recall_se, 4),
        "ndcg20": round(report.ndcg, 4),
        "by_history": [{k: _rounded(v) for k, v in band.items()} for band in bands],
        "best_epoch": trained.best_epoch,
        "valid_recall20": round(max(judged(folder)), 4),
        "seconds": round(seconds, 1),
        "cpu_s": round(cpu_s, 1),
    }
    return line, report


def name_of(tower: str | dict[str, Any]) -> str:
    return tower if isinstance(tower, str) else str(tower["name"])


def judged(folder: Path) -> Iterator[float]:
    """Recall@20 of the validation split after each epoch."""
    for record in (folder / METRICS).read_text().splitlines():
        if (found := json.loads(record).get("recall20")) is not None:
            yield found


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def common(
    a: argparse.Namespace, graph: Graph, settings: Settings, report: RecommendReport
) -> Line:
    relation, train = graph.relations[0], settings.table("train", TrainConfig)
    return {
        "dataset": "generated" if a.quick else "amazon-video-seq",
        "users": graph.num_entities(relation.lhs),
        "items": graph.num_entities(relation.rhs),
        "lists": report.num_lists,
        "popular_recall20": round(report.popular_recall, 4),
        "popular_ndcg20": round(report.popular_ndcg, 4),
        "output": settings.table("output", OutputConfig).model_dump(
            mode="json", exclude_unset=True
        ),
        "most_epochs": train.epochs,
        "patience": train.early_stopping and train.early_stopping.patience,
        "set": a.set,
        "seed": a.seed,
        **facts(),
    }


# --- data -----------------------------------------------------------------------------------------


def read(path: Path) -> list[tuple[str, str]]:
    """(user, item), in the order of the file."""
    if not path.exists():
        raise DataError(f"{path} is missing: name the folder that holds {EVENTS} with --data.")
    with gzip.open(path, "rt") as file:
        cells = [line.split() for line in file]
    for at, row in enumerate(cells):
        if len(row) != 2:
            raise DataError(
                f"{path}:{at + 1}: expected a user and an item, found {len(row)} words."
            )
    return [(user, item) for user, item in cells]


def generated(seed: int) -> list[tuple[str, str]]:
    """900 users of 4 to 15 steps along a ring of 300 items, some of which are skipped: what comes
    next follows from the newest item, and less from the set of them all."""
    rng = np.random.default_rng(seed)
    events = []
    for user in range(900):
        steps = rng.integers(1, 3, rng.integers(4, 16))
        places = (rng.integers(300) + steps.cumsum()) % 300
        events += [(f"u{user}", f"i{place}") for place in places]
    return events


def write_events(folder: Path, events: list[tuple[str, str]]) -> None:
    """Their number in the file stands for the time."""
    lines = [f"{user}\t{item}\t{at}\n" for at, (user, item) in enumerate(events, 1)]
    (folder / "events.tsv").write_text("".join(lines))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
