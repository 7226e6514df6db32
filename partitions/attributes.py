"""Attributes of entities, as an import reads them: rows in any order -> columns by offset.

Rows are kept as Arrow text, those of keys that no edge has left out; a partition's columns are
gathered from them when they are written. Memory: the text once, and twice more of one partition.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from partitions.dictionary import PARTITION_SHIFT, Dictionary


class Attributes:
    def __init__(self, names: Sequence[str], keys: Dictionary, known: Sequence[int]) -> None:
        """known: how many rows of each partition have their attributes already, and keep them."""
        self._keys, self._known = keys, np.asarray(known)
        self._schema = pa.schema([(name, pa.large_string()) for name in names])
        self._rows: list[list[tuple[pa.RecordBatch, NDArray[np.int64]]]] = [[] for _ in known]
        self.unmatched = 0  # rows whose key no edge has

    def add(self, batch: pa.RecordBatch) -> None:
        """batch: text columns `key` and the attributes. Of rows with one key the last counts."""
        places = self._keys.find(batch.column("key"))
        self.unmatched += int((places < 0).sum())
        parts, offsets = places >> PARTITION_SHIFT, places & ((1 << PARTITION_SHIFT) - 1)
        cells = batch.select(self._schema.names)
        for part, known in enumerate(self._known):
            rows = np.flatnonzero((parts == part) & (offsets >= known))
            if len(rows):
                chosen = cells.take(pa.array(rows)).cast(self._schema)
                self._rows[part].append((chosen, offsets[rows] - known))

    def take(self, partition: int) -> pa.Table:
        """One row for each new entity of the partition, by offset; empty text where none came.
        What was held for it is let go."""
        batches = [batch for batch, _ in self._rows[partition]]
        places = [np.empty(0, np.int64), *(place for _, place in self._rows[partition])]
        self._rows[partition] = []
        row_of = np.full(self._keys.num_rows[partition] - int(self._known[partition]), -1)
        row_of[np.concatenate(places)] = np.arange(sum(map(len, places)))  # the last one stays
        index = pa.array(row_of, mask=row_of < 0)
        table = pa.Table.from_batches(batches, self._schema).take(index)
        columns = {name: pc.fill_null(table.column(name), "") for name in self._schema.names}
        return pa.table(columns, schema=self._schema).combine_chunks()
