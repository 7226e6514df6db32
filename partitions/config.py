"""One TOML file + dotted overrides -> frozen typed models.

    embedsvc train graph.toml train.lr=0.05 model.dim=200

Each package declares its own tables and registers them as entry points of `embedsvc.tables`;
this floor owns `[run]` and `[graph]`. Unknown keys are errors that name the nearest known key.
Relative paths are relative to the folder the command runs in.
"""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from partitions.errors import ConfigError, did_you_mean

M = TypeVar("M", bound=BaseModel)
_EXPECTED = {  # by the kind of pydantic's error
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list, in square brackets",
    "dict": "a table",
}


class Table(BaseModel):
    """A frozen group of settings; a key it does not know is an error. Numbers are finite: they are
    kept as JSON, which has no others."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class RunConfig(Table):
    """`[run]`: where this run keeps what it makes."""

    dir: Path = Path("runs/default")
    """Folder for graph/, checkpoint/ and published/."""

    @property
    def graph(self) -> Path:
        return self.dir / "graph"

    @property
    def checkpoint(self) -> Path:
        return self.dir / "checkpoint"

    @property
    def published(self) -> Path:
        return self.dir / "published"


def _is_column(value: Any) -> Any:
    if isinstance(value, str) or (type(value) is int and value >= 0):
        return value
    raise ValueError(f"a column is a name or a position counted from 0, found {value!r}")


Column = Annotated[str | int, BeforeValidator(_is_column)]


class SourceConfig(Table):
    """Where rows come from and how to read them."""

    path: str
    """File, folder or glob such as "events/*.parquet", relative to graph.data; or its URI."""
    member: str | None = None
    """File inside a .tar, .tar.gz or .zip archive."""
    format: Literal["text", "parquet", "arrow", "json"] | None = None
    """Told from the file name's ending where unset."""
    delimiter: Annotated[str, Field(min_length=1)] | None = None
    """Text only; several characters are allowed. Unset: comma for .csv, tab otherwise."""
    header: bool | None = None
    """Text only: the first line names the columns. Unset: true where `columns` uses names."""
    encoding: str = "utf-8"
    """Text only."""

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, value: str) -> str:
        text = "a\tb,c\n"  # some codecs are not of text (rot13), or not of any (idna, undefined)
        try:
            fine = text.encode(value).decode(value) == text and value.lower() != "idna"
        except (LookupError, UnicodeError, ValueError):
            fine = False
        if not fine:
            raise ValueError(f"there is no text encoding named {value}")
        return value

    @model_validator(mode="after")
    def _has_delimiter(self) -> "SourceConfig":
        delimiter = self.delimiter or ","
        if set(delimiter) & set("\0\r\n"):
            raise ValueError(f"delimiter {delimiter!r} holds NUL or a line end, which can't divide")
        try:
            delimiter.encode(self.encoding)
        except UnicodeError:
            raise ValueError(
                f"delimiter {delimiter!r} can't be written in the encoding {self.encoding}"
            ) from None
        return self


class AttributesConfig(SourceConfig):
    """Columns to show with an entity: its title, its category."""

    columns: dict[str, Column]
    """Must map `key`; every other name becomes an attribute (as text)."""

    @model_validator(mode="after")
    def _maps_key(self) -> "AttributesConfig":
        if "key" not in self.columns:
            raise ValueError("columns must map `key`, such as {key = 0, title = 1}")
        return self


