"""One feature each: a column of rows -> ids for its slot, prints for crosses, dense columns.

Each kind has an encoder and, where training has something to find out, a fit of it:
`add` the batches, then `finish` to an encoder. `about` and `arrays` are what of it is saved.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from partitions import embeddings
from partitions.errors import ConfigError, DataError
from partitions.features import columns, times
from partitions.features.columns import Where
from partitions.features.config import MAX_IDS, FeatureSpec
from partitions.features.crosses import Part
from partitions.features.fingerprints import Fingerprints, Prints, integers
from partitions.features.numbers import Floats, Scale, ScaleFit
from partitions.features.vocabulary import Counts, Keys, Vocabulary

MISSING, UNKNOWN, FIRST = 0, 1, 2  # ids of a category; then its vocabulary
_NO_PRINTS = np.empty(0, np.uint64)
Dense = NDArray[np.float32]


class Asked(NamedTuple):
    """What `encode` is to do. column: None where the rows have none; prints: for crosses."""

    column: pa.Array | None
    rows: int
    where: Where
    dense: Dense  # [rows, columns of this feature], to fill
    prints: bool


class Encoder(Protocol):
    name: str
    spec: FeatureSpec

    @property
    def size(self) -> int | None:
        """Of its slot; None where it has none."""

    @property
    def dense(self) -> tuple[str, ...]: ...

    def encode(self, asked: Asked) -> tuple[Part | None, int]:
        """(what it is, how many values were missing)"""

    def about(self) -> dict[str, Any]: ...

    def arrays(self) -> dict[str, pa.Array]: ...


class Fit(Protocol):
    def follow(self, start: Encoder) -> None:
        """Before the first batch: continue `start`, which is of this name, kind and shape."""

    def add(self, column: pa.Array, where: Where) -> None: ...

    def finish(self, start: Encoder | None) -> Encoder:
        """start: the one that was followed."""


# --- categories and hashes ------------------------------------------------------------------------


def default_keys(name: str, spec: FeatureSpec, kind: str) -> pa.Array:
    """The default's values; none where there is no default."""
    value: Any = spec.default
    given = [] if value is None else value if isinstance(value, list) else [value]
    if spec.separator is not None and isinstance(value, str):
        given = value.split(spec.separator)
    try:
        return columns.as_keys(pa.array(given), kind, Where(name)).drop_null()
    except DataError:
        raise ConfigError(
            f"feature {name}: default = {value!r} is not of its type, which is {kind}. Mend it."
        ) from None


class _KeyReader:
    """A column -> keys, the default in place of what is missing."""

    def __init__(self, name: str, spec: FeatureSpec, kind: str) -> None:
        self.spec, self.kind = spec, kind
        self._default = default_keys(name, spec, kind)

    def read(
        self, column: pa.Array | None, rows: int, where: Where
    ) -> tuple[pa.Array, NDArray[np.int64] | None, int]:
        """(values, starts of lists, how many were missing)"""
        if column is None:
            column = pa.nulls(rows)
        if self.spec.list:
            return self._read_lists(column, where)
        values = columns.as_keys(column, self.kind, where)
        missing = values.null_count
        if missing and len(self._default):
            values = pc.fill_null(values, self._default[0])
        return values, None, missing

    def _read_lists(
        self, column: pa.Array, where: Where
    ) -> tuple[pa.Array, NDArray[np.int64], int]:
        lists = columns.split(column, self.spec.separator, where)
        values, starts = columns.flat(lists)
        values = columns.as_keys(values, self.kind, where._replace(starts=starts))
        values, starts = columns.without_null(values, starts)
        missing = lists.null_count
        if missing and len(self._default):
            values, starts = self._filled(values, starts, columns.mask_of(lists))
        return values, starts, missing

    def _filled(
        self, values: pa.Array, starts: NDArray[np.int64], missing: Any
    ) -> tuple[pa.Array, NDArray[np.int64]]:
        """Lists that are missing hold nothing: give them the default's values."""
        counts = np.where(missing, len(self._default), np.diff(starts))
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        firsts = np.where(missing, len(values), starts[:-1])
        places = np.repeat(firsts - ends[:-1], counts) + np.arange(ends[-1])
        return pa.concat_arrays([values, self._default]).take(pa.array(places)), ends


