"""Files of features -> the bags of a graph's entities (bags.py).

They are read when pass 1 of an import is through with the edges. A key that no edge has becomes an
entity all the same: to know it by its features is what they are for. As with attributes, an append
reads the files again and takes what is new: an old entity's bag stays as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from partitions import bags as bag_files
from partitions import durable, provenance, readers, sources
from partitions.bags import Bags, grouped
from partitions.cells import is_list
from partitions.config import FeaturesConfig, GraphConfig
from partitions.dictionary import Dictionary, Workers
from partitions.durable import FileEntry
from partitions.errors import DataError
from partitions.graph import Graph
from partitions.schema import Slot
from partitions.skipped import SkippedRows
from partitions.sources import InputFile


@dataclass(frozen=True)
class NewBags:
    """Of one type: the bags of the entities that this import adds."""

    feature_type: str
    first: int  # entities that were there before
    bags: Bags
    num_changed: int  # old entities that the files now give another bag

    @property
    def num_empty(self) -> int:
        return int(np.count_nonzero(np.diff(self.bags.starts) == 0))


def read(
    config: GraphConfig,
    dictionaries: Mapping[str, Dictionary],
    base: Graph | None,
    read_files: list[dict[str, Any]],
    skipped: SkippedRows,
    workers: Workers,
) -> dict[str, NewBags]:
    """Entity type -> its new bags. Adds to the dictionaries, to the sources and to `skipped`."""
    found = {}
    for name, entity in config.entities.items():
        if entity.features is not None:
            reading = _Reading(name, entity.features, dictionaries, base, workers)
            for file in sources.expand(config.data, entity.features):
                stamp, rows = provenance.stamp_of(file), 0
                for piece in readers.read_pieces(
                    file,
                    entity.features,
                    {str(part): column for part, column in entity.features.columns.items()},
                    skip_bad=config.skip_bad,
                    optional=("features",),
                    lists=("features",),
                ):
                    skipped.add(file.address, piece.bad)
                    if len(piece.rows):
                        reading.add(piece.rows, file)
                    rows += len(piece.rows)
                read_files.append(provenance.record(file, stamp, rows))
            found[name] = reading.done()
    return found


class _Reading:
    """The bags of one entity type, as the rows of its files come. 24 bytes a feature named."""

    def __init__(
        self,
        name: str,
        config: FeaturesConfig,
        dictionaries: Mapping[str, Dictionary],
        base: Graph | None,
        workers: Workers,
    ) -> None:
        assert config.type is not None
        self._name, self._config, self._workers = name, config, workers
        self._keys, self._features = dictionaries[name], dictionaries[config.type]
        self._base = base.bags(name) if base is not None and name in base.entity_types else None
        self._known = len(self._base) if self._base is not None else 0
        self._named: list[NDArray[np.int64]] = [
            np.empty(0, np.int64)
        ]  # old entities that have rows
        self._owners: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        self._bags: list[NDArray[np.int64]] = [np.empty(0, np.int64)]  # -1: known to no new entity

    def add(self, rows: pa.RecordBatch, file: InputFile) -> None:
        # With one partition, a place is an offset.
        offsets, _ = self._keys.encode(rows.column("key"), self._workers)
        places, names = self._flat(rows.column("features"), file)
        owners = offsets[places]
        is_new = owners >= self._known
        features = np.empty(len(owners), np.int64)
        features[is_new], _ = self._features.encode(names.filter(pa.array(is_new)), self._workers)
        features[~is_new] = self._features.find(names.filter(pa.array(~is_new)))
        self._named.append(np.unique(offsets[offsets < self._known]))
        self._owners.append(owners)
        self._bags.append(features)

    def _flat(self, cells: pa.Array, file: InputFile) -> tuple[NDArray[np.int64], pa.Array]:
        """(row, feature) of each feature named; empty ones are none."""
        separator = self._config.separator
        if is_list(cells.type) and separator is not None:
            raise DataError(
                f"{file} holds lists of features, which need no separator. Remove "
                f"graph.entities.{self._name}.features.separator."
            )
        if separator is not None:
            cells = pc.split_pattern(cells, separator)
        elif not is_list(cells.type):
            cells = pa.LargeListArray.from_arrays(np.arange(len(cells) + 1), cells)
        rows, names = pc.list_parent_indices(cells).to_numpy(), cells.flatten()
        there = pc.fill_null(pc.not_equal(names, ""), False)
        return rows[there.to_numpy(zero_copy_only=False)], names.filter(there)

    def done(self) -> NewBags:
        assert self._config.type is not None
        if not len(self._features):
            raise DataError(
                f"{self._config.path} names no feature of any {self._name}. Mend "
                f"graph.entities.{self._name}.features, or remove it."
            )
        owners, features = np.concatenate(self._owners), np.concatenate(self._bags)
        starts, features = grouped(owners, features, len(self._keys))
        first = self._known
        new = Bags(starts[first:] - starts[first], features[starts[first] :].astype(np.uint32))
        return NewBags(self._config.type, first, new, self._num_changed(starts, features))

    def _num_changed(self, starts: NDArray[np.int64], features: NDArray[np.int64]) -> int:
        if self._base is None:
            return 0
        named = np.unique(np.concatenate(self._named))
        now, old = np.diff(starts)[named], np.diff(self._base.starts)[named]
        same = named[now == old]
        before, begins = self._base.of(same)
        sizes = np.diff(starts)[same]
        places = np.repeat(starts[same] - begins, sizes) + np.arange(len(before))
        owners = np.repeat(np.arange(len(same)), sizes)
        differs = np.bincount(owners, features[places] != before, minlength=len(same)) > 0
        return len(named) - len(same) + int(np.count_nonzero(differs))


def write(folder: Path, new: Mapping[str, NewBags], suffix: str) -> dict[Slot, list[FileEntry]]:
    """The files of an import batch; none of a type that it adds nothing to."""
    files: dict[Slot, list[FileEntry]] = {}
    for name, found in new.items():
        files[Slot(name, 0)] = []
        if len(found.bags):
            path = folder / "entities" / name / f"bags-000{suffix}.arrow"
            bag_files.write(path, found.bags)
            files[Slot(name, 0)] = [durable.entry_of(folder, path)]
    return files


def mark_trained(
    new: Mapping[str, NewBags], trained: Mapping[str, list[NDArray[np.bool_]]]
) -> None:
    """A feature is trained where an entity is that has it. trained: of each type, by partition."""
    for name, found in new.items():
        rows = np.flatnonzero(trained[name][0][found.first :])
        features, _ = found.bags.of(rows)
        trained[found.feature_type][0][features] = True
