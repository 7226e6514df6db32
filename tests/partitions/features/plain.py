"""The formulas of partitions.features as plain Python, a value at a time."""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from typing import Any

MASK = (1 << 64) - 1
LARGEST = 3.4028234663852886e38  # of float32
GOLDEN = 0x9E3779B97F4A7C15
Value = str | int | None


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def key(k: int, seed: int = 1) -> int:
    return mix((seed + (k + 2) * GOLDEN) & MASK)


def fingerprint(value: Value) -> int:
    if value is None or value == "":
        return key(-3)
    if isinstance(value, int):
        return mix((value & MASK) ^ key(-1))
    data = value.encode()
    words = [data[at : at + 8].ljust(8, b"\0") for at in range(0, len(data) + 1, 8)]
    total = sum(mix(int.from_bytes(w, "little") ^ key(k)) for k, w in enumerate(words)) & MASK
    return mix(len(data) ^ total)


def combined(prints: Sequence[int]) -> int:
    h = key(-2)
    for part in prints:
        h = mix((h * GOLDEN + part) & MASK)
    return h


def vocabulary(values: Sequence[Value], min_count: int = 1, max_size: int | None = None) -> Any:
    counts = Counter(value for value in values if value not in (None, ""))
    order = sorted(counts, key=lambda v: (-counts[v], v.encode() if isinstance(v, str) else v))
    return [value for value in order if counts[value] >= min_count][:max_size]


def category(value: Value, known: Sequence[Value]) -> int:
    if value is None or value == "":
        return 0
    return known.index(value) + 2 if value in known else 1


def hashed(value: Value, buckets: int) -> int:
    return 0 if value is None or value == "" else 1 + fingerprint(value) % (buckets - 1)


def cross(parts: Sequence[Sequence[int]], buckets: int) -> list[int]:
    """parts: of each feature the fingerprints of a row's values."""
    return [combined(prints) % buckets for prints in product(*parts)]


def cuts(values: Sequence[float], parts: int) -> list[float]:
    """Distinct first values of the second and later of equal runs, above the least value."""
    ordered = sorted(v for v in values if math.isfinite(v))
    found = {ordered[i * len(ordered) // parts] for i in range(1, parts)} if ordered else set()
    return sorted(c for c in found if c > ordered[0])


def quantile_of(x: float, edges: Sequence[float]) -> int:
    """i: x is in the i-th quantile, counted from 1."""
    return 1 + sum(edge <= x for edge in edges)


def cdf(x: float, edges: Sequence[float]) -> float:
    return (quantile_of(x, edges) - 1) / max(len(edges), 1)


def dense(scale: str, seen: Sequence[float | None], rows: Sequence[float | None]) -> list[float]:
    """The scaled numbers of rows (docs: partitions/features/numbers.py), 64 quantiles."""
    finite = sorted(x for x in seen if x is not None and math.isfinite(x))
    low, high = (finite[0], finite[-1]) if finite else (0.0, 0.0)
    median = finite[(len(finite) - 1) // 2] if finite else 0.0
    edges = cuts(finite, 64)
    known = [log(x) if scale == "log" else x for x in finite]
    mean = float(sum(map(Fraction, known)) / max(len(known), 1))  # exact
    squares = math.fsum(((x - mean) / max(len(known), 1) ** 0.5) ** 2 for x in known)
    deviation = math.sqrt(squares) or 1.0
    found = []
    for x in rows:
        if not finite:
            found.append(0.0)
            continue
        if x is None or math.isnan(x):
            x = 0.0 if scale == "raw" else median
        x = min(max(x, low), high) if math.isinf(x) else x
        if scale == "quantile":
            x = cdf(x, edges)
        elif scale != "raw":
            x = ((log(x) if scale == "log" else x) - mean) / deviation
        found.append(min(max(x, -LARGEST), LARGEST))
    return found


def log(x: float) -> float:
    return math.copysign(math.log1p(abs(x)), x)
