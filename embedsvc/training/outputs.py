"""Training `[output]`: a tower and a softmax over a type's entities, piece by piece.

    for lease in schedule:                                 # a piece of an epoch: so many batches
        for history, target in examples.batches(...):
            layer(tower(history), target).loss.backward()  # rows learn here
        ledger.add(...)

Schedule, ledger and commits are those of the graph trainer, whose buckets are pieces here. Which
examples a batch has follows from (seed, epoch, batch), what is drawn in a step from its number, and
the retriever is part of the commit: with one thread a broken run ends in the same bits as a whole
one. The outcome is an ordinary checkpoint of a graph model (rows.py).
"""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedsvc.compiled import telling_of_compiling
from embedsvc.config import ModelConfig, OutputConfig, TrainConfig
from embedsvc.outputs.full import FullSoftmax
from embedsvc.outputs.lsh_softmax import LSHSoftmax
from embedsvc.outputs.sparse import ROW_OPTIMIZERS
from embedsvc.ranking.examples import NextItem
from embedsvc.ranking.row_embedding import RowEmbedding
from embedsvc.ranking.sequences import keeps_order
from embedsvc.ranking.towers import HistoryTower
from embedsvc.training import stopping
from embedsvc.training.asker_features import (
    VOCABULARY,
    AskerFeatures,
    features_slot,
    stored_into,
    unpacked,
)
from embedsvc.training.askers import make_tower
from embedsvc.training.events import Events, relation_of
from embedsvc.training.ledger import Ledger
from embedsvc.training.loop import train_leases
from embedsvc.training.output_plan import OutputPlan, plan_output
from embedsvc.training.rows import RowTable, first_rows, init_scale, input_place
from embedsvc.training.stopping import EarlyStopping, Judge
from embedsvc.training.trainer import METRICS, TrainReport, check_resumable
from partitions import durable
from partitions.checkpoint import Checkpoint, CheckpointManifest
from partitions.durable import FileEntry
from partitions.errors import ConfigError, DataError
from partitions.graph import Graph
from partitions.schedule import Lease, Progress, Schedule
from partitions.schema import Bucket, Slot

logger = logging.getLogger(__name__)

_PIECE_BATCHES = 100  # at least; so a commit is never far
_MOST_PIECES = 256  # of an epoch
_COVERED = {"epochs", "seed", "threads", "commit_every_s", "memory_mb", "early_stopping"}
_COVERED |= {"tensorboard", "page_cache", "products"}


def train(graph: Graph, folder: Path, output: OutputConfig, config: TrainConfig) -> TrainReport:
    """Train `graph` into the checkpoint directory `folder`, resuming what is there.

    Raises BusyError where another process trains into it, ConfigError where the plan does not fit
    or the checkpoint was begun with other settings, DataError for data that give nothing to learn,
    damaged files and divergence.
    """
    output = output.model_copy(update={"relation": relation_of(graph, output).name})
    plan = plan_output(graph, output, config, folder)
    logger.info("%s", plan)
    plan.check(config.memory_mb)
    if config.threads:
        torch.set_num_threads(config.threads)
    checkpoint = Checkpoint(folder, keep_cached=config.page_cache)
    with durable.only_writer(folder, "training into"):
        report = _Trainer(graph, checkpoint, output, config, plan).run()
    return replace(report, planned_bytes=plan.total)


def check_covered(name: str, model: ModelConfig, config: TrainConfig) -> None:
    """ConfigError where settings were given that [output] makes nothing of. name: the file's."""
    if model.model_fields_set:
        key = min(model.model_fields_set)
        hint = "set output.dim" if key == "dim" else "remove it"
        raise ConfigError(f"{name}: [model] {key} does not apply with [output]: {hint}.")
    if odd := config.model_fields_set - _COVERED:
        key = "device" if "device" in odd else min(odd)  # which sets a batch_size of its own
        hint = f"set output.{key}" if key in OutputConfig.model_fields else "remove it"
        raise ConfigError(f"{name}: [train] {key} does not apply with [output]: {hint}.")
    judged = config.early_stopping.model_fields_set if config.early_stopping else set()
    if odd := judged & {"metric", "max_edges"}:
        raise ConfigError(
            f"{name}: [train.early_stopping] {min(odd)} does not apply with [output], which is "
            "judged by Recall@20: remove it."
        )


