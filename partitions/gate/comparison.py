"""Statistics of two batches -> distances: drift from the last good batch, or skew between the
features of training and those that serving logged. The same code, so that the two mean the same.

Each check yields `Distance`s, with the limit it would have to exceed; most batches exceed none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions.gate import drift
from partitions.gate.anomalies import Distance
from partitions.gate.column_statistics import NumberStatistics, TimeStatistics
from partitions.gate.data_schema import ColumnRules, Thresholds
from partitions.gate.key_drift import key_distances
from partitions.gate.row_rules import SENTINELS
from partitions.gate.sketches import BINS_PER_OCTAVE, CategoryCounts, bins_of
from partitions.gate.statistics import Endpoints, RelationStatistics, Statistics
from partitions.gate.time_drift import time_distances

_MOST_BINS = 64
_FEW = 50  # rows of a relation that a distribution can't be seen in
# Known factors between units: decimal and binary prefixes, time, percent, lengths, weights.
_FACTORS = (
    10,
    100,
    1000,
    1e6,
    1e9,
    1024,
    1024**2,
    60,
    3600,
    24,
    86_400,
    2.54,
    12,
    2.20462,
    1.60934,
)


def distances(
    old: Statistics,
    new: Statistics,
    thresholds: Thresholds,
    columns: Mapping[str, ColumnRules],
    endpoints: Endpoints,
) -> list[Distance]:
    """columns, endpoints: of the schema; a column it lacks has the default threshold."""
    if not old.rows or not new.rows:
        return []
    found = [*_missing(old, new, thresholds), *_categories(old, new, thresholds, columns)]
    for name, now in new.relations.items():
        if name in old.relations and min(now.rows, old.relations[name].rows) >= _FEW:
            was = old.relations[name]
            found += _numbers(name, was, now, thresholds, columns)
            found += _times(name, was, now, (old.as_of, new.as_of), thresholds, columns)
    found += key_distances(old, new, thresholds, endpoints)
    return found


def _missing(old: Statistics, new: Statistics, thresholds: Thresholds) -> Iterator[Distance]:
    for name in old.kinds:
        if name not in new.kinds:
            continue
        was, now = old.missing[name] / old.rows, new.missing[name] / new.rows
        both = (old.missing[name] + new.missing[name]) / (old.rows + new.rows)
        yield Distance(
            "missing_share",
            f"share of {name} without a value",
            now,
            thresholds.missing,
            drift.share_noise(both, old.rows, new.rows),
            was,
            column=name,
            edit=(("drift",), "missing"),
        )


def _threshold(name: str, columns: Mapping[str, ColumnRules], default: float) -> float:
    own = columns[name].drift if name in columns else None
    return default if own is None else own


def _categories(
    old: Statistics, new: Statistics, thresholds: Thresholds, columns: Mapping[str, ColumnRules]
) -> Iterator[Distance]:
    for name, now in new.categories.items():
        if name not in old.categories or not now.total or not old.categories[name].total:
            continue
        p, q, labels = _shares(old.categories[name], now)
        both = (p * old.categories[name].total + q * now.total) / (
            old.categories[name].total + now.total
        )
        at = int(np.argmax(np.abs(p - q)))
        detail = f"the share of {labels[at]!r} went from {p[at]:.2%} to {q[at]:.2%}"
        found = Distance(
            "relation_mix" if name == "rel" else "category_drift",
            "mix of relations" if name == "rel" else f"values of {name}",
            drift.l_infinity(p, q),
            thresholds.relation_mix if name == "rel" else _threshold(name, columns, 0.1),
            drift.l_infinity_noise(both, old.categories[name].total, now.total),
            column=name,
            edit=(("drift",), "relation_mix") if name == "rel" else (("columns", name), "drift"),
            detail=detail if labels[at] else "",
        )
        if name != "rel" and found.drifted and len(now.counts) == 1 < len(p):
            found = replace(found, name="constant_column", detail="it has one value in all rows")
        yield found


def _shares(
    old: CategoryCounts, new: CategoryCounts
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Shares of the same values, and their names; of hash buckets where not all are kept."""
    if not (old.exact and new.exact):
        return drift.shares(old.buckets), drift.shares(new.buckets), [""] * len(old.buckets)
    names = sorted({*old.counts, *new.counts})
    counts = [np.array([c.counts.get(n, 0) for n in names], np.int64) for c in (old, new)]
    return drift.shares(counts[0]), drift.shares(counts[1]), names


# --- numbers ------------------------------------------------------------------------------------


def _numbers(
    relation: str,
    old: RelationStatistics,
    new: RelationStatistics,
    thresholds: Thresholds,
    columns: Mapping[str, ColumnRules],
) -> Iterator[Distance]:
    for name, now in new.numbers.items():
        was = old.numbers.get(name)
        if was is None or min(was.count, now.count) < _FEW:
            continue
        whose = f"{name} of {relation}" if relation else name
        about: dict[str, Any] = {"column": name, "relation": relation or None}
        p, q = _histograms(was, now)
        yield _as_cause(
            Distance(
                "number_drift",
                f"distribution of {whose}",
                drift.jensen_shannon(p, q),
                _threshold(name, columns, 0.05),
                drift.jensen_shannon_noise(int(((p + q) > 0).sum()), was.count, now.count),
                edit=(("columns", name), "drift"),
                **about,
            ),
            was,
            now,
        )
        yield from _sentinels(whose, was, now, thresholds, about)


