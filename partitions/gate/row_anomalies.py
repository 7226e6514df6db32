"""Rows that break rules -> anomalies: named by what most of the rows look like, with the edit that
would accept them."""

from dataclasses import dataclass
from typing import Any

from partitions.gate.anomalies import Anomaly, rounded_up
from partitions.gate.column_statistics import moment_at
from partitions.gate.columns import KEY_COLUMNS
from partitions.gate.data_schema import ColumnRules
from partitions.gate.drift import exceeds
from partitions.gate.key_traits import TRAITS
from partitions.gate.row_rules import MOST_VALUES, Broken, RowRules, allowed_traits
from partitions.gate.schema_edits import Edit
from partitions.gate.statistics import ends_of


@dataclass(frozen=True)
class _Case:
    """One broken rule. subject: the relation or the entity type, where it is about one."""

    rules: RowRules
    column: str
    subject: str
    broken: Broken
    rows: int  # of the batch

    @property
    def share(self) -> float:
        return self.broken.count / self.rows

    def exceeds(self, allowed: float) -> bool:
        """Whether that many rows are more than chance makes of the share allowed."""
        return exceeds(self.broken.count, self.rows, allowed)

    @property
    def where(self) -> str:
        return f"in {self.broken.count:,} of {self.rows:,} rows"

    @property
    def column_rules(self) -> ColumnRules:
        return self.rules.schema.columns[self.column]

    def anomaly(self, name: str, what: str, allowed: float, *edits: Edit, **more: Any) -> Anomaly:
        """name: unless the rows have voted for another."""
        kind, _, detail = (self.broken.winner or "").partition(" ")
        name = _BY_VOTE.get(kind, name)
        what = f"{what}{_LOOKS.get(name, '').format(detail)}."
        broken = self.broken
        more.setdefault("column", self.column)
        cells = tuple(broken.cells)
        return Anomaly(name, what, self.share, allowed, broken.count, cells, edits=edits, **more)


_BY_VOTE = {
    "sentinel": "sentinel_value",
    "unit": "wrong_unit",
    "swapped": "swapped_columns",
    "type": "wrong_entity_type",
}
_LOOKS = {
    "sentinel_value": '; it looks like a stand-in for "unknown"',
    "wrong_unit": "; as {} they would fit",
    "swapped_columns": "; it looks swapped with another column",
    "wrong_entity_type": "; it looks like a key of {}",
}


def row_anomalies(rules: RowRules, rows: int) -> list[Anomaly]:
    """rows: of the whole batch. Shares that the schema allows are no anomalies."""
    found = []
    for (rule, column, subject), broken in sorted(rules.found.items()):
        made = _MAKERS[rule](_Case(rules, column, subject, broken, rows))
        if made is not None:
            found.append(made)
    return found


def _missing(case: _Case) -> Anomaly | None:
    presence = case.column_rules.presence
    if not case.exceeds(1 - presence):
        return None
    accepting = max(0.0, round(1 - rounded_up(case.share), 9))
    edit = Edit(("columns", case.column), "presence", accepting)
    what = f"{case.column} is missing {case.where}"
    return case.anomaly("missing_values", what, 1 - presence, edit)


def _mistyped(case: _Case) -> Anomaly | None:
    rules = case.column_rules
    if not case.exceeds(rules.mistyped):
        return None
    edit = Edit(("columns", case.column), "mistyped", min(1.0, rounded_up(case.share)))
    what = f"{case.column} does not read as a {rules.type} {case.where}"
    return case.anomaly("mixed_types", what, rules.mistyped, edit)


def _range(case: _Case) -> Anomaly:
    rules, table, broken = case.column_rules, ("columns", case.column), case.broken
    edits = []
    if rules.type == "timestamp":
        day = moment_at(broken.lowest).date()
        edits.append(Edit(table, "earliest", day))
    else:
        if rules.min is not None and broken.lowest < rules.min:
            edits.append(Edit(table, "min", broken.lowest))
        if rules.max is not None and broken.highest > rules.max:
            edits.append(Edit(table, "max", broken.highest))
        if rules.values is not None:
            edits.append(_listing(table, rules, broken))
    values = f"from {broken.lowest:.10g} to {broken.highest:.10g}"
    what = f"{case.column} is outside what is allowed {case.where}, {values}"
    return case.anomaly("out_of_range", what, 0.0, *edits)


