"""Bags of features: an entity's vector is the mean of some rows of another type's table.

On disk: Arrow IPC files, one per import batch, one column `features` (large_list of uint32, nothing
null, one record batch); laid end to end, row = offset of the entity, values = offsets of its
features, in their order and as often as they were named. 8 bytes an entity and 4 a feature named.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from partitions.errors import DataError

FORMAT_VERSION = 1
_LIST = pa.large_list(pa.field("item", pa.uint32(), nullable=False))
SCHEMA = pa.schema([pa.field("features", _LIST, nullable=False)])


@dataclass(frozen=True)
class Bags:
    """starts: int64 [entities + 1], from 0 on; the features of entity e are those from starts[e] to
    starts[e + 1] in features, uint32."""

    starts: NDArray[np.int64]
    features: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def num_bytes(self) -> int:
        return self.starts.nbytes + self.features.nbytes

    def of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(features of these entities end to end, where each one's begin)."""
        first = self.starts[rows]
        counts = self.starts[rows + 1] - first
        starts = np.cumsum(counts) - counts
        places = np.repeat(first - starts, counts) + np.arange(counts.sum())
        return self.features[places].astype(np.int64), starts


def grouped(
    owners: NDArray[np.int64], features: NDArray[np.int64], num_entities: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(starts, features by owner) of pairs in any order; those of one owner stay in theirs."""
    starts = np.zeros(num_entities + 1, np.int64)
    np.cumsum(np.bincount(owners, minlength=num_entities), out=starts[1:])
    return starts, features[np.argsort(owners, kind="stable")]


def joined(parts: Sequence[Bags]) -> Bags:
    """Those of several import batches, end to end."""
    if len(parts) == 1:
        return parts[0]
    counts = [np.zeros(1, np.int64), *(np.diff(part.starts) for part in parts)]
    features = [np.empty(0, np.uint32), *(part.features for part in parts)]
    return Bags(np.cumsum(np.concatenate(counts)), np.concatenate(features))


def write(path: Path, bags: Bags) -> None:
    lists = pa.LargeListArray.from_arrays(bags.starts, bags.features, type=_LIST)
    with path.open("wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_batch(pa.record_batch([lists], schema=SCHEMA))


def read(path: Path) -> Bags:
    """Memory-mapped."""
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        batch = reader.get_batch(0) if reader.num_record_batches == 1 else None
    if batch is None or batch.schema != SCHEMA:
        raise DataError(f"{path} holds no bags of format {FORMAT_VERSION}. Import again.")
    lists = batch.column("features")
    return Bags(lists.offsets.to_numpy(), lists.values.to_numpy())
