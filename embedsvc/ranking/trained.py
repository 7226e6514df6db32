"""A ranker as it is built from settings, and as it was committed: what evaluation, export and the
start of another training read.

    CHECKPOINT/features/         what ids and numbers mean (partitions.features)
    CHECKPOINT/calibration.json  {checkpoint: digest of the manifest that it is of, ...}
"""

import hashlib
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from embedsvc.config import TrainConfig
from embedsvc.graph.fast import num_cores
from embedsvc.ranking import stored
from embedsvc.ranking.calibration import Calibration, Kind, fit
from embedsvc.ranking.config import RankerConfig
from embedsvc.ranking.slots import Ftrl
from embedsvc.ranking.wide_deep import Deep, Wide, WideDeep
from embedsvc.trained import settings_of, train_settings
from partitions import durable
from partitions.checkpoint import BEST, MANIFEST, Checkpoint, CheckpointManifest
from partitions.encoded import BLOCK_ROWS, EncodedFile
from partitions.errors import DataError
from partitions.features import Encoded, Features, Layout

FEATURES = "features"  # beside a checkpoint: what its ids mean
CALIBRATION = "calibration.json"
_PREDICTED = 1024  # rows at once
Floats = NDArray[np.float32]


def model_of(
    layout: Layout, config: RankerConfig, positive_weight: list[float], train: TrainConfig
) -> WideDeep:
    """The model that the settings describe, before it has learnt."""
    names = [slot.name for slot in layout.slots]
    wide = deep = None
    if config.wide.enabled:
        chosen = config.wide.features
        ftrl = Ftrl(config.wide.alpha, config.wide.beta, config.wide.l1, config.wide.l2)
        wide = Wide(
            frozenset(n for n in names if chosen is None or n in chosen),
            layout.dense_of(chosen),
            ftrl,
        )
    if config.deep.enabled:
        deep = _deep(layout, config)
    return WideDeep(
        layout,
        wide,
        deep,
        num_tasks=len(config.labels),
        positive_weight=positive_weight,
        threads=train.threads or num_cores(),
        seed=train.seed % (1 << 63),  # as torch takes it
    )


def _deep(layout: Layout, config: RankerConfig) -> Deep:
    deep = config.deep
    dims = {slot.name: deep.dim_of(slot.name, layout.crosses) for slot in layout.slots}
    towers = None
    if deep.towers is not None:
        towers = frozenset(deep.towers[0]), frozenset(deep.towers[1])
    return Deep(
        {name: dim for name, dim in dims.items() if dim},
        layout.dense_of(deep.numbers),
        tuple(deep.hidden),
        deep.dropout,
        deep.optimizer,
        deep.lr,
        deep.row_optimizer,
        deep.row_lr,
        deep.l2,
        deep.init_scale,
        towers,
    )


def predict(model: WideDeep, rows: EncodedFile) -> tuple[Floats, Floats, Floats]:
    """Logits [n, T], labels [n, T] and weights [n] of all rows, read block by block."""
    model.eval()
    parts = []
    for first in range(0, len(rows), BLOCK_ROWS):
        batch, labels, weight = rows.read(first, min(first + BLOCK_ROWS, len(rows)))
        starts = range(0, len(batch), _PREDICTED)  # a whole block has many units
        found = [model(batch.slice(at, min(at + _PREDICTED, len(batch)))).numpy() for at in starts]
        parts.append((np.concatenate(found), labels, weight))
    logits, labels, weight = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return logits, labels, weight


def name_of(spec: str | dict[str, Any]) -> str:
    return spec if isinstance(spec, str) else str(spec["name"])


def described(folder: Path) -> tuple[RankerConfig, Features]:
    """The settings and features of a TrainedRanker, without its tables and layers."""
    name, manifest = _commit_of(Checkpoint(folder))
    config = settings_of(manifest, folder / name, "ranker", RankerConfig)
    return config, _features(folder, manifest)


def _commit_of(checkpoint: Checkpoint) -> tuple[str, CheckpointManifest]:
    """The manifest's file name, and what it says."""
    name = BEST if checkpoint.has_best else MANIFEST
    manifest = checkpoint.read_manifest(name)
    if "ranker" not in manifest.config:
        raise DataError(
            f"{checkpoint.path} is no ranker's checkpoint: it was trained without [ranker]."
        )
    return name, manifest


