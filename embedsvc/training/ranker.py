"""Training `[ranker]`: rows are encoded once, then learnt window by window.

    RUN/ranker/encoded/     what rows are to the model (ranking/encoding.py)
    RUN/ranker/checkpoint/  what it learnt

    for lease in schedule:                   # a window: up to a million rows, in memory
        for batch in shuffled(window): model.learn(batch)
        ledger.add(...)

Schedule, ledger and commits are those of the graph trainer, whose buckets are windows here. Which
windows come when, and in which order their rows, follows from (seed, epoch, window): a broken run
ends in the same bits as a whole one.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embedsvc.config import TrainConfig
from embedsvc.evaluation.clicks import auc
from embedsvc.graph.fast import num_cores
from embedsvc.ranking import stored
from embedsvc.ranking.config import RankerConfig
from embedsvc.ranking.encoding import TRAIN, VALID, Encoding
from embedsvc.ranking.trained import (
    CALIBRATION,
    FEATURES,
    TrainedRanker,
    described,
    model_of,
    name_of,
    predict,
)
from embedsvc.ranking.warm_start import Known, start_from
from embedsvc.trained import settings_of as trained_with
from embedsvc.training import stopping
from embedsvc.training.ledger import Ledger
from embedsvc.training.loop import train_leases
from embedsvc.training.ranker_plan import RankerPlan, plan_ranker
from embedsvc.training.stopping import EarlyStopping, Judge
from embedsvc.training.trainer import METRICS, TrainReport
from partitions import durable
from partitions.checkpoint import MANIFEST, Checkpoint, CheckpointManifest
from partitions.encoded import BLOCK_ROWS, EncodedFile
from partitions.errors import ConfigError, DataError
from partitions.features import Encoded, joined
from partitions.schedule import Lease, Schedule
from partitions.schema import Bucket
from partitions.sources import expand

logger = logging.getLogger(__name__)

WINDOW_BLOCKS = 16  # a million rows
_COVERED = {"epochs", "seed", "threads", "commit_every_s", "memory_mb", "early_stopping"}
_COVERED |= {"tensorboard", "page_cache"}
SPLITS = ("train", "valid", "test")
_FREE = {"train", "valid", "test", "user", "calibration", "start_from"}  # may change in a resume
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RankerFolders:
    """Where a run keeps its ranker."""

    path: Path

    @property
    def encoded(self) -> Path:
        return self.path / "encoded"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"


def check_covered(name: str, config: TrainConfig) -> None:
    """ConfigError where settings were given that [ranker] makes nothing of. name: the file's."""
    if odd := config.model_fields_set - _COVERED:
        hints = {"lr": "ranker.deep.lr", "batch_size": "ranker.batch_size"}
        hint = f"set {hints[min(odd)]}" if min(odd) in hints else "remove it"
        raise ConfigError(f"{name}: [train] {min(odd)} does not apply with [ranker]: {hint}.")
    judged = config.early_stopping.model_fields_set if config.early_stopping else set()
    if odd := judged & {"metric", "max_edges"}:
        raise ConfigError(
            f"{name}: [train.early_stopping] {min(odd)} does not apply with [ranker], which is "
            "judged by AUC: remove it."
        )


def train(folders: RankerFolders, config: RankerConfig, train: TrainConfig) -> TrainReport:
    """Train into the checkpoint of `folders`, resuming what is there.

    Raises BusyError where another process trains into it, ConfigError where the plan does not fit
    or the checkpoint was begun with other settings, DataError for rows that can't be read, damaged
    files and divergence.
    """
    with durable.only_writer(folders.checkpoint, "training into"):
        check(folders, config, train)
        encoding = prepare(folders, config)
        plan = plan_of(encoding, config, train.threads)
        logger.info("%s", plan)
        plan.check(train.memory_mb)
        if train.threads:
            torch.set_num_threads(train.threads)
        trainer = _Trainer(encoding, folders.checkpoint, config, train)
        report = trainer.run()
        if config.calibration == "none":
            (folders.checkpoint / CALIBRATION).unlink(missing_ok=True)
        else:
            trained = TrainedRanker(folders.checkpoint)
            trained.calibrate(config.calibration, trainer.valid)
    return replace(report, planned_bytes=plan.total)


