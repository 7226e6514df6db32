"""What the data gate found: anomalies with stable names, and the report that carries them.

One fault shows in many figures: swapped columns change every key, degree and share. So the report
leads with the cause and lists what follows from it beside its name; `explained` knows which does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil, floor, log10
from typing import Any

from partitions.errors import DataError
from partitions.gate.data_schema import DataSchema
from partitions.gate.schema_edits import Edit, combined
from partitions.gate.statistics import Statistics


@dataclass(frozen=True)
class Cell:
    """Where a rule was broken: rows are counted from 1, headers and blank lines are none."""

    file: str
    row: int
    value: str

    def __str__(self) -> str:
        value = self.value if len(self.value) <= 40 else f"{self.value[:37]}..."
        if not self.row:
            return self.file
        shown = f": {value!r}" if value else ""  # of an empty cell, or one that no column holds
        return f"{self.file} row {self.row:,}{shown}"


@dataclass(frozen=True)
class Anomaly:
    """name: stable, for programs. what: one sentence with observed against expected."""

    name: str
    what: str
    observed: float
    expected: float
    rows: int = 0  # that show it; 0 where it belongs to no single row
    cells: tuple[Cell, ...] = ()  # the first of them
    column: str | None = None
    relation: str | None = None
    entity: str | None = None
    edits: tuple[Edit, ...] = ()
    follows: tuple[str, ...] = ()  # names of the anomalies it explains
    fatal: bool = False  # the input can't be used

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "what": self.what,
            "observed": self.observed,
            "expected": self.expected,
            "rows": self.rows,
            "cells": [vars(cell) for cell in self.cells],
            "column": self.column,
            "relation": self.relation,
            "entity": self.entity,
            "edits": [str(edit) for edit in self.edits],
            "follows": list(self.follows),
            "fatal": self.fatal,
        }


@dataclass(frozen=True)
class Distance:
    """One figure of a batch against the last good one, drifted or not."""

    name: str  # of the anomaly it is where it exceeds its limit
    what: str  # of which relation and column
    observed: float
    threshold: float  # of the schema
    noise: float  # what chance alone may reach at these sizes
    expected: float = 0.0  # what `observed` is beside; 0 for a distance
    column: str | None = None
    relation: str | None = None
    entity: str | None = None
    edit: tuple[tuple[str, ...], str] = ((), "")  # table and key of the threshold
    detail: str = ""

    @property
    def excess(self) -> float:
        return abs(self.observed - self.expected)

    @property
    def limit(self) -> float:
        return max(self.threshold, self.noise)

    @property
    def drifted(self) -> bool:
        return self.excess > self.limit

    def as_anomaly(self) -> Anomaly:
        beside = f", {self.expected:.4g} is expected" if self.expected else ""
        what = f"{self.what}: {self.detail or f'{self.observed:.4g}{beside}'}"
        why = "sampling noise" if self.noise > self.threshold else "threshold"
        accepting = rounded_up(self.excess)
        if self.edit[1] != "entity_count":  # the only one that is no share
            accepting = min(1.0, accepting)
        return Anomaly(
            self.name,
            f"{what}; it differs by {self.excess:.3g}, the {why} is {self.limit:.3g}.",
            self.observed,
            self.expected,
            column=self.column,
            relation=self.relation,
            entity=self.entity,
            edits=(Edit(*self.edit, accepting),),
        )


@dataclass(frozen=True)
class Report:
    """What `validate` hands back."""

    rows: int
    files: int
    anomalies: tuple[Anomaly, ...]
    distances: tuple[Distance, ...]
    statistics: Statistics
    schema: DataSchema | None
    first_use: bool = False  # the schema was inferred from this batch
    notes: tuple[str, ...] = field(default=())  # for people; no alarm

    @property
    def usable(self) -> bool:
        return not any(anomaly.fatal for anomaly in self.anomalies)

    @property
    def clean(self) -> bool:
        return not self.anomalies

    @property
    def edits(self) -> list[Edit]:
        """What would accept this batch."""
        return combined([edit for anomaly in self.anomalies for edit in anomaly.edits])

    @property
    def exit_code(self) -> int:
        return 0 if self.clean else 1 if self.usable else 2

    def as_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "files": self.files,
            "first_use": self.first_use,
            "anomalies": [anomaly.as_json() for anomaly in self.anomalies],
            "notes": list(self.notes),
        }


class Refused(DataError):
    """A batch was not let in; `report` says what is wrong with it."""

    def __init__(self, sentence: str, report: Report) -> None:
        super().__init__(sentence)
        self.report = report


def rounded_up(value: float, digits: int = 2) -> float:
    """The next larger number of so many digits, so that a printed limit accepts what it is for."""
    if not value > 0:
        return 0.0
    unit = digits - 1 - floor(log10(value))
    scaled = value * 10.0**unit
    up = ceil(scaled + 1e-9) / 10.0**unit if unit >= 0 else ceil(scaled + 1e-9) * 10.0**-unit
    return round(up, max(unit, 0))


# --- causes -------------------------------------------------------------------------------------

_KEYS = {
    "key_format",
    "key_drift",
    "unseen_keys",
    "degree_drift",
    "hub_explosion",
    "entity_count",
    "self_loops",
    "wrong_entity_type",
}
_VALUES = {"out_of_range", "unknown_value", "number_drift", "category_drift", "distinct_count"}
_TIMES = {"time_drift", "thin_day", "late_data", "late_events", "future_timestamps"}
_LOST_ROWS = _TIMES | {"row_count", "relation_mix", "relation_share", "entity_count"}

# Cause -> what it explains, of the same "column", the same "relation", or "any"; in order.
CAUSES: dict[str, tuple[set[str], str]] = {
    "unreadable_file": (_LOST_ROWS | _KEYS, "any"),
    "truncated_file": (_LOST_ROWS | _KEYS | {"malformed_rows"}, "any"),
    "encoding_break": (_KEYS | {"unknown_value", "category_drift", "new_keys"}, "any"),
    "mixed_types": (
        {"number_drift", "distinct_count", "missing_values", "missing_share"} | _TIMES,
        "column",
    ),
    "swapped_columns": (
        _KEYS | _VALUES | _TIMES | {"swapped_columns", "wrong_unit", "sentinel_value"},
        "relation",
    ),
    "wrong_entity_type": (_KEYS | {"duplicates"}, "relation"),
    "constant_column": (_VALUES | _TIMES | {"duplicates", "sentinel_value"}, "column"),
    "duplicates": (_KEYS | _VALUES | {"row_count", "time_drift"}, "any"),
    "missing_relation": (_LOST_ROWS | {"degree_drift", "category_drift"}, "any"),
    "late_data": (_TIMES | {"row_count"}, "any"),
    "wrong_unit": (_VALUES | _TIMES | {"sentinel_value"}, "column"),
    "sentinel_value": (_VALUES | _KEYS | _TIMES | {"missing_values"}, "column"),
    "hub_explosion": (
        _KEYS | _TIMES | {"number_drift", "category_drift", "duplicates", "sentinel_value"},
        "relation",
    ),
    "thin_day": ({"time_drift"}, "column"),
    "unknown_relation": ({"relation_mix", "relation_share", "entity_count"}, "any"),
    "missing_column": ({"missing_values", "distinct_count", "missing_share"}, "column"),
    "missing_values": ({"missing_share"}, "column"),
    "out_of_range": ({"number_drift"}, "column"),
    "unknown_value": ({"category_drift", "distinct_count"}, "column"),
    "relation_share": ({"relation_mix"}, "any"),
}


def explained(anomalies: Sequence[Anomaly]) -> tuple[Anomaly, ...]:
    """The same anomalies with each cause first, and what follows from it folded into it."""
    left = _joined(anomalies)
    found = []
    for name, (effects, scope) in CAUSES.items():
        for cause in [anomaly for anomaly in left if anomaly.name == name]:
            if cause not in left:
                continue
            left.remove(cause)
            mine = [a for a in left if a.name in effects and _same(cause, a, scope)]
            left = [a for a in left if a not in mine]
            found.append(
                replace(
                    cause,
                    edits=tuple(combined([e for a in (cause, *mine) for e in a.edits])),
                    follows=tuple(sorted({a.name for a in mine} - {cause.name})),
                )
            )
    return (*found, *left)


def _same(cause: Anomaly, effect: Anomaly, scope: str) -> bool:
    if scope == "column":
        return effect.column in (cause.column, None) or cause.column is None
    if scope == "relation":
        return effect.relation is None or cause.relation in (effect.relation, None)
    return True


def _joined(anomalies: Sequence[Anomaly]) -> list[Anomaly]:
    """Anomalies of one name and column as one: the worst, with the edits of all."""
    groups: dict[tuple[str, str | None, str | None], list[Anomaly]] = {}
    for anomaly in anomalies:
        entity = None if anomaly.rows else anomaly.entity
        groups.setdefault((anomaly.name, anomaly.column, entity), []).append(anomaly)
    joined = []
    for group in groups.values():
        worst = max(group, key=lambda a: (a.fatal, a.rows, abs(a.observed - a.expected)))
        relations = {a.relation for a in group}
        also = sorted({a.relation for a in group if a.relation} - {worst.relation})
        more = f" and {len(also) - 5} more" if len(also) > 5 else ""
        what = f"{worst.what} Also: {', '.join(also[:5])}{more}." if also else worst.what
        joined.append(
            replace(
                worst,
                what=what,
                relation=worst.relation if len(relations) == 1 else None,
                edits=tuple(edit for a in group for edit in a.edits),
            )
        )
    return joined
