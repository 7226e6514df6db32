"""key <-> (partition, offset) of one entity type.

On disk: one Arrow IPC file per partition, one column `key` (large_string, not null); row = offset.
A key's partition is a hash of the key and a dictionary only grows at its end, so that edges added
later move no old id. In memory while importing: one Python dict of key -> partition << 32 | offset.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from partitions.durable import replacing
from partitions.errors import DataError

FORMAT_VERSION = 1
SCHEMA = pa.schema([pa.field("key", pa.large_string(), nullable=False)])

_PARTITION_SHIFT = 32  # offsets are uint32


class Dictionary:
    """Grows while edges are read: new keys are appended in the order of their first sight."""

    def __init__(self, num_partitions: int) -> None:
        self.num_partitions = num_partitions
        self._places: dict[str, int] = {}
        self._keys: list[list[str]] = [[] for _ in range(num_partitions)]

    def __len__(self) -> int:
        return len(self._places)

    @property
    def num_rows(self) -> list[int]:
        return [len(keys) for keys in self._keys]

    def encode(self, keys: pa.Array) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """(partition, offset), uint32 [n] each, of a string array; unknown keys are added."""
        from partitions.hashing import hash_keys

        coded = keys.dictionary_encode()
        names = coded.dictionary.to_pylist()
        places = np.fromiter((self._places.get(k, -1) for k in names), np.int64, len(names))
        new = np.flatnonzero(places < 0)
        if len(new):
            hashes = hash_keys(coded.dictionary.take(pa.array(new)))
            parts = (hashes % np.uint64(self.num_partitions)).astype(np.int64)
            for row, part in zip(new.tolist(), parts.tolist(), strict=True):
                held = self._keys[part]
                if len(held) == 1 << _PARTITION_SHIFT:
                    raise DataError("A partition is full (2^32 entities): use more partitions.")
                place = part << _PARTITION_SHIFT | len(held)
                held.append(names[row])
                self._places[names[row]] = place
                places[row] = place
        all_places = places[coded.indices.to_numpy()]
        return (
            (all_places >> _PARTITION_SHIFT).astype(np.uint32),
            (all_places & 0xFFFFFFFF).astype(np.uint32),
        )

    def find(self, key: str) -> tuple[int, int] | None:
        """(partition, offset), or None for an unknown key."""
        place = self._places.get(key)
        return None if place is None else (place >> _PARTITION_SHIFT, place & 0xFFFFFFFF)

    def keys(self, partition: int) -> pa.Array:
        return pa.array(self._keys[partition], pa.large_string())


def write(path: Path, keys: pa.Array) -> None:
    with replacing(path) as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_batch(pa.record_batch([keys.cast(pa.large_string())], schema=SCHEMA))


def read(path: Path) -> pa.Array:
    """large_string [rows], memory-mapped."""
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    if table.schema != SCHEMA:
        raise DataError(f"{path} is not a dictionary of format {FORMAT_VERSION}. Import again.")
    keys = table.column("key")
    return keys.chunk(0) if keys.num_chunks == 1 else keys.combine_chunks()  # which would copy
