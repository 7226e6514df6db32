"""Rows -> what the model sees. Fitted on training rows, then the same for training and serving."""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from partitions.errors import DataError, did_you_mean
from partitions.features import columns, crosses, saved
from partitions.features.columns import CellError, Rows, Where
from partitions.features.config import FeaturesConfig
from partitions.features.crosses import Part
from partitions.features.encoders import Asked, Encoder, Fit, fit_of
from partitions.features.fingerprints import Fingerprints
from partitions.features.layout import Bag, Encoded, Layout, Slot

SEED = 1


class _Step(NamedTuple):
    """One feature of `encode`, and where its results go."""

    encoder: Encoder
    column: str
    where: Where
    slot: Slot | None
    dense: slice
    prints: bool  # a cross is of it


class Features:
    """Settings and what was fitted. `missing` counts, by feature, the values that `encode` had to
    replace or to take for missing; it may be called from several threads."""

    def __init__(
        self, config: FeaturesConfig, encoders: Iterable[Encoder], fingerprints: Fingerprints
    ) -> None:
        self.config, self.fingerprints = config, fingerprints
        self.encoders = tuple(encoders)
        self.layout = _layout(config, self.encoders)
        self.missing: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._steps = self._plan()
        self._slots = {slot.name: slot for slot in self.layout.slots}
        self._digest: str | None = None

    @classmethod
    def fit(
        cls, config: FeaturesConfig, batches: Iterable[Rows], start: "Features | None" = None
    ) -> "Features":
        """One pass over the training rows.

        start: the features of the model that training goes on from. Values that it knows keep
        their ids and new ones follow; numbers keep its quantiles, columns their types. A feature
        whose kind, list or type changed is fitted afresh.
        """
        prints = start.fingerprints if start is not None else Fingerprints(SEED)
        fits = {name: fit_of(name, spec, prints) for name, spec in config.features.items()}
        known = _followed(config, start)
        for name, encoder in known.items():
            fits[name].follow(encoder)
        rows = 0
        for batch in batches:
            count = columns.num_rows(batch)
            try:
                _add(fits, config, batch)
            except CellError as error:
                raise error.within(batch, rows) from None
            rows += count
        if not rows:
            raise DataError("there are no rows to fit features on. Mend the inputs of training.")
        encoders = [fit.finish(known.get(name)) for name, fit in fits.items()]
        return cls(config, encoders, prints)

    def _plan(self) -> list[_Step]:
        crossed = {part for cross in self.config.crosses.values() for part in cross.of}
        slots = {slot.name: slot for slot in self.layout.slots}
        steps, at = [], 0
        for encoder in self.encoders:
            name = encoder.name
            dense = slice(at, at + len(encoder.dense))
            column = encoder.spec.column or name
            step = _Step(encoder, column, Where(name), slots.get(name), dense, name in crossed)
            steps.append(step)
            at = dense.stop
        return steps

    def encode(self, rows: Rows) -> Encoded:
        """Columns that no feature is of are ignored; one that is not there is all missing."""
        num_rows, layout = columns.num_rows(rows), self.layout
        single = np.empty((num_rows, layout.num_single), np.int32)
        dense = np.empty((num_rows, len(layout.dense)), np.float32)
        bags: list[Bag | None] = [None] * layout.num_bags
        parts: dict[str, Part] = {}
        replaced = {}
        for step in self._steps:
            try:
                part, missing = _encode(step, rows, num_rows, dense[:, step.dense])
            except CellError as error:
                raise error.within(rows, 0) from None
            if missing:
                replaced[step.encoder.name] = missing
            if step.slot is not None and part is not None:
                _put(part, step.slot, single, bags)
                parts[step.slot.name] = part
        for name, cross in self.config.crosses.items():
            of = [parts[part] for part in cross.of]
            part = crosses.crossed(of, num_rows, cross.buckets, self.fingerprints)
            _put(part, self._slots[name], single, bags)
        if replaced:
            with self._lock:
                self.missing.update(replaced)
        return Encoded(single, tuple(bag for bag in bags if bag is not None), dense)

    @property
    def digest(self) -> str:
        """sha256 over what `save` writes."""
        if self._digest is None:
            self._digest = saved.digest_of(self.config, self.encoders, self.layout, self.seed)
        return self._digest

    @property
    def seed(self) -> int:
        return self.fingerprints.seed

    def save(self, folder: Path) -> None:
        """features.json and features.arrow; see saved.py."""
        self._digest = saved.write(folder, self.config, self.encoders, self.layout, self.seed)

    @classmethod
    def load(cls, folder: Path) -> "Features":
        """Raises DataError that names a file which is missing, truncated or altered."""
        found = saved.read(folder)
        features = cls(found.config, found.encoders, found.fingerprints)
        features._digest = found.digest
        return features


def _layout(config: FeaturesConfig, encoders: Iterable[Encoder]) -> Layout:
    encoders = list(encoders)
    sizes = {e.name: e.size for e in encoders if e.size is not None}
    sizes |= {name: cross.buckets for name, cross in config.crosses.items()}
    lists = {e.name for e in encoders if e.spec.list}
    lists |= {name for name, cross in config.crosses.items() if lists & set(cross.of)}
    slots, singles, bags = [], 0, 0
    for name, size in sizes.items():
        bag = name in lists
        slots.append(Slot(name, size, bag, bags if bag else singles))
        singles, bags = singles + (not bag), bags + bag
    dense = tuple(name for encoder in encoders for name in encoder.dense)
    return Layout(tuple(slots), dense, frozenset(config.crosses))


def _encode(
    step: _Step, rows: Rows, num_rows: int, dense: NDArray[np.float32]
) -> tuple[Part | None, int]:
    column = columns.column_of(rows, step.column, step.where)
    return step.encoder.encode(Asked(column, num_rows, step.where, dense, step.prints))


def _put(part: Part, slot: Slot, single: NDArray[np.int32], bags: list[Bag | None]) -> None:
    if part.starts is None:
        single[:, slot.column] = part.ids
    else:
        bags[slot.column] = (part.ids, part.starts)


def _followed(config: FeaturesConfig, start: Features | None) -> Mapping[str, Encoder]:
    """The encoders of `start` that features of `config` continue."""
    found = {}
    for encoder in start.encoders if start is not None else ():
        spec = config.features.get(encoder.name)
        if spec is None or (spec.kind, spec.list) != (encoder.spec.kind, encoder.spec.list):
            continue
        if spec.type in (None, encoder.about().get("type")):
            found[encoder.name] = encoder
    return found


def _add(fits: Mapping[str, Fit], config: FeaturesConfig, batch: Rows) -> None:
    for name, spec in config.features.items():
        where = Where(name)
        column = columns.column_of(batch, spec.column or name, where)
        if column is None:
            raise _no_column(name, spec.column or name, batch)
        fits[name].add(column, where)


def _no_column(feature: str, column: str, batch: Rows) -> DataError:
    hint = did_you_mean(column, columns.names(batch))
    return DataError(f"feature {feature}: the training rows have no column {column}. {hint}")
