"""A graph together with a checkpoint of it: what evaluation and publication read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from torch import Tensor

from embedsvc import edge_ids
from embedsvc.config import ModelConfig, OutputConfig, TrainConfig
from embedsvc.edge_ids import EdgeIds
from embedsvc.graph.bags import entity_vectors
from embedsvc.graph.initial import fresh_maker
from embedsvc.graph.model import GraphModel
from embedsvc.training.asker_features import (
    AskerFeatures,
    features_slot,
    stored_into,
    unpacked,
)
from embedsvc.training.askers import Askers, InputRows, known_before
from partitions import durable, precision
from partitions.checkpoint import BEST, MANIFEST, Checkpoint, CheckpointManifest
from partitions.errors import DataError
from partitions.graph import Graph, slots_of
from partitions.schema import Bucket, RelationType, Slot

M = TypeVar("M", bound=BaseModel)


def settings_of(manifest: CheckpointManifest, path: Path, table: str, model: type[M]) -> M:
    """What the checkpoint whose manifest was read from `path` was trained with."""
    try:
        return model.model_validate(manifest.config[table])
    except (KeyError, TypeError, ValidationError) as error:
        raise DataError(
            f"{path} was altered, or is another version's: its [{table}] can't be read: "
            f"{' '.join(str(error).split())}. Mend it, or remove {path.parent} and train again."
        ) from None


def train_settings(manifest: CheckpointManifest, path: Path) -> dict[str, Any]:
    """[train] as the checkpoint was made by it, as plain JSON values; epochs: those it has."""
    found = settings_of(manifest, path, "train", TrainConfig).model_dump(mode="json")
    return found | {"epochs": manifest.progress.epoch}


class Trained:
    """Opens a commit of `folder`: the best where training keeps one (train.early_stopping), else,
    or where it is asked for, the newest. Later commits of a running trainer are not seen.

    Where [output] made the vectors of the lhs, they are of all their events: see `before`.
    """

    def __init__(self, graph: Graph, folder: Path, *, newest: bool = False) -> None:
        self.graph = graph
        self._checkpoint = Checkpoint(folder)
        self._manifest_path = folder / (
            BEST if self._checkpoint.has_best and not newest else MANIFEST
        )
        self.manifest = self._checkpoint.read_manifest(self._manifest_path.name)
        if not graph.grew_from(self.manifest.graph_digest):
            raise DataError(
                f"{folder} was trained on another graph than {graph.path} holds now. "
                f"Remove {folder} and train again."
            )
        self.digest = durable.sha256_of(self._manifest_path)
        config = settings_of(self.manifest, self._manifest_path, "model", ModelConfig)
        train = settings_of(self.manifest, self._manifest_path, "train", TrainConfig)
        self.output: OutputConfig | None = None  # whose tables are the model's, if it was trained
        if "output" in self.manifest.config:
            self.output = settings_of(self.manifest, self._manifest_path, "output", OutputConfig)
        self.model = GraphModel.build(config, graph, train.seed)
        arrays = self._checkpoint.read_parameters(self.manifest.parameters)
        self.model.parameters.load(arrays)
        self._fresh = fresh_maker(graph, config, train.seed)
        self._dtype = precision.DTYPES[train.precision]
        self._askers = None if self.output is None else self._who_asks(self.output, train, arrays)
        self._last: tuple[Slot, NDArray[np.float32]] | None = None

    def _who_asks(
        self, output: OutputConfig, train: TrainConfig, arrays: Mapping[str, NDArray[Any]]
    ) -> Askers | None:
        """None: the classes, of each other."""
        [relation] = self.relations
        if relation.lhs == relation.rhs:
            return None
        tables, checkpoint = self.manifest.tables, self._checkpoint
        rows = InputRows(self.graph, relation.rhs, output.dim, tables, checkpoint)
        tower = {
            name.removeprefix("tower."): array
            for name, array in arrays.items()
            if name.startswith("tower.")
        }
        features, feature_rows = None, np.zeros((0, output.dim), np.float32)
        if output.features:
            values = unpacked(arrays)
            features = AskerFeatures.encode(self.graph, relation.lhs, output.features, values)
            feature_rows = np.zeros((len(values), output.dim), np.float32)
            entry = tables.get(features_slot(relation.lhs))
            stored_into(feature_rows, None, checkpoint, entry, digest=True)
        return Askers(self.graph, relation, output, train, rows, tower, features, feature_rows)

    def before(self, split: str | None) -> "Trained":
        """The same commit for judging by `split`: vectors that are made of events are of those in
        the splits before it (of train, for train itself). None: of all events."""
        known = known_before(split)
        if self._askers is None or self._askers.known == known:
            return self
        found = copy(self)
        found._askers, found._last = replace(self._askers, known=known), None
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """What it was trained with, whatever the file says now: its tables, as plain JSON values;
        the epochs are those it has."""
        path = self._manifest_path
        tables: dict[str, Any] = {
            "model": settings_of(self.manifest, path, "model", ModelConfig).model_dump(mode="json"),
            "train": train_settings(self.manifest, path),
        }
        if self.output is not None:
            tables["output"] = self.output.model_dump(mode="json")
        return tables

    @property
    def askers(self) -> Askers | None:
        """Who makes the vectors of the lhs, where [output] learnt a tower for them."""
        return self._askers

    @property
    def relations(self) -> list[RelationType]:
        """Those that were learnt: all, or the one of [output]."""
        if self.output is None:
            return list(self.graph.relations)
        return [
            relation for relation in self.graph.relations if relation.name == self.output.relation
        ]

    @property
    def entity_types(self) -> list[str]:
        """Those that have learnt vectors."""
        if self.output is None:
            return list(self.graph.entity_types)
        ends = {end for relation in self.relations for end in (relation.lhs, relation.rhs)}
        return [name for name in self.graph.entity_types if name in ends]

    def vectors(self, slot: Slot) -> NDArray[np.float32]:
        """float32 [rows, dim] of one partition, not to be written to; the last is kept."""
        if self._last is None or self._last[0] != slot:
            self._last = (slot, self._read(slot))
        return self._last[1]

    def _read(self, slot: Slot) -> NDArray[np.float32]:
        if self._asks(slot.entity_type):
            first = int(self.graph.starts[slot.entity_type][slot.partition])
            return self._asked(np.arange(first, first + self.graph.num_rows(slot)))
        bags = self.graph.bags(slot.entity_type)
        if bags is not None:
            return entity_vectors(self._read(self.graph.table_of(slot)), bags)
        entry = self.manifest.tables.get(slot)
        if entry is None:
            made = self._fresh(slot)(np.arange(self.graph.num_rows(slot)))
            return precision.widen(precision.nearest(made, self._dtype))
        rows = self.graph.num_rows(slot)
        with self._telling_of_newer_commits():
            table = self._checkpoint.read_table(entry, self._fresh(slot), rows)
        return precision.widen(table.vectors)

    def _asks(self, entity_type: str) -> bool:
        """Whether its vectors are made of events, and in no table."""
        return self._askers is not None and self._askers.relation.lhs == entity_type

    def _asked(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        assert self._askers is not None
        with self._telling_of_newer_commits():
            return self._askers.vectors(ids)

    @contextmanager
    def _telling_of_newer_commits(self) -> Iterator[None]:
        try:
            yield
        except (DataError, FileNotFoundError):
            folder = self._checkpoint.path
            if durable.sha256_of(self._manifest_path) == self.digest:
                raise
            raise DataError(
                f"{folder} is being trained: newer commits replaced what was being read. Run the "
                "command again when training has ended, or with a larger train.commit_every_s."
            ) from None

    def gather(self, entity_type: str, ids: NDArray[np.int64]) -> Tensor:
        """float32 [len(ids), dim]; one partition in memory at a time."""
        if self._asks(entity_type):
            return torch.from_numpy(self._asked(ids))
        out = torch.empty(len(ids), self.model.dim)
        starts = self.graph.starts[entity_type]
        for at, slot in enumerate(slots_of(self.graph.entity_types[entity_type])):
            rows = np.flatnonzero((ids >= starts[at]) & (ids < starts[at + 1]))
            if len(rows):
                vectors = self.vectors(slot)
                out[torch.from_numpy(rows)] = torch.from_numpy(vectors[ids[rows] - starts[at]])
        return out

    def edges(self, split: str) -> EdgeIds:
        return edge_ids.of_split(self.graph, split)

    def bucket_edges(self, split: str, bucket: Bucket) -> EdgeIds:
        return edge_ids.of_bucket(self.graph, split, bucket)
