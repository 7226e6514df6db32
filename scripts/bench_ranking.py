#!/usr/bin/env python3
"""`scripts/bench_ranking.py`: how long a published ranker takes to order candidates.

Made-up rows shaped like MovieLens-1M's (6,040 users, 3,706 movies; 10 features and a cross), layers
of 256 and 128 units: trained for an epoch, published by the product, opened as a service opens it.
A call has one user and 200 movies as Python lists. `p50_ms` and `p99_ms` are of whole calls,
`encode_ms` and `onnx_ms` medians of their two halves; `cpu_...` of this process's CPU, as a machine
that others use too spoils wall times, the 99th percentile most. `gap`: how far published and
training's model are apart. The last line is JSON.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from facts import facts

from embedsvc.ranker_road import RankerRoad
from partitions.config import from_tables
from partitions.ranker_files import PROBABILITY, fed
from serving.ranker import Ranker

CANDIDATES = 200
GENRES = [f"genre {n}" for n in range(18)]
FEATURES: dict[str, Any] = {
    **{name: {"kind": "category"} for name in ("user", "movie", "gender", "age", "occupation")},
    "zip": {"kind": "hash", "buckets": 1000},
    "genres": {"kind": "category", "list": True, "separator": "|"},
    "year": {"kind": "number", "quantiles": 32},
    "hour": {"kind": "time", "column": "time", "part": "hour"},
    "weekday": {"kind": "time", "column": "time", "part": "weekday"},
}
CROSSES = {"age_movie": {"of": ["age", "movie"], "buckets": 50_000}}
OF_USER = ("user", "gender", "age", "occupation", "zip")


class World:
    """Users and movies, and what each is."""

    def __init__(self, seed: int) -> None:
        rng = self._rng = np.random.default_rng(seed)
        self.users = {
            "user": np.arange(1, 6041),
            "gender": rng.choice(["F", "M"], 6040),
            "age": rng.choice([1, 18, 25, 35, 45, 50, 56], 6040),
            "occupation": rng.integers(0, 21, 6040),
            "zip": np.array([f"{n:03}" for n in rng.integers(0, 1000, 6040)]),
        }
        names = [rng.choice(GENRES, rng.integers(1, 4), replace=False) for _ in range(3706)]
        self.movies = {
            "movie": np.arange(1, 3707),
            "genres": np.array(["|".join(some) for some in names]),
            "year": rng.integers(1930, 2001, 3706).astype(np.float64),
        }
        # A click's log-odds: how good the movie is, and how those of one age like it.
        self._liking = rng.normal(size=3706) + 0.7 * rng.normal(size=(57, 3706))

    def _of(self, user: np.ndarray, movie: np.ndarray) -> dict[str, np.ndarray]:
        found = {name: values[user] for name, values in self.users.items()}
        found |= {name: values[movie] for name, values in self.movies.items()}
        return found | {"time": self._rng.integers(956_703_932, 1_046_454_590, len(user))}

    def rows(self, count: int) -> pa.Table:
        user = self._rng.integers(0, 6040, count)
        movie = (3706 * self._rng.random(count) ** 2).astype(np.int64)  # some are popular
        liking = self._liking[self.users["age"][user], movie]
        click = self._rng.random(count) < 1 / (1 + np.exp(-liking))
        return pa.table({**self._of(user, movie), "click": click.astype(np.int8)})

    def request(self) -> dict[str, list[Any]]:
        user = np.full(CANDIDATES, self._rng.integers(6040))
        movie = self._rng.choice(3706, CANDIDATES, replace=False)
        return {name: values.tolist() for name, values in self._of(user, movie).items()}


def published(folder: Path, world: World, rows: int, options: dict[str, Any]) -> Path:
    """Trains and publishes; returns where versions lie."""
    for split, count in (("train", rows), ("valid", max(rows // 10, 1000))):
        pq.write_table(world.rows(count), folder / f"{split}.parquet")
    ranker = {
        "train": str(folder / "train.parquet"),
        "valid": str(folder / "valid.parquet"),
        "labels": ["click"],
        "calibration": "platt",
        "features": FEATURES,
        "crosses": CROSSES,
        "deep": {"dim": 16, "hidden": [256, 128]},
    }
    train = {"epochs": 1, "threads": 1}
    tables = {"run": {"dir": str(folder / "run")}, "ranker": ranker, "train": train}
    road = RankerRoad(from_tables({**tables, "publish": options}))
    road.train()
    road.publish()
    return road.published


def timed(work: Callable[[int], Any], calls: int) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds of each call, by the wall and of CPU; a tenth more go first, uncounted."""
    found = np.empty((calls, 2))
    for call in range(-(calls // 10), calls):
        wall, cpu = perf_counter(), process_time()
        work(call)
        if call >= 0:
            found[call] = 1000 * (perf_counter() - wall), 1000 * (process_time() - cpu)
    return found[:, 0], found[:, 1]


def measured(ranker: Ranker, world: World, calls: int) -> dict[str, float]:
    asked = [world.request() for _ in range(50)]
    inputs = [fed(ranker.features.encode(one)) for one in asked]
    session = ranker.session
    works: dict[str, Callable[[int], Any]] = {
        "": lambda call: ranker.score(asked[call % 50]),
        "encode_": lambda call: ranker.features.encode(asked[call % 50]),
        "onnx_": lambda call: session.run([PROBABILITY], inputs[call % 50]),
    }
    found: dict[str, float] = {}
    for name, work in works.items():
        wall, cpu = timed(work, calls)
        if name:
            found |= {f"{name}ms": np.median(wall), f"cpu_{name}ms": np.median(cpu)}
        else:
            found |= {f"p{p}_ms": np.percentile(wall, p) for p in (50, 99)}
            found |= {f"cpu_p{p}_ms": np.percentile(cpu, p) for p in (50, 99)}
    return {name: round(float(ms), 3) for name, ms in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="training rows")
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prune", type=float, help="publish.prune")
    parser.add_argument("--quantize", choices=["int8"], help="publish.quantize")
    parser.add_argument("--quick", action="store_true", help="4,000 rows and 300 calls")
    a = parser.parse_args()
    rows, calls = (4000, 300) if a.quick else (a.rows, a.calls)
    world = World(a.seed)
    options = {name: getattr(a, name) for name in ("prune", "quantize") if getattr(a, name)}
    with tempfile.TemporaryDirectory() as folder:
        ranker = Ranker.live(published(Path(folder), world, rows, options))
        found = measured(ranker, world, calls)
    line = {
        "rows": CANDIDATES,
        **found,
        "calls": calls,
        "training_rows": rows,
        **options,
        "gap": ranker.files.about.golden_gap,
        "seed": a.seed,
        **facts(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