def check(folders: RankerFolders, config: RankerConfig, train: TrainConfig) -> None:
    """What training refuses before it reads a row: ConfigError for settings, DataError for paths
    of no files."""
    if train.early_stopping is not None and not config.valid:
        raise ConfigError("[train] early_stopping needs rows: set ranker.valid, or unset it.")
    check_files(config)
    path = folders.checkpoint
    checkpoint = Checkpoint(path)
    if not checkpoint.exists:
        return
    manifest = checkpoint.read_manifest()
    check_same(trained_with(manifest, path / MANIFEST, "ranker", RankerConfig), config, path)
    then = trained_with(manifest, path / MANIFEST, "train", TrainConfig).seed
    if then != train.seed:
        raise _changed(path, ("train.seed", then, train.seed))


def check_files(config: RankerConfig, splits: Iterable[str] = SPLITS) -> None:
    """DataError where a path of these splits matches no file."""
    for split in splits:
        for source in getattr(config, split):
            expand(Path(), source, "the folder of the command")


def check_same(then: RankerConfig, now: RankerConfig, path: Path) -> None:
    """ConfigError where the checkpoint at `path`, trained as `then` says, is not what `now`
    describes. Settings that are newer than the checkpoint had their defaults then."""
    tables = (one.model_dump(mode="json", exclude=_FREE) for one in (then, now))
    if (found := _difference("ranker", *tables)) is not None:
        raise _changed(path, found)


def _difference(name: str, then: Any, now: Any) -> tuple[str, Any, Any] | None:
    """The first setting that differs: its dotted name, and what it was and is; None where unset."""
    if then == now:
        return None
    if not (isinstance(then, dict) and isinstance(now, dict)):
        return name, then, now
    for key in [*then, *now]:
        if found := _difference(f"{name}.{key}", then.get(key), now.get(key)):
            return found
    return None


def _changed(path: Path, difference: tuple[str, Any, Any]) -> ConfigError:
    name, then, now = difference
    shown = [json.dumps(value, ensure_ascii=False) for value in (then, now)]
    was = f"without {name}" if then is None else f"with {name} = {shown[0]}"
    return ConfigError(
        f"{path} was begun {was}, now it is {'unset' if now is None else shown[1]}. Set "
        f"it back to go on, remove {path} to train from the start, or choose another [run] dir."
    )


def prepare(folders: RankerFolders, config: RankerConfig) -> Encoding:
    """The rows, encoded, by the features that training begins with."""
    start = described(config.start_from)[1] if config.start_from is not None else None
    return Encoding.prepare(folders.encoded, config, start)


def plan(folders: RankerFolders, config: RankerConfig, threads: int | None = None) -> RankerPlan:
    """What training would take. Encodes the rows as training does; raises BusyError where another
    process trains, as it reads what that replaces."""
    with durable.only_writer(folders.checkpoint, "planning to train into"):
        return plan_of(prepare(folders, config), config, threads)


def plan_of(encoding: Encoding, config: RankerConfig, threads: int | None = None) -> RankerPlan:
    """threads: None: all cores, as in training."""
    return plan_ranker(encoding, config, WINDOW_BLOCKS * BLOCK_ROWS, threads or num_cores())


def settings_of(config: RankerConfig, train: TrainConfig) -> dict[str, Any]:
    return {"ranker": config.model_dump(mode="json"), "train": train.model_dump(mode="json")}


