"""What the schema says of a batch as a whole, checked against its statistics."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from itertools import combinations
from typing import Any

from partitions.gate.anomalies import Anomaly, Cell, rounded_up
from partitions.gate.column_statistics import DAY_S, TimeStatistics, last_whole_day, moment_at
from partitions.gate.data_schema import ColumnRules, DataSchema
from partitions.gate.drift import duplicate_error, duplicate_share, exceeds
from partitions.gate.schema_edits import Edit
from partitions.gate.statistics import Endpoints, Statistics, ends_of

_FEW = 50  # rows a day or of a relation that say nothing by their absence


@dataclass
class Reading:
    """What happened to the files, beside what their rows hold."""

    files: int = 0
    malformed: int = 0  # lines that are no rows
    malformed_cell: Cell | None = None
    text_files: int = 0  # plain ones, whose end can be seen
    cut_files: list[str] = field(default_factory=list)  # that do not end with a newline

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Reading":
        cell = value["malformed_cell"]
        return Reading(**{**value, "malformed_cell": None if cell is None else Cell(**cell)})

    def merge(self, other: "Reading") -> None:
        self.files += other.files
        self.malformed += other.malformed
        self.malformed_cell = self.malformed_cell or other.malformed_cell
        self.text_files += other.text_files
        self.cut_files = sorted({*self.cut_files, *other.cut_files})


def batch_anomalies(
    schema: DataSchema, statistics: Statistics, reading: Reading, endpoints: Endpoints
) -> list[Anomaly]:
    """endpoints: of the config, which may name other types than the schema."""
    return [
        *_files(schema, statistics, reading),
        *_size(schema, statistics),
        *_columns(schema, statistics),
        *_swapped(schema, statistics),
        *_entities(schema, statistics),
        *_relations(schema, statistics, endpoints),
    ]


def _files(schema: DataSchema, statistics: Statistics, reading: Reading) -> Iterator[Anomaly]:
    lines = statistics.rows + reading.malformed
    share = reading.malformed / lines if lines else 0.0
    if exceeds(reading.malformed, lines, schema.graph.malformed):
        cells = (reading.malformed_cell,) if reading.malformed_cell else ()
        yield Anomaly(
            "malformed_rows",
            f"{reading.malformed:,} lines are no rows: too few or too many columns.",
            share,
            schema.graph.malformed,
            reading.malformed,
            cells,
            edits=(Edit(("graph",), "malformed", rounded_up(share)),),
        )
    if schema.graph.final_newline and reading.cut_files:
        names = ", ".join(reading.cut_files[:3])
        yield Anomaly(
            "truncated_file",
            f"{names} ends in the middle of a line: the last row may be cut. Copy the file again.",
            len(reading.cut_files),
            0,
            edits=(Edit(("graph",), "final_newline", False),),
        )


def _size(schema: DataSchema, statistics: Statistics) -> Iterator[Anomaly]:
    low, high = schema.graph.rows
    rows = statistics.rows
    if not low <= rows <= high:
        edit = Edit(("graph",), "rows", (min(low, rows), max(high, rows)))
        what = f"The batch has {rows:,} rows, expected {low:,} to {high:,}."
        yield Anomaly("row_count", what, rows, low if rows < low else high, edits=(edit,))
    counts = statistics.row_sample.kept[1]
    share = duplicate_share(counts)
    error = 0.0 if statistics.row_sample.exact else duplicate_error(counts)
    if share > schema.graph.duplicates + 4.5 * error:
        edit = Edit(("graph",), "duplicates", min(1.0, rounded_up(share)))
        what = f"{share:.1%} of the rows repeat an earlier one in every cell."
        yield Anomaly("duplicates", what, share, schema.graph.duplicates, edits=(edit,))


def _columns(schema: DataSchema, statistics: Statistics) -> Iterator[Anomaly]:
    for name, kind in statistics.kinds.items():
        if name not in schema.columns and statistics.missing[name] < statistics.rows:
            yield Anomaly(
                "new_column",
                f"The data has a column {name} that the schema does not know.",
                1,
                0,
                column=name,
                edits=(Edit(("columns", name), "type", kind),),
            )
    for name, rules in schema.columns.items():
        there = statistics.rows - statistics.missing[name]
        if name not in statistics.kinds or not there:
            if rules.presence == 0 or (name == "rel" and statistics.categories):
                continue  # each input names its relation
            yield Anomaly(
                "missing_column",
                f"The data has no values of {name}.",
                0,
                rules.presence,
                column=name,
                edits=(Edit(("columns", name), "presence", 0.0),),
            )
            continue
        yield from _distinct(name, rules, statistics)
        if rules.max_lag_days is not None:
            yield from _lag(name, rules.max_lag_days, statistics)


def _distinct(name: str, rules: ColumnRules, statistics: Statistics) -> Iterator[Anomaly]:
    if rules.distinct is None or rules.type not in ("category", "number"):
        return
    if rules.type == "category":
        found = len(statistics.categories[name].counts) if name in statistics.categories else 0
    else:
        found = round(statistics.number(name).values.distinct)
    low, high = rules.distinct
    if found and not low <= found <= high:
        constant = found == 1
        what = (
            f"{name} has one value in all rows."
            if constant
            else f"{name} has {found:,} different values, expected {low:,} to {high:,}."
        )
        yield Anomaly(
            "constant_column" if constant else "distinct_count",
            what,
            found,
            low if found < low else high,
            column=name,
            edits=(Edit(("columns", name), "distinct", (min(low, found), max(high, found))),),
        )


def _swapped(schema: DataSchema, statistics: Statistics) -> Iterator[Anomaly]:
    """Two columns of values that each lie in the other's range, and not in their own."""
    allowed, found = {}, {}
    for name, rules in schema.columns.items():
        if rules.type == "number" and rules.min is not None and rules.max is not None:
            number = statistics.number(name)
            allowed[name], found[name] = (rules.min, rules.max), (number.lowest, number.highest)
        elif rules.type == "timestamp" and rules.earliest is not None:
            times = statistics.times(name)
            first = rules.earliest.toordinal() - date(1970, 1, 1).toordinal()
            allowed[name] = (first * DAY_S, statistics.as_of + DAY_S)
            found[name] = (float(times.lowest), float(times.highest))
    for one, other in combinations(allowed, 2):
        if (
            _inside(found[one], allowed[other])
            and _inside(found[other], allowed[one])
            and not _inside(found[one], allowed[one])
            and not _inside(found[other], allowed[other])
        ):
            what = f"{one} and {other} look swapped: each has values that only fit the other."
            yield Anomaly("swapped_columns", what, 1, 0, column=one)


