"""The Parquet files of a graph that something else has partitioned: which there are, and what is in
their columns, with errors that name file and row. own_buckets.py has their layout.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from partitions import sources
from partitions.cells import as_strings, shown
from partitions.config import GraphConfig
from partitions.errors import DataError, did_you_mean
from partitions.graph import slots_of
from partitions.schema import SPLITS, EntityType, Slot
from partitions.sources import InputFile

_BATCH_ROWS = 1 << 20
_SHAPE = "entities/TYPE/part=P/NAME.parquet or edges/split=S/lhs_part=I/rhs_part=J/NAME.parquet"


class Place(NamedTuple):
    """What the folders of an edge file say."""

    split: str
    lhs_part: int
    rhs_part: int


def files(config: GraphConfig) -> list[InputFile]:
    return [file for _, file in _listed(config)]


def _listed(config: GraphConfig) -> list[tuple[tuple[str, ...], InputFile]]:
    """(the names on its way below the folder, the file)"""
    assert config.own_buckets is not None
    return sources.below(config.data, config.own_buckets)


class OwnFiles:
    """The files of each folder, sorted."""

    def __init__(self, config: GraphConfig, types: Mapping[str, EntityType]) -> None:
        self.types = types
        self.of_entities: dict[Slot, list[InputFile]] = {}
        self.of_edges: dict[Place, list[InputFile]] = {}
        for names, file in _listed(config):
            self._sort_in(names, file)
        for slot in (slot for t in self.types.values() for slot in slots_of(t)):
            if slot not in self.of_entities:
                raise DataError(
                    f"{config.own_buckets} has no entities/{slot.entity_type}/"
                    f"part={slot.partition}, and [graph.entities.{slot.entity_type}] says "
                    f"partitions = {self.types[slot.entity_type].num_partitions}. Mend either."
                )
        if not self.of_edges:
            raise DataError(f"{config.own_buckets} has no edges: expected {_SHAPE}.")

    def _sort_in(self, names: tuple[str, ...], file: InputFile) -> None:
        if names[0] == "entities" and len(names) == 4 and file.suffix == ".parquet":
            entity_type = _known(file, names[1], self.types, "entity type")
            count = self.types[entity_type].num_partitions
            part = _part(file, names[2], "part", count, f"[graph.entities.{entity_type}] says")
            self.of_entities.setdefault(Slot(entity_type, part), []).append(file)
        elif names[0] == "edges" and len(names) == 5 and file.suffix == ".parquet":
            split = _known(file, _value(file, names[1], "split"), SPLITS, "split")
            count = max(t.num_partitions for t in self.types.values())
            because = "[graph.entities] say"
            place = Place(
                split,
                _part(file, names[2], "lhs_part", count, because),
                _part(file, names[3], "rhs_part", count, because),
            )
            self.of_edges.setdefault(place, []).append(file)
        else:
            raise DataError(f"{file} is out of place: expected {_SHAPE}. Move or remove it.")


def _known(file: InputFile, name: str, known: Iterable[str], kind: str) -> str:
    if name not in known:
        hint = did_you_mean(name, list(known))
        raise DataError(f"{file}: there is no {kind} {name}. {hint}")
    return name


def _value(file: InputFile, name: str, key: str) -> str:
    if not name.startswith(f"{key}="):
        raise DataError(
            f"{file}: expected a folder {key}=..., found {name}. The layout is {_SHAPE}."
        )
    return name.removeprefix(f"{key}=")


def _part(file: InputFile, name: str, key: str, count: int, because: str) -> int:
    value = _value(file, name, key)
    if not (value.isascii() and value.isdigit() and int(value) < count):
        raise DataError(
            f"{file}: {name} is no partition: {because} partitions = {count}, so expected "
            f"{key}=0 to {key}={count - 1}. Mend either."
        )
    return int(value)


# --- columns --------------------------------------------------------------------------------------


@contextmanager
def opened(file: InputFile) -> Iterator[pq.ParquetFile]:
    with file.open_random() as stream, pq.ParquetFile(stream) as table:
        yield table


def batches(file: InputFile, names: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(rows of the file before the batch, the batch)"""
    start = 0
    with sources.reading(file), opened(file) as table:
        for batch in table.iter_batches(columns=names, batch_size=_BATCH_ROWS):
            yield start, batch
            start += len(batch)


def keys_of(file: InputFile) -> Iterator[tuple[int, pa.Array]]:
    with sources.reading(file), opened(file) as table:
        known = table.schema_arrow.names
    if "key" not in known:
        raise DataError(f"{file} has no column key. {did_you_mean('key', known)}")
    for start, batch in batches(file, ["key"]):
        keys = as_strings(batch.column("key"), file, "key")
        fine = pc.fill_null(pc.not_equal(pc.binary_length(keys), 0), False)
        check(fine, keys, file, start, "key", "a key")
        yield start, keys


def numbers_in(column: pa.Array, file: InputFile, name: str) -> pa.Array:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(
            f"{file}: column {name} is of type {column.type}, expected numbers. Export it so."
        )
    return column


def check(
    fine: pa.Array | NDArray[np.bool_],
    column: pa.Array,
    file: InputFile,
    start: int,
    name: str,
    wanted: str,
) -> None:
    if isinstance(fine, pa.Array):
        fine = fine.to_numpy(zero_copy_only=False)
    if not fine.all():
        row = int(np.flatnonzero(~fine)[0])
        value = shown(column.slice(row, 1))[0]
        found = "nothing" if value is None or value == "" else value
        raise wrong(file, start + row, f"{name} is {found}, expected {wanted}")


def wrong(file: InputFile, row: int, what: str) -> DataError:
    return DataError(f"{file}: row {row} (counted from 0): {what}. Write the file again.")
