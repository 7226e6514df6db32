"""Node classification: what do vectors say of labels that training never saw? (DeepWalk, Perozzi et
al. 2014, section 5.)

Of the labelled entities a random share teaches a logistic regression for each label, one against
the rest, on their vectors; the others are judged. A node gets as many labels as it truly has: the
most probable ones. That is repeated over shuffles.

    micro-F1   2 tp / (2 tp + fp + fn), all labels' counts together; of one label a node: accuracy
    macro-F1   the mean over labels of the same of each label, 0 for one that is never met
    AUC        of two labels of which each node has one: how often one that has the first is rated
               higher for it than one that has the other

Letters: U labelled entities, J judged ones, L labels, D dimension.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedsvc.config import ClassifyConfig
from embedsvc.evaluation import clicks
from embedsvc.evaluation.significance import Interval, interval
from embedsvc.trained import Trained
from partitions import readers, sources
from partitions.config import SourceConfig
from partitions.errors import ConfigError, DataError, did_you_mean

VALIDATION = 0.2  # of the training share: what eval.split = "valid" judges by

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Progress = Callable[[int], None]  # regressions fitted since the last call

_NAMED = 3  # keys that the graph does not have
_MOST_STEPS = 1000  # of one regression's solver: it stops at some dozens


@dataclass(frozen=True)
class Labels:
    """ids: int64 [U], ascending, of entities with at least one label."""

    ids: NDArray[np.int64]
    names: tuple[str, ...]  # [L], sorted
    held: Bools  # [U, L]
    num_unknown: int  # keys of the files that the graph does not have
    digest: str = ""  # of the files: sha256
    first_unknown: tuple[str, ...] = ()  # some of these keys

    @staticmethod
    def read(config: ClassifyConfig, data: Path, trained: Trained) -> "Labels":
        """data: the folder that config.labels starts from. DataError where they tell nothing."""
        graph, name = trained.graph, config.type
        if name not in trained.entity_types:
            hint = did_you_mean(name, trained.entity_types)
            raise ConfigError(f"[eval.classify] type = {name} has no learnt vectors. {hint}")
        given: dict[str, Any] = {"format": config.format, "delimiter": config.delimiter}
        source = SourceConfig(path=config.labels, header=config.header, **given)
        keys, labels, digest = [], [], hashlib.sha256()
        columns = {str(part): column for part, column in config.columns.items()}
        for file in sources.expand(data, source):
            digest.update(file.sha256().encode())
            for batch in readers.read(file, source, columns):
                keys.append(batch.column("key"))
                labels.append(batch.column("label"))
        if not sum(map(len, keys)):
            raise DataError(
                f"{config.labels} has no rows. Name a file of keys with a label each under "
                "[eval.classify]."
            )
        found = _Rows(pa.concat_arrays(keys), pa.concat_arrays(labels), config.separator)
        places = _places(graph.all_keys(name), found.keys)
        known = places >= 0
        unknown = found.keys.filter(pa.array(~known)).unique()
        if not known.any():
            raise DataError(
                f"No key of {config.labels} is a {name} of {graph.path}. Mend the file, or set "
                "eval.classify.columns or type."
            )
        names, label = _coded(found.labels.filter(pa.array(known)))
        if len(names) < 2:
            raise DataError(
                f"{config.labels} gives every {name} of {graph.path} the label {names[0]}: nothing "
                "is to be told apart. Name a file with at least two labels."
            )
        ids, row = np.unique(places[known], return_inverse=True)
        held = np.zeros((len(ids), len(names)), np.bool_)
        held[row, label] = True
        some = tuple(unknown[:_NAMED].to_pylist())
        return Labels(ids, names, held, len(unknown), digest.hexdigest(), some)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Bools) -> "Labels":
        """Some of the entities, and the labels that these have."""
        held = self.held[rows]
        had: Bools = np.asarray(held.any(axis=0))
        names = tuple(name for name, kept in zip(self.names, had, strict=True) if kept)
        return replace(self, ids=self.ids[rows], names=names, held=held[:, had])

    @property
    def is_binary(self) -> bool:
        return len(self.names) == 2 and bool((self.held.sum(axis=1) == 1).all())


@dataclass(frozen=True)
class ShareReport:
    """Of one share of training labels: means over shuffles with 95 % intervals."""

    share: float
    num_taught: int
    num_judged: int
    micro_f1: Interval
    macro_f1: Interval
    auc: Interval | None  # of a binary target


@dataclass(frozen=True)
class NodesReport:
    type: str
    num_nodes: int  # with a label
    num_labels: int
    num_unknown: int
    repeats: int
    split: str
    shares: tuple[ShareReport, ...]
    num_unscored: int = 0  # with a label, left out as their vectors are not finite


class _Rows:
    """A key and a label each."""

    def __init__(self, keys: pa.Array, labels: pa.Array, separator: str | None) -> None:
        self.keys, self.labels = keys, labels.cast(pa.large_string())
        if separator is not None:
            parts = pc.split_pattern(self.labels, separator)
            row, labels = pc.list_parent_indices(parts), pc.list_flatten(parts)
            given = pc.not_equal(labels, "")
            self.keys, self.labels = keys.take(row.filter(given)), labels.filter(given)


def _coded(labels: pa.Array) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The distinct labels, sorted, and the place there of each; a long one is kept once."""
    encoded = labels.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    names = encoded.dictionary.take(pa.array(order)).to_pylist()
    return tuple(names), place[encoded.indices.to_numpy(zero_copy_only=False)]


