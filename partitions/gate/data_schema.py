"""schema.toml: what data must look like to be let in. Inferred once, then read and edited by
people.

This module owns the file: models, reader, writer, and edits that keep a person's comments. What a
rule means stands in its docstring; docs/validation.md explains the file. Every anomaly of the gate
comes with the `Edit` that would accept it, which is a line of this file.
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from partitions import durable
from partitions.config import Table
from partitions.errors import ConfigError, DataError, did_you_mean

FORMAT_VERSION = 1

Share = Annotated[float, Field(ge=0, le=1)]
Band = tuple[Annotated[int, Field(ge=0)], int]
ShareBand = tuple[Share, Share]
Trait = Literal[
    "digits",
    "lower",
    "upper",
    "space",
    "dash",
    "underscore",
    "dot",
    "slash",
    "colon",
    "punctuation",
    "non-ascii",
]


class GraphRules(Table):
    """`[graph]`: the batch as a whole."""

    rows: Band
    """Fewest and most rows of a batch."""
    duplicates: Share = 0.05
    """Largest share of rows that repeat an earlier one in every cell."""
    malformed: Share = 0.0
    """Largest share of lines that are no rows."""
    final_newline: bool = False
    """Plain text files end with a newline: one that does not was cut off."""


class Thresholds(Table):
    """`[drift]`: the least difference from the last good batch worth an alarm.

    The gate uses the larger of this and the sampling noise of the two batches' sizes.
    """

    relation_mix: Share = 0.1
    """Change of a relation's share of the rows (L-infinity)."""
    degrees: Share = 0.05
    """Change of how many edges a key has, log2 histogram of a side (Jensen-Shannon, bits)."""
    hub: Share = 0.05
    """Rise or fall of one key's share of a relation's edges (L-infinity over 1024 hash buckets)."""
    unseen: Share = 0.1
    """Share of edges whose key the last good batch lacks, above what its size explains."""
    foreign: Share = 0.05
    """Share of edges whose key is new here and known of another entity type."""
    entity_count: Annotated[float, Field(ge=0)] = 0.25
    """Relative change of the number of different keys, at equal batch sizes."""
    duplicates: Share = 0.02
    """Change of the share of repeated rows, at equal batch sizes."""
    self_loops: Share = 0.01
    """Change of the share of a relation's edges from a key to itself."""
    missing: Share = 0.02
    """Change of the share of a column's cells without a value."""
    sentinel: Share = 0.05
    """Rise of the share of one usual stand-in for "unknown", such as 0, 99 or -1."""
    thin_day: Share = 0.8
    """Share of its usual rows that a day inside the batch may lack."""


class ColumnRules(Table):
    """`[columns.NAME]`"""

    type: Literal["key", "category", "number", "timestamp"]
    """key, category, number, or timestamp: seconds since the epoch, UTC."""
    presence: Share = 1.0
    """Least share of rows that have a value."""
    mistyped: Share = 0.0
    """Largest share of rows whose cell does not read as the type."""
    distinct: Band | None = None
    """Fewest and most different values."""
    values: list[str] | list[float] | None = None
    """All values allowed."""
    min: float | None = None
    """Numbers: smallest allowed."""
    max: float | None = None
    """Numbers: largest allowed."""
    earliest: date | None = None
    """Timestamps: first day allowed."""
    future: Share | None = None
    """Timestamps: largest share after the moment of the check."""
    max_lag_days: int | None = None
    """Timestamps: whole days that may be missing before the moment of the check."""
    broken: Share | None = None
    """Categories: largest share of rows with broken text (wrong encoding, control characters)."""
    drift: Share | None = None
    """Threshold: L-infinity for a category, Jensen-Shannon in bits for numbers and timestamps."""


class EntityRules(Table):
    """`[entities.NAME]`: the keys of one entity type."""

    count: Band
    """Fewest and most different keys in a batch."""
    prefix: str = ""
    """Every key starts so."""
    characters: list[Trait] | None = None
    """All kinds of characters that keys are made of; unset: any."""
    length: Band | None = None
    """Fewest and most bytes of a key."""
    broken: Share = 0.0
    """Largest share of rows whose key is broken text (wrong encoding, control characters)."""


