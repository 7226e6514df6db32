"""Statistics of one column: numbers, timestamps, keys. Each merges and turns into JSON and back."""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions.gate.columns import NO_TIME, Keys
from partitions.gate.key_traits import TRAITS, shares_prefix
from partitions.gate.sketches import (
    NUM_BUCKETS,
    KeySample,
    bins_of,
    bucket_of,
    count_bins,
    dense,
    log2_of,
    mix_all,
    packed,
    sparse,
    unmix,
    unpacked,
)

DAY_S = 86_400
_PREFIX_BYTES = 24
_DAYS = 100_000  # timestamps beyond 1970 +- 273 years count as the last such day


def moment_at(seconds: float) -> datetime:
    """Since 1970 UTC; the first or last moment that a calendar has for one beyond it."""
    ends = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC, microsecond=0))
    first, last = (int(end.timestamp()) for end in ends)
    return datetime.fromtimestamp(min(max(seconds, first), last), UTC)


def last_whole_day(as_of: int) -> int:
    """The last day, counted from 1970-01-01 UTC, that had ended by then."""
    return (as_of + 1) // DAY_S - 1


class NumberStatistics:
    """Logarithmic bins, extremes and distinct values of the numbers of one column."""

    def __init__(self) -> None:
        self.bins: Counter[int] = Counter()
        self.values = KeySample(1024)  # hashing.mix of the bits: it can be undone
        self.lowest, self.highest = np.inf, -np.inf

    def add(self, values: NDArray[np.float64]) -> None:
        values = values[~np.isnan(values)]
        if not len(values):
            return
        count_bins(self.bins, bins_of(values))
        self.values.add(mix_all(values.view(np.uint64)))
        self.lowest = min(self.lowest, float(values.min()))
        self.highest = max(self.highest, float(values.max()))

    def merge(self, other: "NumberStatistics") -> None:
        self.bins.update(other.bins)
        self.values.merge(other.values)
        self.lowest = min(self.lowest, other.lowest)
        self.highest = max(self.highest, other.highest)

    @property
    def count(self) -> int:
        return sum(self.bins.values())

    def distinct(self) -> dict[float, int]:
        """Value -> count of the kept distinct values, ascending by value."""
        hashes, counts = self.values.kept
        values = unmix(hashes).view(np.float64)
        order = np.argsort(values)
        return dict(zip(values[order].tolist(), counts[order].tolist(), strict=True))

    def quantile(self, share: float) -> float:
        """The number below which that share lies, to the width of a bin."""
        bins = sorted(self.bins)
        counts = np.cumsum([self.bins[at] for at in bins])
        at = bins[int(np.searchsorted(counts, share * counts[-1]))]
        return float(np.sign(at) * 2.0 ** log2_of(abs(at))) if at else 0.0

    def largest(self, sign: int, share: float) -> tuple[int, float, float]:
        """(how many, least log2 of their size, mean log2) of the largest numbers of that sign, a
        share of all numbers, to the width of a bin; fewer where not so many have that sign."""
        most = int(share * self.count)
        many, total, least = 0, 0.0, 0.0
        for at in sorted((at for at in self.bins if at * sign > 0), key=abs, reverse=True):
            times = min(most - many, self.bins[at])
            if times == 0:
                break
            least = log2_of(abs(at))
            many, total = many + times, total + times * least
        return many, least, total / max(many, 1)

    def as_json(self) -> dict[str, Any]:
        seen = bool(self.bins)
        return {
            "lowest": self.lowest if seen else None,
            "highest": self.highest if seen else None,
            "bins": sparse(self.bins),
            "values": self.values.as_json(),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "NumberStatistics":
        made = NumberStatistics()
        made.bins = dense(value["bins"].items())
        made.values = KeySample.from_json(value["values"])
        if made.bins:
            made.lowest, made.highest = value["lowest"], value["highest"]
        return made


class TimeStatistics:
    """How many events fell on each day and in each hour of the day, UTC."""

    def __init__(self) -> None:
        self.days: Counter[int] = Counter()  # since 1970-01-01
        self.hours = np.zeros(24, np.int64)
        self.lowest, self.highest = 2**62, -(2**62)  # seconds

    def add(self, seconds: NDArray[np.int64], as_of: int = 0) -> None:
        """as_of: the day that has not ended by then has no say in the hours, where it is given."""
        seconds = seconds[seconds != NO_TIME]
        if not len(seconds):
            return
        count_bins(self.days, np.clip(seconds // DAY_S, -_DAYS, _DAYS))
        whole = seconds
        if as_of and int(seconds.max()) // DAY_S > last_whole_day(as_of):
            whole = seconds[seconds // DAY_S <= last_whole_day(as_of)]
        self.hours += np.bincount(whole % DAY_S // 3600, minlength=24)
        self.lowest = min(self.lowest, int(seconds.min()))
        self.highest = max(self.highest, int(seconds.max()))

    def merge(self, other: "TimeStatistics") -> None:
        self.days.update(other.days)
        self.hours += other.hours
        self.lowest = min(self.lowest, other.lowest)
        self.highest = max(self.highest, other.highest)

    def as_json(self) -> dict[str, Any]:
        return {
            "lowest": self.lowest,
            "highest": self.highest,
            "days": sparse(self.days),
            "hours": packed(self.hours),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "TimeStatistics":
        made = TimeStatistics()
        made.days, made.hours = dense(value["days"].items()), unpacked(value["hours"])
        made.lowest, made.highest = value["lowest"], value["highest"]
        return made


class EndpointStatistics:
    """The keys on one side of one relation: how many, how often each, and how they are spelt."""

    def __init__(self, sample_size: int = 2048) -> None:
        self.sample = KeySample(sample_size)
        self.buckets = np.zeros(NUM_BUCKETS, np.int64)
        self.traits: Counter[int] = Counter()  # which TRAITS occur together -> rows
        self.lengths = (1 << 40, 0)
        self.prefix: bytes | None = None  # that all keys share
        self.hubs: Counter[str] = Counter()  # names for messages: no part of what is compared

    def add(self, keys: Keys, rows: NDArray[np.int64]) -> None:
        hashes = keys.hashes[rows]
        self.sample.add(hashes)
        at = bucket_of(hashes)
        counts = np.bincount(at, minlength=NUM_BUCKETS)
        self.buckets += counts
        count_bins(self.traits, keys.traits[rows].astype(np.int64))
        lengths = keys.lengths[rows]
        self._spell(
            (int(lengths.min()), int(lengths.max())), keys.text[int(rows[0])].as_py().encode()
        )
        if self.prefix:
            prefix = np.frombuffer(self.prefix, np.uint8)
            shared = shares_prefix(*keys.slices, rows, prefix, np.empty(len(rows), bool))
            self.prefix = self.prefix[:shared]
        self._name_hubs(keys, rows, at, counts)

    def _spell(self, lengths: tuple[int, int], prefix: bytes) -> None:
        self.lengths = (min(self.lengths[0], lengths[0]), max(self.lengths[1], lengths[1]))
        prefix = prefix[:_PREFIX_BYTES]
        if self.prefix is None:
            self.prefix = prefix
        shared = 0
        while shared < min(len(prefix), len(self.prefix)) and prefix[shared] == self.prefix[shared]:
            shared += 1
        self.prefix = self.prefix[:shared]

    def _name_hubs(
        self, keys: Keys, rows: NDArray[np.int64], at: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> None:
        """Note the keys of large buckets of this chunk, with a lower bound of their counts."""
        large = np.flatnonzero(counts >= max(20, 0.02 * len(rows)))
        for bucket in large[np.argsort(counts[large])][-8:].tolist():
            inside = rows[at == bucket]
            _, first, times = np.unique(keys.hashes[inside], return_index=True, return_counts=True)
            top = int(np.argmax(times))
            self.hubs[keys.text[int(inside[first[top]])].as_py()] += int(times[top])
        if len(self.hubs) > 64:
            self.hubs = Counter(dict(self.hubs.most_common(32)))

    def merge(self, other: "EndpointStatistics") -> None:
        self.sample.merge(other.sample)
        self.buckets += other.buckets
        self.traits.update(other.traits)
        self.hubs.update(other.hubs)
        if other.prefix is not None:
            self._spell(other.lengths, other.prefix)

    @property
    def rows(self) -> int:
        return int(self.buckets.sum())

    def rows_with(self, trait: str) -> int:
        bit = 1 << TRAITS.index(trait)
        return sum(count for mask, count in self.traits.items() if mask & bit)

    def as_json(self) -> dict[str, Any]:
        return {
            "sample": self.sample.as_json(),
            "buckets": packed(self.buckets),
            "traits": sparse(self.traits),
            "lengths": list(self.lengths),
            "prefix": None if self.prefix is None else self.prefix.hex(),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "EndpointStatistics":
        made = EndpointStatistics()
        made.sample = KeySample.from_json(value["sample"])
        made.buckets = unpacked(value["buckets"])
        made.traits = dense(value["traits"].items())
        made.lengths = (value["lengths"][0], value["lengths"][1])
        made.prefix = None if value["prefix"] is None else bytes.fromhex(value["prefix"])
        return made
