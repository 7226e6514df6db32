"""The first schema, from the statistics of one batch: as strict as that batch is evidence for.

A rule is set only where the next clean batch would keep it: values and characters are listed only
where none was rare, bands leave room for batches ten times smaller or larger. One bad day would
bake its fault in, so `doubts` says what already looks wrong.
"""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import numpy as np

from partitions.gate.batch_rules import Reading, lag_days
from partitions.gate.column_statistics import (
    DAY_S,
    EndpointStatistics,
    NumberStatistics,
    TimeStatistics,
    moment_at,
)
from partitions.gate.columns import KEY_COLUMNS
from partitions.gate.data_schema import (
    ColumnRules,
    DataSchema,
    EntityRules,
    GraphRules,
    RelationRules,
)
from partitions.gate.drift import duplicate_error, duplicate_share, most_likely
from partitions.gate.key_traits import TRAITS
from partitions.gate.row_rules import SENTINELS
from partitions.gate.statistics import Endpoints, Statistics, ends_of

_LIVE_DAYS = 7  # data that ends longer ago is history: how late it is says nothing
_MAX_VALUES = 30
_MAX_RELATIONS = 1000  # to list one by one
_MANY_NUMBERS = 300  # fewer say nothing of how far others may go
_TAIL = 0.05  # share of the numbers that tell how a tail goes on
_EXACT = 1000  # different values that every sketch counts exactly
_SKETCH_ROOM = 1.3  # of two estimates: 4.5 standard errors of sqrt(2) 4.4 %
_OFTEN = 5  # times that each listed value must have been seen
_OFTEN_RELATION = 1000  # edges without which its absence, or that of loops, may be chance
_MOST_FAULTS = 0.05  # share of rows that a schema may let be no good, unless a person says so
_NOT_RARE = 0.005  # share of rows below which a kind of character or missing cells are an exception

Seen = dict[tuple[str, ...], str]


def infer(
    statistics: Statistics, endpoints: Endpoints, reading: Reading
) -> tuple[DataSchema, Seen]:
    """The schema, and what was seen of each rule, to write beside it."""
    seen: Seen = {}
    columns = {
        name: _column(name, statistics, seen)
        for name in statistics.kinds
        if statistics.rows > statistics.missing[name]
    }
    entities = {
        name: _entity(name, endpoint, seen)
        for name, endpoint in statistics.entities(endpoints).items()
    }
    schema = DataSchema(
        graph=_graph(statistics, reading, seen),
        columns=columns,
        entities=entities,
        relations=_relations(statistics, endpoints, seen) if entities else {},
    )
    return schema, seen