class _Trainer:
    def __init__(
        self,
        encoding: Encoding,
        folder: Path,
        config: RankerConfig,
        train: TrainConfig,
    ) -> None:
        self.encoding, self.config, self.train = encoding, config, train
        self.checkpoint = Checkpoint(folder, keep_cached=train.page_cache)
        self.settings = settings_of(config, train) | {
            FEATURES: {"digest": encoding.features.digest}
        }
        self.rows = encoding.open(TRAIN)
        if config.valid and (train.early_stopping or config.calibration != "none"):
            self.valid = encoding.open(VALID)
        self.num_windows = -(-len(self.rows) // (WINDOW_BLOCKS * BLOCK_ROWS))
        self.resumed = self.checkpoint.exists
        manifest = CheckpointManifest(encoding.digest, self.settings)
        if self.resumed:
            manifest = self.checkpoint.read_manifest()
            _check_rows(manifest, encoding, self.settings, folder)
            if manifest.progress.epoch < train.epochs:
                self.checkpoint.verify(manifest)
            self.checkpoint.sweep()
        progress = manifest.progress
        self.schedule = Schedule(self._windows, lambda _: frozenset(), train.epochs, progress)
        weights = positive_weights(config, encoding)
        self.model = model_of(encoding.features.layout, config, weights, train)
        if self.resumed:
            optimizer = name_of(config.deep.row_optimizer)
            stored.read_tables(self.model, self.checkpoint, manifest.tables, optimizer)
            stored.load_arrays(self.model, self.checkpoint.read_parameters(manifest.parameters))
        else:
            encoding.features.save(folder / FEATURES)
        if config.start_from is not None and not self.resumed:
            self._start_from(TrainedRanker(config.start_from))
        self.stopping: EarlyStopping | None = None
        if train.early_stopping is not None:
            _check_judged(self.valid)
            rows = {"rows": encoding.digest, "valid": encoding.digest_of(VALID)}
            judge = Judge("auc", "rows", rows, self._judge)
            self.stopping = EarlyStopping(
                train.early_stopping, self.checkpoint, progress.epoch, judge
            )
        else:
            stopping.forget(self.checkpoint)

    def _start_from(self, earlier: TrainedRanker) -> None:
        now, before = self.encoding.features, earlier.features
        known = Known.of(now, before, self.config.labels, earlier.config.labels)
        for what in start_from(self.model, earlier.model, known):
            logger.warning("not taken from %s: %s", self.config.start_from, what)
        for name, spec in self.config.features.items():
            was = earlier.config.features.get(name)
            if was is not None and (spec.column or name) != (was.column or name):
                logger.warning(
                    "feature %s reads column %s, where %s read %s: its values count as the same",
                    *(name, spec.column or name, self.config.start_from, was.column or name),
                )

    def run(self) -> TrainReport:
        rows_left = self._rows_left()
        metrics = self.checkpoint.path / METRICS
        with Ledger(metrics, self.train.epochs, edge="row", bucket="window") as ledger:
            train_leases(
                self.schedule,
                ledger,
                self.stopping,
                self.train,
                lambda lease: self._train_window(lease, ledger, rows_left),
                self._commit,
            )
        return TrainReport.in_memory(ledger, self.checkpoint, self.stopping, self.resumed)

    def _train_window(self, lease: Lease, ledger: Ledger, rows_left: int) -> None:
        ledger.open(lease, self._size(lease.bucket), rows_left)
        key = [self.train.seed, lease.epoch, lease.bucket.rhs]
        rng = np.random.default_rng(key)
        torch.manual_seed(int(rng.integers(1 << 62)))  # of dropout
        batch, labels, weight = self._window(lease, rng)
        self.model.train()
        for first in range(0, len(batch), self.config.batch_size):
            some = slice(first, min(first + self.config.batch_size, len(batch)))
            try:
                loss = self.model.learn(
                    batch.slice(some.start, some.stop), labels[some], weight[some]
                )
            except DataError as error:
                raise DataError(
                    f"Training diverged in epoch {lease.epoch + 1}: {str(error).rstrip('.')}. "
                    "Lower ranker.deep.lr, ranker.deep.row_lr or ranker.wide.alpha, remove "
                    f"{self.checkpoint.path} and train again."
                ) from None
            size = some.stop - some.start
            ledger.add(size, loss * size)
        done = self.num_windows - self.schedule.num_waiting
        ledger.close(done, self.num_windows, 0.0, self.config.deep.lr)

    def _window(self, lease: Lease, rng: np.random.Generator) -> tuple[Encoded, Floats, Floats]:
        """The rows of a window in the order in which they are learnt.

        Its blocks are others in each epoch, so that rows which lie together don't always meet.
        """
        order = np.random.default_rng([self.train.seed, lease.epoch]).permutation(
            -(-len(self.rows) // BLOCK_ROWS)
        )
        first = lease.bucket.rhs * WINDOW_BLOCKS
        parts = [
            self.rows.read(at * BLOCK_ROWS, min((at + 1) * BLOCK_ROWS, len(self.rows)))
            for at in order[first : first + WINDOW_BLOCKS].tolist()
        ]
        batch = joined([part[0] for part in parts])
        labels, weight = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
        shuffled = rng.permutation(len(batch))
        return batch.take(shuffled), labels[shuffled], weight[shuffled]

    def _commit(self, leases: list[Lease]) -> None:
        """Write what was learnt and the manifest that names it; then the windows count as done."""
        token = max(lease.token for lease in leases)
        tables = stored.write_tables(
            self.model, self.checkpoint, token, name_of(self.config.deep.row_optimizer)
        )
        arrays = stored.arrays_of(self.model)
        parameters = self.checkpoint.write_parameters(token, arrays)
        for lease in leases:
            assert self.schedule.commit(lease.token)
        self.checkpoint.commit(
            CheckpointManifest(
                self.encoding.digest, self.settings, self.schedule.progress, tables, parameters
            )
        )
        leases.clear()

    def _judge(self) -> tuple[float, int]:
        """Mean AUC on the validation rows of the tasks that have one, and how many rows it are."""
        logits, labels, weight = predict(self.model, self.valid)
        found = []
        for logit, label in zip(logits.T, labels.T, strict=True):
            rows = ~np.isnan(label)
            each = (one[rows].astype(np.float64) for one in (logit, label, weight))
            found.append(auc(*each))
        known = [value for value in found if not np.isnan(value)]
        return (float(np.mean(known)) if known else 0.5), len(labels)

    # --- windows

    def _windows(self, epoch: int) -> list[Bucket]:
        return [Bucket(0, at) for at in range(self.num_windows)]

    def _size(self, window: Bucket) -> int:
        """About: the last block may be in any window."""
        whole = WINDOW_BLOCKS * BLOCK_ROWS
        return min(whole, len(self.rows) - window.rhs * whole)

    def _rows_left(self) -> int:
        progress = self.schedule.progress
        epochs = max(self.train.epochs - progress.epoch, 0)
        return epochs * len(self.rows) - sum(map(self._size, progress.done))


def positive_weights(config: RankerConfig, encoding: Encoding) -> list[float]:
    """Of each task, what a row of label 1 counts."""
    if config.positive_weight != "balanced":
        return [float(config.positive_weight)] * len(config.labels)
    found = []
    for label, (ones, rest) in zip(config.labels, encoding.balance, strict=True):
        if not (ones and rest):
            lacking = "ones" if rest else "zeros" if ones else "known rows"
            logger.warning("label %s has no %s to learn from: it is not balanced", label, lacking)
        found.append(rest / ones if ones and rest else 1.0)
    return found


def _check_judged(rows: EncodedFile) -> None:
    """ConfigError where no task of the validation rows has an AUC."""
    kinds = np.zeros((2, rows.num_labels))
    for first in range(0, len(rows), BLOCK_ROWS):
        block = rows.read(first, min(first + BLOCK_ROWS, len(rows)))
        kinds += [block.weight @ (block.labels == kind) for kind in (0, 1)]
    if not kinds.all(0).any():
        raise ConfigError(
            "[train] early_stopping judges by AUC, but no label of ranker.valid's rows has "
            "both ones and zeros of a weight above 0: name other rows, or unset early_stopping."
        )


def _check_rows(
    manifest: CheckpointManifest, encoding: Encoding, settings: dict[str, Any], path: Path
) -> None:
    if manifest.graph_digest == encoding.digest:
        return
    then, now = (of["ranker"].get("start_from") for of in (manifest.config, settings))
    if then != now:  # which has other ids
        raise _changed(path, ("ranker.start_from", then, now))
    raise ConfigError(
        f"{path} was trained on other rows than ranker.train names now: remove {path} to train "
        "from the start, or choose another [run] dir. ranker.start_from begins with what was "
        "learnt."
    )
