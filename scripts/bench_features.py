#!/usr/bin/env python3
"""`scripts/bench_features.py`: how fast rows are encoded, in bulk and in requests.

Bulk: made-up rows as Arrow batches of 65,536, each kind of feature alone; `rows_per_s` by kind.
Request: 200 rows as Python lists, as a service has them, 10 features and 3 crosses (one of them
with a list); median and 99th percentile of many calls. One JSON line; seconds are of this process's
CPU where named so, as a machine that others use too spoils the others.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pyarrow as pa
from facts import facts

from partitions.features import Features, FeaturesConfig
from partitions.memory import peak_bytes

BATCH, REQUEST = 65_536, 200
SPECS: dict[str, dict[str, Any]] = {
    "user": {"kind": "category", "min_count": 2},
    "movie": {"kind": "hash", "buckets": 1_000_000},
    "title": {"kind": "category"},
    "city": {"kind": "hash", "buckets": 1000},
    "genres": {"kind": "category", "list": True, "separator": "|"},
    "tags": {"kind": "category", "list": True},
    "age": {"kind": "number", "quantiles": 64, "buckets": 16},
    "price": {"kind": "number", "scale": "log"},
    "hour": {"kind": "time", "column": "time", "part": "hour"},
    "weekday": {"kind": "time", "column": "time", "part": "weekday"},
}
CROSSES = {
    "user_genre": {"of": ["user", "genres"], "buckets": 100_000},
    "age_movie": {"of": ["age", "movie"], "buckets": 100_000},
    "title_city_hour": {"of": ["title", "city", "hour"], "buckets": 100_000},
}
GENRES = ("action", "comedy", "drama", "horror", "western")


def made_up(rows: int, seed: int) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    pairs = rng.integers(0, len(GENRES), (rows, 2))
    return pa.record_batch(
        {
            "user": rng.integers(0, 100_000, rows),
            "movie": rng.integers(0, 1 << 40, 50_000)[rng.integers(0, 50_000, rows)],
            "title": [f"The movie number {n}" for n in rng.integers(0, 20_000, rows)],
            "city": [f"c{n}" for n in rng.integers(0, 500, rows)],
            "genres": [f"{GENRES[a]}|{GENRES[b]}" for a, b in pairs],
            "tags": pa.array([[GENRES[a], GENRES[b]] for a, b in pairs]),
            "age": rng.normal(40, 10, rows),
            "price": rng.exponential(10, rows),
            "time": rng.integers(0, 1_700_000_000, rows),
        }
    )


def config(features: dict[str, Any], crosses: dict[str, Any]) -> FeaturesConfig:
    return FeaturesConfig.model_validate({"features": features, "crosses": crosses})


def median_s(work: Callable[[], Any], clock: Callable[[], float] = process_time) -> float:
    work()
    seconds = []
    for _ in range(5):
        start = clock()
        work()
        seconds.append(clock() - start)
    return statistics.median(seconds)


def encode_all(features: Features, batches: list[pa.RecordBatch]) -> None:
    for batch in batches:
        features.encode(batch)


def bulk(rows: pa.RecordBatch) -> dict[str, int]:
    """Rows a CPU second, by feature; `all` of them with the crosses."""
    batches = [rows.slice(at, BATCH) for at in range(0, len(rows), BATCH)]
    found = {}
    for name, spec in SPECS.items():
        features = Features.fit(config({name: spec}, {}), batches)
        found[name] = median_s(partial(encode_all, features, batches))
    everything = Features.fit(config(SPECS, CROSSES), batches)
    found["all"] = median_s(partial(encode_all, everything, batches))
    found["fit"] = median_s(lambda: Features.fit(config(SPECS, CROSSES), batches))
    return {name: round(len(rows) / seconds) for name, seconds in found.items()}


def requests(rows: pa.RecordBatch, calls: int) -> dict[str, float]:
    features = Features.fit(config(SPECS, CROSSES), [rows])
    asked = [
        {name: rows.column(name).slice(at, REQUEST).to_pylist() for name in rows.schema.names}
        for at in range(0, 50 * REQUEST, REQUEST)
    ]
    found = {}
    for name, clock in (("cpu_ms", process_time), ("ms", perf_counter)):
        ms = []
        for call in range(calls + calls // 10):
            start = clock()
            features.encode(asked[call % len(asked)])
            ms.append(1000 * (clock() - start))
        ordered = sorted(ms[calls // 10 :])
        found[f"p50_{name}"] = round(ordered[calls // 2], 3)
        found[f"p99_{name}"] = round(ordered[calls * 99 // 100], 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    rows = made_up(a.rows, a.seed)
    line = {
        "rows": a.rows,
        "rows_per_cpu_s": bulk(rows),
        "request": requests(rows, a.calls),
        "peak_mb": round(peak_bytes() / 1e6),
        "seed": a.seed,
        **facts(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
