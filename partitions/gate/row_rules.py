"""Every batch against the schema, row by row while it streams, as a whole at its end.

A broken rule says which rows break it; `votes` on what they look like give it its name: a key of
the wrong shape may be the other column's, another entity type's, or a stand-in for "unknown".
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from partitions.gate.anomalies import Cell
from partitions.gate.column_statistics import DAY_S
from partitions.gate.columns import KEY_COLUMNS, NO_TIME, Chunk, is_broken
from partitions.gate.data_schema import ColumnRules, DataSchema, EntityRules
from partitions.gate.key_traits import BROKEN, TRAITS, shares_prefix, traits_of
from partitions.gate.statistics import ends_of

SENTINELS = (-1.0, 0.0, -9.0, -99.0, -999.0, -9999.0, 99.0, 999.0, 9999.0, 99999.0, 999999.0)
SENTINEL_KEYS = {"-1", "0", "null", "none", "nan", "na", "n/a", "nil", "undefined", "unknown", "?"}
MOST_VALUES = 50  # new values that are worth listing
_CELLS = 5  # rows that an anomaly names
_MOST_STRANGERS = 20  # unknown relations that are told apart
_VOTERS = 200  # rows of a chunk that vote on a name


@dataclass
class Broken:
    """The rows that break one rule, so far."""

    count: int = 0
    cells: list[Cell] = field(default_factory=list)
    votes: Counter[str] = field(default_factory=Counter)
    lowest: float = np.inf
    highest: float = -np.inf
    values: set[Any] = field(default_factory=set)
    traits: int = 0
    prefix: bool = False

    def merge(self, other: "Broken") -> None:
        self.count += other.count
        self.cells = sorted([*self.cells, *other.cells], key=lambda c: (c.file, c.row))[:_CELLS]
        self.votes.update(other.votes)
        self.extend(other.lowest, other.highest)
        self.values |= other.values
        self.traits |= other.traits
        self.prefix |= other.prefix

    def extend(self, lowest: float, highest: float) -> None:
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)

    def as_json(self) -> dict[str, Any]:
        value = {**vars(self), "cells": [asdict(cell) for cell in self.cells]}
        value["values"], value["votes"] = sorted(self.values), dict(self.votes)
        if not np.isfinite(self.lowest):
            value["lowest"] = value["highest"] = None
        return value

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Broken":
        made = Broken(**value)
        made.cells = [Cell(**cell) for cell in value["cells"]]
        made.votes, made.values = Counter(value["votes"]), set(value["values"])
        if value["lowest"] is None:
            made.lowest, made.highest = np.inf, -np.inf
        return made

    @property
    def winner(self) -> str | None:
        """What most voters say, if they agree."""
        if not self.votes:
            return None
        name, votes = self.votes.most_common(1)[0]
        return name if 2 * votes >= sum(self.votes.values()) else None


Place = tuple[str, str, str]  # rule, column, relation or entity type


class RowRules:
    """What single rows must keep to. `add` chunks in any order; `found` has what broke."""

    def __init__(self, schema: DataSchema, as_of: int) -> None:
        self.schema, self.as_of = schema, as_of
        self.endpoints = schema.endpoints
        self.found: dict[Place, Broken] = {}

    def merge(self, other: "RowRules") -> None:
        for place, broken in other.found.items():
            self.found.setdefault(place, Broken()).merge(broken)

    def as_json(self) -> list[Any]:
        return [[list(place), broken.as_json()] for place, broken in sorted(self.found.items())]

    def restore(self, value: list[Any]) -> None:
        self.found = {
            (place[0], place[1], place[2]): Broken.from_json(broken) for place, broken in value
        }

    def add(self, file: str, first_row: int, chunk: Chunk) -> None:
        """first_row: how many rows of the file come before the chunk."""
        for name, rules in self.schema.columns.items():
            for rule, cells in (("missing", chunk.missing), ("mistyped", chunk.mistyped)):
                if name in cells and name in chunk.batch.schema.names:
                    self._note(rule, name, "", file, first_row, chunk, np.flatnonzero(cells[name]))
            for rule, rows, values in self._breaking(name, rules, chunk):
                broken = self._note(rule, name, "", file, first_row, chunk, rows)
                if broken is not None:
                    self._vote_on_values(broken, rules, values)
        for relation, rows in chunk.groups:
            ends = ends_of(self.endpoints, relation)
            if ends is not None:
                self._check_keys(file, first_row, chunk, relation, ends, rows)
            elif self.schema.relations:
                named = relation if self._strangers(relation) < _MOST_STRANGERS else "others"
                broken = self._note("relation", "rel", named, file, first_row, chunk, rows)
                if broken is not None:
                    self._vote_on_relation(broken, chunk, rows[: _VOTERS // 20])

    def _strangers(self, relation: str) -> int:
        """How many unknown relations there are beside this one."""
        return sum(rule == "relation" and name != relation for rule, _, name in self.found)

    def _vote_on_relation(self, broken: Broken, chunk: Chunk, rows: NDArray[np.int64]) -> None:
        for row in rows.tolist():
            keys = (chunk.keys[side].text[row].as_py() for side in KEY_COLUMNS)
            broken.votes["swapped" if any(key in self.endpoints for key in keys) else ""] += 1

    def _note(
        self,
        rule: str,
        column: str,
        subject: str,
        file: str,
        first_row: int,
        chunk: Chunk,
        rows: NDArray[np.int64],
    ) -> Broken | None:
        if not len(rows):
            return None
        broken = self.found.setdefault((rule, column, subject), Broken())
        broken.count += len(rows)
        for row in rows[: _CELLS - len(broken.cells)].tolist():
            broken.cells.append(Cell(file, first_row + row + 1, chunk.cell(column, row)))
        return broken

    # --- values ----------------------------------------------------------------------------------

    def _breaking(
        self, name: str, rules: ColumnRules, chunk: Chunk
    ) -> Iterator[tuple[str, NDArray[np.int64], Any]]:
        """(rule, rows, their values) for each rule on the values of a column."""
        if name in chunk.numbers and rules.type == "number":
            values = chunk.numbers[name]
            bad = np.zeros(len(values), bool)
            if rules.min is not None:
                bad |= values < rules.min
            if rules.max is not None:
                bad |= values > rules.max
            if rules.values is not None:
                bad |= ~np.isin(values, np.array(rules.values, np.float64)) & ~np.isnan(values)
            rows = np.flatnonzero(bad)
            yield "range", rows, values[rows]
        elif name in chunk.timestamps and rules.type == "timestamp":
            seconds = chunk.timestamps[name]
            some = seconds != NO_TIME
            rows = np.flatnonzero(some & (seconds > self.as_of))
            yield "future", rows, seconds[rows]
            if rules.earliest is not None:
                rows = np.flatnonzero(some & (seconds < _seconds(rules.earliest)))
                yield "range", rows, seconds[rows]
        elif name in chunk.categories and rules.type == "category" and name != "rel":
            coded = chunk.categories[name]
            if rules.values is not None:
                known = pc.is_in(coded.words, pa.array(rules.values, coded.words.type))
                rows = coded.rows(~known.to_numpy(zero_copy_only=False))
                yield "values", rows, coded.words.take(pa.array(coded.codes[rows]))
            if rules.broken is not None:
                yield "broken", coded.rows(is_broken(traits_of(coded.words))), None

    def _vote_on_values(self, broken: Broken, rules: ColumnRules, values: Any) -> None:
        if values is None:
            return
        if isinstance(values, pa.Array):
            if len(broken.values) < MOST_VALUES:
                broken.values |= set(pc.unique(values).to_pylist()[:MOST_VALUES])
            for value in values[:_VOTERS].to_pylist():
                broken.votes["sentinel" if value.lower() in SENTINEL_KEYS else ""] += 1
            return
        broken.extend(float(values.min()), float(values.max()))
        for value in values[:_VOTERS].tolist():
            broken.votes[self._look_of(float(value), rules)] += 1
        if rules.values is not None and len(broken.values) < MOST_VALUES:
            broken.values |= set(np.unique(values)[:MOST_VALUES].tolist())

    def _look_of(self, value: float, rules: ColumnRules) -> str:
        if value in SENTINELS:
            return "sentinel"
        if rules.type == "timestamp":
            first = _seconds(rules.earliest) if rules.earliest else self.as_of - 20 * 365 * DAY_S
            for factor, unit in _TIME_UNITS.items():
                if first <= value * factor <= self.as_of:
                    return f"unit {unit}"
        return ""

    # --- keys ------------------------------------------------------------------------------------

    def _check_keys(
        self,
        file: str,
        first_row: int,
        chunk: Chunk,
        relation: str,
        ends: tuple[str, str],
        rows: NDArray[np.int64],
    ) -> None:
        types = dict(zip(KEY_COLUMNS, ends, strict=True))
        for side, entity in types.items():
            rules, keys = self.schema.entities[entity], chunk.keys[side]
            traits, lengths = keys.traits[rows], keys.lengths[rows]
            garbled = is_broken(traits)
            self._note("broken", side, entity, file, first_row, chunk, rows[garbled])
            prefixed = np.ones(len(rows), bool)
            if rules.prefix:
                wanted = np.frombuffer(rules.prefix.encode(), np.uint8)
                shares_prefix(*keys.slices, rows, wanted, prefixed)
            strange = (traits & ~allowed_traits(rules)) != 0
            low, high = rules.length or (0, 1 << 40)
            bad = (~prefixed | strange | (lengths < low) | (lengths > high)) & ~garbled
            broken = self._note("format", side, relation, file, first_row, chunk, rows[bad])
            if broken is not None:
                broken.extend(float(lengths[bad].min()), float(lengths[bad].max()))
                broken.traits |= int(np.bitwise_or.reduce(traits[bad]))
                broken.prefix |= not prefixed[bad].all()
                self._vote_on_keys(broken, chunk, rows[bad][:_VOTERS], side, types)
        if ends[0] == ends[1] and not self._may_loop(relation):
            lhs, rhs = (chunk.keys[side].hashes[rows] for side in KEY_COLUMNS)
            self._note("loops", "lhs", relation, file, first_row, chunk, rows[lhs == rhs])

    def _may_loop(self, relation: str) -> bool:
        rules = self.schema.relations.get(relation) or self.schema.relations["*"]
        return rules.self_loops

    def _vote_on_keys(
        self,
        broken: Broken,
        chunk: Chunk,
        rows: NDArray[np.int64],
        side: str,
        types: Mapping[str, str],
    ) -> None:
        other_side = "rhs" if side == "lhs" else "lhs"
        mine, theirs = types[side], types[other_side]
        for row in rows.tolist():
            key = chunk.keys[side].text[row].as_py()
            other = chunk.keys[other_side].text[row].as_py()
            if key.lower() in SENTINEL_KEYS:
                vote = "sentinel"
            elif mine != theirs and self._fits(key, theirs) and self._fits(other, mine):
                vote = "swapped"
            else:
                fits = (t for t in self.schema.entities if t != mine and self._fits(key, t))
                vote = next((f"type {entity}" for entity in fits), "")
            broken.votes[vote] += 1

    def _fits(self, key: str, entity: str) -> bool:
        """Whether the key has the shape of that type, if the type has one at all."""
        rules = self.schema.entities[entity]
        traits = traits_of(pa.array([key]))
        low, high = rules.length or (0, 1 << 40)
        return (
            bool(rules.prefix or rules.characters)
            and key.startswith(rules.prefix)
            and not (traits & ~allowed_traits(rules)).any()
            and low <= len(key.encode()) <= high
        )


# A timestamp times this is in seconds.
_TIME_UNITS = {1e-3: "milliseconds", 1e-6: "microseconds", 1e-9: "nanoseconds", 86_400.0: "days"}


def allowed_traits(rules: EntityRules) -> np.uint16:
    """The bits of the characters that keys may have; broken text has a rule of its own."""
    if rules.characters is None:
        return np.uint16(0xFFFF)
    return np.uint16(sum(1 << TRAITS.index(name) for name in rules.characters)) | BROKEN


def _seconds(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
