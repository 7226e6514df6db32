"""What a batch of data looks like, in one pass and bounded memory; this module owns
statistics.json.

`Statistics` of two halves merged equal those of the whole (see sketches.py for why). Numbers,
timestamps and degrees are kept per relation, so that one broken feed of ten does not hide in the
mean: the relations with the smallest hashes have their own statistics, up to MAX_RELATIONS, the
others share one. A table of features, without lhs and rhs, is one group without a name.

Memory: at most 140 kB a relation and side, 45 kB where there are more than 64 relations, plus
100 kB a column, whatever the number of rows.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from partitions import durable
from partitions.errors import DataError
from partitions.gate.column_statistics import EndpointStatistics, NumberStatistics, TimeStatistics
from partitions.gate.columns import KEY_COLUMNS, Chunk, Kind
from partitions.gate.sketches import (
    CategoryCounts,
    KeySample,
    fold,
)
from partitions.hashing import hash_keys

Endpoints = Mapping[str, tuple[str, str]]  # relation, or "*" for any -> types of lhs and rhs

FORMAT_VERSION = 1
MAX_RELATIONS = 256
MANY_RELATIONS = 64  # more than so many keep fewer keys each
_FEWER_KEYS = 512
DAY_S = 86_400
_PREFIX_BYTES = 24
_DAYS = 100_000  # timestamps beyond 1970 +- 273 years count as the last such day
_REMEDY = "Delete it: the next batch that passes is the next last good one."


@dataclass
class RelationStatistics:
    """The rows of one relation."""

    rows: int = 0
    self_loops: int = 0
    sides: dict[str, EndpointStatistics] = field(default_factory=dict)
    numbers: dict[str, NumberStatistics] = field(default_factory=dict)
    times: dict[str, TimeStatistics] = field(default_factory=dict)
    sample_size: int = 2048  # keys kept a side

    def shrink(self, sample_size: int) -> None:
        self.sample_size = sample_size
        for side in self.sides.values():
            side.sample.shrink(sample_size)

    def _side(self, name: str) -> EndpointStatistics:
        if name not in self.sides:
            self.sides[name] = EndpointStatistics(self.sample_size)
        return self.sides[name]

    def add(self, chunk: Chunk, rows: NDArray[np.int64], as_of: int) -> None:
        self.rows += len(rows)
        for side, keys in chunk.keys.items():
            self._side(side).add(keys, rows)
        for name, values in chunk.numbers.items():
            self.numbers.setdefault(name, NumberStatistics()).add(values[rows])
        for name, seconds in chunk.timestamps.items():
            self.times.setdefault(name, TimeStatistics()).add(seconds[rows], as_of)
        if len(chunk.keys) == 2:
            lhs, rhs = (chunk.keys[side].hashes[rows] for side in KEY_COLUMNS)
            self.self_loops += int(np.count_nonzero(lhs == rhs))

    def merge(self, other: "RelationStatistics") -> None:
        self.rows += other.rows
        self.self_loops += other.self_loops
        for side, endpoint in other.sides.items():
            self._side(side).merge(endpoint)
        for name, number in other.numbers.items():
            self.numbers.setdefault(name, NumberStatistics()).merge(number)
        for name, times in other.times.items():
            self.times.setdefault(name, TimeStatistics()).merge(times)

    def as_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "self_loops": self.self_loops,
            "sides": {side: found.as_json() for side, found in sorted(self.sides.items())},
            "numbers": {name: found.as_json() for name, found in sorted(self.numbers.items())},
            "times": {name: found.as_json() for name, found in sorted(self.times.items())},
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "RelationStatistics":
        return RelationStatistics(
            value["rows"],
            value["self_loops"],
            {side: EndpointStatistics.from_json(v) for side, v in value["sides"].items()},
            {name: NumberStatistics.from_json(v) for name, v in value["numbers"].items()},
            {name: TimeStatistics.from_json(v) for name, v in value["times"].items()},
        )


class Statistics:
    """One batch of data: whole columns, and the rows of each relation."""

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self.kinds = dict(kinds)
        self.rows = 0
        self.as_of = 0  # seconds since the epoch: when the batch was judged
        self.missing: Counter[str] = Counter()
        self.mistyped: Counter[str] = Counter()
        self.categories: dict[str, CategoryCounts] = {}
        self.relations: dict[str, RelationStatistics] = {}
        self.others: RelationStatistics | None = None  # relations beyond MAX_RELATIONS, together
        self._largest_hash = 2**64 - 1  # of a relation that still has its own statistics
        self.row_sample = KeySample()
        self._sample_size = 2048  # keys kept of each side of a relation

    def meet(self, name: str, kind: Kind) -> None:
        """Know one more column, which the rows so far had no value of."""
        if name not in self.kinds:
            self.kinds[name] = kind
            self.missing[name] = 0 if name == "rel" else self.rows

    def add(self, chunk: Chunk) -> None:
        self.rows += chunk.rows
        for name in self.kinds:
            self.missing[name] += int(np.count_nonzero(chunk.missing[name]))
            self.mistyped[name] += int(np.count_nonzero(chunk.mistyped[name]))
        for name, coded in chunk.categories.items():
            if name != "rel":
                self._category(name).add(coded.words, coded.counts)
        names = pa.array([name for name, _ in chunk.groups], pa.large_string())
        if "rel" in self.kinds or "lhs" in self.kinds:
            counts = np.array([len(rows) for _, rows in chunk.groups], np.int64)
            self._category("rel").add(names, counts)
        rel = np.zeros(chunk.rows, np.uint64)
        hashes = hash_keys(names).tolist()
        self._make_room(dict(zip((name for name, _ in chunk.groups), hashes, strict=True)))
        rest = []
        for (name, rows), h in zip(chunk.groups, hashes, strict=True):
            rel[rows] = h
            if h > self._largest_hash:
                rest.append(rows)
            else:
                self._own(name).add(chunk, rows, self.as_of)
        if rest:
            self._rest().add(chunk, np.concatenate(rest), self.as_of)
        self.row_sample.add(_hash_rows(chunk, rel))

    def _category(self, name: str) -> CategoryCounts:
        return self.categories.setdefault(name, CategoryCounts())

    def _own(self, name: str) -> RelationStatistics:
        return self.relations.setdefault(name, RelationStatistics(sample_size=self._sample_size))

    def _rest(self) -> RelationStatistics:
        if self.others is None:
            self.others = RelationStatistics(sample_size=self._sample_size)
        return self.others

    def _make_room(self, new: Mapping[str, int]) -> None:
        """Let the relations of the largest hashes join the others, if with the new ones, given
        with their hashes, there are too many. Where there are many, each keeps fewer keys."""
        names = list(self.relations)
        known = hash_keys(pa.array(names, pa.large_string())).tolist()
        hashes = {**dict(zip(names, known, strict=True)), **new}
        if len(hashes) > MANY_RELATIONS and self._sample_size > _FEWER_KEYS:
            self._sample_size = _FEWER_KEYS
            for relation in self._all():
                relation.shrink(_FEWER_KEYS)
        near = sorted(h for h in hashes.values() if h <= self._largest_hash)
        if len(near) > MAX_RELATIONS:
            self._largest_hash = near[MAX_RELATIONS - 1]
        for name in [n for n in self.relations if hashes[n] > self._largest_hash]:
            self._rest().merge(self.relations.pop(name))

    def merge(self, other: "Statistics") -> None:
        """Add what `other` has seen; `other` may learn of columns it had not met."""
        for name, kind in {**self.kinds, **other.kinds}.items():
            self.meet(name, kind)
            other.meet(name, kind)
        assert self.kinds == other.kinds, "one column of two kinds"
        self.rows += other.rows
        self.as_of = max(self.as_of, other.as_of)
        self.missing.update(other.missing)
        self.mistyped.update(other.mistyped)
        for name, counts in other.categories.items():
            self._category(name).merge(counts)
        if other.others is not None:
            self._rest().merge(other.others)
            self._largest_hash = min(self._largest_hash, other._largest_hash)
        names = list(other.relations)
        hashes = hash_keys(pa.array(names, pa.large_string())).tolist()
        self._make_room(dict(zip(names, hashes, strict=True)))
        for name, name_hash in zip(names, hashes, strict=True):
            into = self._rest() if name_hash > self._largest_hash else self._own(name)
            into.merge(other.relations[name])
        self.row_sample.merge(other.row_sample)

    def number(self, column: str) -> NumberStatistics:
        """A column over all relations."""
        whole = NumberStatistics()
        for relation in self._all():
            if column in relation.numbers:
                whole.merge(relation.numbers[column])
        return whole

    def times(self, column: str) -> TimeStatistics:
        whole = TimeStatistics()
        for relation in self._all():
            if column in relation.times:
                whole.merge(relation.times[column])
        return whole

    def entities(self, endpoints: Endpoints) -> dict[str, EndpointStatistics]:
        """Entity type -> its keys over all relations and sides."""
        found: dict[str, EndpointStatistics] = {}
        for name, relation in self.relations.items():
            for side, entity in zip(KEY_COLUMNS, ends_of(endpoints, name) or (), strict=False):
                if side in relation.sides:
                    found.setdefault(entity, EndpointStatistics()).merge(relation.sides[side])
        return found

    def _all(self) -> list[RelationStatistics]:
        return [*self.relations.values(), *([self.others] if self.others is not None else [])]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Statistics) and self.as_json() == other.as_json()

    __hash__ = None  # type: ignore[assignment]

    def as_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "kinds": self.kinds,
            "rows": self.rows,
            "as_of": self.as_of,
            "missing": {name: self.missing[name] for name in sorted(self.kinds)},
            "mistyped": {name: self.mistyped[name] for name in sorted(self.kinds)},
            "categories": {name: c.as_json() for name, c in sorted(self.categories.items())},
            "relations": {name: r.as_json() for name, r in sorted(self.relations.items())},
            "others": None if self.others is None else self.others.as_json(),
            "row_sample": self.row_sample.as_json(),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Statistics":
        made = Statistics(value["kinds"])
        made.rows, made.as_of = value["rows"], value["as_of"]
        made.missing, made.mistyped = Counter(value["missing"]), Counter(value["mistyped"])
        made.categories = {n: CategoryCounts.from_json(v) for n, v in value["categories"].items()}
        made.relations = {n: RelationStatistics.from_json(v) for n, v in value["relations"].items()}
        if value["others"] is not None:
            made.others = RelationStatistics.from_json(value["others"])
            names = pa.array(list(made.relations), pa.large_string())
            made._largest_hash = int(hash_keys(names).max())
        made.row_sample = KeySample.from_json(value["row_sample"])
        return made


def ends_of(endpoints: Endpoints, relation: str) -> tuple[str, str] | None:
    return endpoints.get(relation) or endpoints.get("*")


def as_bytes(statistics: Statistics) -> bytes:
    """The whole file, with its digest."""
    value = statistics.as_json()
    return durable.json_bytes({**value, "digest": _digest(value)})


def _digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of the file without it, so that no altered figure is taken for a measured one."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> Statistics:
    value = durable.read_json(path, _REMEDY)
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} is of format {version}, this program reads {FORMAT_VERSION}. {_REMEDY}"
        )
    digest = value.pop("digest", None)  # files from before it have none
    try:
        if digest not in (None, _digest(value)):
            raise ValueError("its digest is another")
        found = Statistics.from_json(value)
        if digest is None and value.keys() != found.as_json().keys():
            raise ValueError("its keys are others")
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} was altered: {error!r}. {_REMEDY}") from None
    return found


def _hash_rows(chunk: Chunk, rel: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """uint64 [rows]: one number a row from all of its cells; equal rows have equal ones."""
    h = rel.copy()
    for keys in chunk.keys.values():
        fold(h, keys.hashes)
    for values in chunk.numbers.values():
        fold(h, np.ascontiguousarray(values).view(np.uint64))
    for seconds in chunk.timestamps.values():
        fold(h, np.ascontiguousarray(seconds).view(np.uint64))
    for name, coded in chunk.categories.items():
        if name != "rel":
            fold(h, np.append(hash_keys(coded.words), np.uint64(0))[coded.codes])
    return h