def _graph(statistics: Statistics, reading: Reading, seen: Seen) -> GraphRules:
    counts = statistics.row_sample.kept[1]
    duplicates = duplicate_share(counts)
    # A batch ten times as large repeats at most ten times the share: that of rows x of a cell that
    # is drawn x times on average is (x - 1 + e^-x) / x, which is concave.
    most = 10 * (duplicates + 4.5 * duplicate_error(counts))
    lines = statistics.rows + reading.malformed
    if reading.malformed:
        seen["graph", "malformed"] = f"{reading.malformed / lines:.2g}"
    seen["graph", "rows"] = f"{statistics.rows:,}"
    seen["graph", "duplicates"] = f"{duplicates:.4f}"
    return GraphRules(
        rows=(statistics.rows // 10, statistics.rows * 10),
        duplicates=round(min(1.0, max(0.1, most)), 3),
        malformed=_faults(reading.malformed, lines),
        final_newline=reading.text_files > 0 and not reading.cut_files,
    )


def _column(name: str, statistics: Statistics, seen: Seen) -> ColumnRules:
    kind, table = statistics.kinds[name], ("columns", name)
    rows = statistics.rows
    missing, mistyped = statistics.missing[name], statistics.mistyped[name]
    part = name in (*KEY_COLUMNS, "rel")  # without which a row is none to the importer
    rules: dict[str, Any] = {
        "type": kind,
        "presence": _presence(missing, rows, part),
        "mistyped": 0.0 if part and not mistyped else _faults(mistyped, rows),
    }
    if missing:
        seen[*table, "presence"] = f"{1 - missing / rows:.4f}"
    if mistyped:
        seen[*table, "mistyped"] = f"{mistyped / rows:.2g}"
    if kind == "number":
        rules |= {"drift": 0.05} | _number(statistics.number(name), table, seen)
    elif kind == "timestamp":
        rules |= _times(statistics, name, table, seen)
    elif kind == "category" and name != "rel":
        counts = statistics.categories[name]
        distinct = len(counts.counts)
        seen[*table, "distinct"] = f"{distinct:,}{'' if counts.exact else ' or more'}"
        rules |= {"distinct": _band(distinct), "broken": _exceptions(0, rows), "drift": 0.1}
        if counts.exact and distinct <= _MAX_VALUES and min(counts.counts.values()) >= _OFTEN:
            rules |= {"values": sorted(counts.counts)}
    return ColumnRules(**rules)


def _presence(missing: int, rows: int, part: bool) -> float:
    if not missing:
        return 1.0 if part else round(1 - _exceptions(0, rows), 9)
    if part:
        return round(1 - _faults(missing, rows), 9)
    return round(max(0.0, 1 - 1.5 * missing / rows - 0.02 - 4 / rows), 3)


def _exceptions(count: int, rows: int) -> float:
    """The largest share to allow of what so many rows showed."""
    return float(f"{min(1.0, max(2 * count / rows, most_likely(count, rows))):.3g}")


def _faults(count: int, rows: int) -> float:
    """The same for what the import takes no row with: more is no rule, whatever a batch has."""
    return min(_MOST_FAULTS, _exceptions(count, rows))


def _band(distinct: int) -> tuple[int, int]:
    """A tenth to ten times; where counts may be estimates, with room for their errors."""
    room = _SKETCH_ROOM if 10 * distinct > _EXACT else 1.0
    return (max(1, int(distinct / (10 * room)), min(distinct, 2)), int(10 * distinct * room))


def _number(found: NumberStatistics, table: tuple[str, ...], seen: Seen) -> dict[str, Any]:
    low, high = found.lowest, found.highest
    distinct = found.distinct()
    exact = found.values.exact
    seen[*table, "distinct"] = f"{len(distinct):,}" if exact else f"{found.values.distinct:,.0f}"
    rules: dict[str, Any] = {"distinct": _band(round(found.values.distinct))}
    if exact and len(distinct) <= _MAX_VALUES and min(distinct.values()) >= _OFTEN:
        return rules | {"values": list(distinct)}
    if found.count < _MANY_NUMBERS:
        return rules
    seen[*table, "min"], seen[*table, "max"] = f"{low:.6g}", f"{high:.6g}"
    rules["min"] = 0.0 if low >= 0 else _end(found, -1)
    rules["max"] = 0.0 if high <= 0 else _end(found, 1)
    return rules


def _end(found: NumberStatistics, sign: int) -> float | None:
    """How far numbers of one sign may go: four times as far as they went, or where the tail is long
    as far as it leads. None where too few of them, or too wild ones, were seen to tell.

    The tail is x_k (u / k)^(-1 / a), u of the rows beyond x, with the k = 5 % largest numbers and
    1 / a = mean of ln(x / x_k) among them (Hill 1975), known to 1 / sqrt(k) of itself. So far that
    0.01 numbers are expected beyond it in ten batches of this size.
    """
    k, start, mean = found.largest(sign, _TAIL)
    if k < _MANY_NUMBERS * _TAIL:
        return None
    slope = (mean - start) * float(np.log(2)) * (1 + 2 / float(np.sqrt(k)))
    farthest = max(abs(found.highest if sign > 0 else found.lowest), 1e-300)
    end = max(float(np.log2(farthest)) + 2, start + slope * float(np.log2(10 * k / 0.01)))
    return sign * float(f"{2.0**end:.3g}") if end < 1000 else None


def _times(statistics: Statistics, name: str, table: tuple[str, ...], seen: Seen) -> dict[str, Any]:
    times, as_of = statistics.times(name), statistics.as_of
    first, last = moment_at(times.lowest), moment_at(times.highest)
    margin = max(30, (last - first).days)
    seen[*table, "earliest"] = f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}"
    rules: dict[str, Any] = {
        "drift": 0.05,
        "future": _exceptions(_in_the_future(times, as_of), statistics.rows),
    }
    if first.toordinal() > margin:  # else any date would do
        rules["earliest"] = first.date() - timedelta(days=margin)
    if (lag := _lag(statistics, name)) is not None and lag <= _LIVE_DAYS:
        seen[*table, "max_lag_days"] = str(lag)
        rules["max_lag_days"] = lag
    return rules


