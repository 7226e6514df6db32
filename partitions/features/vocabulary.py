"""Values <-> places: which of the values that training saw a row has.

A value is found by its fingerprint among the sorted ones. Integers never share a fingerprint; texts
are compared as well, so that an unknown text is never taken for a known one.
"""

from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from partitions.features import columns
from partitions.features.fingerprints import Fingerprints, Prints

MANY = 4096  # rows from which it pays to look up distinct values only
_HELD_ROWS = 1 << 20  # counted values that wait to be added up


class Keys:
    """Values of one type, with nulls where missing. Where there are many, only the distinct ones
    are looked at, and what is found is spread over the rows."""

    def __init__(self, values: pa.Array, fingerprints: Fingerprints) -> None:
        """values: large_string or int64."""
        self.values, self.fingerprints = values, fingerprints
        self._rows: NDArray[np.int32] | None = None  # of each row, its place among the distinct
        self._missing: NDArray[np.bool_] | None = None
        if len(values) >= MANY:
            encoded = values.dictionary_encode()
            self.values = encoded.dictionary
            nothing = len(encoded.dictionary)  # the place of null
            self._rows = pc.fill_null(encoded.indices, nothing).to_numpy()
        else:
            self._missing = columns.mask_of(values)

    @cached_property
    def prints(self) -> Prints:
        """Of `values`."""
        return self.fingerprints.of(self.values)

    def spread(self, found: NDArray, missing: int | np.uint64) -> NDArray:
        """What was found for each of `values` -> the same for each row."""
        if self._rows is not None:
            return np.append(found, found.dtype.type(missing))[self._rows]
        if self._missing is None:
            return found
        return np.where(self._missing, found.dtype.type(missing), found)

    def row_prints(self) -> Prints:
        return self.spread(self.prints, self.fingerprints.missing)


class Vocabulary:
    """Distinct values: large_string or int64, without nulls. Beside them 12 bytes a value, made at
    once so that no request waits for them."""

    def __init__(self, values: pa.Array, fingerprints: Fingerprints) -> None:
        self.values, self.fingerprints = values, fingerprints
        prints = fingerprints.of(values)
        self._order = np.argsort(prints, kind="stable").astype(np.int32)  # places, by fingerprint
        self._sorted = prints[self._order]

    def __len__(self) -> int:
        return len(self.values)

    def find(self, keys: Keys) -> NDArray[np.int32]:
        """The place of each of keys.values, -1 where unknown; of a null anything."""
        wanted = keys.prints
        if not len(self.values) or not len(wanted):
            return np.full(len(wanted), -1, np.int32)
        at = np.searchsorted(self._sorted, wanted)
        np.minimum(at, len(self.values) - 1, out=at)
        places = self._order[at]
        same = self._sorted[at] == wanted
        if self.values.type == columns.TEXT:
            equal = self._are(places, keys.values)
            if (same & ~equal).any():
                return self._find_all(keys)
        return np.where(same, places, np.int32(-1))

    def _are(self, places: NDArray[np.int32], texts: pa.Array) -> NDArray[np.bool_]:
        """Whether the values at these places are these texts; False for a null."""
        equal = pc.equal(self.values.take(pa.array(places)), texts)
        return _bools(equal)

    def _find_all(self, keys: Keys) -> NDArray[np.int32]:
        """`find` where several texts may have one fingerprint: try each of them."""
        at = np.searchsorted(self._sorted, keys.prints)
        found = np.full(len(at), -1, np.int32)
        rows = np.arange(len(at))
        while len(rows):
            rows = rows[at[rows] < len(self.values)]
            rows = rows[self._sorted[at[rows]] == keys.prints[rows]]
            places = self._order[at[rows]]
            right = self._are(places, keys.values.take(pa.array(rows)))
            found[rows[right]] = places[right]
            rows = rows[~right]
            at[rows] += 1
        return found


def _bools(column: pa.Array) -> NDArray[np.bool_]:
    """False at nulls."""
    if column.null_count:
        column = pc.fill_null(column, False)
    return column.to_numpy(zero_copy_only=False)


class Counts:
    """How often each value came. Memory follows the distinct values, not the rows."""

    def __init__(self) -> None:
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def add(self, values: pa.Array) -> None:
        """values: large_string or int64; nulls are not counted."""
        counted = pc.value_counts(values.drop_null())
        self._waiting.append(pa.Table.from_arrays(counted.flatten(), ["value", "count"]))
        self._rows += len(counted)
        if self._rows > max(_HELD_ROWS, 2 * len(self._waiting[0])):
            self._add_up()

    def _add_up(self) -> None:
        table = pa.concat_tables(self._waiting)
        total = table.group_by("value", use_threads=False).aggregate([("count", "sum")])
        total = total.rename_columns(["value", "count"])
        self._waiting, self._rows = [total], len(total)

    def frequent(self, kind: pa.DataType, min_count: int) -> pa.Array:
        """Values seen min_count times or more, the frequent ones first, ties by value."""
        if not self._waiting:
            return pa.array([], kind)
        self._add_up()
        table = self._waiting[0]
        table = table.filter(pc.greater_equal(table.column("count"), min_count))
        table = table.sort_by([("count", "descending"), ("value", "ascending")])
        return pa.concat_arrays([pa.array([], kind), *table.column("value").chunks])
