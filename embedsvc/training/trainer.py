"""Training: the loop over leases, and the commits that make it restartable.

    for lease in schedule:
        with buffer.hold(bucket) as tables:
            for num_edges, loss in step(tables, edges): ledger.add(num_edges, loss)

All randomness of a bucket comes from (seed, epoch, bucket), so a bucket repeated after a kill does
exactly what it would have done: with one thread a broken run ends in the same bits as a whole one.
"""

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedsvc.config import ModelConfig, OutputConfig, TrainConfig
from embedsvc.graph.bags import FeatureBags, bags_of, featurised
from embedsvc.graph.batches import Group
from embedsvc.graph.device import Copies, DeviceBatches, DeviceTable, device_of
from embedsvc.graph.fast import FastStep, num_cores, uncovered
from embedsvc.graph.initial import fresh_maker
from embedsvc.graph.model import GraphModel
from embedsvc.graph.optimizers import OPTIMIZERS, form_of
from embedsvc.graph.products import fast_bfloat16
from embedsvc.graph.step import ExactBatches, Step
from embedsvc.trained import settings_of
from embedsvc.training import stopping
from embedsvc.training.buffer import IN_MEMORY, Buffer
from embedsvc.training.ledger import Ledger
from embedsvc.training.loop import train_leases
from embedsvc.training.plan import check_device, check_memory, plan_memory
from embedsvc.training.rates import WarmedUp
from embedsvc.training.stopping import EarlyStopping, Judge
from embedsvc.training.warm_start import given_tables
from partitions import durable
from partitions.buffer_states import Needs, fewest_swaps
from partitions.checkpoint import MANIFEST, Checkpoint, CheckpointManifest
from partitions.errors import ConfigError, DataError
from partitions.graph import Graph
from partitions.order import ORDERS
from partitions.schedule import Lease, Schedule
from partitions.schema import Bucket, Slot
from partitions.tables import Table

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
# Settings that say how a run is carried out, not what it aims at: free to differ on resume.
_FREE = {
    ("train", key)
    for key in (
        *("epochs", "early_stopping", "only_changed", "commit_every_s"),
        *("step", "threads", "memory_mb", "buffer", "prefetch", "page_cache"),
        *("device", "tf32", "tensorboard", "products"),
    )
} | {("output", "mapped")}
_LARGEST = float(np.finfo(np.float32).max)
_BOUNDED = ("rowwise_adagrad", "adagrad")  # optimizers that divide by the root of all they added
_MODEST_STEP = 1e6  # at this rate it takes 1e12 updates of one row to overflow a score

_TABLES: Mapping[str, type[ModelConfig | OutputConfig | TrainConfig]] = {
    "output": OutputConfig,
    "model": ModelConfig,
    "train": TrainConfig,
}


@dataclass(frozen=True)
class TrainReport:
    """What a training run did; counts are of this process, not of the runs it resumed."""

    num_edges: int
    train_s: float
    loss: float  # mean per edge over the last bucket; NaN where there was nothing left to do
    wait_s: float
    table_reads: int
    table_writes: int
    io_bytes: int  # of table files
    resumed: bool
    swaps: int = 0  # tables that left memory to make room
    least_swaps: int = 0  # what no order can do without, see partitions.buffer_states
    read_bytes: int = 0  # of io_bytes
    stopped_early: bool = False
    best_epoch: int | None = None  # counted from 1; None without early stopping
    planned_bytes: int = 0  # of memory

    @staticmethod
    def in_memory(
        ledger: Ledger, checkpoint: Checkpoint, stopping: EarlyStopping | None, resumed: bool
    ) -> "TrainReport":
        """Where no table is waited for: all that learns is in memory, or mapped there."""
        traffic = checkpoint.table_traffic
        return TrainReport(
            num_edges=ledger.num_edges,
            train_s=ledger.train_s,
            loss=ledger.last_loss,
            wait_s=0.0,
            table_reads=0,
            table_writes=0,
            io_bytes=traffic.io_bytes,
            read_bytes=traffic.read_bytes,
            resumed=resumed,
            stopped_early=stopping is not None and stopping.stopped,
            best_epoch=stopping.best[0] if stopping and stopping.history else None,
        )