def _features(folder: Path, manifest: CheckpointManifest) -> Features:
    """Raises DataError where they aren't those that the tables' ids are of."""
    found = Features.load(folder / FEATURES)
    then = manifest.config.get(FEATURES, {})  # older ones don't name it
    if then.get("digest", found.digest) != found.digest:
        raise DataError(
            f"{folder / FEATURES} are not the features that {folder} was trained with: they were "
            f"replaced. Put the right ones back, or remove {folder} and train again."
        )
    return found


def _calibration_in(
    path: Path, digest: str, num_tasks: int
) -> tuple[Kind, list[Calibration]] | None:
    """None where it is of another checkpoint."""
    remedy = "Remove it and run embedsvc train, which fits it again."
    found = durable.read_json(path, remedy)
    try:
        if found["checkpoint"] != digest:
            return None
        tasks = [Calibration.from_json(task) for task in found["tasks"]]
        whole = found["kind"] in get_args(Kind) and len(tasks) == num_tasks
        whole = whole and all(map(_is_whole, tasks))
    except (KeyError, TypeError, ValueError, AttributeError):
        whole = False
    if not whole:
        raise DataError(f"{path} can't be read: it was altered. {remedy}")
    return found["kind"], tasks


def _is_whole(task: Calibration) -> bool:
    numbers = np.array([task.a, task.b, *task.at, *task.probability])
    if task.kind not in get_args(Kind) or numbers.dtype.kind not in "fi":
        return False
    knots = len(task.at) == len(task.probability) and (task.kind != "isotonic" or bool(task.at))
    return knots and bool(np.isfinite(numbers).all())


class TrainedRanker:
    """A ranker as it was committed: the best commit where there is one, else the newest."""

    def __init__(self, folder: Path) -> None:
        """folder: of a checkpoint. Raises DataError where it is none, or damaged."""
        self.checkpoint = Checkpoint(folder)
        name, manifest = _commit_of(self.checkpoint)
        self.checkpoint.verify(manifest)
        self.digest = durable.sha256_of(folder / name)
        path = folder / name
        self.config = settings_of(manifest, path, "ranker", RankerConfig)
        train = settings_of(manifest, path, "train", TrainConfig)
        self.seed = train.seed
        self.train_settings = train_settings(manifest, path)
        self.features = _features(folder, manifest)
        arrays = self.checkpoint.read_parameters(manifest.parameters)
        self.positive_weight: Floats = arrays["positive_weight"]
        self.model = model_of(
            self.features.layout, self.config, self.positive_weight.tolist(), train
        )
        optimizer = name_of(self.config.deep.row_optimizer)
        stored.read_tables(self.model, self.checkpoint, manifest.tables, optimizer)
        stored.load_arrays(self.model, arrays)
        self.model.eval()
        self.calibrated: Kind = "none"  # how: it may have been chosen after the checkpoint
        self.calibration = [Calibration() for _ in self.config.labels]
        self._calibration_file = folder / CALIBRATION
        if self._calibration_file.exists():
            found = _calibration_in(self._calibration_file, self.digest, len(self.config.labels))
            if found is not None:
                self.calibrated, self.calibration = found

    @property
    def calibration_digest(self) -> str:
        """Of how probabilities follow from logits."""
        tasks = json.dumps([task.as_json() for task in self.calibration], sort_keys=True)
        return hashlib.sha256(tasks.encode()).hexdigest()

    def logits(self, batch: Encoded) -> NDArray[np.float64]:
        """[n, T], of ones and zeros as often as they are."""
        return self.without_weight(self.model(batch).numpy())

    def without_weight(self, logits: Floats) -> NDArray[np.float64]:
        return logits.astype(np.float64) - np.log(self.positive_weight.astype(np.float64))

    def probabilities(self, batch: Encoded) -> NDArray[np.float64]:
        """[n, T]"""
        logits = self.logits(batch)
        tasks = [found(z) for found, z in zip(self.calibration, logits.T, strict=True)]
        return np.stack(tasks, 1)

    def calibrate(self, kind: Kind, rows: EncodedFile) -> None:
        """By the validation rows; kept beside the checkpoint."""
        self.calibrated = kind
        self.calibration = self.calibrated_by(rows)
        tasks = [c.as_json() for c in self.calibration]
        content = {"checkpoint": self.digest, "kind": kind, "tasks": tasks}
        durable.write_json(self._calibration_file, content)

    def calibrated_by(self, rows: EncodedFile) -> list[Calibration]:
        raw, *taught = predict(self.model, rows)
        logits = self.without_weight(raw)
        labels, weight = (one.astype(np.float64) for one in taught)
        return [
            fit(self.calibrated, logits[:, at], labels[:, at], weight, f"label {name}")
            for at, name in enumerate(self.config.labels)
        ]