class FeaturesConfig(SourceConfig):
    """`[graph.entities.NAME.features]`: an entity's vector is the mean of its features' vectors."""

    columns: dict[Literal["key", "features"], Column] = {"key": 0, "features": 1}
    """Both; `features` is one feature a row, several with a separator, or a column of lists."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """Between the features of a row; unset: a row has one, or a list."""
    type: str | None = None
    """Entity type that the features make up; several types may share one. Unset: NAME-feature."""

    @model_validator(mode="after")
    def _maps_both(self) -> "FeaturesConfig":
        if missing := {"key", "features"} - set(self.columns):
            raise ValueError(f"columns does not map {', '.join(sorted(missing))}")
        return self


class InputConfig(SourceConfig):
    """`[[graph.inputs]]`: rows that are edges."""

    relation: str | None = None
    """All rows are of this relation; unset: a column names it."""
    columns: dict[Literal["lhs", "rel", "rhs", "weight", "timestamp"], Column] | None = None
    """Column name or position of each part; unset: positions in this order."""
    split: Literal["train", "valid", "test"] | None = None
    """The split of all rows; unset: train, less what graph.holdout draws."""

    @model_validator(mode="after")
    def _maps_all(self) -> "InputConfig":
        needed = {"lhs", "rhs"} | (set() if self.relation else {"rel"})
        if self.columns is not None and (missing := needed - set(self.columns)):
            raise ValueError(f"columns does not map {', '.join(sorted(missing))}")
        if self.columns is not None and self.relation and "rel" in self.columns:
            raise ValueError("the relation is given twice: as `relation` and as a column")
        return self

    @property
    def resolved_columns(self) -> dict[str, Column]:
        if self.columns is not None:
            return {str(name): column for name, column in self.columns.items()}
        return {"lhs": 0, "rhs": 1} if self.relation else {"lhs": 0, "rel": 1, "rhs": 2}


class EntityConfig(Table):
    """`[graph.entities.NAME]`"""

    partitions: Annotated[int, Field(ge=1)] = 1
    """1, or the one number that all partitioned types share."""
    expected: Annotated[int, Field(ge=1)] | None = None
    """About how many there will be, for the memory plan; unset: guessed from the first rows."""
    attributes: AttributesConfig | None = None
    """A file with columns to show beside a key."""
    features: FeaturesConfig | None = None
    """A file with the features that the entities' vectors are made of; unset: of their own."""


class RelationConfig(Table):
    """`[graph.relations.NAME]`; NAME `*` stands for every relation found in the data."""

    lhs: str
    """Entity type."""
    rhs: str
    """Entity type."""


class HoldoutConfig(Table):
    """`[graph.holdout]`: edges to keep out of training, in one of three ways: shares of them, cuts
    in time, or each lhs's last edges."""

    valid: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of edges."""
    test: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of edges."""
    by: Literal["time", "edge", "lhs"] | None = None
    """Which edges the shares take: time, the newest of all; edge, by a hash of the edge and the
    seed (whatever order and partitions; equal edges share a split); lhs, the same of each lhs's own
    edges. Unset: time where the inputs have timestamps, else edge."""
    valid_after: datetime | int | None = None
    """Edges later than this (a date, or seconds since 1970 UTC) are for validation."""
    test_after: datetime | int | None = None
    """Edges later than this are for the test."""
    last: bool = False
    """The last edge of each lhs is for the test, the one before it for validation."""
    relations: list[str] | None = None
    """Only of these relations; unset: of all."""
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 1

    @model_validator(mode="after")
    def _one_way(self) -> "HoldoutConfig":
        by_time = self.valid_after is not None or self.test_after is not None
        if self.has_shares + by_time + self.last > 1:
            raise ValueError("hold out by shares, by time or the last edges: one of them")
        if self.by is not None and not self.has_shares:
            raise ValueError("by says which edges a share takes: set valid or test to a share")
        if self.valid + self.test >= 1:
            raise ValueError("holdout.valid + holdout.test leave nothing to train on")
        if None not in (self.valid_after, self.test_after) and self.cuts[0] > self.cuts[1]:
            raise ValueError("valid_after must not be later than test_after")
        return self

    @property
    def cuts(self) -> tuple[float, float]:
        """(valid_after, test_after) in seconds since 1970 UTC, infinite where unset."""
        valid, test = (
            math.inf if cut is None else cut if isinstance(cut, int) else _seconds(cut)
            for cut in (self.valid_after, self.test_after)
        )
        return valid, test

    @property
    def has_shares(self) -> bool:
        return self.valid + self.test > 0

    @property
    def needs_time(self) -> bool:
        cut = self.valid_after is not None or self.test_after is not None
        return self.last or cut or self.by == "time"


