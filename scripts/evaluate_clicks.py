#!/usr/bin/env python3
"""What do the wide and the deep part each add to a ranker of clicks? Quality of both, and of one.

    scripts/evaluate_clicks.py --data SHARED/data --peer-python PEERS/bin/python
    scripts/evaluate_clicks.py --datasets adult --seeds 5
    scripts/evaluate_clicks.py --quick          generated rows: within a minute

Data sets are split by scripts/click_data.py (--split-seed), and learnt with the settings of
scripts/examples, which were chosen on the validation part; VARIANTS says what the wide part alone
and the deep part alone have otherwise. Seeds are of training, on one thread; the split stays.
Prints JSON lines, and to stderr what is being done:

* of each model: on the test part, means over seeds and their 95 % interval (Student's t).
  `auc_low` and `auc_high` are of the first seed, by a bootstrap over users, or over rows where a
  data set has none; `joint_less` is the joint model's AUC less this one's over the same draws.
* `slice`: AUC on test rows by how often training had their PAIRS: what is there to memorise?
* `l1`: the share of zeros among the wide weights that training met, and the AUC, by L1.
* last, what all lines have in common.

LightGBM is the rival, in an environment of its own: python3 -m venv PEERS && PEERS/bin/pip install
lightgbm. It gets the same columns, values as categories, lists as a column for each value, and at
most 2,000 trees, stopped by the validation part. Without --peer-python it is left out.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from facts import facts
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

Floats = NDArray[np.float64]
Line = dict[str, Any]

EXAMPLES = {"adult": "adult.toml", "movielens-1m": "movielens_clicks.toml"}
PAIRS = {
    "adult": ("education", "occupation"),
    "movielens-1m": ("user", "first_genre"),
    "generated": ("user_kind", "item_kind"),
}
THREADS = 1  # batches of some hundred rows gain little by more, and lose much on a busy machine
BANDS = [(0, 0), (1, 3), (4, 10), (11, 50), (51, None)]  # how often training had the pair
L1 = [0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
VARIANTS: dict[str, dict[str, list[str]]] = {
    "adult": {
        "wide": ["ranker.deep.enabled=false", "ranker.wide.alpha=0.2"],
        "deep": ["ranker.wide.enabled=false"],
        "joint": [],
    },
    "movielens-1m": {
        "wide": ["ranker.deep.enabled=false", "ranker.wide.alpha=0.2", "ranker.wide.l2=5.0"],
        "deep": ["ranker.wide.enabled=false"],
        "joint": [],
    },
}
VARIANTS["generated"] = VARIANTS["adult"]
GENERATED = """
[ranker]
labels = ["click"]
user = "user"
batch_size = 256
[ranker.features]
user = { kind = "category" }
item = { kind = "category" }
user_kind = { kind = "category" }
item_kind = { kind = "category" }
age = { kind = "number", buckets = 8 }
[ranker.crosses]
kinds = { of = ["user_kind", "item_kind"], buckets = 4096 }
[ranker.deep]
hidden = [64, 32]
[train]
epochs = 10
early_stopping = { patience = 2 }
"""


def main() -> None:
    a = _arguments()
    if a.as_peer:  # in the peer's own environment
        _peer(a.as_peer, a.seeds)
        return
    logging.getLogger("embedsvc").setLevel(logging.ERROR)
    for dataset in a.datasets:
        with tempfile.TemporaryDirectory() as scratch:
            for line in judged(Dataset.load(dataset, a, Path(scratch)), a):
                print(json.dumps({"dataset": dataset} | line), flush=True)
    common = {"seeds": list(range(1, a.seeds + 1)), "split_seed": a.split_seed}
    print(json.dumps(common | facts()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--datasets", nargs="+", choices=list(EXAMPLES), default=list(EXAMPLES))
    parser.add_argument("--data", type=Path, help="folder of the data sets' folders")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--split-seed", type=int, default=1)
    parser.add_argument("--peer-python", type=Path, help="of an environment with lightgbm")
    parser.add_argument("--peer-seeds", type=int, help="how many; unset: as --seeds")
    parser.add_argument("--no-l1", action="store_true", help="leave out the sweep of L1")
    parser.add_argument("--quick", action="store_true", help="generated rows, within a minute")
    parser.add_argument("--as-peer", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.quick:
        a.datasets, a.seeds = ["generated"], min(a.seeds, 2)
    return a


# --- one data set ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dataset:
    """Its splits as files in `folder`, and the settings that learn from them."""

    name: str
    folder: Path
    tables: dict[str, Any]  # of TOML
    test: Any  # the test part, an Arrow table
    counts: NDArray[np.int64]  # of each test row: how often training had its pair

    @classmethod
    def load(cls, name: str, a: argparse.Namespace, folder: Path) -> "Dataset":
        import tomllib

        import click_data

        rows = click_data.load(name, a.split_seed, a.data / name if a.data else None)
        click_data.write(folder, rows)
        text = GENERATED
        if name in EXAMPLES:
            text = (ROOT / "scripts" / "examples" / EXAMPLES[name]).read_text("utf-8")
        tables = tomllib.loads(text)
        tables["ranker"] |= {split: str(folder / f"{split}.parquet") for split in rows}
        return cls(name, folder, tables, rows["test"], counts_of(rows, PAIRS[name]))

    def table(self, name: str, overrides: Sequence[str] = ()) -> Any:
        """[ranker] or [train], as a model."""
        from embedsvc.config import TrainConfig
        from embedsvc.ranking.config import RankerConfig
        from partitions.config import from_tables

        models: dict[str, Any] = {"ranker": RankerConfig, "train": TrainConfig}
        return from_tables(self.tables, overrides, self.name).table(name, models[name])

    @property
    def label(self) -> Floats:
        (name,) = self.tables["ranker"]["labels"]
        return np.asarray(self.test.column(name).to_numpy(), np.float64)

    @property
    def user(self) -> NDArray[np.int64]:
        """Of each test row, who is drawn with it."""
        name = self.tables["ranker"].get("user")
        if name is None:
            return np.arange(self.test.num_rows)
        return np.asarray(self.test.column(name).to_numpy())


def counts_of(rows: dict[str, Any], pair: tuple[str, str]) -> NDArray[np.int64]:
    """Of each test row, how many training rows have the same values in both columns."""
    import pyarrow as pa

    parts = []
    for name in pair:
        both = pa.chunked_array(
            [*rows["train"].column(name).chunks, *rows["test"].column(name).chunks]
        )
        codes = both.combine_chunks().dictionary_encode(null_encoding="encode").indices
        parts.append(codes.to_numpy().astype(np.int64))
    key = parts[0] * (parts[1].max() + 1) + parts[1]
    known, count = np.unique(key[: rows["train"].num_rows], return_counts=True)
    wanted = key[rows["train"].num_rows :]
    place = np.searchsorted(known, wanted).clip(0, len(known) - 1)
    return np.where(known[place] == wanted, count[place], 0)


# --- models ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """probability: of each test row. zeros: share among the wide weights that training met."""

    probability: Floats
    seconds: float
    epochs: int
    zeros: float = 0.0
    weights: int = 0


def trained(data: Dataset, overrides: Sequence[str], seed: int) -> Trained:
    from embedsvc.ranking.trained import TrainedRanker
    from embedsvc.training import ranker

    folders = ranker.RankerFolders(data.folder / "ranker")
    shutil.rmtree(folders.checkpoint, ignore_errors=True)
    config = data.table("ranker", overrides)
    start = perf_counter()
    changed = [*overrides, f"train.seed={seed}", f"train.threads={THREADS}"]
    report = ranker.train(folders, config, data.table("train", changed))
    seconds = perf_counter() - start
    found = TrainedRanker(folders.checkpoint)
    parts = [
        found.probabilities(found.features.encode(batch))[:, 0]
        for batch in data.test.combine_chunks().to_batches(max_chunksize=65536)
    ]
    epochs = report.best_epoch or data.table("train", overrides).epochs
    said = f"{data.name} {' '.join(overrides)} seed {seed}: {epochs} epochs, {seconds:.1f} s"
    print(said, file=sys.stderr, flush=True)
    return Trained(np.concatenate(parts), seconds, epochs, *_zeros(found.model))


def _zeros(model: Any) -> tuple[float, int]:
    """The share of zeros among the wide weights that training met, and how many it met."""
    met = zeros = 0
    for table in model.slots.tables:
        known = table.wide[:, :, 1] != 0
        met += int(known.sum())
        zeros += int((model.wide.ftrl.weights(table.wide)[known] == 0).sum())
    return zeros / max(met, 1), met


def judged(data: Dataset, a: argparse.Namespace) -> list[Line]:
    seeds = range(1, a.seeds + 1)
    found = {
        model: [trained(data, overrides, seed) for seed in seeds]
        for model, overrides in VARIANTS[data.name].items()
    }
    if a.peer_python:
        found["lightgbm"] = peers(data, a.peer_python, a.peer_seeds or a.seeds)
    lines = compared(data, found) + sliced(data, found)
    return lines if a.no_l1 else lines + swept(data, found["wide"][0])


def compared(data: Dataset, found: dict[str, list[Trained]]) -> list[Line]:
    """A line a model."""
    from embedsvc.evaluation import clicks

    models = ["joint", *(model for model in found if model != "joint")]
    first = [found[model][0].probability for model in models]
    own, less = clicks.paired_auc(first, data.label, data.user)
    lines = []
    for at, model in enumerate(models):
        reports = [
            clicks.report(clicks.Clicks(run.probability, data.label, np.ones(len(data.label))))
            for run in found[model]
        ]
        line: Line = {"model": model, "auc_low": own[at].low, "auc_high": own[at].high}
        if at:
            one = less[at - 1]
            line["joint_less"] = {"value": one.value, "low": one.low, "high": one.high}
        for name in ("auc", "log_loss", "calibration", "ece"):
            line[name] = over_seeds([getattr(report, name) for report in reports])
        line["epochs"] = [run.epochs for run in found[model]]
        line["seconds"] = float(np.median([run.seconds for run in found[model]]))
        lines.append(_rounded(line))
    return lines


def over_seeds(values: Sequence[float]) -> Line:
    """Mean, and its 95 % interval."""
    from scipy.stats import t

    mean, low, high = float(np.mean(values)), None, None
    if len(values) > 1:
        half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
        low, high = mean - float(half), mean + float(half)
    return {"mean": mean, "low": low, "high": high}


def sliced(data: Dataset, found: dict[str, list[Trained]]) -> list[Line]:
    """A line a band of the pair's count: each model's AUC there, and wide less deep, first seed."""
    from embedsvc.evaluation import clicks

    lines = []
    for low, high in BANDS:
        inside = (data.counts >= low) & (data.counts <= (np.inf if high is None else high))
        label = data.label[inside]
        if not 0 < label.sum() < len(label):
            continue
        line: Line = {"slice": "*".join(PAIRS[data.name]), "seen": [low, high], "rows": len(label)}
        for model, runs in found.items():
            values = [clicks.auc(run.probability[inside], label) for run in runs]
            line[model] = float(np.mean(values))
        pair = [found[model][0].probability[inside] for model in ("wide", "deep")]
        _, (less,) = clicks.paired_auc(pair, label, data.user[inside])
        line["wide_less_deep"] = {"value": less.value, "low": less.low, "high": less.high}
        lines.append(_rounded(line))
    return lines


def swept(data: Dataset, before: Trained) -> list[Line]:
    """A line an L1 of the wide part alone, first seed. before: what it is by its own settings."""
    from embedsvc.evaluation.clicks import auc

    lines: list[Line] = []
    start = auc(before.probability, data.label)
    for l1 in L1:
        overrides = [*VARIANTS[data.name]["wide"], f"ranker.wide.l1={l1}"]
        run = trained(data, overrides, 1)
        value = auc(run.probability, data.label)
        line: Line = {"l1": l1, "model": "wide", "zeros": run.zeros, "weights": run.weights}
        lines.append(_rounded(line | {"auc": value, "auc_cost": start - value}))
    return lines


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return round(value, 5) if isinstance(value, float) else value


# --- the rival, in its own environment ------------------------------------------------------------


def peers(data: Dataset, python: Path, seeds: int) -> list[Trained]:
    np.savez(data.folder / "peer.npz", **columns_for_trees(data))  # type: ignore[arg-type]
    command = [str(python), __file__, "--as-peer", str(data.folder), "--seeds", str(seeds)]
    # Threads that wait by spinning take a busy machine's cores from those they wait for.
    kind = os.environ | {"OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=kind)
    if done.returncode:
        sys.exit(f"lightgbm ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    said = np.load(data.folder / "said.npy")
    return [
        Trained(one, line["seconds"], line["trees"]) for one, line in zip(said, lines, strict=True)
    ]


def columns_for_trees(data: Dataset) -> dict[str, NDArray[Any]]:
    """x_SPLIT [n, columns], y_SPLIT [n], and which columns are categories."""
    import pyarrow.parquet as pq

    config = data.table("ranker")
    rows = {
        split: pq.read_table(data.folder / f"{split}.parquet")
        for split in ("train", "valid", "test")
    }
    made: dict[str, list[NDArray[Any]]] = {split: [] for split in rows}
    categories = []
    for name, spec in config.features.items():
        whole = {split: table.column(spec.column or name) for split, table in rows.items()}
        categories += [len(made["train"])] if spec.kind != "number" and not spec.list else []
        values = {split: column.to_pylist() for split, column in whole.items()}
        known = sorted({v for v in values["train"] if v is not None}, key=str)
        if spec.list:
            known = sorted({part for v in known for part in v.split(spec.separator)})
        number = {value: at for at, value in enumerate(known)}
        for split, some in values.items():
            if spec.kind == "number":
                made[split].append(np.array([np.nan if v is None else v for v in some], float))
            elif spec.list:
                sets = [set((v or "").split(spec.separator)) for v in some]
                made[split] += [np.array([one in s for s in sets], float) for one in known]
            else:
                made[split].append(np.array([number.get(v, np.nan) for v in some], float))
    (label,) = config.labels
    found: dict[str, NDArray[Any]] = {"categories": np.array(categories)}
    for split, table in rows.items():
        found[f"x_{split}"] = np.stack(made[split], 1)
        found[f"y_{split}"] = table.column(label).to_numpy()
    return found


def _peer(folder: Path, seeds: int) -> None:
    import lightgbm

    data = np.load(folder / "peer.npz")
    said = []
    for seed in range(1, seeds + 1):
        start = perf_counter()
        sets = {
            split: lightgbm.Dataset(
                data[f"x_{split}"],
                data[f"y_{split}"],
                categorical_feature=data["categories"].tolist(),
            )
            for split in ("train", "valid")
        }
        settings = {
            "objective": "binary",
            "metric": "auc",
            "learning_rate": 0.05,
            "feature_fraction": 0.8,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "seed": seed,
            "num_threads": len(os.sched_getaffinity(0)),
            "verbose": -1,
        }
        stop = lightgbm.early_stopping(50, verbose=False)
        model = lightgbm.train(
            settings, sets["train"], 2000, valid_sets=[sets["valid"]], callbacks=[stop]
        )
        said.append(model.predict(data["x_test"]))
        line = {"seconds": perf_counter() - start, "trees": model.best_iteration}
        print(json.dumps(line), flush=True)
    np.save(folder / "said.npy", np.stack(said))


if __name__ == "__main__":
    main()