class RelationRules(Table):
    """`[relations.NAME]`"""

    lhs: str
    """Entity type."""
    rhs: str
    """Entity type."""
    share: ShareBand = (0.0, 1.0)
    """Smallest and largest share of a batch's rows."""
    self_loops: bool = True
    """Edges from a key to itself are allowed."""


class DataSchema(Table):
    """The whole file."""

    format_version: Literal[1] = 1
    graph: GraphRules
    drift: Thresholds = Thresholds()
    columns: dict[str, ColumnRules] = Field(default_factory=dict)
    entities: dict[str, EntityRules] = Field(default_factory=dict)
    relations: dict[str, RelationRules] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_its_types(self) -> "DataSchema":
        for name, relation in self.relations.items():
            for side in (relation.lhs, relation.rhs):
                if side not in self.entities:
                    hint = did_you_mean(side, list(self.entities))
                    raise ValueError(f"relations.{name} names the entity type {side}. {hint}")
        return self

    @property
    def endpoints(self) -> dict[str, tuple[str, str]]:
        return {name: (rules.lhs, rules.rhs) for name, rules in self.relations.items()}

    def at(self, table: Sequence[str], key: str) -> Any:
        """The value of a rule, None where it is unset or its table is not there."""
        found: Any = self
        for step in (*table, key):
            found = found.get(step) if isinstance(found, Mapping) else getattr(found, step, None)
            if found is None:
                return None
        return found


# --- reading and writing ------------------------------------------------------------------------


def read(path: Path) -> DataSchema:
    try:
        return parse(path.read_text("utf-8"), str(path))
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Run embedsvc validate to infer it.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None


def parse(text: str, name: str) -> DataSchema:
    try:
        return DataSchema.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not valid TOML: {error}.") from None
    except ValidationError as error:
        raise ConfigError(_sentence(name, error)) from None


def _sentence(name: str, error: ValidationError) -> str:
    errors = error.errors(include_url=False)
    # A misspelt rule is also a missing one: name what is there.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    *table, key = [str(step) for step in first["loc"]] or [""]
    where = f"{name}: [{'.'.join(table)}] " if table else f"{name}: "
    if first["type"] == "extra_forbidden":
        model = _TABLES.get(table[0]) if table else DataSchema
        known = list(model.model_fields) if model else []
        return f"{where}{key} is not a rule. {did_you_mean(key, known)}"
    if first["type"] == "missing":
        return f"{where}{key} is missing."
    if first["type"] == "value_error":
        return f"{name}: {first['msg'].removeprefix('Value error, ')}"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{where}{key} = {first['input']!r}: {message}."


_TABLES: dict[str, type[Table]] = {
    "graph": GraphRules,
    "drift": Thresholds,
    "columns": ColumnRules,
    "entities": EntityRules,
    "relations": RelationRules,
}
_HEAD = """\
# What a batch of data must look like to be let in, inferred from the first one: please review it.
# "seen" is what that batch had. Edit freely; comments stay. Unset rules check nothing.
# With each anomaly comes the line of this file that would accept it (docs/validation.md).
"""
Seen = Mapping[tuple[str, ...], str]  # table and key -> what was seen, for a comment


def write(path: Path, schema: DataSchema, seen: Seen | None = None) -> None:
    with durable.replacing(path) as file:
        file.write(as_toml(schema, seen or {}).encode())


