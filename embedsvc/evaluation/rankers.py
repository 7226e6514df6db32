"""A trained ranker on rows that it has not seen: clicks.py's numbers, with intervals by user."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedsvc.evaluation import clicks
from embedsvc.evaluation.clicks import Clicks
from embedsvc.evaluation.significance import interval
from embedsvc.ranking.config import RankerConfig
from embedsvc.ranking.encoding import examples
from embedsvc.ranking.trained import TrainedRanker
from partitions.features.columns import Where, column_of

_BASELINE = "share of ones"  # said of every row


Probabilities = Callable[[pa.RecordBatch], NDArray[np.float64]]  # rows as they come -> [n, T]
_DRAWS = 200  # of users, for an interval
USER_BINS = 20  # of the histogram of AUC by user


def judge(
    trained: TrainedRanker,
    config: RankerConfig,
    split: str,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """report_of the rows of a split. config: says which files that is."""
    return report_of(*clicks_of(said_by(trained), config, split, progress))


def report_of(num_rows: int, found: Mapping[str, Clicks]) -> dict[str, Any]:
    """By label: what clicks.report says of the model and of saying the share of ones of every row,
    and the interval of the model's AUC; user_auc where users are known; its calibration curve, and
    how many users have which AUC.
    """
    return {"rows": num_rows, "labels": {name: _of_task(one) for name, one in found.items()}}


def said_by(trained: TrainedRanker) -> Probabilities:
    def probabilities(rows: pa.RecordBatch) -> NDArray[np.float64]:
        return trained.probabilities(trained.features.encode(rows))

    return probabilities


def clicks_of(
    probabilities: Probabilities,
    config: RankerConfig,
    split: str,
    progress: Callable[[int], None] = lambda rows: None,
) -> tuple[int, dict[str, Clicks]]:
    """How many rows a split has, and, by label, those that have it with what is said of them.

    Rows are read once; 24 bytes a row and label are kept. config: says which files a split is of.
    """
    said, labels, weights, users = [], [], [], []
    for part in examples(config, split):
        said.append(probabilities(part.rows))
        labels.append(part.labels)
        weights.append(part.weight)
        if config.user is not None:
            users.append(column_of(part.rows, config.user, Where(config.user)))
        progress(part.rows.num_rows)
    probability, weight = np.concatenate(said), np.concatenate(weights).astype(np.float64)
    label = np.concatenate(labels).astype(np.float64)
    who = numbered(users) if users else None
    found = {}
    for task, name in enumerate(config.labels):
        known = ~np.isnan(label[:, task])
        found[name] = Clicks(
            probability[known, task],
            label[known, task],
            weight[known],
            None if who is None else who[known],
        )
    return len(label), found


def _of_task(one: Clicks) -> dict[str, Any]:
    said = asdict(clicks.report(one))
    if not np.isnan(said["auc"]):
        whose = np.arange(len(one)) if one.user is None else one.user
        (drawn,), _ = clicks.paired_auc([one.probability], one.label, whose, weight=one.weight)
        said["auc_low"], said["auc_high"] = drawn.low, drawn.high
    if (each := clicks.user_auc(one)) is not None:
        of_users = interval(each, _DRAWS)
        said |= {"user_auc": of_users.value, "user_auc_users": len(each)}
        said |= {"user_auc_low": of_users.low, "user_auc_high": of_users.high}
    said["log_loss_of_share"] = float("nan")
    if one.weight.sum() > 0:
        share = np.full(len(one), np.average(one.label, weights=one.weight))
        constant = Clicks(share, one.label, one.weight)
        said["log_loss_of_share"] = clicks.log_loss(constant)
    curve = clicks.calibration_curve(one)
    said["curve"] = {name: array.tolist() for name, array in asdict(curve).items()}
    if one.user is not None and len(one):
        auc, _ = clicks.auc_by_user(one)
        said["auc_by_user"] = np.histogram(auc, USER_BINS, (0.0, 1.0))[0].tolist()
    return said


def numbered(users: list[pa.Array]) -> NDArray[np.int64]:
    """A number for each user; missing ones are one user."""
    chunks = pa.chunked_array(users).combine_chunks().dictionary_encode(null_encoding="encode")
    whole = chunks.combine_chunks() if isinstance(chunks, pa.ChunkedArray) else chunks
    return np.asarray(whole.indices.to_numpy(zero_copy_only=False), np.int64)
