"""key <-> (partition, offset) of one entity type.

On disk: Arrow IPC files, one per partition and import batch, one column `key` (large_string, not
null); laid end to end, row = offset. A key's partition is a hash of the key and a dictionary only
grows at its end, so that edges added later move no old id.

While importing, a `Dictionary` finds places by fingerprint (keytable.py) and keeps the keys' text
only to write it, as Arrow arrays in the order of first sight.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from partitions.errors import DataError

FORMAT_VERSION = 1
SCHEMA = pa.schema([pa.field("key", pa.large_string(), nullable=False)])

PARTITION_SHIFT = 32  # a place is partition << 32 | offset; offsets are uint32
_MAX_ROWS = 1 << PARTITION_SHIFT
_SLICE_ROWS = 1 << 15  # what one thread searches at a time


class Workers:
    """Threads for kernels that release the GIL; results do not depend on how many there are."""

    def __init__(self, pool: Executor | None, num_threads: int) -> None:
        self.pool, self.num_threads = pool, num_threads

    def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """The results in the order of items. Where one fails, none is still at work afterwards."""
        if self.pool is None:
            return list(map(work, items))
        futures = [self.pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()
            wait(futures)


ALONE = Workers(None, 1)


class Dictionary:
    def __init__(self, num_partitions: int) -> None:
        # Imported here: reading a dictionary, as serving does, must not load numba.
        from partitions.keytable import KeyTable

        self._table = KeyTable(num_partitions)
        self._texts: list[list[pa.Array]] = [[] for _ in range(num_partitions)]

    def __len__(self) -> int:
        return len(self._table)

    @property
    def num_partitions(self) -> int:
        return len(self._texts)

    @property
    def num_rows(self) -> list[int]:
        return self._table.counts.tolist()

    def encode(
        self, keys: pa.Array, workers: Workers = ALONE
    ) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """(places, hashes) of a string array, int64 and uint64 [n]; unknown keys are added.

        A place is partition << 32 | offset.
        """
        places = np.empty(len(keys), np.int64)
        prints = np.empty((len(keys), 2), np.uint64)

        def search(start: int) -> int:
            rows = slice(start, start + _SLICE_ROWS)
            prints[rows] = self._table.fingerprints(keys.slice(start, _SLICE_ROWS))
            return self._table.find(prints[rows], places[rows])

        missing = sum(workers.map(search, range(0, len(keys), _SLICE_ROWS)))
        if missing:
            new_rows = self._table.insert(prints, places, missing)
            if self._table.counts.max() > _MAX_ROWS:
                raise DataError("A partition is full (2^32 entities): use more partitions.")
            self._keep(keys.take(pa.array(new_rows)), places[new_rows] >> PARTITION_SHIFT)
        return places, prints[:, 0]

    def _keep(self, texts: pa.Array, partitions: NDArray[np.int64]) -> None:
        order = np.argsort(partitions, kind="stable")
        ends = np.cumsum(np.bincount(partitions, minlength=self.num_partitions))
        sorted_texts = texts.take(pa.array(order)).cast(pa.large_string())
        start = 0
        for partition, end in enumerate(ends.tolist()):
            if end > start:
                self._texts[partition].append(sorted_texts.slice(start, end - start))
            start = end

    def find(self, keys: pa.Array) -> NDArray[np.int64]:
        """int64 [n] places, -1 for an unknown key; nothing is added."""
        places = np.empty(len(keys), np.int64)
        self._table.find(self._table.fingerprints(keys), places)
        return places

    def keys(self, partition: int, start: int = 0) -> pa.Array:
        """large_string: the keys of a partition from offset `start` on."""
        wanted, end = [], 0
        for texts in self._texts[partition]:
            begin, end = end, end + len(texts)
            if end > start:
                wanted.append(texts.slice(max(start - begin, 0)))
        return pa.concat_arrays(wanted) if wanted else pa.array([], pa.large_string())


def write(path: Path, keys: pa.Array) -> None:
    with path.open("wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_batch(pa.record_batch([keys.cast(pa.large_string())], schema=SCHEMA))


def read(path: Path) -> pa.Array:
    """large_string [rows], memory-mapped."""
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    if table.schema != SCHEMA:
        raise DataError(f"{path} is not a dictionary of format {FORMAT_VERSION}. Import again.")
    keys = table.column("key")
    return keys.chunk(0) if keys.num_chunks == 1 else keys.combine_chunks()  # which would copy
