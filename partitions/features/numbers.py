"""Numbers as dense columns and as buckets.

    quantile   (i - 1) / (q - 1), x in the i-th of q quantiles (Cheng et al. 2016, section 4.1)
    log        t = sign(x) log(1 + |x|), then (t - mean) / deviation of t in training
    standard   (x - mean) / deviation in training
    raw        x

A number of which training had no finite value is 0, whatever comes.

q counts the quantiles that are distinct: those of a column that is mostly 0 are fewer than asked
for. The i-th begins at cut[i - 1] inclusive. Infinities become the greatest and the least finite
number of training. What is missing becomes the median (raw: 0) before scaling; a column of
indicators, 1.0 where it was missing, stands beside where training had missing values.

Quantiles are of a sample of at most SAMPLE values, drawn uniformly (reservoir, Vitter 1985) with a
fixed seed: the same for the same rows in the same order, however they are cut in batches.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions.features.config import FeatureSpec

SAMPLE = 200_000
_SEED = 1
_LARGEST = float(np.finfo(np.float32).max)

Floats = NDArray[np.float64]


class Sample:
    """A uniform sample of a stream of numbers."""

    def __init__(self, size: int = SAMPLE) -> None:
        self._kept = np.empty(0)
        self._size, self._seen = size, 0
        self._random = np.random.default_rng(_SEED)

    def add(self, values: Floats) -> None:
        room = self._size - len(self._kept)
        if room:
            self._kept = np.concatenate([self._kept, values[:room]])
        late = values[room:]
        seen = self._seen + min(room, len(values)) + np.arange(1, len(late) + 1)
        places = (self._random.random(len(late)) * seen).astype(np.int64)
        chosen = places < self._size
        self._kept[places[chosen]] = late[chosen]  # of one place the last stays, as one by one
        self._seen += len(values)

    def sorted(self) -> Floats:
        return np.sort(self._kept)


class Moments:
    """Mean and deviation of a stream of numbers (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, values: Floats) -> None:
        if not len(values):
            return
        count = self.count + len(values)
        with np.errstate(over="ignore", invalid="ignore"):  # squares of 1e200
            mean = float((values / len(values)).sum())
            gap = mean - self.mean
            self._squares += float(np.square(values - mean).sum())
            self._squares += np.float64(gap) * gap * self.count * len(values) / count
        self.mean += gap * len(values) / count
        self.count = count

    @property
    def deviation(self) -> float:
        """1 where all values are equal."""
        found = float(np.sqrt(self._squares / max(self.count, 1)))
        return min(found, float(np.finfo(np.float64).max)) if found > 0 else 1.0


def cuts(ordered: Floats, parts: int) -> Floats:
    """Where the second and later of `parts` equal runs of sorted values begin, each once; never
    the least value, below which nothing lies."""
    if not len(ordered):
        return np.empty(0)
    found = np.unique(ordered[np.arange(1, parts) * len(ordered) // parts])
    return found[found > ordered[0]]


def logs(x: Floats) -> Floats:
    return np.sign(x) * np.log1p(np.abs(x))


@dataclass(frozen=True)
class Scale:
    """What training found about a number."""

    spec: FeatureSpec
    low: float
    high: float
    median: float
    mean: float  # of the logarithms where the scale is log
    deviation: float  # 0: training had no finite value
    indicator: bool  # whether training had missing values
    quantiles: Floats  # cuts of the scale
    edges: Floats  # cuts of the buckets

    @property
    def size(self) -> int | None:
        """Of the slot of buckets: missing, then a bucket for each run."""
        return None if self.spec.buckets is None else len(self.edges) + 2

    @property
    def num_dense(self) -> int:
        return (1 + self.indicator) if self.spec.dense else 0

    def scaled(self, x: Floats) -> Floats:
        if self.deviation == 0:
            return np.zeros_like(x)
        if self.spec.scale == "quantile":
            steps = max(len(self.quantiles), 1)
            return np.searchsorted(self.quantiles, x, "right") / steps
        if self.spec.scale == "raw":
            return x
        return ((logs(x) if self.spec.scale == "log" else x) - self.mean) / self.deviation

    def write(self, x: Floats, missing: NDArray[np.bool_], dense: NDArray[np.float32]) -> None:
        """The dense columns of numbers, NaN where missing."""
        if not self.spec.dense:
            return
        fill = 0.0 if self.spec.scale == "raw" else self.median
        x = np.where(missing, fill, x)
        if np.isinf(x).any():
            x = np.where(np.isinf(x), np.clip(x, self.low, self.high), x)
        dense[:, 0] = np.clip(self.scaled(x), -_LARGEST, _LARGEST)
        if self.indicator:
            dense[:, 1] = missing

    def ids(self, x: Floats, missing: NDArray[np.bool_]) -> NDArray[np.int32]:
        """0 missing, 1 the lowest bucket."""
        found = np.searchsorted(self.edges, x, "right").astype(np.int32)
        found += 1
        found[missing] = 0
        return found

    def about(self) -> dict[str, Any]:
        names = ("low", "high", "median", "mean", "deviation", "indicator")
        return {name: getattr(self, name) for name in names}


class ScaleFit:
    def __init__(self, spec: FeatureSpec) -> None:
        self._spec = spec
        self._sample, self._moments = Sample(), Moments()
        self._low, self._high, self._missing = np.inf, -np.inf, False

    def add(self, x: Floats) -> None:
        """NaN is missing; infinities count for nothing."""
        finite = x[np.isfinite(x)]
        self._missing |= bool(np.isnan(x).any())
        if len(finite):
            self._low = min(self._low, float(finite.min()))
            self._high = max(self._high, float(finite.max()))
        self._sample.add(finite)
        if self._spec.scale in ("log", "standard"):
            self._moments.add(logs(finite) if self._spec.scale == "log" else finite)

    def finish(self) -> Scale:
        """A column without any finite value is 0 everywhere."""
        ordered, spec = self._sample.sorted(), self._spec
        any_value = bool(len(ordered))
        return Scale(
            spec,
            low=self._low if any_value else 0.0,
            high=self._high if any_value else 0.0,
            median=float(ordered[(len(ordered) - 1) // 2]) if any_value else 0.0,
            mean=self._moments.mean,
            deviation=self._moments.deviation if any_value else 0.0,
            indicator=self._missing,
            quantiles=cuts(ordered, spec.quantiles if spec.scale == "quantile" else 1),
            edges=cuts(ordered, spec.buckets or 1),
        )