def _places(known: pa.Array, keys: pa.Array) -> NDArray[np.int64]:
    """int64 [keys]: the place of each key among those known, -1 where it is not there."""
    found = pc.index_in(keys.cast(pa.large_string()), value_set=known.cast(pa.large_string()))
    places: NDArray[np.int64] = found.fill_null(-1).to_numpy(zero_copy_only=False)
    return places.astype(np.int64)


def classify(
    vectors: Floats,
    labels: Labels,
    config: ClassifyConfig,
    split: str,
    progress: Progress = lambda fitted: None,
) -> NodesReport:
    """vectors: [U, D], of labels.ids. split: "valid" judges a part of the training share, and so
    looks at no label that "test" judges by; for choosing settings."""
    if split == "train":
        raise ConfigError("[eval.classify] judges eval.split = test or valid: choose one of them.")
    finite: Bools = np.asarray(np.isfinite(vectors).all(axis=1))
    if num_unscored := int(np.sum(~finite)):
        vectors, labels = vectors[finite], labels.take(finite)
        if len(labels.names) < 2:
            raise DataError(
                f"The vectors of {num_unscored:,} labelled {config.type} are not finite, and the "
                "others have fewer than two labels. Train again, with a smaller train.lr."
            )
    shares = []
    for share in config.shares:
        found = []
        for repeat in range(config.repeats):
            order = np.random.default_rng([config.seed, repeat]).permutation(len(labels))
            taught, judged = _parted(order, share, split)
            found.append(_judge(vectors, labels, taught, judged, config, progress))
        micro, macro, auc = (np.array(values) for values in zip(*found, strict=True))
        shares.append(
            ShareReport(
                share,
                len(taught),
                len(judged),
                interval(micro),
                interval(macro),
                interval(auc[~np.isnan(auc)]) if labels.is_binary else None,
            )
        )
    return NodesReport(
        config.type,
        len(labels),
        len(labels.names),
        labels.num_unknown,
        config.repeats,
        split,
        tuple(shares),
        num_unscored,
    )


def _parted(
    order: NDArray[np.int64], share: float, split: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(taught, judged) rows; DataError where a side has none."""
    end = round(share * len(order))
    taught, judged = order[:end], order[end:]
    if split == "valid":
        cut = end - round(VALIDATION * end)
        taught, judged = order[:cut], order[cut:end]
    if not (len(taught) and len(judged)):
        raise DataError(
            f"{len(order):,} labelled entities leave none to learn from or to judge at the share "
            f"{share}. Label more, or set eval.classify.shares."
        )
    return taught, judged


def _judge(
    vectors: Floats,
    labels: Labels,
    taught: NDArray[np.int64],
    judged: NDArray[np.int64],
    config: ClassifyConfig,
    progress: Progress,
) -> tuple[float, float, float]:
    """(micro-F1, macro-F1, AUC or NaN) of one shuffle."""
    truth = labels.held[judged]
    probability = _probabilities(
        *_scaled(vectors[taught], vectors[judged], config.scale),
        labels.held[taught],
        config.c,
        1 if labels.is_binary else len(labels.names),
        progress,
    )
    auc = np.nan
    if labels.is_binary:
        auc = clicks.auc(probability[:, 0], truth[:, 0].astype(np.float64))
        probability = np.concatenate([probability, 1 - probability], axis=1)
    micro, macro = f1_scores(truth, most_probable(probability, truth.sum(axis=1)))
    return micro, macro, auc


def _scaled(taught: Floats, judged: Floats, scale: str) -> tuple[Floats, Floats]:
    """Regularisation is no invariant of length, and trainers leave any."""
    if scale == "unit":
        taught, judged = (
            part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
            for part in (taught, judged)
        )
    if scale == "none":
        return taught, judged
    centre, spread = taught.mean(axis=0), np.maximum(taught.std(axis=0), 1e-12)
    return (taught - centre) / spread, (judged - centre) / spread


def _probabilities(
    taught: Floats, judged: Floats, held: Bools, c: float, num: int, progress: Progress
) -> Floats:
    """[J, num] of the first `num` labels, each against the rest."""
    from sklearn.linear_model import LogisticRegression

    found = np.empty((len(judged), num))
    for label in range(num):
        truth = held[:, label]
        if truth.all() or not truth.any():  # nothing to tell apart: as it was in all of them
            found[:, label] = float(truth[0])
        else:
            model = LogisticRegression(C=c, max_iter=_MOST_STEPS).fit(taught, truth)
            found[:, label] = model.predict_proba(judged)[:, 1]
        progress(1)
    return found


# --- the numbers ----------------------------------------------------------------------------------


def most_probable(probability: Floats, counts: NDArray[np.int64]) -> Bools:
    """bool [J, L]: of each row the counts[j] most probable labels; ties go to the first."""
    order = np.argsort(-probability, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(probability.shape[1])[None, :], axis=1)
    chosen: Bools = rank < counts[:, None]
    return chosen


def f1_scores(truth: Bools, found: Bools) -> tuple[float, float]:
    """(micro-F1, macro-F1) of bool [J, L]; 0 where nothing is to be found nor found."""
    both = (truth & found).sum(axis=0)
    either = truth.sum(axis=0) + found.sum(axis=0)  # 2 tp + fp + fn
    per_label = 2 * both / np.maximum(either, 1)
    return float(2 * both.sum() / max(either.sum(), 1)), float(per_label.mean())