def _histograms(
    old: NumberStatistics, new: NumberStatistics, shift: int = 0, coarse: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of both over the same bins: single values where there are few, else logarithmic bins,
    merged until at most 64 are in use. shift: fine bins that the new numbers are divided by."""
    few = old.values.exact and new.values.exact
    if few and not shift and len({*old.distinct(), *new.distinct()}) <= _MOST_BINS:
        return _aligned(old.distinct(), new.distinct())
    was, now = old.bins, new.bins
    while True:
        merged = [_merged(bins, at, coarse) for bins, at in ((was, 0), (now, shift))]
        if len({*merged[0], *merged[1]}) <= _MOST_BINS or coarse >= BINS_PER_OCTAVE:
            return _aligned(*merged)
        coarse *= 2


def _merged(bins: Mapping[int, int], shift: int, coarse: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for at, count in bins.items():
        moved = 0 if at == 0 else (abs(at) - shift) // coarse * (1 if at > 0 else -1)
        found[moved] = found.get(moved, 0) + count
    return found


def _aligned(
    old: Mapping[Any, int], new: Mapping[Any, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    keys = sorted({*old, *new})
    counts = [np.array([c.get(key, 0) for key in keys], np.int64) for c in (old, new)]
    return drift.shares(counts[0]), drift.shares(counts[1])


def _as_cause(found: Distance, old: NumberStatistics, new: NumberStatistics) -> Distance:
    """The drift under the name of its cause, where one shows: a constant, or another unit."""
    if not found.drifted:
        return found
    if len(new.bins) == 1 and new.values.exact and len(new.distinct()) == 1 < len(old.bins):
        value = next(iter(new.distinct()))
        return replace(found, name="constant_column", detail=f"{value:g} in all rows")
    factor = _unit_factor(old, new)
    if factor is None:
        return found
    medians = f"median {new.quantile(0.5):.4g} after {old.quantile(0.5):.4g}"
    times = f"{factor:g}" if factor > 1 else f"1/{1 / factor:g}"
    return replace(
        found, name="wrong_unit", detail=f"values are {times} times what they were, {medians}"
    )


def _unit_factor(old: NumberStatistics, new: NumberStatistics) -> float | None:
    """The factor that, taken out, makes the two distributions the same; None where none does."""
    ratio = new.quantile(0.5) / old.quantile(0.5) if old.quantile(0.5) else 0.0
    factors = [f for known in _FACTORS for f in (known, 1 / known)]
    # A small factor may be a real change of level, so it must fit well.
    near = [
        f
        for f in factors
        if ratio > 0 and abs(np.log2(ratio / f)) < (0.5 if abs(np.log2(f)) > 3 else 0.08)
    ]
    raw = drift.jensen_shannon(*_histograms(old, new, coarse=8))
    for factor in sorted(near, key=lambda f: abs(np.log2(ratio / f))):
        shift = round(float(np.log2(factor)) * BINS_PER_OCTAVE)
        rest = drift.jensen_shannon(*_histograms(old, new, shift, coarse=8))
        if rest < max(0.02, raw / 5):
            return float(factor)
    return None


def _sentinels(
    whose: str,
    old: NumberStatistics,
    new: NumberStatistics,
    thresholds: Thresholds,
    about: Mapping[str, Any],
) -> Iterator[Distance]:
    """The rise of the largest share among the usual stand-ins for "unknown"."""
    bins = bins_of(np.array(SENTINELS))
    was = np.array([old.bins.get(at, 0) for at in bins.tolist()]) / old.count
    now = np.array([new.bins.get(at, 0) for at in bins.tolist()]) / new.count
    at = int(np.argmax(now - was))
    if now[at] <= was[at]:
        return
    both = (was[at] * old.count + now[at] * new.count) / (old.count + new.count)
    yield Distance(
        "sentinel_value",
        f"share of {SENTINELS[at]:g} in {whose}",
        float(now[at]),
        thresholds.sentinel,
        drift.share_noise(both, old.count, new.count),
        float(was[at]),
        edit=(("drift",), "sentinel"),
        **about,
    )


def _times(
    relation: str,
    old: RelationStatistics,
    new: RelationStatistics,
    as_of: tuple[int, int],
    thresholds: Thresholds,
    columns: Mapping[str, ColumnRules],
) -> Iterator[Distance]:
    for name, now in new.times.items():
        was: TimeStatistics | None = old.times.get(name)
        if was is None or min(int(was.hours.sum()), int(now.hours.sum())) < _FEW:
            continue
        live = name in columns and columns[name].max_lag_days is not None
        yield from time_distances(
            (f"{name} of {relation}" if relation else name),
            was,
            now,
            as_of if live else None,
            _threshold(name, columns, 0.05),
            thresholds.thin_day,
            {"column": name, "relation": relation or None},
        )
