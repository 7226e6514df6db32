"""A new ranker against the live one: the release gate of a [ranker].

Both score the rows of a split as they are served: raw rows, by the published encoders and graph.
The figure is user_auc, the mean of each user's own AUC, each user counting once; who has rows of
one kind only has none. (embedsvc eval prints it, too, and beside it the mean by rows, GAUC.)
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
from numpy.typing import NDArray

from embedsvc.config import GateConfig
from embedsvc.evaluation import gate
from embedsvc.evaluation.clicks import Clicks, auc_by_user
from embedsvc.evaluation.conditions import USER_AUC, Condition, parse
from embedsvc.evaluation.gate import Decision, Plan, Sample
from embedsvc.evaluation.rankers import numbered
from embedsvc.ranking.config import RankerConfig
from embedsvc.ranking.encoding import examples
from embedsvc.release import counted, rival, ungated
from partitions.errors import ConfigError, DataError, did_you_mean
from partitions.features.columns import Where, column_of
from partitions.published import PublishedVersion
from partitions.ranker_files import FOLDER, PROBABILITY, RankerFiles, fed
from partitions.sources import expand

Floats = NDArray[np.float64]

_SCORED_ROWS = 8192  # at a time


@dataclass(frozen=True)
class RankerGate:
    """root: of the published versions; uses: the file that counts what test sets decide."""

    ranker: RankerConfig
    root: Path
    uses: Path
    config: GateConfig

    def __call__(self, version: PublishedVersion, folder: Path) -> Decision:
        """Counts a use where users decide; nothing else is written."""
        conditions = self.check()
        if not conditions:
            return ungated(self.root)
        plan = Plan.of(conditions, self.config.max_uses, self.config.adaptivity)
        other = rival(self.root, version.name)
        live, why = other.version, other.why
        if live is not None and not (self.root / live.name / FOLDER).is_dir():
            live, why = None, other.lacks("ranker")
        scorers = [_Scorer(folder / FOLDER)]
        if live is not None and any(condition.needs_old for condition in conditions):
            try:
                scorers.append(_Scorer(self.root / live.name / FOLDER))
                rows = self._rows(scorers)
            except _LiveFails as error:
                return self._held(live.name, other.live, error)
        else:
            rows = self._rows(scorers)
        outcomes, users, left_out = [], {}, {}
        for condition in conditions:
            label = str(condition.relation)
            if condition.needs_old and (live is None or label not in scorers[1].labels):
                no_label = other.lacks(f"label {label}") if live else why
                outcomes.append(other.nothing(condition, no_label))
                continue
            sample, users[label], left_out[label] = rows.sample(self.ranker, label, scorers)
            outcomes.append(gate.decide(condition, sample, plan))
        decision = Decision(
            promoted=gate.promotes(outcomes, self.config.mode),
            live=other.live,
            compared_with=None if live is None else live.name,
            outcomes=tuple(outcomes),
            why=other.in_place,
            split=self.config.split,
            mode=self.config.mode,
            askers=users,
            left_out=left_out,
        )
        return counted(decision, self.uses, self.files(), self.config)

    def _rows(self, scorers: list["_Scorer"]) -> "_Rows":
        try:
            rows = _Rows.read(self.ranker, self.config.split, scorers)
        except DataError as error:
            if len(scorers) > 1:
                _Rows.read(self.ranker, self.config.split, scorers[:1])  # raises, if it is the new
                raise _LiveFails(str(error)) from None
            raise
        for scorer, said in zip(scorers, rows.said, strict=True):
            for label, bad in zip(scorer.labels, np.isnan(said).sum(axis=0), strict=True):
                if bad and scorer is not scorers[0]:
                    raise _LiveFails(f"its {label} of {bad:,} rows is not a number.")
                if bad:
                    raise DataError(
                        f"The new ranker's {label} of {bad:,} rows is not a number: train again."
                    )
        return rows

    def _held(self, name: str, live: str | None, error: "_LiveFails") -> Decision:
        """The new version waits: there is nothing to compare it with, and it is not at fault."""
        which = "which is live" if name == live else "which it is compared with"
        why = (
            f"{name}, {which}, can't score the rows of ranker.{self.config.split} as they "
            f"are now, so that nothing is compared: {error} Give the rows back what it reads, or "
            "let the new version live with --force."
        )
        return Decision(
            False,
            live,
            None,
            why=why,
            split=self.config.split,
            mode=self.config.mode,
        )

    def check(self) -> list[Condition]:
        """The conditions, each with its label. ConfigError for what a ranker can't be asked."""
        found, labels = [], self.ranker.labels
        for condition in map(parse, self.config.conditions):
            if condition.metric != USER_AUC:
                raise ConfigError(
                    f"[gate] {condition}: a [ranker] scores rows and makes no lists. Take "
                    f"{USER_AUC}: new - old > 0 +- 0.01 at 0.99."
                )
            if self.ranker.user is None:
                raise ConfigError(f"[gate] {condition}: set ranker.user, the column of the user.")
            if condition.relation is None:
                if len(labels) != 1:
                    raise ConfigError(
                        f"[gate] {condition}: there are labels {', '.join(labels)}: name one, such "
                        f"as {labels[0]}/{condition}."
                    )
                condition = replace(condition, relation=labels[0])
            if condition.relation not in labels:
                raise ConfigError(
                    f"[gate] {condition}: there is no label {condition.relation}. "
                    f"{did_you_mean(str(condition.relation), labels)}"
                )
            found.append(condition)
        if found and not getattr(self.ranker, self.config.split):
            raise ConfigError(
                f'[gate] split = "{self.config.split}", but ranker.{self.config.split} names no '
                "rows: set it, or choose another split."
            )
        return found

    def files(self) -> list[str]:
        """Digests of the split's rows."""
        named = getattr(self.ranker, self.config.split)
        return [file.sha256() for source in named for file in expand(Path(), source)]


