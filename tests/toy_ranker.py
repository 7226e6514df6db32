"""A small ranker, trained and published: rows whose labels follow from who, what and age."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedsvc.ranker_road import RankerRoad
from partitions.config import from_tables

FEATURES: dict[str, Any] = {
    "user": {"kind": "category"},
    "item": {"kind": "category"},
    "tags": {"kind": "category", "list": True, "separator": "|"},
    "age": {"kind": "number", "default": 40.0},
}


def clicks(seed: int, rows: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    taste = np.random.default_rng(7).normal(size=(15, 30))
    user, item = rng.integers(0, 15, rows), rng.integers(0, 30, rows)
    age = rng.normal(40, 10, rows)
    chance = 1 / (1 + np.exp(-1.5 * taste[user, item] - 0.05 * (age - 40)))
    click, like = (rng.random(rows) < share for share in (chance, chance**2))
    return pa.table(
        {
            "user": [f"u{u}" for u in user],
            "item": item,
            "tags": ["|".join(sorted({f"t{i % 5}", f"t{i % 3}"})) for i in item],
            "age": age,
            "click": click.astype(np.int8),
            "like": pa.array(like.astype(np.int8), mask=rng.random(rows) < 0.1),
        }
    )


def write_rows(folder: Path) -> None:
    for seed, split in enumerate(("train", "valid", "test")):
        pq.write_table(
            clicks(seed, 4000 if split == "train" else 2000), folder / f"{split}.parquet"
        )


def road(folder: Path, ranker: dict[str, Any] | None = None, **publish: Any) -> RankerRoad:
    """Of the rows in `folder`, into its `run`."""
    rows = {split: str(folder / f"{split}.parquet") for split in ("train", "valid", "test")}
    tables: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "train": {"epochs": 3, "threads": 1},
        "publish": publish,
        "ranker": {
            **rows,
            "labels": ["click", "like"],
            "positive_weight": "balanced",
            "calibration": "isotonic",
            "batch_size": 64,
            "features": FEATURES,
            "crosses": {"pair": {"of": ["user", "item"], "buckets": 5000}},
            "deep": {"dim": 8, "hidden": [32, 16], "row_lr": 0.1},
            **(ranker or {}),
        },
    }
    return RankerRoad(from_tables(tables), quiet=True)