def train(graph: Graph, folder: Path, model: ModelConfig, config: TrainConfig) -> TrainReport:
    """Train `graph` into the checkpoint directory `folder`, resuming what is there.

    Raises BusyError where another process trains into it, ConfigError where the plan does not fit
    or the checkpoint was begun with other settings, DataError for damaged files and for divergence.
    """
    if not graph.buckets("train"):
        raise DataError(f"{graph.path} has no training edges. Import some, or lower graph.holdout.")
    device = device_of(config, featurised(graph))
    plan = plan_memory(graph, model, config)
    logger.info("%s", plan)
    check_memory(plan, graph, model, config)
    if device is not None and device.type == "cuda":
        check_device(plan, torch.cuda.mem_get_info(device)[0], graph)
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    if config.threads:
        torch.set_num_threads(config.threads)
    checkpoint = Checkpoint(folder, keep_cached=config.page_cache)
    with durable.only_writer(folder, "training into"):
        report = _Trainer(graph, checkpoint, model, config, device).run()
    return replace(report, planned_bytes=plan.total)


class _Trainer:
    def __init__(
        self,
        graph: Graph,
        checkpoint: Checkpoint,
        model: ModelConfig,
        config: TrainConfig,
        device: torch.device | None,
    ) -> None:
        """device: where tables are trained that the CPU's own steps do not train."""
        self.graph, self.checkpoint, self.config = graph, checkpoint, config
        self.model = GraphModel.build(model, graph, config.seed)
        self.resumed = checkpoint.exists
        form = form_of(model, config)
        settings = {"model": model.model_dump(mode="json"), "train": config.model_dump(mode="json")}
        if self.resumed:
            manifest = checkpoint.read_manifest()
            check_resumable(manifest, graph, settings, checkpoint.path)
            if manifest.progress.epoch < config.epochs:
                checkpoint.verify(manifest)
            checkpoint.sweep()
            if manifest.parameters:
                self.model.parameters.load(checkpoint.read_parameters(manifest.parameters))
        else:
            manifest = CheckpointManifest(graph.digest, settings)
            if model.init_from:
                fresh_of = fresh_maker(graph, model, config.seed)
                given = given_tables(graph, checkpoint, fresh_of, model.dim, model.init_from, form)
                manifest = replace(manifest, tables=given)
                checkpoint.commit(manifest)
        self.settings = settings
        # Import batches that training knew before the graph last grew: later ones are the change.
        self.known_batches = manifest.trained_batches
        if manifest.graph_digest != graph.digest:
            self.known_batches = graph.manifest.ancestors.index(manifest.graph_digest) + 1
        single = {t.name for t in graph.entity_types.values() if t.num_partitions == 1}
        self.single = frozenset(slot for slot in graph.tables() if slot.entity_type in single)
        self._order = lru_cache(2)(self._new_order)  # asked for at every bucket
        self._edges_before = lru_cache(2)(self._new_edges_before)
        self.schedule = Schedule(self._order, self._locks, config.epochs, manifest.progress)
        self.buffer = Buffer(
            checkpoint,
            manifest.tables,
            {slot: graph.num_rows(slot) for slot in graph.tables()},
            fresh_maker(graph, model, config.seed),
            pinned=self.single,
            capacity=config.buffer,
            prefetch=config.prefetch,
            coming=lambda: map(self._locks, self.schedule.coming()),
            form=form,
            placement=IN_MEMORY if device is None else Copies(device),
        )
        for bucket in graph.buckets("train"):
            self.buffer.check_fits(graph.slots_of_bucket(bucket))
        relations = [relation.name for relation in graph.relations]
        not_fast = uncovered(model, config, relations) or featurised(graph)
        self.step = _choose_step(self.model, not_fast, config, bags_of(graph), device)
        self.rate = WarmedUp.build(config.lr_schedule, config.warmup_epochs)
        self.stopping: EarlyStopping | None = None
        if config.early_stopping is not None:
            judge = Judge.of_ranks(config.early_stopping, graph, checkpoint)
            epoch = manifest.progress.epoch
            self.stopping = EarlyStopping(config.early_stopping, checkpoint, epoch, judge)
        else:
            stopping.forget(checkpoint)

    def run(self) -> TrainReport:
        edges_left = self._edges_left()
        least_swaps = self._least_swaps()
        with (
            closing(self.buffer),
            Ledger(self.checkpoint.path / METRICS, self.config.epochs) as ledger,
        ):
            train_leases(
                self.schedule,
                ledger,
                self.stopping,
                self.config,
                lambda lease: self._train_bucket(lease, ledger, edges_left),
                self._commit,
            )
        buffer = self.buffer
        return TrainReport(
            ledger.num_edges,
            ledger.train_s,
            ledger.last_loss,
            buffer.wait_s,
            buffer.num_reads,
            buffer.num_writes,
            buffer.io_bytes,
            self.resumed,
            buffer.num_swaps,
            least_swaps,
            self.checkpoint.table_traffic.read_bytes,
            self.stopping is not None and self.stopping.stopped,
            self.stopping.best[0] if self.stopping and self.stopping.history else None,
        )

    def _train_bucket(self, lease: Lease, ledger: Ledger, edges_left: int) -> None:
        bucket, wait_before = lease.bucket, self.buffer.wait_s
        edges = self.graph.edges("train", bucket)
        ledger.open(lease, len(edges), edges_left)
        seeds = [self.config.seed, lease.epoch, *bucket]
        with self.buffer.hold(self.graph.slots_of_bucket(bucket), lease.token) as tables:
            rate = self._rate(lease)
            with closing(self.step(tables, edges, self._groups(bucket), seeds, rate)) as pieces:
                for num_edges, loss in pieces:
                    if not math.isfinite(loss):
                        raise DataError(self._diverged(lease, loss))
                    ledger.add(num_edges, loss)
            for slot, table in tables.items():
                if (largest := self._overflow(table)) is not None:
                    raise DataError(self._diverged(lease, largest, f"vectors of {slot[0]}"))
        waiting, total = self.schedule.num_waiting, self.schedule.num_buckets
        lr = self.config.lr * self._rate(lease)(len(edges))
        ledger.close(total - waiting, total, self.buffer.wait_s - wait_before, lr)

    def _overflow(self, table: Table | DeviceTable) -> float | None:
        """What in a table just trained is no number, or too large for two vectors to be scored.

        AdaGrad divides a gradient by the root of the state it was added to, so a number moves by
        at most lr sqrt(dim) an update: with a finite state only a huge lr can carry it away, and
        only then the vectors themselves, dim times as many, are gone through.
        """
        if not math.isfinite(largest := table.largest_state()):
            return largest
        dim = table.dim
        bounded = self.config.optimizer in _BOUNDED
        if bounded and self.config.lr * math.sqrt(dim) < _MODEST_STEP:
            return None
        largest = table.largest_number()
        return None if largest**2 * dim < _LARGEST else largest

    def _rate(self, lease: Lease) -> Callable[[int], float]:
        """What step sizes are multiplied by for a bucket's next edges, given how many they are.

        By how much of the epoch is done in the middle of them. Buckets count in the order of their
        epoch, whenever they are trained.
        """
        before, total = self._edges_before(lease.epoch)
        done = before[lease.bucket]

        def at(num_edges: int) -> float:
            nonlocal done
            done += num_edges
            return self.rate(lease.epoch + (done - num_edges / 2) / total)

        return at

    def _commit(self, leases: list[Lease]) -> None:
        """Write what changed and the manifest that names it; then the buckets count as done."""
        token = max(lease.token for lease in leases)
        for name, values in self.model.parameters.values.items():
            if not torch.isfinite(values).all():
                raise DataError(self._diverged(leases[-1], math.nan, f"operator {name}"))
        tables = self.buffer.write_changed()
        parameters = self.checkpoint.write_parameters(token, self.model.parameters.arrays())
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

    def _diverged(self, lease: Lease, loss: float, where: str = "loss") -> str:
        return (
            f"Training diverged: the {where} became {loss} in epoch {lease.epoch + 1}, bucket "
            f"({lease.bucket.lhs}, {lease.bucket.rhs}). Lower train.lr or model.init_scale, remove "
            f"{self.checkpoint.path} and train again; its last commit is from before."
        )

    def _new_order(self, epoch: int) -> list[Bucket]:
        rng = np.random.default_rng([self.config.seed, epoch])
        return ORDERS.build(self.config.order)(self._needs(), self.config.buffer, rng)

    def _new_edges_before(self, epoch: int) -> tuple[dict[Bucket, int], int]:
        """Edges of an epoch before each of its buckets, and all of them."""
        order = self._order(epoch)
        sizes = [self.graph.num_edges("train", bucket) for bucket in order]
        *before, total = accumulate(sizes, initial=0)
        return dict(zip(order, before, strict=True)), total

    def _needs(self) -> Needs:
        since = self.known_batches if self.config.only_changed else 0
        return {b: self._locks(b) for b in self.graph.changed_buckets("train", since)}

    def _least_swaps(self) -> int:
        """Of what is left to do."""
        progress, needs, capacity = self.schedule.progress, self._needs(), self.config.buffer
        left = {bucket: slots for bucket, slots in needs.items() if bucket not in progress.done}
        whole_epochs = max(self.config.epochs - progress.epoch - 1, 0)
        started = 0 if self.schedule.finished else fewest_swaps(left, capacity)
        return started + whole_epochs * fewest_swaps(needs, capacity)

    def _locks(self, bucket: Bucket) -> frozenset[Slot]:
        return frozenset(self.graph.slots_of_bucket(bucket)) - self.single

    def _groups(self, bucket: Bucket) -> list[Group]:
        """What a batch of each relation's edges has in common."""
        slot_of = self.graph.slot_of
        return [
            Group(slot_of(r.lhs, bucket.lhs), slot_of(r.rhs, bucket.rhs), operator)
            for r, operator in zip(self.graph.relations, self.model.operator_of, strict=True)
        ]

    def _edges_left(self) -> int:
        progress = self.schedule.progress
        per_epoch = self.graph.num_edges("train")
        done = sum(self.graph.num_edges("train", bucket) for bucket in progress.done)
        return max(self.config.epochs - progress.epoch, 0) * per_epoch - done


