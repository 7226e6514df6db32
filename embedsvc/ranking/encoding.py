"""Rows of files, as a ranker learns from them: features fitted on the training rows, and those and
the validation rows encoded once.

    encoded/features.json, features.arrow   what was fitted (partitions.features)
    encoded/train.arrow, valid.arrow        encoded rows, labels and weights (partitions.encoded)
    encoded/about.json                      {"format_version": 2, "wanted": files and settings that
                                            it is of, "files": bytes and sha256 of the two,
                                            "num_rows", "balance"}; written last

Made anew where files or settings changed, or where about.json can't be read. Test rows are encoded
as they are read.
"""

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedsvc.ranking.config import RankerConfig
from partitions import durable, encoded, rows
from partitions.durable import FileEntry
from partitions.encoded import EncodedFile
from partitions.errors import DataError
from partitions.features import Features, columns
from partitions.features.columns import CellError, Where
from partitions.sources import expand

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
ABOUT = "about.json"
TRAIN, VALID = "train", "valid"
Floats = NDArray[np.float32]


class Examples(NamedTuple):
    """Rows as they were read, with what they teach."""

    rows: pa.RecordBatch
    labels: Floats  # [n, T]; NaN: not known
    weight: Floats  # [n]


@dataclass(frozen=True)
class About:
    """What about.json says. Who writes into the folder holds the lock of the run's checkpoint."""

    wanted: dict[str, Any]
    files: dict[str, FileEntry]  # by split
    num_rows: int  # to learn from
    balance: list[tuple[float, float]]  # of each label, the weight of its ones and zeros

    @classmethod
    def read(cls, folder: Path) -> "About | None":
        """None where there is none that can be read: what it is of is then encoded anew."""
        try:
            found = durable.read_json(folder / ABOUT, "")
            if found["format_version"] != FORMAT_VERSION:
                return None
            balance = [(float(ones), float(zeros)) for ones, zeros in found["balance"]]
            files = {split: FileEntry(**entry) for split, entry in found["files"].items()}
            known = cls(dict(found["wanted"]), files, int(found["num_rows"]), balance)
        except (DataError, KeyError, TypeError, ValueError, AttributeError):
            return None
        return known if TRAIN in files else None

    def is_of(self, config: RankerConfig, split: str) -> bool:
        """Whether a split's files are those that were encoded, wherever they lie now."""
        then, now = self.wanted["files"][split], _files_of(config, split)
        return [file[1:] for file in then] == [file[1:] for file in now]

    def write(self, folder: Path) -> None:
        files = {split: entry.as_json() for split, entry in self.files.items()}
        content = {"format_version": FORMAT_VERSION, **vars(self), "files": files}
        durable.write_json(folder / ABOUT, content)


@dataclass(frozen=True)
class Encoding:
    folder: Path
    features: Features
    about: About

    @classmethod
    def prepare(
        cls, folder: Path, config: RankerConfig, start: Features | None = None
    ) -> "Encoding":
        """Fit and encode, unless that was done of the same files with the same settings.

        start: the features of the model that training begins with. Who calls it holds the lock of
        the run's checkpoint: training reads what this replaces.
        """
        wanted = _wanted(config, start)
        about = About.read(folder)
        if about is None or about.wanted != wanted:
            logger.info("encoding rows into %s", folder)
            with durable.replacing_folder(folder) as fresh:
                about = _encode(fresh, config, start, wanted)
                about.write(fresh)
        return cls(folder, Features.load(folder), about)

    @property
    def digest(self) -> str:
        """Of features and training rows."""
        return self.digest_of(TRAIN)

    @property
    def num_rows(self) -> int:
        return self.about.num_rows

    @property
    def balance(self) -> list[tuple[float, float]]:
        return self.about.balance

    def open(self, split: str) -> EncodedFile:
        """Raises DataError where the file is not, to the byte, what was written: it would be
        learnt from."""
        return open_encoded(self.folder, self.about, split, self.features)

    def digest_of(self, split: str) -> str:
        return self.about.files[split].sha256

    @property
    def bytes_a_row(self) -> float:
        return self.about.files[TRAIN].bytes / max(self.num_rows, 1)


def open_encoded(folder: Path, about: About, split: str, features: Features) -> EncodedFile:
    remedy = f"Remove {folder} and run embedsvc train, which encodes the rows again."
    if split not in about.files:
        raise DataError(f"{_path(folder, split)} is missing. {remedy}")
    return EncodedFile(durable.verify(folder, about.files[split], remedy), features)


def _files_of(config: RankerConfig, split: str) -> list[list[Any]]:
    """(name, bytes, time) of each of a split's files, as JSON has it."""
    named = [file for source in getattr(config, split) for file in expand(Path(), source)]
    return [[file.name, file.num_bytes, file.modified_ns] for file in named]


def _encode(
    fresh: Path, config: RankerConfig, start: Features | None, wanted: dict[str, Any]
) -> About:
    features = Features.fit(config.encoding, (part.rows for part in examples(config, TRAIN)), start)
    features.save(fresh)
    balance = np.zeros((len(config.labels), 2))
    num_rows = encoded.write(_path(fresh, TRAIN), features, _weighed(config, balance))
    splits = [TRAIN]
    if config.valid:
        encoded.write(_path(fresh, VALID), features, examples(config, VALID))
        splits.append(VALID)
    files = {split: durable.entry_of(fresh, _path(fresh, split)) for split in splits}
    return About(wanted, files, num_rows, [(ones, zeros) for ones, zeros in balance.tolist()])


def _path(folder: Path, split: str) -> Path:
    return folder / f"{split}.arrow"


def _wanted(config: RankerConfig, start: Features | None) -> dict[str, Any]:
    """What the encoding is made of."""
    return {
        "features": config.encoding.model_dump(mode="json"),
        "sources": config.model_dump(mode="json", include={TRAIN, VALID}),
        "labels": config.labels,
        "weight": config.weight,
        "files": {split: _files_of(config, split) for split in (TRAIN, VALID)},
        "start": start.digest if start is not None else None,
    }


def examples(config: RankerConfig, split: str, more: Collection[str] = ()) -> Iterator[Examples]:
    """All rows of a split, in batches; with `more` columns than the config's features read. Raises
    DataError, naming file and row."""
    wanted = {spec.column or name for name, spec in config.features.items()} | {*more}
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
