"""Is a difference more than luck? Intervals by bootstrap, p-values by randomisation, many at once.

The unit is what was drawn independently of the others: a user with all their lists, never a list or
an impression of a user who has several. A unit's value is a mean of its own.

    values  float64 [U] or [U, M]: U units, M metrics of the same units

A value that is not a number has no mean, and is refused: leave such units out, and say how many.
The same arguments and seed give the same numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEWEST = 10  # units that an interval says something of
_CELLS = 1 << 21  # of a chunk of draws x units: 16 MB for each of the arrays made of it


@dataclass(frozen=True)
class Interval:
    """95 % of the bootstrap's draws lie between low and high; NaN ends where there are none."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, drawn: Floats) -> "Interval":
        """Of draws that have a value; NaN ends where none has."""
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
        return cls(float(value), float(low), float(high))


@dataclass(frozen=True)
class PairedTest:
    """difference: mean of new - old over units. p: of as large a one where neither is better."""

    difference: Interval
    p: float


@dataclass(frozen=True)
class McNemarTest:
    """Units that only one of the two hits, and the p of that if either were as likely."""

    only_new: int
    only_old: int
    p: float


def interval(values: Floats, draws: int = 1000, seed: int = 0) -> Interval:
    """Mean over units with its percentile bootstrap; NaN of no units, NaN ends of fewer than 10:
    these may all be alike by luck, and an interval without width would say that they must be."""
    return intervals(values[:, None], draws, seed)[0]


def intervals(values: Floats, draws: int = 1000, seed: int = 0) -> list[Interval]:
    """The same of each column of values [U, M], over the same drawn units.

    Units are drawn with replacement, as many as there are: U * draws random numbers.
    """
    _refuse_nan(values)
    if len(values) < FEWEST:
        none = np.empty(0)
        return [Interval.of(of.mean() if len(of) else np.nan, none) for of in values.T]
    means = np.concatenate([times @ values for times in _drawn(len(values), draws, seed)])
    means /= len(values)
    return [Interval.of(*pair) for pair in zip(values.mean(axis=0), means.T, strict=True)]


def paired(
    new: Floats, old: Floats, draws: int = 1000, flips: int = 9999, seed: int = 0
) -> PairedTest:
    """Two models on the same units: new - old, its interval, and whether it is more than luck.

    p is two-sided, by randomisation: if neither is better, the sign of each unit's difference is a
    coin's. p = (1 + flips whose |mean| is at least that found) / (1 + flips), so at least
    1 / (1 + flips); 1 for no units, and for one.
    """
    return paired_each(new[:, None], old[:, None], draws, flips, seed)[0]


def paired_each(
    new: Floats, old: Floats, draws: int = 1000, flips: int = 9999, seed: int = 0
) -> list[PairedTest]:
    """The same of each column of [U, M]; p-values of several want holm()."""
    assert new.shape == old.shape, "paired values are of the same units"
    less = new - old
    found = intervals(less, draws, seed)
    return [
        PairedTest(*pair) for pair in zip(found, _sign_flips(less, flips, seed + 1), strict=True)
    ]


def holm(p_values: Floats) -> Floats:
    """Adjusted p-values (Holm 1979): reject those at most alpha, and the chance that any of them is
    a mistake is at most alpha, however the tests depend on each other.

    With p ascending, of m: adjusted[i] = max over j <= i of min(1, (m - j + 1) p[j]), i from 1.
    """
    p_values = np.asarray(p_values, np.float64)
    if not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError("A p-value is not between 0 and 1: leave out tests that have none.")
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.maximum.accumulate(np.minimum(scaled, 1.0))
    return adjusted


def mcnemar(new_hits: NDArray[np.bool_], old_hits: NDArray[np.bool_]) -> McNemarTest:
    """Exact two-sided binomial test on units [U] that only one of two models hits: those that both
    or neither hit say nothing. 1 where no unit differs."""
    only_new, only_old = int((new_hits & ~old_hits).sum()), int((old_hits & ~new_hits).sum())
    # Both tails of a fair coin. scipy.stats.binomtest says the same, but takes 70 MB of whatever
    # process imports it, trainers too; this 4 MB, when asked.
    from scipy.special import bdtr

    tail = bdtr(min(only_new, only_old), only_new + only_old, 0.5)
    return McNemarTest(only_new, only_old, min(1.0, 2 * float(tail)))


def _refuse_nan(values: Floats) -> None:
    units = int(np.isnan(values).any(axis=1).sum())
    if units:
        raise ValueError(
            f"{units} of {len(values)} units have a value that is not a number: leave them out."
        )


def _drawn(units: int, draws: int, seed: int) -> Iterator[Floats]:
    """float64 [some, units] until `draws`: how often each draw has each unit."""
    rng = np.random.default_rng(seed)
    for some in _chunks(draws, units):
        who = rng.integers(0, units, (some, units), np.int64)
        who += np.arange(some)[:, None] * units
        times = np.bincount(who.ravel(), minlength=some * units)
        yield times.reshape(some, units).astype(np.float64)


def _sign_flips(less: Floats, flips: int, seed: int) -> list[float]:
    """p of each column. Units without any difference have no sign, and are left out of the sums."""
    less = less[less.any(axis=1)]
    total = less.sum(axis=0)
    # Sums of the same numbers in another order differ in their last bits, and are still as large.
    least = np.abs(total) - 1e-12 * np.abs(less).sum(axis=0)
    rng = np.random.default_rng(seed)
    count = np.zeros(less.shape[1], np.int64)
    for some in _chunks(flips, len(less)):
        size = some * len(less)
        bits = np.unpackbits(np.frombuffer(rng.bytes(-(-size // 8)), np.uint8), count=size)
        kept = bits.reshape(some, len(less)).astype(np.float64) @ less
        count += (np.abs(2 * kept - total) >= least).sum(axis=0)
    return [float(p) for p in (1 + count) / (1 + flips)]


def _chunks(rows: int, width: int) -> Iterator[int]:
    """Parts of `rows`, each so that part x width is at most _CELLS, or one row."""
    most = max(1, _CELLS // max(width, 1))
    for at in range(0, rows, most):
        yield min(most, rows - at)