def as_toml(schema: DataSchema, seen: Seen) -> str:
    lines = [_HEAD + f"format_version = {schema.format_version}"]
    tables: list[tuple[tuple[str, ...], Table]] = [
        (("graph",), schema.graph),
        (("drift",), schema.drift),
    ]
    for group in ("columns", "entities", "relations"):
        tables += [((group, name), rules) for name, rules in getattr(schema, group).items()]
    explained: set[tuple[str, str]] = set()
    for table, rules in tables:
        lines.append(f"\n{_header(table)}")
        for key, field in type(rules).model_fields.items():
            value = getattr(rules, key)
            if value is None:
                continue
            notes = [f"seen {seen[*table, key]}"] if (*table, key) in seen else []
            if (table[0], key) not in explained and field.description:
                notes.insert(0, field.description.splitlines()[0].rstrip("."))
                explained.add((table[0], key))
            comment = f"  # {'; '.join(notes)}" if notes else ""
            lines.append(f"{key} = {_toml(value)}{comment}")
    return "\n".join(lines) + "\n"


def _header(table: Sequence[str]) -> str:
    bare = re.compile(r"[A-Za-z0-9_-]+")
    return f"[{'.'.join(t if bare.fullmatch(t) else _toml(t) for t in table)}]"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return value.isoformat() if isinstance(value, date) else repr(value)


# --- edits --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """One line of the file as it would have to be; value None: without it."""

    table: tuple[str, ...]
    key: str
    value: Any

    @property
    def line(self) -> str:
        return f"{self.key} = {_toml(self.value)}" if self.value is not None else f"no {self.key}"

    def __str__(self) -> str:
        return f"{_header(self.table)} {self.line}"


def combined(edits: Sequence[Edit]) -> list[Edit]:
    """One edit a rule: where several change it, the one that accepts them all."""
    found: dict[tuple[tuple[str, ...], str], Edit] = {}
    for edit in edits:
        at = (edit.table, edit.key)
        value = edit.value if at not in found else _wider(edit.key, found[at].value, edit.value)
        found[at] = Edit(edit.table, edit.key, value)
    return list(found.values())


def _wider(key: str, one: Any, other: Any) -> Any:
    if one is None or other is None:
        return None
    if isinstance(one, list):
        return sorted({*one, *other})
    if isinstance(one, tuple):
        return (min(one[0], other[0]), max(one[1], other[1]))
    if isinstance(one, str):
        return other
    return min(one, other) if key in ("min", "presence", "earliest") else max(one, other)


def edited(text: str, edits: Sequence[Edit], name: str) -> str:
    """The file's text with each edit's line changed or added; all else stays, comments too."""
    lines = text.splitlines()
    for edit in combined(edits):
        _edit(lines, edit)
    text = "\n".join(lines) + "\n"
    schema = parse(text, name)
    for edit in combined(edits):
        if _plain(schema.at(edit.table, edit.key)) != _plain(edit.value):
            raise ConfigError(f"{name}: can't change it by itself; write {edit} there by hand.")
    return text


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _edit(lines: list[str], edit: Edit) -> None:
    start = next((i for i, line in enumerate(lines) if _table_of(line) == edit.table), None)
    if start is None and edit.value is None:
        return
    if start is None:
        lines += ["", _header(edit.table), edit.line]
        return
    end = next((i for i in range(start + 1, len(lines)) if _table_of(lines[i])), len(lines))
    for first in range(start + 1, end):
        for last in range(first, end):
            try:
                found = tomllib.loads("\n".join(lines[first : last + 1]))
            except tomllib.TOMLDecodeError:
                continue  # an array goes on over several lines
            if edit.key in found:
                changed = [edit.line + _comment(lines[last])] if edit.value is not None else []
                lines[first : last + 1] = changed
                return
            break
    if edit.value is not None:
        lines.insert(start + 1, edit.line)


def _table_of(line: str) -> tuple[str, ...]:
    """The names in a table header, () for any other line."""
    if not line.lstrip().startswith("["):
        return ()
    try:
        found = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    names = []
    while isinstance(found, dict) and found:
        name, found = next(iter(found.items()))
        names.append(name)
    return tuple(names)


def _comment(line: str) -> str:
    """The comment at the end of a line, with the blanks before it; a person's, or "seen ..."."""
    for at in (i for i, character in enumerate(line) if character == "#"):
        before = line[:at].rstrip()
        quoted = before.count('"') % 2 or before.count("'") % 2
        if not quoted:
            return line[len(before) :]
    return ""