def _choose_step(
    model: GraphModel,
    not_fast: str | None,
    config: TrainConfig,
    bags: Mapping[Slot, FeatureBags],
    device: torch.device | None,
) -> Step:
    """not_fast: what the fast step does not cover."""
    lrs, negatives = (config.lr, config.relation_lr or config.lr), config.negatives
    optimizer = OPTIMIZERS.build(config.optimizer)
    if device is not None:
        sizes = config.batch_size, config.chunk_size
        return DeviceBatches(model, *lrs, *sizes, negatives, optimizer, device)
    if config.step == "fast" and not_fast:
        raise ConfigError(
            f"[train] step = fast does not cover {not_fast}. Set train.step=auto or exact."
        )
    if config.step != "exact" and not not_fast:
        threads = config.threads or num_cores()
        return FastStep(
            model,
            *lrs,
            config.chunk_size,
            negatives.in_batch,
            negatives.uniform,
            threads,
            versus_all=negatives.all,
            halves=_halves(config),
        )
    if not_fast:
        logger.info("training by the exact step: the fast one does not cover %s", not_fast)
    if config.products != "float32":
        logger.info(
            "train.products = %s is of the fast step: this one uses float32", config.products
        )
    return ExactBatches(
        model, *lrs, config.batch_size, config.chunk_size, negatives, optimizer, bags
    )


