"""schema.toml: what data must look like to be let in. Inferred once, edited by people.

This module owns the file: models, reader, writer; schema_edits.py changes single lines of it. What
a rule means stands in its docstring; docs/validation.md explains the file. Every anomaly comes with
the `Edit` that would accept it, which is a line of this file.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

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
    duplicates: Share = 1.0
    """Largest share of rows that repeat an earlier one in every cell."""
    malformed: Share = 1.0
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
    presence: Share = 0.0
    """Least share of rows that have a value."""
    mistyped: Share = 1.0
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
    broken: Share = 1.0
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


class SchemaFile(NamedTuple):
    schema: DataSchema
    text: str  # for schema_edits.py
    sha256: str  # of its bytes


def read(path: Path) -> SchemaFile:
    try:
        data = path.read_bytes()
        text = data.decode().replace("\r\n", "\n")
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Run embedsvc validate to infer it.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None
    return SchemaFile(parse(text, str(path)), text, hashlib.sha256(data).hexdigest())


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
# "seen" is what that batch had. Edit freely; comments stay. What is left out is not checked.
# With each anomaly comes the line of this file that would accept it (docs/validation.md).
"""
Seen = Mapping[tuple[str, ...], str]  # table and key -> what was seen, for a comment


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
        lines.append(f"\n{header_of(table)}")
        for key, field in type(rules).model_fields.items():
            value = getattr(rules, key)
            if value is None:
                continue
            notes = [f"seen {seen[*table, key]}"] if (*table, key) in seen else []
            if (table[0], key) not in explained and field.description:
                notes.insert(0, field.description.splitlines()[0].rstrip("."))
                explained.add((table[0], key))
            comment = f"  # {'; '.join(notes)}" if notes else ""
            lines.append(f"{key} = {toml_of(value)}{comment}")
    return "\n".join(lines) + "\n"


def header_of(table: Sequence[str]) -> str:
    bare = re.compile(r"[A-Za-z0-9_-]+")
    return f"[{'.'.join(t if bare.fullmatch(t) else toml_of(t) for t in table)}]"


def toml_of(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        for (
            odd
        ) in "\x7f\x85\u2028\u2029":  # TOML forbids the first; editors end lines at the others
            text = text.replace(odd, f"\\u{ord(odd):04x}")
        return text
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_of, value))}]"
    return value.isoformat() if isinstance(value, date) else repr(value)