@dataclass
class Keyed:
    """A category where there is a vocabulary, else a hash."""

    name: str
    spec: FeatureSpec
    kind: str  # "text" or "integer"
    fingerprints: Fingerprints
    vocabulary: Vocabulary | None

    dense: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self._reader = _KeyReader(self.name, self.spec, self.kind)

    @property
    def size(self) -> int:
        if self.vocabulary is None:
            assert self.spec.buckets is not None
            return self.spec.buckets
        return FIRST + len(self.vocabulary)

    def encode(self, asked: Asked) -> tuple[Part, int]:
        values, starts, missing = self._reader.read(asked.column, asked.rows, asked.where)
        keys = Keys(values, self.fingerprints)
        if self.vocabulary is None:
            ids = (keys.prints % np.uint64(self.size - 1)).astype(np.int32)
            ids += 1
        else:
            ids = self.vocabulary.find(keys)
            ids += FIRST
            ids[ids < FIRST] = UNKNOWN
        prints = keys.row_prints() if asked.prints else _NO_PRINTS
        return Part(keys.spread(ids, MISSING), prints, starts), missing

    def about(self) -> dict[str, Any]:
        return {"type": self.kind}

    def arrays(self) -> dict[str, pa.Array]:
        return {} if self.vocabulary is None else {"vocabulary": self.vocabulary.values}


class KeyedFit:
    def __init__(self, name: str, spec: FeatureSpec, fingerprints: Fingerprints) -> None:
        self._name, self._spec, self._fingerprints = name, spec, fingerprints
        self._counts = Counts() if spec.kind == "category" else None
        self._reader: _KeyReader | None = None
        self._nulls = 0  # values that were missing before any told the type
        if spec.type is not None or spec.separator is not None:
            self._read_as(spec.type or "text")

    def _read_as(self, kind: str) -> None:
        self._reader = _KeyReader(self._name, self._spec, kind)
        self.add(pa.nulls(self._nulls), Where(self._name))

    def follow(self, start: Encoder) -> None:
        """Have the type that `start` has."""
        assert isinstance(start, Keyed)
        self._read_as(start.kind)

    def add(self, column: pa.Array, where: Where) -> None:
        if self._reader is None:
            kind = columns.type_of_keys(column)
            if kind is None:
                self._nulls += column.null_count
                return
            self._read_as(kind)
        assert self._reader is not None
        values, _, _ = self._reader.read(column, len(column), where)
        if self._counts is not None:
            self._counts.add(values)

    def finish(self, start: Encoder | None) -> Keyed:
        if self._reader is None:
            self._read_as("text")
        assert self._reader is not None
        kind = self._reader.kind
        vocabulary = None
        if self._counts is not None:
            known = start.vocabulary if isinstance(start, Keyed) else None
            vocabulary = self._vocabulary(self._counts, kind, known)
        return Keyed(self._name, self._spec, kind, self._fingerprints, vocabulary)

    def _vocabulary(self, counts: Counts, kind: str, known: Vocabulary | None) -> Vocabulary:
        """What was known keeps its place; the new values follow."""
        values = counts.frequent(columns.KEY_TYPES[kind], self._spec.min_count)
        if known is not None:
            new = known.find(Keys(values, self._fingerprints)) < 0
            values = pa.concat_arrays([known.values, values.filter(pa.array(new))])
        if self._spec.max_size is not None:
            values = values.slice(0, max(self._spec.max_size, len(known or ())))
        if len(values) > MAX_IDS - FIRST:
            raise DataError(f"feature {self._name} has {len(values):,} values. Make it a hash.")
        return Vocabulary(values, self._fingerprints)


# --- times ----------------------------------------------------------------------------------------


def _time_default(name: str, spec: FeatureSpec) -> int | None:
    if spec.default is None:
        return None
    try:
        return columns.as_times(pa.array([spec.default]), Where(name))[0].as_py()
    except DataError:
        raise ConfigError(f"feature {name}: default = {spec.default!r} is not a time.") from None


