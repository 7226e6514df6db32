"""Vectors to begin with, by key, from a file: what an earlier model or another program has learnt.

They go into the checkpoint before the first epoch, as rows that training has touched: so the file
is read once and needed no more, and nothing else has to know of it. Such a row's optimizer state is
GIVEN: not 0, which would mean "make it anew from the seed", and too small to change any step.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedsvc.graph.initial import FreshOf
from partitions import embeddings, precision, tables
from partitions.checkpoint import Checkpoint
from partitions.durable import FileEntry
from partitions.embeddings import Embeddings
from partitions.errors import ConfigError, DataError, did_you_mean
from partitions.graph import Graph, slots_of
from partitions.hashing import hash_keys
from partitions.schema import Slot
from partitions.tables import Form, Table

logger = logging.getLogger(__name__)

GIVEN = np.float32(1e-30)
_TOKEN = 0  # leases begin at 1


def given_tables(
    graph: Graph,
    checkpoint: Checkpoint,
    fresh_of: FreshOf,
    dim: int,
    files: Mapping[str, Path],
    form: Form,
) -> dict[Slot, FileEntry]:
    """Write the tables of the entity types in `files` (type -> file of embeddings.py), one in
    memory at a time; keys that a file lacks begin as they would without it.

    Raises ConfigError for an unknown type or vectors of another width; DataError for a file that
    can't be read, none of whose keys is in the graph, or that has a key twice or a number that is
    not finite.
    """
    stored = {}
    for name, path in files.items():
        if name not in graph.entity_types:
            hint = did_you_mean(name, list(graph.entity_types))
            raise ConfigError(f"[model.init_from] {name} is not an entity type. {hint}")
        if features := graph.entity_types[name].features:
            raise ConfigError(
                f"[model.init_from] {name}: its vectors are made of those of {features}. Give a "
                f"file of vectors of {features}, or remove it."
            )
        num_given = 0
        for slot in slots_of(graph.entity_types[name]):
            table = tables.fresh(graph.num_rows(slot), fresh_of(slot), form)
            keys = _Keys(graph.keys(slot))
            for piece in embeddings.read_pieces(path):
                _check(piece, name, path, dim)
                _fill(table, keys, piece, path)
            num_given += int(np.count_nonzero(table.touched))
            stored[slot] = checkpoint.write_table(slot, _TOKEN, table)
        count = graph.num_entities(name)
        if not num_given:
            raise DataError(f"None of the keys of {path} is a {name} of {graph.path}.")
        logger.info("%s: %d of %d entities begin at vectors of %s", name, num_given, count, path)
    return stored


def _check(piece: Embeddings, name: str, path: Path, dim: int) -> None:
    width = piece.vectors.shape[1]
    if len(piece.keys) and width != dim:
        raise ConfigError(
            f"[model.init_from] {name}: the vectors of {path} have {width} numbers and model.dim "
            f"is {dim}. Make them equal."
        )
    finite = np.isfinite(piece.vectors).all(axis=1)
    if not finite.all():
        key = piece.keys[int(np.argmin(finite))].as_py()
        raise DataError(f"{path}: the vector of {key!r} has a number that is not finite.")


class _Keys:
    """The keys of a partition, to be looked up many at a time."""

    def __init__(self, keys: pa.Array) -> None:
        self.keys = keys
        hashes = hash_keys(keys)
        self._order = np.argsort(hashes)
        self._hashes = hashes[self._order]

    def find(self, keys: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(places in `keys`, offsets in the partition) of those that are in both."""
        if not len(self.keys):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        hashes = hash_keys(keys)
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        places = np.flatnonzero(self._hashes[at] == hashes)
        offsets = self._order[at[places]]
        # Of two keys with one hash the second is not found: with 64 bits, one chance in 10^11 for
        # ten thousand keys and one in a thousand for a hundred million.
        same = pc.equal(keys.take(pa.array(places)), self.keys.take(pa.array(offsets)))
        same = np.asarray(same.to_numpy(zero_copy_only=False), np.bool_)
        return places[same], offsets[same]


def _fill(table: Table, keys: _Keys, piece: Embeddings, path: Path) -> None:
    places, offsets = keys.find(piece.keys)
    twice = np.flatnonzero(np.bincount(offsets) > 1) if len(offsets) else offsets
    again = offsets[table.touched[offsets]]
    for repeated in (twice, again):
        if len(repeated):
            key = keys.keys[int(repeated[0])].as_py()
            raise DataError(f"{path} has the key {key!r} twice. Remove one of the two rows.")
    table.vectors[offsets] = precision.nearest(piece.vectors[places], table.vectors.dtype)
    table.state[offsets] = GIVEN
