"""Skew: do the features that serving saw look like those that training saw?

Two questions. `compare` asks of distributions, with the code and thresholds of drift: a feature
that is scaled twice, or always empty in serving, shows. `differing` asks of single rows joined by a
key, where both sides logged the same event: a feature computed differently shows even if its
distribution does not.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from partitions.errors import DataError, did_you_mean
from partitions.gate.anomalies import Anomaly, Distance, explained
from partitions.gate.comparison import distances
from partitions.gate.data_schema import ColumnRules, Thresholds
from partitions.gate.statistics import Statistics

_EXAMPLES = 3

Rows: TypeAlias = pa.Table | pa.RecordBatch | Iterable[pa.RecordBatch]


@dataclass(frozen=True)
class Skew:
    anomalies: tuple[Anomaly, ...]
    distances: tuple[Distance, ...]


def compare(
    training: Statistics,
    serving: Statistics,
    thresholds: Thresholds | None = None,
    columns: Mapping[str, ColumnRules] | None = None,
) -> Skew:
    """Distances between the two, and those beyond their limits as anomalies."""
    found = distances(training, serving, thresholds or Thresholds(), columns or {}, {})
    anomalies = [distance.as_anomaly() for distance in found if distance.drifted]
    for name in sorted(set(training.kinds) - set(serving.kinds)):
        what = f"Serving logs no {name}, which training has."
        anomalies.append(Anomaly("missing_column", what, 0, 1, column=name))
    return Skew(explained(anomalies), tuple(found))


@dataclass
class ColumnDifference:
    """One feature over the rows that both sides have."""

    joined: int = 0
    differing: int = 0
    examples: list[tuple[object, object, object]] = field(default_factory=list)  # key, both values

    @property
    def share(self) -> float:
        return self.differing / self.joined if self.joined else 0.0


def differing(
    training: Rows, serving: Rows, key: str, tolerance: float = 0.0
) -> dict[str, ColumnDifference]:
    """Feature -> how many rows of the same key differ.

    Each is a table, a batch or batches. serving: a sample of logged rows, held in memory; training
    streams. Keys must be unique in each.
    tolerance: of numbers, relative to the larger one; 0 asks for equality. Two missing cells are
    equal.
    """
    serving = _table_of(serving)
    if key not in serving.column_names:
        hint = did_you_mean(key, serving.column_names)
        raise DataError(f"The serving log has no column {key} to join by. {hint}")
    keys = serving.column(key).combine_chunks()
    if len(pc.unique(keys)) != len(keys):
        raise DataError(f"The serving log has the same {key} twice: log one row an event.")
    names = [name for name in serving.column_names if name != key]
    found = {name: ColumnDifference() for name in names}
    for batch in _batches_of(training):
        if key not in batch.schema.names:
            hint = did_you_mean(key, batch.schema.names)
            raise DataError(f"The training rows have no column {key} to join by. {hint}")
        at = pc.index_in(batch.column(key).cast(keys.type), value_set=keys)
        rows = np.flatnonzero(at.is_valid().to_numpy(zero_copy_only=False))
        matched = serving.take(at.drop_null())
        ours = batch.take(pa.array(rows))
        for name in names:
            if name in batch.schema.names:
                theirs = matched.column(name).combine_chunks()
                _count(found[name], ours.column(key), ours.column(name), theirs, tolerance)
    return found


def _batches_of(rows: Rows) -> Iterable[pa.RecordBatch]:
    if isinstance(rows, pa.Table):
        return rows.to_batches()
    return [rows] if isinstance(rows, pa.RecordBatch) else rows


def _table_of(rows: Rows) -> pa.Table:
    if isinstance(rows, pa.Table):
        return rows
    batches = list(_batches_of(rows))
    if not batches:
        raise DataError("The serving log has no batches: there is nothing to join with.")
    return pa.Table.from_batches(batches)


def _count(
    into: ColumnDifference, keys: pa.Array, ours: pa.Array, theirs: pa.Array, tolerance: float
) -> None:
    number = all(
        pa.types.is_integer(a.type) or pa.types.is_floating(a.type) for a in (ours, theirs)
    )
    empty = (
        ours.is_null().to_numpy(zero_copy_only=False),
        theirs.is_null().to_numpy(zero_copy_only=False),
    )
    if number:
        a, b = (
            pc.fill_null(x.cast(pa.float64(), safe=False), np.nan).to_numpy(zero_copy_only=False)
            for x in (ours, theirs)
        )
        both_nan = np.isnan(a) & np.isnan(b)
        scale = np.maximum(np.abs(a), np.abs(b))
        same = both_nan | (np.abs(a - b) <= tolerance * scale)
    else:
        equal = pc.equal(ours.cast(pa.large_string()), theirs.cast(pa.large_string()))
        same = pc.fill_null(equal, False).to_numpy(zero_copy_only=False)
        same = same | (empty[0] & empty[1])
    into.joined += len(ours)
    bad = np.flatnonzero(~same)
    into.differing += len(bad)
    for row in bad[: _EXAMPLES - len(into.examples)].tolist():
        into.examples.append((keys[row].as_py(), ours[row].as_py(), theirs[row].as_py()))