def _halves(config: TrainConfig) -> bool:
    if config.products == "bfloat16" and not fast_bfloat16():
        logger.info("train.products: float32, as this processor multiplies bfloat16 no faster")
        return False
    return config.products == "bfloat16"


def check_resumable(
    manifest: CheckpointManifest, graph: Graph, settings: Mapping[str, Any], path: Path
) -> None:
    if not graph.grew_from(manifest.graph_digest):
        raise ConfigError(
            f"{path} was trained on another graph than {graph.path} holds now. "
            f"Remove {path} to train from the start, or choose another [run] dir."
        )
    if ("output" in manifest.config) != ("output" in settings):
        how = "without [output], now there is one" if "output" in settings else "with [output]"
        raise ConfigError(
            f"{path} was begun {how}. Change that back to go on, remove "
            f"{path} to train from the start, or choose another [run] dir."
        )
    for table, now in settings.items():
        # Settings that are newer than the checkpoint had their defaults then.
        found = settings_of(manifest, path / MANIFEST, table, _TABLES[table])
        then = found.model_dump(mode="json")
        for key in now:
            if (table, key) not in _FREE and then.get(key) != now[key]:
                raise ConfigError(
                    f"{path} was begun with {table}.{key} = {then.get(key)!r}, now it is "
                    f"{now[key]!r}. Set it back to go on, remove {path} to train from the start, "
                    "or choose another [run] dir."
                )
