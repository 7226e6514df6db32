"""Drift of timestamps: the hours of the day, the days by age, days that are thin, events come late.

Batches cover different days, so days are compared by age: before the moment of the check for live
data (whose schema has `max_lag_days`), before the newest day for history. A log that grows from a
fixed start is compared over the ages that both batches have; of a window that moves on, all ages
count.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions.gate import drift
from partitions.gate.anomalies import Distance
from partitions.gate.column_statistics import DAY_S, TimeStatistics, last_whole_day, moment_at

_FEW = 50  # rows expected on a day whose absence says something
_LONGER = 1.25  # times as many days are still the same window: months, days after a holiday
_STRAY = 0.001  # share of rows at either end that do not tell where a batch begins or ends


def time_distances(
    whose: str,
    old: TimeStatistics,
    new: TimeStatistics,
    as_of: tuple[int, int] | None,
    threshold: float,
    thin_day: float,
    about: Mapping[str, Any],
) -> Iterator[Distance]:
    """as_of: when the two batches were checked, for live data."""
    edit = (("columns", about["column"]), "drift")
    p, q = drift.shares(old.hours), drift.shares(new.hours)
    n, m = int(old.hours.sum()), int(new.hours.sum())
    yield Distance(
        "time_drift",
        f"hours of the day of {whose}",
        drift.jensen_shannon(p, q),
        threshold,
        drift.jensen_shannon_noise(int(((p + q) > 0).sum()), n, m),
        edit=edit,
        **about,
    )
    newest = tuple(
        last_whole_day(moment) if as_of else _newest(times)
        for times, moment in zip((old, new), as_of or (0, 0), strict=True)
    )
    was, now = _by_age(old, newest[0]), _by_age(new, newest[1])
    if not was.sum() or not now.sum():
        return
    yield from _late_events(whose, old, new, threshold, about)
    grows = _oldest(new) <= _oldest(old) + 1
    if grows or len(now) < _LONGER * len(was):
        ages = min(len(was), len(now))
        was, now = was[:ages], now[:ages]
    size = max(len(was), len(now))
    p, q = (drift.shares(np.pad(ages, (0, size - len(ages)))) for ages in (was, now))
    used = int(((p + q) > 0).sum())
    yield Distance(
        "time_drift",
        f"days of {whose} by age",
        drift.jensen_shannon(p, q),
        threshold,
        drift.jensen_shannon_noise(used, was.sum(), now.sum()),
        edit=edit,
        **about,
    )
    if (thin := _thinnest(was, now)) is not None:
        age, share = thin
        yield Distance(
            "thin_day",
            f"share of its usual rows that {_day(newest[1] - age)} of {whose} lacks",
            1 - share,
            thin_day,
            0.0,
            edit=(("drift",), "thin_day"),
            **about,
        )


def _late_events(
    whose: str,
    old: TimeStatistics,
    new: TimeStatistics,
    threshold: float,
    about: Mapping[str, Any],
) -> Iterator[Distance]:
    """Events older than nearly all of the last batch's, in which they should have been."""
    first = _oldest(old)
    rows = sum(new.days.values())
    share = sum(count for day, count in new.days.items() if day < first) / rows
    was = sum(count for day, count in old.days.items() if day < first) / sum(old.days.values())
    yield Distance(
        "late_events",
        f"share of {whose} before {_day(first)}, where the last good batch began",
        share,
        threshold,
        drift.share_noise((share + was) / 2, sum(old.days.values()), rows),
        was,
        edit=(("columns", about["column"]), "drift"),
        **about,
    )


def _thinnest(was: NDArray[np.int64], now: NDArray[np.int64]) -> tuple[int, float] | None:
    """(age, its rows over those of its usual day) of the day inside the new batch that lacks most;
    the first and the last day may be cut by the clock and do not count."""
    usual = drift.shares(was) if len(was) == len(now) else np.full(len(now), 1 / len(now))
    expected = np.maximum(usual, 0.25 / len(now)) * now.sum()
    inside = np.flatnonzero(now)
    ages = np.arange(inside[0] + 1, inside[-1]) if len(inside) > 2 else np.empty(0, np.int64)
    ages = ages[expected[ages] >= _FEW]
    if not len(ages):
        return None
    parts = now[ages] / expected[ages]
    least = int(np.argmin(parts))
    return int(ages[least]), min(1.0, float(parts[least]))


def _by_age(times: TimeStatistics, newest: int) -> NDArray[np.int64]:
    """int64 [ages]: rows of each day, from the newest on; the last 0.1 % are left out."""
    ages = {newest - day: count for day, count in times.days.items() if day <= newest}
    out = np.zeros(newest - _oldest(times) + 1 if ages else 0, np.int64)
    for age, count in ages.items():
        if age < len(out):
            out[age] = count
    return out


def _oldest(times: TimeStatistics) -> int:
    days = sorted(times.days)
    counts = np.cumsum([times.days[day] for day in days])
    return days[int(np.searchsorted(counts, _STRAY * counts[-1]))]


def _newest(times: TimeStatistics) -> int:
    days = sorted(times.days, reverse=True)
    counts = np.cumsum([times.days[day] for day in days])
    return days[int(np.searchsorted(counts, _STRAY * counts[-1]))]


def _day(day: int) -> str:
    return f"{moment_at(day * DAY_S):%Y-%m-%d}"