class _LiveFails(DataError):
    """The live ranker can't say anything of rows of which the new one can."""


class _Scorer:
    """A version's ranker, as a server runs it."""

    def __init__(self, folder: Path) -> None:
        self._files = RankerFiles(folder)
        self.labels = self._files.about.labels
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(self._files.model), options, providers=["CPUExecutionProvider"]
        )

    @property
    def columns(self) -> set[str]:
        """Those that its features read, which need not be those of the config now."""
        known = self._files.features.config.features
        return {spec.column or name for name, spec in known.items()}

    def __call__(self, rows: pa.RecordBatch) -> Floats:
        """[rows, labels]"""
        parts = [np.empty((0, len(self.labels)))]
        for first in range(0, rows.num_rows, _SCORED_ROWS):
            encoded = self._files.features.encode(rows.slice(first, _SCORED_ROWS))
            parts.append(self._session.run([PROBABILITY], fed(encoded))[0])
        return np.concatenate(parts)


@dataclass(frozen=True)
class _Rows:
    """The rows of a split: what was said of them by each scorer, and what is right."""

    said: list[Floats]  # [n, labels of the scorer] each
    labels: Floats  # [n, labels of the ranker]; NaN: not known
    weight: Floats  # [n]
    user: NDArray[np.int64]  # [n]

    @staticmethod
    def read(config: RankerConfig, split: str, scorers: list[_Scorer]) -> "_Rows":
        said: list[list[Floats]] = [[] for _ in scorers]
        labels, weight, user = [], [], []
        assert config.user is not None
        columns = set().union(*(scorer.columns for scorer in scorers))
        for part in examples(config, split, columns):
            for found, scorer in zip(said, scorers, strict=True):
                found.append(scorer(part.rows))
            labels.append(part.labels)
            weight.append(part.weight)
            user.append(column_of(part.rows, config.user, Where(config.user)))
        return _Rows(
            [np.concatenate(found) for found in said],
            np.concatenate(labels).astype(np.float64),
            np.concatenate(weight).astype(np.float64),
            numbered(user),
        )

    def sample(
        self, config: RankerConfig, label: str, scorers: list[_Scorer]
    ) -> tuple[Sample, int, int]:
        """Each user's AUC by both; how many users have one, and how many have none."""
        right = self.labels[:, config.labels.index(label)]
        known = np.flatnonzero(~np.isnan(right))
        figures = []
        for said, scorer in zip(self.said, scorers, strict=True):
            if label not in scorer.labels:
                continue
            probability = said[known, scorer.labels.index(label)]
            one = Clicks(probability, right[known], self.weight[known], self.user[known])
            figures.append(auc_by_user(one)[0] if len(one) else np.empty(0))
        # Who has no figure has none of either: that is for labels to say.
        new, old, users = figures[0], figures[-1], len(np.unique(self.user[known]))
        return Sample(new, old, new != old), len(new), users - len(new)