def settings_of(output: OutputConfig, config: TrainConfig) -> dict[str, Any]:
    """What the checkpoint says: [model] is that of its tables."""
    model = ModelConfig(dim=output.dim + 1, init_scale=init_scale(output.dim + 1))
    tables = {"output": output, "model": model, "train": config}
    return {name: table.model_dump(mode="json") for name, table in tables.items()}


class _Trainer:
    def __init__(
        self,
        graph: Graph,
        checkpoint: Checkpoint,
        output: OutputConfig,
        config: TrainConfig,
        plan: OutputPlan,
    ) -> None:
        self.graph, self.checkpoint, self.output, self.config = graph, checkpoint, output, config
        self.settings = settings_of(output, config)
        self.resumed = checkpoint.exists
        manifest = CheckpointManifest(graph.digest, self.settings)
        if self.resumed:
            manifest = checkpoint.read_manifest()
            check_resumable(manifest, graph, self.settings, checkpoint.path)
            if manifest.progress.epoch < config.epochs:
                checkpoint.verify(manifest)
            checkpoint.sweep()
        grown = manifest.graph_digest != graph.digest
        progress = manifest.progress
        if grown:  # other examples: the epoch that was begun begins anew
            progress = Progress(progress.epoch, (), progress.next_token)
        self.known_batches = manifest.trained_batches
        if grown:
            self.known_batches = graph.manifest.ancestors.index(manifest.graph_digest) + 1
        self.events = Events.read(graph, output, config.seed)
        self._say_what_is_odd()
        batches = -(-self.events.num_examples // output.batch_size)
        self.piece_batches = max(_PIECE_BATCHES, -(-batches // _MOST_PIECES))
        self.num_pieces = -(-batches // self.piece_batches)
        self.schedule = Schedule(self._pieces, lambda _: frozenset(), config.epochs, progress)
        folder = checkpoint.path if plan.mapped else None
        self.class_rows = self._rows(output.dim, True, folder, manifest.tables)
        self.input_rows = self._rows(output.dim, False, folder, manifest.tables)
        arrays = checkpoint.read_parameters(manifest.parameters)
        self.features = self._features(arrays)
        self.tower, self.layer = self._make_tower(manifest.tables), self._make_layer()
        dense = [p for p in self.tower.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adagrad(dense, lr=output.tower_lr or output.lr)
        self._load(arrays, with_retriever=not grown)
        self.stopping: EarlyStopping | None = None
        if config.early_stopping is not None:
            judge = Judge.of_lists(graph, checkpoint, self.events.relation.name)
            self.stopping = EarlyStopping(config.early_stopping, checkpoint, progress.epoch, judge)
        else:
            stopping.forget(checkpoint)

    def _say_what_is_odd(self) -> None:
        relation = self.events.relation
        in_order = self.output.sequences == "histories" and isinstance(
            self.events.examples, NextItem
        )
        if in_order and not keeps_order(self.graph, relation.name):
            logger.warning(
                "edges have no timestamp and %s has several partitions: nobody knows in which "
                "order a history happened",
                relation.rhs,
            )

    # --- what learns

    def _rows(
        self, dim: int, of_classes: bool, folder: Path | None, stored: Mapping[Slot, FileEntry]
    ) -> RowTable:
        name, optimizer = self.events.classes, self.output.optimizer
        width = ROW_OPTIMIZERS.build(optimizer).state_width
        rows = RowTable.empty(
            self.graph.num_entities(name),
            dim,
            width,
            bias=of_classes,
            optimizer=optimizer if isinstance(optimizer, str) else optimizer["name"],
            folder=folder,
        )
        seed = self.config.seed if of_classes else (self.config.seed + 1) % (1 << 64)
        fresh = first_rows(self.graph, rows.dim, seed)
        rows.fill(self.graph, name, self._place(of_classes), fresh, stored, self.checkpoint)
        return rows

    def _place(self, of_classes: bool) -> str:
        """Under what name the checkpoint has the rows."""
        return self.events.classes if of_classes else input_place(self.events.classes)

    def _features(self, arrays: Mapping[str, NDArray[Any]]) -> AskerFeatures | None:
        if not self.output.features:
            return None
        asked = np.diff(self.events.sequences.starts) > 0
        entity_type, known = self.events.relation.lhs, unpacked(arrays)
        found = AskerFeatures.learn(self.graph, entity_type, self.output.features, asked, known)
        found.say()
        return found

    def _make_tower(self, stored: Mapping[Slot, FileEntry]) -> HistoryTower:
        feature_rows = len(self.features.values) if self.features is not None else 0
        tower = make_tower(self.output, self.config, feature_rows=feature_rows)
        if self.features is not None and tower.features is not None:
            entry = stored.get(features_slot(self.features.entity_type))
            rows, state = tower.features.weight.numpy(), tower.features.optimizer_state.numpy()
            stored_into(rows, state, self.checkpoint, entry, digest=False)
        tower.table.weight.data = torch.from_numpy(self.input_rows.weight)
        tower.table.optimizer_state = torch.from_numpy(self.input_rows.state)
        return tower

    def _make_layer(self) -> FullSoftmax:
        output, counts = self.output, self.events.examples.frequencies
        common: dict[str, Any] = {
            "optimizer": output.optimizer,
            "lr": output.lr,
            "products": self.config.products,
            "threads": self.config.threads,
            "seed": self.config.seed % (1 << 63),  # as torch takes it
        }
        rows = self.class_rows
        if output.kind == "full_softmax":
            full = FullSoftmax(output.dim, 1, **common)
            full.adopt(rows.weight, rows.bias, rows.state)
            return full
        layer = LSHSoftmax(
            output.dim,
            1,
            retriever=None if output.retriever == "none" else output.retriever,
            head=output.head,
            retrieved=output.retrieved,
            train_probes=output.train_probes,
            samples=output.samples,
            sampler=output.sampler,
            frequencies=np.ones(1),
            correction=output.correction,
            **common,
        )
        layer.adopt(rows.weight, rows.bias, rows.state)
        layer.set_frequencies(counts(self.events.sequences, layer.n_classes))
        return layer

    # --- the loop

    def run(self) -> TrainReport:
        examples_left = self._examples_left()
        metrics = self.checkpoint.path / METRICS
        with (
            Ledger(metrics, self.config.epochs, edge="example", bucket="piece") as ledger,
            telling_of_compiling(logger),
        ):
            train_leases(
                self.schedule,
                ledger,
                self.stopping,
                self.config,
                lambda lease: self._train_piece(lease, ledger, examples_left),
                self._commit,
            )
        return TrainReport.in_memory(ledger, self.checkpoint, self.stopping, self.resumed)

    def _train_piece(self, lease: Lease, ledger: Ledger, examples_left: int) -> None:
        ledger.open(lease, self._size(lease.bucket), examples_left)
        first = lease.bucket.rhs * self.piece_batches
        for history_BL, feature_BF, target_B in islice(
            self._batches(lease.epoch, first), self.piece_batches
        ):
            try:
                loss = self._step(history_BL, feature_BF, target_B)
            except DataError as error:  # how the layers say that numbers overflow
                raise DataError(self._diverged(lease, str(error))) from None
            if not math.isfinite(loss):
                raise DataError(self._diverged(lease, f"The loss became {loss}."))
            ledger.add(len(target_B), loss * len(target_B))
        done = self.num_pieces - self.schedule.num_waiting
        ledger.close(done, self.num_pieces, 0.0, self.output.lr)

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """(history_BL, feature_BF, target_B), from batch `first` on."""
        events, examples = self.events, self.events.examples
        order = events.sequences, self.output.batch_size, self.config.seed, epoch, first
        if self.features is not None and isinstance(examples, NextItem):
            for owner, history_BL, target_B in examples.of_owners(*order):
                yield history_BL, torch.from_numpy(self.features.ids[owner]), target_B
        else:
            for history_BL, target_B in examples.batches(*order):
                yield history_BL, None, target_B

    def _step(self, history_BL: Tensor, feature_BF: Tensor | None, target_B: Tensor) -> float:
        self.optimizer.zero_grad()
        loss = self.layer(self.tower(history_BL, feature_BF), target_B).loss
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def _commit(self, leases: list[Lease]) -> None:
        """Write what was learnt and the manifest that names it; then the pieces count as done."""
        token, events = max(lease.token for lease in leases), self.events
        tables: dict[Slot, FileEntry] = {}
        for rows, of_classes in ((self.class_rows, True), (self.input_rows, False)):
            learnt = [rows.state]
            if self.tower.features is not None:
                learnt.append(self.tower.features.optimizer_state.numpy())
            if not all(np.isfinite(state).all() for state in learnt):
                raise DataError(self._diverged(leases[-1], "A row's state is no number."))
            place = self._place(of_classes)
            tables |= rows.write(self.graph, events.classes, place, self.checkpoint, token)
        if self.features is not None and self.tower.features is not None:
            tables |= self._write_features(self.features, self.tower.features, token)
        parameters = self.checkpoint.write_parameters(token, self._arrays())
        for lease in leases:
            assert self.schedule.commit(lease.token)
        self.checkpoint.commit(
            CheckpointManifest(
                self.graph.digest,
                self.settings,
                self.schedule.progress,
                tables,
                parameters,
                self.known_batches,
            )
        )
        leases.clear()

    def _write_features(
        self, features: AskerFeatures, table: RowEmbedding, token: int
    ) -> dict[Slot, FileEntry]:
        rows, state = table.weight.numpy(), table.optimizer_state.numpy()
        touched = np.not_equal(state if state.shape[1] else rows, 0).any(axis=1)
        kept = np.ones(len(rows), np.float32)  # of an optimizer that keeps nothing
        if state.shape[1]:
            kept = state[:, 0] if state.shape[1] == 1 else state
        slot, optimizer = features_slot(features.entity_type), self.input_rows.optimizer
        written = self.checkpoint.write_rows(slot, token, rows, kept, touched, optimizer)
        return {slot: written}

    # --- the rest of the state

    def _arrays(self) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {}
        for name, value in self.tower.named_parameters():
            if value.requires_grad:
                found[f"tower.{name}"] = value.detach().numpy()
                found[f"tower.{name}.sum"] = self.optimizer.state[value]["sum"].numpy()
        if self.features is not None:
            found[VOCABULARY] = self.features.packed
        found |= {f"layer.{name}": value.numpy() for name, value in self._counters().items()}
        if isinstance(self.layer, LSHSoftmax):
            state = self.layer.get_extra_state()
            found |= {f"retriever.{name}": array.numpy() for name, array in state.items()}
        return found

    def _counters(self) -> dict[str, Tensor]:
        """What the layer keeps beside its rows and what follows from the data."""
        known = {"optimizer_state", "frequencies", "removed"}
        return {name: value for name, value in self.layer.named_buffers() if name not in known}

    @torch.no_grad()
    def _load(self, arrays: Mapping[str, NDArray[Any]], *, with_retriever: bool) -> None:
        if not arrays:
            return
        for name, value in self.tower.named_parameters():
            if value.requires_grad:
                value.copy_(torch.from_numpy(arrays[f"tower.{name}"]))
                self.optimizer.state[value]["sum"].copy_(
                    torch.from_numpy(arrays[f"tower.{name}.sum"])
                )
        for name, counter in self._counters().items():
            counter.copy_(torch.from_numpy(arrays[f"layer.{name}"]))
        if isinstance(self.layer, LSHSoftmax) and with_retriever:
            self.layer.set_extra_state(
                {
                    name.removeprefix("retriever."): torch.from_numpy(array)
                    for name, array in arrays.items()
                    if name.startswith("retriever.")
                }
            )

    # --- pieces

    def _pieces(self, epoch: int) -> list[Bucket]:
        return [Bucket(0, at) for at in range(self.num_pieces)]

    def _size(self, piece: Bucket) -> int:
        whole = self.piece_batches * self.output.batch_size
        return min(whole, self.events.num_examples - piece.rhs * whole)

    def _examples_left(self) -> int:
        progress = self.schedule.progress
        epochs = max(self.config.epochs - progress.epoch, 0)
        return epochs * self.events.num_examples - sum(map(self._size, progress.done))

    def _diverged(self, lease: Lease, what: str) -> str:
        remedy = " and train again; nothing was committed yet"
        if self.checkpoint.exists:
            remedy = (
                f", remove {self.checkpoint.path} and train again; its last commit is from before"
            )
        return (
            f"Training diverged in epoch {lease.epoch + 1}: {what.rstrip('.')}. Lower output.lr or "
            f"output.tower_lr{remedy}."
        )