def _inside(found: tuple[float, float], allowed: tuple[float, float]) -> bool:
    return allowed[0] <= found[0] <= found[1] <= allowed[1]


def _lag(name: str, allowed: int, statistics: Statistics) -> Iterator[Anomaly]:
    """The newest day of the data against the last whole day; by relation too, for one feed may be
    late while the others cover for it."""
    groups = {"": statistics.times(name)}
    groups |= {r: s.times[name] for r, s in statistics.relations.items() if name in s.times}
    for relation, times in groups.items():
        lag = lag_days(times, statistics.as_of)
        if lag is None or lag <= allowed:
            continue
        newest = last_whole_day(statistics.as_of) - lag
        whose = f" of {relation}" if relation else ""
        what = (
            f"The newest events{whose} are of {_day(newest)}: {lag} whole "
            f"day{'s' * (lag > 1)} before {_day(last_whole_day(statistics.as_of))} "
            f"{'are' if lag > 1 else 'is'} missing."
        )
        edit = Edit(("columns", name), "max_lag_days", lag)
        yield Anomaly(
            "late_data", what, lag, allowed, column=name, relation=relation or None, edits=(edit,)
        )
        return


def lag_days(times: TimeStatistics, as_of: int) -> int | None:
    """Whole days without events before as_of; None where too few events to tell."""
    last = last_whole_day(as_of)
    past = {day: count for day, count in times.days.items() if day <= last}
    if not past:
        return None
    usual = sum(past.values()) / (max(past) - min(past) + 1)
    if usual < _FEW:
        return None
    return last - max(day for day, count in past.items() if count >= 0.02 * usual)


def _day(day: int) -> str:
    return f"{moment_at(day * DAY_S):%Y-%m-%d}"


def _entities(schema: DataSchema, statistics: Statistics) -> Iterator[Anomaly]:
    for name, endpoint in statistics.entities(schema.endpoints).items():
        low, high = schema.entities[name].count
        found = round(endpoint.sample.distinct)
        if not low <= found <= high:
            edit = Edit(("entities", name), "count", (min(low, found), max(high, found)))
            what = f"There are {found:,} different {name} keys, expected {low:,} to {high:,}."
            yield Anomaly(
                "entity_count",
                what,
                found,
                low if found < low else high,
                entity=name,
                edits=(edit,),
            )


def _relations(
    schema: DataSchema, statistics: Statistics, endpoints: Endpoints
) -> Iterator[Anomaly]:
    counts = statistics.categories["rel"].counts if "rel" in statistics.categories else {}
    rows = sum(counts.values())
    for name, rules in schema.relations.items():
        if name == "*":
            continue
        count = counts.get(name, 0)
        share = count / rows if rows else 0.0
        low, high = rules.share
        table = ("relations", name)
        if low <= share <= high:
            continue
        edit = Edit(table, "share", (min(low, _down(share)), max(high, min(1, rounded_up(share)))))
        missing = count == 0
        what = (
            f"There is no edge of {name}."
            if missing
            else f"{share:.2%} of the edges are of {name}, expected {low:.2%} to {high:.2%}."
        )
        yield Anomaly(
            "missing_relation" if missing else "relation_share",
            what,
            share,
            low if share < low else high,
            relation=name,
            edits=(edit,),
        )
    for name, types in endpoints.items():
        known = ends_of(schema.endpoints, name)
        if known is not None and known != types:
            table = ("relations", name)
            edits = (Edit(table, "lhs", types[0]), Edit(table, "rhs", types[1]))
            what = (
                f"The config says {name} leads from {types[0]} to {types[1]}, "
                f"the schema says from {known[0]} to {known[1]}."
            )
            yield Anomaly("endpoint_types", what, 1, 0, relation=name, edits=edits)


def _down(share: float) -> float:
    """A share rounded down to three digits, so that the printed limit lets it in."""
    return float(f"{share * 0.999:.3g}")