@dataclass
class Time:
    name: str
    spec: FeatureSpec
    fingerprints: Fingerprints

    dense: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        assert self.spec.part is not None
        self.size = times.SIZES[self.spec.part]
        self._default = _time_default(self.name, self.spec)
        self._prints = prints_of_ids(self.size, self.fingerprints)

    def encode(self, asked: Asked) -> tuple[Part, int]:
        column = pa.nulls(asked.rows) if asked.column is None else asked.column
        seconds = columns.as_times(column, asked.where)
        missing = seconds.null_count
        if missing and self._default is not None:
            seconds = pc.fill_null(seconds, self._default)
        ids = times.part_of(integers(seconds), self.spec.part or "")
        if seconds.null_count:
            ids[columns.mask_of(seconds)] = MISSING
        return Part(ids, self._prints[ids] if asked.prints else _NO_PRINTS), missing

    def about(self) -> dict[str, Any]:
        return {}

    def arrays(self) -> dict[str, pa.Array]:
        return {}


def prints_of_ids(size: int, fingerprints: Fingerprints) -> Prints:
    """Of a slot whose ids are its values; 0 is missing."""
    prints = fingerprints.of_integers(np.arange(size))
    prints[MISSING] = fingerprints.missing
    return prints


class TimeFit:
    def __init__(self, name: str, spec: FeatureSpec, fingerprints: Fingerprints) -> None:
        self._time = Time(name, spec, fingerprints)

    def follow(self, start: Encoder) -> None:
        pass

    def add(self, column: pa.Array, where: Where) -> None:
        columns.as_times(column, where)  # which refuses what is no time

    def finish(self, start: Encoder | None) -> Time:
        return self._time


# --- numbers --------------------------------------------------------------------------------------


@dataclass
class Number:
    name: str
    spec: FeatureSpec
    fingerprints: Fingerprints
    scale: Scale

    def __post_init__(self) -> None:
        self.size = self.scale.size
        names = (self.name, f"{self.name}:missing")
        self.dense = names[: self.scale.num_dense]
        self._prints = prints_of_ids(self.size or 1, self.fingerprints)

    def encode(self, asked: Asked) -> tuple[Part | None, int]:
        x, missing, count = read_numbers(self.spec, asked.column, asked.rows, asked.where)
        self.scale.write(x, missing, asked.dense)
        if self.size is None:
            return None, count
        ids = self.scale.ids(x, missing)
        return Part(ids, self._prints[ids] if asked.prints else _NO_PRINTS), count

    def about(self) -> dict[str, Any]:
        return self.scale.about()

    def arrays(self) -> dict[str, pa.Array]:
        return {"quantiles": pa.array(self.scale.quantiles), "edges": pa.array(self.scale.edges)}


def read_numbers(
    spec: FeatureSpec, column: pa.Array | None, rows: int, where: Where
) -> tuple[Floats, NDArray[np.bool_], int]:
    """(numbers, where they are still missing, how many were before the default)"""
    x = np.full(rows, np.nan) if column is None else columns.as_numbers(column, where)
    missing = np.isnan(x)
    count = int(np.count_nonzero(missing))
    if count and spec.default is not None:
        assert isinstance(spec.default, int | float)
        x, missing = np.where(missing, float(spec.default), x), np.zeros(rows, np.bool_)
    return x, missing, count


class NumberFit:
    def __init__(self, name: str, spec: FeatureSpec, fingerprints: Fingerprints) -> None:
        self._name, self._spec, self._fingerprints = name, spec, fingerprints
        self._fit = ScaleFit(spec)

    def follow(self, start: Encoder) -> None:
        pass

    def add(self, column: pa.Array, where: Where) -> None:
        x, _, _ = read_numbers(self._spec, column, len(column), where)
        self._fit.add(x)

    def finish(self, start: Encoder | None) -> Number:
        """Of a start that has the same settings, its cuts: else weights would lose their sense."""
        if isinstance(start, Number) and start.spec == self._spec:
            return start
        return Number(self._name, self._spec, self._fingerprints, self._fit.finish())


# --- vectors --------------------------------------------------------------------------------------