def _listing(table: tuple[str, ...], rules: ColumnRules, broken: Broken) -> Edit:
    """The values with the new ones; no list at all where there are too many of them."""
    if len(broken.values) >= MOST_VALUES:
        return Edit(table, "values", None)
    return Edit(table, "values", sorted({*(rules.values or []), *broken.values}))


def _future(case: _Case) -> Anomaly | None:
    allowed = case.column_rules.future
    if allowed is None or not case.exceeds(allowed):
        return None
    moment = moment_at(case.rules.as_of)
    what = f"{case.column} is after {moment:%Y-%m-%d %H:%M} UTC {case.where}"
    edit = Edit(("columns", case.column), "future", min(1.0, rounded_up(case.share)))
    return case.anomaly("future_timestamps", what, allowed, edit)


def _values(case: _Case) -> Anomaly:
    new = sorted(map(str, case.broken.values))
    more = f" and {len(new) - 5} more" if len(new) > 5 else ""
    names = ", ".join(map(repr, new[:5]))
    what = f"{case.column} has values that are not listed {case.where}: {names}{more}"
    edit = _listing(("columns", case.column), case.column_rules, case.broken)
    return case.anomaly("unknown_value", what, 0.0, edit)


def _broken(case: _Case) -> Anomaly | None:
    table = ("entities", case.subject) if case.subject else ("columns", case.column)
    allowed = case.rules.schema.at(table, "broken") or 0.0
    if not case.exceeds(allowed):
        return None
    what = (
        f"{case.column} is broken text {case.where}: control characters, or UTF-8 read in another "
        "encoding on its way"
    )
    edit = Edit(table, "broken", min(1.0, rounded_up(case.share)))
    return case.anomaly("encoding_break", what, allowed, edit, entity=case.subject or None)


def _format(case: _Case) -> Anomaly:
    ends = ends_of(case.rules.endpoints, case.subject) or ("", "")
    entity, broken = ends[KEY_COLUMNS.index(case.column)], case.broken
    rules, table = case.rules.schema.entities[entity], ("entities", entity)
    edits, shape = [], []
    if broken.prefix:
        edits.append(Edit(table, "prefix", ""))
        shape.append(f"start with {rules.prefix!r}")
    if extra := broken.traits & ~int(allowed_traits(rules)):
        names = [name for bit, name in enumerate(TRAITS) if extra >> bit & 1]
        edits.append(Edit(table, "characters", sorted({*(rules.characters or []), *names})))
        shape.append(f"consist of {', '.join(rules.characters or [])}")
    low, high = rules.length or (0, 1 << 40)
    if broken.lowest < low or broken.highest > high:
        length = (min(low, int(broken.lowest)), max(high, int(broken.highest)))
        edits.append(Edit(table, "length", length))
        shape.append(f"have {low} to {high} bytes")
    what = f"{case.column} of {case.subject} does not {' and '.join(shape)} {case.where}"
    return case.anomaly("key_format", what, 0.0, *edits, relation=case.subject, entity=entity)


def _loops(case: _Case) -> Anomaly:
    what = f"{case.subject} leads from a key to itself {case.where}"
    named = case.subject if case.subject in case.rules.schema.relations else "*"
    edit = Edit(("relations", named), "self_loops", True)
    return case.anomaly("self_loops", what, 0.0, edit, column=None, relation=case.subject)


def _relation(case: _Case) -> Anomaly:
    what = f"the relation {case.subject!r} {case.where} is not listed"
    return case.anomaly("unknown_relation", what, 0.0, relation=case.subject)


_MAKERS = {
    "missing": _missing,
    "mistyped": _mistyped,
    "range": _range,
    "future": _future,
    "values": _values,
    "broken": _broken,
    "format": _format,
    "loops": _loops,
    "relation": _relation,
}