def _seconds(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class GraphConfig(Table):
    """`[graph]`: what `embedsvc import` reads."""

    data: Path = Path(".")
    """Folder that the inputs' paths start from."""
    entities: Annotated[dict[str, EntityConfig], Field(min_length=1)]
    relations: Annotated[dict[str, RelationConfig], Field(min_length=1)]
    inputs: list[InputConfig] = []
    own_buckets: str | None = None
    """Instead of inputs: folder (or URI) of a graph that is partitioned already, as Parquet."""
    holdout: HoldoutConfig = HoldoutConfig()
    skip_bad: bool = False
    """Skip malformed rows instead of stopping at the first; they are counted and kept aside."""
    duplicates: Literal["keep", "drop", "sum"] = "keep"
    """Equal edges of a split: keep all, keep the first, or keep one with the summed weight."""
    self_loops: Literal["keep", "drop"] = "keep"
    """Edges from an entity to itself."""
    gate: bool = True
    """Check the inputs against schema.toml and the last good batch before a graph is made."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Of the import; unset: all cores. The graph does not depend on it."""
    memory_mb: Annotated[int, Field(ge=1)] | None = None
    """Most memory that an import may plan for; unset: what the machine has free."""

    @property
    def has_times(self) -> bool:
        return any("timestamp" in source.resolved_columns for source in self.inputs)

    @property
    def content(self) -> dict[str, Any]:
        """The settings that the graph depends on, as JSON values."""
        how = {"gate": True, "threads": True, "memory_mb": True}
        # What is unset and newer than some graphs: they are to be known again.
        unset = {
            name: {"expected": True} | ({} if entity.features else {"features": True})
            for name, entity in self.entities.items()
        }
        by = {"by": True} if self.holdout.by is None else {}
        return self.model_dump(mode="json", exclude={**how, "entities": unset, "holdout": by})

    @field_validator("entities")
    @classmethod
    def _with_features(cls, entities: dict[str, EntityConfig]) -> dict[str, EntityConfig]:
        """The same with features' types named, and there."""
        found = dict(entities)
        for name, entity in entities.items():
            if (features := entity.features) is not None:
                kind = features.type or f"{name}-feature"
                named = features.model_copy(update={"type": kind})
                found[name] = entity.model_copy(update={"features": named})
                found.setdefault(kind, EntityConfig())
        return found

    @model_validator(mode="after")
    def _fits_together(self) -> "GraphConfig":
        for name in self.entities:
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(
                    f"entities.{name}: a type's name is made of letters, digits, - and _"
                )
        for name, relation in self.relations.items():
            for side in (relation.lhs, relation.rhs):
                if side not in self.entities:
                    hint = did_you_mean(side, list(self.entities))
                    raise ValueError(
                        f"relations.{name} names the entity type {side}, "
                        f"which is not under [graph.entities]. {hint}"
                    )
        self._check_origin()
        self._check_features()
        counts = {e.partitions for e in self.entities.values()} - {1}
        if len(counts) > 1:
            raise ValueError(
                "every entity type has 1 partition or the same number of them, "
                f"found {', '.join(map(str, sorted(counts)))}"
            )
        for source in self.inputs:
            if source.relation is not None and not {source.relation, "*"} & set(self.relations):
                hint = did_you_mean(source.relation, list(self.relations))
                raise ValueError(
                    f"the input {source.path} is of relation {source.relation}, "
                    f"which is not under [graph.relations]. {hint}"
                )
        if self.has_times and not all("timestamp" in s.resolved_columns for s in self.inputs):
            raise ValueError("either all inputs have a timestamp column or none has")
        if self.holdout.needs_time and not self.has_times:
            raise ValueError("holdout by time or by last edges needs a timestamp column")
        for name in self.holdout.relations or []:
            if not {name, "*"} & set(self.relations):
                hint = did_you_mean(name, list(self.relations))
                raise ValueError(f"holdout.relations names {name}, which is not a relation. {hint}")
        if self.own_buckets is None:  # whose folders say what types there are
            self._check_named()
        return self

    def _check_named(self) -> None:
        """A type of no relation has no edges: its name is a misspelt one, or it is not needed."""
        named = {side for r in self.relations.values() for side in (r.lhs, r.rhs)}
        made_of = {e.features.type for e in self.entities.values() if e.features is not None}
        for name in self.entities:
            if name not in named | made_of:
                hint = did_you_mean(name, sorted(named))
                raise ValueError(f"entities.{name} is a type that no relation names. {hint}")

    def _check_features(self) -> None:
        for name, entity in self.entities.items():
            if entity.features is None:
                continue
            kind = entity.features.type or ""
            if self.entities[kind].features is not None:
                raise ValueError(
                    f"entities.{name}.features are of type {kind}, which has features itself: "
                    "they need vectors of their own. Name another type"
                )
            for one in (name, kind):
                if self.entities[one].partitions > 1:
                    raise ValueError(
                        f"entities.{one}: a type with features has 1 partition, and so has that "
                        f"of its features, found {self.entities[one].partitions}"
                    )

    def _check_origin(self) -> None:
        if self.own_buckets is None:
            if not self.inputs:
                raise ValueError("inputs is missing: name at least one, or set own_buckets")
            return
        if self.inputs:
            raise ValueError("the edges come from inputs or from own_buckets: remove one of them")
        changing = ("holdout", "skip_bad", "duplicates", "self_loops")
        defaults = {name: type(self).model_fields[name].default for name in changing}
        if odd := [name for name in changing if getattr(self, name) != defaults[name]]:
            raise ValueError(f"own_buckets are taken as they are: remove {', '.join(odd)}")
        for name, entity in self.entities.items():
            if entity.attributes is not None:
                raise ValueError(
                    f"own_buckets have no attributes: remove entities.{name}.attributes"
                )
            if entity.features is not None:
                raise ValueError(f"own_buckets have no features: remove entities.{name}.features")


class Settings:
    """The tables of one config file, each asked for by its model.

    A table that no installed package declares is an error at once; the content of a table is
    checked when its owner asks for it, so that serving needs nothing from training.
    """

    def __init__(self, name: str, tables: Mapping[str, Any]) -> None:
        self.name = name
        self._tables = tables
        known = [point.name for point in entry_points(group="embedsvc.tables")]
        for table in tables:
            if table not in known:
                raise ConfigError(f"{name}: [{table}] is not a table. {did_you_mean(table, known)}")

    def table(self, key: str, model: type[M]) -> M:
        """The table `[key]` as `model`; defaults where the file is silent."""
        found = self._tables.get(key, {})
        if not isinstance(found, dict):
            raise ConfigError(f"{self.name}: {key} must be a table: [{key}].")
        try:
            return model.model_validate(found)
        except ValidationError as error:
            raise ConfigError(_sentence(self.name, key, model, error)) from None

    def resolved(self) -> dict[str, Any]:
        """Every declared table with its defaults filled in, as plain JSON values."""
        tables = {}
        for point in entry_points(group="embedsvc.tables"):
            if point.name in self._tables or point.name != "graph":
                tables[point.name] = self.table(point.name, point.load()).model_dump(mode="json")
        return tables


def load(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read a TOML file and apply overrides such as "train.lr=0.05"."""
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: name a TOML file with your settings.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder: name a TOML file with your settings.") from None
    except OSError as error:
        reason = (error.strerror or "no reason given").lower()
        raise ConfigError(f"{path} can't be read: {reason}. Mend it, or name another.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None
    return from_tables(tables, overrides, str(path))


def from_tables(
    tables: Mapping[str, Any], overrides: Sequence[str] = (), name: str = "settings"
) -> Settings:
    """The same from a dict of tables, which stays as it is; `name` stands for it in errors."""
    changed = deepcopy(dict(tables))
    for override in overrides:
        _apply(changed, override)
    if (where := _nul_in(changed)) is not None:
        raise ConfigError(f"{name}: {where} holds the character NUL: remove it.")
    return Settings(name, changed)


def _nul_in(value: Any) -> str | None:
    """The dotted name of a setting with a NUL in it, which no path and no name may hold."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for name, part in inside:
        if isinstance(part, str) and "\0" in part:
            return str(name)
        if isinstance(part, dict | list) and (found := _nul_in(part)) is not None:
            return f"{name}.{found}"
    return None


def _apply(tables: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *parents, key = name.split(".")
    if not equals or not parents or "" in (*parents, key):
        raise ConfigError(f"{override} is not a setting: write it as table.key=value.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string, so that run.dir=runs/x needs no quotes
    table = tables
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{override}: {parent} is a value, not a table.")
    table[key] = value


def _sentence(name: str, table: str, model: type[BaseModel], error: ValidationError) -> str:
    """The first mistake of a pydantic report as one sentence; a key that is misspelt comes before
    the missing key that it stands for."""
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    steps = [str(step) for step in first["loc"]]
    if steps[-1:] == ["[key]"]:  # a name that a dict doesn't allow
        where, known = ".".join([table, *steps[:-2]]), re.findall(r"'(\w+)'", first["msg"])
        return f"{name}: [{where}] {steps[-2]} is not a setting. {did_you_mean(steps[-2], known)}"
    where = ".".join([table, *steps[:-1]]) if steps else table
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, steps[:-1])
        return f"{name}: [{where}] {steps[-1]} is not a setting. {did_you_mean(steps[-1], known)}"
    if first["type"] == "missing":
        return f"{name}: [{where}] {steps[-1]} is missing."
    if first["type"] in ("model_type", "model_attributes_type"):
        at = ".".join([table, *steps])
        known = [f"{at}.{key}" for key in _known_keys(model, steps)]
        return (
            f"{name}: [{where}] {steps[-1]} = {first['input']!r}: it is a table of settings. Set "
            f"one of them: {', '.join(known)}."
        )
    if (kind := _EXPECTED.get(first["type"].partition("_")[0])) and _is_of_type(first["type"]):
        return f"{name}: [{where}] {steps[-1]} = {first['input']!r}: expected {kind}."
    message = first["msg"].removeprefix("Value error, ").rstrip(".?")
    message = message[0].lower() + message[1:] if first["type"] != "value_error" else message
    end = "?" if first["msg"].endswith("?") else "."
    if first["type"] == "value_error":
        return f"{name}: [{'.'.join([table, *steps])}] {message}{end}"
    return f"{name}: [{where}] {steps[-1]} = {first['input']!r}: {message}{end}"


def _is_of_type(kind: str) -> bool:
    """Whether pydantic's kind of error is that a value is of another type, not out of bounds."""
    return kind.partition("_")[2] in ("type", "parsing", "from_float")


def _known_keys(model: type[BaseModel], steps: Sequence[str]) -> list[str]:
    """The keys that the table at `steps` below `model` knows."""
    for step in steps:
        if step in model.model_fields:  # else a name in a dict or a place in a list: stay
            inner = _inner_table(model.model_fields[step].annotation)
            if inner is None:
                return []
            model = inner
    return list(model.model_fields)


def _inner_table(annotation: Any) -> type[BaseModel] | None:
    """The model inside list[Model], dict[str, Model] or Model | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _inner_table(inner)) is not None:
            return found
    return None