@dataclass
class Vector:
    """Zeros for a key that has none, and an indicator where training had such."""

    name: str
    spec: FeatureSpec
    keys: Vocabulary
    vectors: Dense  # [keys, dim]
    indicator: bool

    size: ClassVar[None] = None

    def __post_init__(self) -> None:
        self._reader = _KeyReader(self.name, self.spec, "text")
        self._dim = self.vectors.shape[1]
        names = tuple(f"{self.name}:{n}" for n in range(self._dim))
        self.dense = (*names, f"{self.name}:missing") if self.indicator else names

    def encode(self, asked: Asked) -> tuple[None, int]:
        places, missing = self.places(asked.column, asked.rows, asked.where)
        known = places >= 0
        asked.dense[known, : self._dim] = self.vectors[places[known]]
        asked.dense[~known, : self._dim] = 0
        if self.indicator:
            asked.dense[:, self._dim] = ~known
        return None, missing

    def places(
        self, column: pa.Array | None, rows: int, where: Where
    ) -> tuple[NDArray[np.int32], int]:
        """The row of each one's vector, -1 where there is none."""
        values, _, missing = self._reader.read(column, rows, where)
        keys = Keys(values, self.keys.fingerprints)
        return keys.spread(self.keys.find(keys), -1), missing

    def about(self) -> dict[str, Any]:
        return {"indicator": self.indicator, "dim": self._dim}

    def arrays(self) -> dict[str, pa.Array]:
        flat = np.ascontiguousarray(self.vectors).ravel()
        return {"keys": self.keys.values, "vectors": pa.array(flat)}


class VectorFit:
    def __init__(self, name: str, spec: FeatureSpec, fingerprints: Fingerprints) -> None:
        assert spec.file is not None
        keys, vectors = embeddings.read(Path(spec.file))
        if len(pc.unique(keys)) < len(keys):
            raise DataError(f"{spec.file} has vectors of one key twice: keep one of them.")
        known = Vocabulary(keys, fingerprints)
        self._vector = Vector(name, spec, known, vectors, indicator=False)

    def follow(self, start: Encoder) -> None:
        assert isinstance(start, Vector)
        dim = self._vector.vectors.shape[1]
        if dim != start.vectors.shape[1]:
            raise ConfigError(
                f"feature {start.name}: {self._vector.spec.file} has vectors of {dim} numbers, "
                f"where those it was trained with have {start.vectors.shape[1]}. Train anew."
            )
        self._vector = replace(self._vector, indicator=start.indicator)

    def add(self, column: pa.Array, where: Where) -> None:
        places, _ = self._vector.places(column, len(column), where)
        if not self._vector.indicator and (places < 0).any():
            self._vector = replace(self._vector, indicator=True)

    def finish(self, start: Encoder | None) -> Vector:
        return (
            replace(self._vector, indicator=start.indicator)
            if isinstance(start, Vector)
            else self._vector
        )


# --- by kind --------------------------------------------------------------------------------------

_FITS: dict[str, Any] = {
    "category": KeyedFit,
    "hash": KeyedFit,
    "number": NumberFit,
    "time": TimeFit,
    "vector": VectorFit,
}


def fit_of(name: str, spec: FeatureSpec, fingerprints: Fingerprints) -> Fit:
    return _FITS[spec.kind](name, spec, fingerprints)


def restored(
    name: str,
    spec: FeatureSpec,
    about: Mapping[str, Any],
    arrays: Mapping[str, pa.Array],
    fingerprints: Fingerprints,
) -> Encoder:
    """From what `about` and `arrays` gave."""
    if spec.kind == "time":
        return Time(name, spec, fingerprints)
    if spec.kind == "number":
        cuts = {key: arrays[key].to_numpy() for key in ("quantiles", "edges")}
        return Number(name, spec, fingerprints, Scale(spec, **about, **cuts))
    if spec.kind == "vector":
        vectors = arrays["vectors"].to_numpy().reshape(len(arrays["keys"]), about["dim"])
        keys = Vocabulary(arrays["keys"], fingerprints)
        return Vector(name, spec, keys, vectors, about["indicator"])
    known = Vocabulary(arrays["vocabulary"], fingerprints) if spec.kind == "category" else None
    return Keyed(name, spec, about["type"], fingerprints, known)