def _in_the_future(times: TimeStatistics, as_of: int) -> int:
    return sum(count for day, count in times.days.items() if day > as_of // DAY_S)


def _lag(statistics: Statistics, name: str) -> int | None:
    groups: list[TimeStatistics] = [statistics.times(name)]
    groups += [r.times[name] for r in statistics.relations.values() if name in r.times]
    found = [lag for times in groups if (lag := lag_days(times, statistics.as_of)) is not None]
    return max(found, default=None)


def _entity(name: str, found: EndpointStatistics, seen: Seen) -> EntityRules:
    table = ("entities", name)
    distinct = round(found.sample.distinct)
    seen[*table, "count"] = f"{distinct:,}"
    seen[*table, "length"] = f"{found.lengths[0]} to {found.lengths[1]} bytes"
    rules: dict[str, Any] = {
        "count": _band(distinct),
        "length": (1 if found.lengths[0] < 8 else found.lengths[0] // 2, 2 * found.lengths[1]),
        "broken": _exceptions(found.rows_with("broken"), found.rows),
    }
    if distinct < 100:
        return EntityRules(**rules)
    rules["prefix"] = _prefix(found.prefix or b"")
    traits = {t: found.rows_with(t) / found.rows for t in TRAITS if t != "broken"}
    if all(share == 0 or share > _NOT_RARE for share in traits.values()):
        rules["characters"] = [name for name, share in traits.items() if share]
    return EntityRules(**rules)


def _prefix(shared: bytes) -> str:
    """What is before the first digit: of numbers, the first digits shared are chance."""
    text = shared.decode("utf-8", "ignore")
    at = next((i for i, character in enumerate(text) if character.isdigit()), len(text))
    return text[:at]


def _relations(
    statistics: Statistics, endpoints: Endpoints, seen: Seen
) -> dict[str, RelationRules]:
    counts = statistics.categories["rel"].counts
    rows = sum(counts.values())
    looping = {
        ends_of(endpoints, name) for name, own in statistics.relations.items() if own.self_loops
    }
    found = {}
    star = _star(counts, endpoints)
    if star and len(counts) > _MAX_RELATIONS:
        return star
    for name, count in sorted(counts.items()):
        if (ends := ends_of(endpoints, name)) is None:
            continue
        lhs, rhs = ends
        share = count / rows
        seen["relations", name, "share"] = f"{share:.4f}"
        often = count >= _OFTEN_RELATION and name in statistics.relations
        found[name] = RelationRules(
            lhs=lhs,
            rhs=rhs,
            share=(float(f"{share / 4:.3g}") if often else 0.0, _upper(count, rows)),
            # Where one relation of a type has loops, another may yet.
            self_loops=lhs != rhs or not often or ends in looping,
        )
    return found | star


def _star(counts: Mapping[str, int], endpoints: Endpoints) -> dict[str, RelationRules]:
    """What stands for relations yet unseen: none where the config lists all, or each came often.
    Where some were rare, more are to come: as many rows as had one seen once (Good and Turing).
    """
    types = {entity for name in counts for entity in ends_of(endpoints, name) or ()}
    many = len(counts) > _MAX_RELATIONS or min(counts.values(), default=0) < _OFTEN
    if not many or not types.issuperset(endpoints.get("*", ("",))):
        return {}
    return {"*": RelationRules(lhs=endpoints["*"][0], rhs=endpoints["*"][1])}


def _upper(count: int, rows: int) -> float:
    share = count / rows
    return min(1.0, float(f"{max(4 * share, share + 0.05, most_likely(count, rows)):.3g}"))


# --- what already looks wrong -------------------------------------------------------------------


_UNREADABLE = "import refuses such rows, or leaves them out with graph.skip_bad"


def doubts(statistics: Statistics, schema: DataSchema, reading: Reading) -> list[str]:
    """Sentences about the first batch that a person should answer before trusting the schema."""
    found = [*_lost(statistics, reading)]
    for name, rules in schema.columns.items():
        if statistics.mistyped[name]:
            found.append(
                f"{statistics.mistyped[name]:,} cells of {name} do not read as a {rules.type}."
            )
        if rules.distinct is not None and rules.distinct[1] == 10:
            found.append(f"{name} has one value in all rows.")
        if rules.type == "number":
            found += _number_doubts(name, statistics.number(name))
        if (
            name in statistics.kinds
            and rules.future is not None
            and _in_the_future(statistics.times(name), statistics.as_of)
        ):
            found.append(f"{name} has times in the future.")
    found += [
        f"Keys of {name} hold broken text: the wrong encoding?"
        for name, entity in statistics.entities(schema.endpoints).items()
        if entity.rows_with("broken")
    ]
    duplicates = duplicate_share(statistics.row_sample.kept[1])
    if duplicates > 0.05:
        found.append(f"{duplicates:.1%} of the rows repeat an earlier one in every cell.")
    return found


def _lost(statistics: Statistics, reading: Reading) -> Iterator[str]:
    """What is not there: lines that are no rows, cells without a value."""
    if reading.malformed:
        share = reading.malformed / (statistics.rows + reading.malformed)
        first = f" (first: {reading.malformed_cell})" if reading.malformed_cell else ""
        yield f"{share:.1%} of the lines are no rows{first}: {_UNREADABLE}."
    for name in statistics.kinds:
        missing = statistics.missing[name]
        if missing and name in (*KEY_COLUMNS, "rel"):
            yield f"{missing:,} rows have no {name}: {_UNREADABLE}."
        elif missing > _MOST_FAULTS * statistics.rows:
            yield f"{missing / statistics.rows:.1%} of {name} are missing."


def _number_doubts(name: str, number: NumberStatistics) -> list[str]:
    values: Mapping[float, int] = number.distinct()
    negative = [value for value in values if value < 0]
    if number.values.exact and len(negative) == 1 and negative[0] in SENTINELS:
        share = values[negative[0]] / number.count
        return [f'{share:.1%} of {name} are {negative[0]:g}, the only negative value: "unknown"?']
    return []
