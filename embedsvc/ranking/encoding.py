"""Rows of files, as a ranker learns from them: features fitted on the training rows, and those and
the validation rows encoded once.

    encoded/features.json, features.arrow   what was fitted (partitions.features)
    encoded/train.arrow, valid.arrow        encoded rows, labels and weights (partitions.encoded)
    encoded/about.json                      of which files and settings; written last

Made anew where files or settings changed. Test rows are encoded as they are read.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedsvc.ranking.config import RankerConfig
from partitions import durable, encoded, rows
from partitions.encoded import EncodedFile
from partitions.errors import DataError
from partitions.features import Features, columns
from partitions.features.columns import CellError, Where
from partitions.sources import expand

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
ABOUT = "about.json"
TRAIN, VALID = "train", "valid"
_REMEDY = "Remove the folder and train again."
Floats = NDArray[np.float32]


class Examples(NamedTuple):
    """Rows as they were read, with what they teach."""

    rows: pa.RecordBatch
    labels: Floats  # [n, T]; NaN: not known
    weight: Floats  # [n]


@dataclass(frozen=True)
class Encoding:
    folder: Path
    features: Features
    digest: str  # of features and training rows
    num_rows: int  # to learn from
    balance: list[tuple[float, float]]  # of each label, the weight of its ones and zeros

    @classmethod
    def prepare(
        cls, folder: Path, config: RankerConfig, start: Features | None = None
    ) -> "Encoding":
        """Fit and encode, unless that was done of the same files with the same settings.

        start: the features of the model that training begins with.
        """
        wanted = _wanted(config, start)
        if (folder / ABOUT).exists():
            about = durable.read_json(folder / ABOUT, _REMEDY)
            if about.get("wanted") == wanted:
                return cls._opened(folder, about)
        logger.info("encoding rows into %s", folder)
        with durable.replacing_folder(folder) as fresh:
            features = Features.fit(
                config.encoding, (part.rows for part in examples(config, TRAIN)), start
            )
            features.save(fresh)
            balance = np.zeros((len(config.labels), 2))
            encoded.write(_path(fresh, TRAIN), features, _weighed(config, balance))
            if config.valid:
                encoded.write(_path(fresh, VALID), features, examples(config, VALID))
            about = {
                "format_version": FORMAT_VERSION,
                "wanted": wanted,
                "digest": durable.sha256_of(_path(fresh, TRAIN)),
                "balance": balance.tolist(),
            }
            durable.write_json(fresh / ABOUT, about)
        return cls._opened(folder, about)

    @classmethod
    def _opened(cls, folder: Path, about: dict[str, Any]) -> "Encoding":
        features = Features.load(folder)
        found = cls(folder, features, about["digest"], 0, [tuple(b) for b in about["balance"]])
        return cls(folder, features, found.digest, len(found.open(TRAIN)), found.balance)

    def open(self, split: str) -> EncodedFile:
        return EncodedFile(_path(self.folder, split), self.features)

    def digest_of(self, split: str) -> str:
        return durable.sha256_of(_path(self.folder, split))

    @property
    def bytes_a_row(self) -> float:
        return _path(self.folder, TRAIN).stat().st_size / max(self.num_rows, 1)


def _path(folder: Path, split: str) -> Path:
    return folder / f"{split}.arrow"


def _wanted(config: RankerConfig, start: Features | None) -> dict[str, Any]:
    """What the encoding is made of."""
    files = {}
    for split in (TRAIN, VALID):
        named = [file for source in getattr(config, split) for file in expand(Path(), source)]
        files[split] = [[file.name, file.num_bytes, file.modified_ns] for file in named]
    return {
        "features": config.encoding.model_dump(mode="json"),
        "sources": config.model_dump(mode="json", include={TRAIN, VALID}),
        "labels": config.labels,
        "weight": config.weight,
        "files": files,
        "start": start.digest if start is not None else None,
    }


def examples(config: RankerConfig, split: str) -> Iterator[Examples]:
    """All rows of a split, in batches. Raises DataError, naming file and row."""
    wanted = {spec.column or name for name, spec in config.features.items()}
    wanted |= {*config.labels, *(name for name in (config.weight, config.user) if name)}
    for source in getattr(config, split):
        for batch in rows.batches(Path(), source, sorted(wanted)):
            labels = [_label(batch, name) for name in config.labels]
            weight = np.ones(batch.num_rows, np.float32)
            if config.weight is not None:
                weight = _weight(batch, config.weight)
            yield Examples(batch, np.stack(labels, axis=1), weight)


def _weighed(config: RankerConfig, balance: NDArray[np.float64]) -> Iterator[Examples]:
    """The training rows; balance: [T, 2], added to: the weight of ones and zeros."""
    for part in examples(config, TRAIN):
        known = ~np.isnan(part.labels)
        ones = np.where(known, part.labels, 0) * part.weight[:, None]
        balance[:, 0] += ones.sum(0)
        balance[:, 1] += (known * part.weight[:, None]).sum(0) - ones.sum(0)
        yield part


def _label(batch: pa.RecordBatch, name: str) -> Floats:
    with _named("label", batch):
        found = _numbers(batch, name)
        wrong = ~(np.isnan(found) | (found == 0) | (found == 1))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise Where(name).wrong(row, float(found[row]), "0, 1 or nothing", "Mend the row")
    return found


def _weight(batch: pa.RecordBatch, name: str) -> Floats:
    with _named("weight", batch):
        found = _numbers(batch, name)
        wrong = ~(np.isfinite(found) & (found >= 0))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            expected = "a finite number of at least 0"
            raise Where(name).wrong(row, float(found[row]), expected, "Mend the row")
    return found


def _numbers(batch: pa.RecordBatch, name: str) -> Floats:
    """float32 [n], NaN where nothing is."""
    column = columns.column_of(batch, name, Where(name))
    assert column is not None  # `rows` has all that were asked for
    return columns.as_numbers(column, Where(name)).astype(np.float32)


@contextmanager
def _named(noun: str, batch: pa.RecordBatch) -> Iterator[None]:
    """Errors name the file and its row, and say what the column is."""
    try:
        yield
    except CellError as error:
        found = str(error.within(batch, 0))
        raise DataError(found.replace("feature ", f"{noun} ", 1)) from None
