"""How well probabilities of clicks are ordered, and how well they mean what they say.

AUC asks whether clicks score higher than what was not clicked; log loss and calibration, whether
of rows said to be clicked with .3 three in ten were. An interval comes from drawing users anew,
since rows of one user are no independent witnesses.

Letters: n rows, U users.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedsvc.evaluation.significance import Interval

Floats = NDArray[np.float64]

CLIPPED = 1e-7  # probabilities are no nearer to 0 and 1 in a logarithm
_BINS = 20  # of calibration, of equal weight


@dataclass(frozen=True)
class Clicks:
    """Of n rows: probabilities, labels (0 or 1), weights and, where known, whose they are."""

    probability: Floats
    label: Floats
    weight: Floats
    user: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class ClickReport:
    rows: int
    positives: int
    auc: float  # NaN where all labels are alike
    log_loss: float
    calibration: float  # mean probability / mean label; 1 is right
    ece: float  # mean distance of probability and label, over bins of equal weight
    gauc: float | None  # AUC within each user, by rows; of users with both labels
    gauc_users: int


def report(clicks: Clicks) -> ClickReport:
    """Of rows that count nothing there are no numbers but their own."""
    positives = int((clicks.label > 0).sum())
    if not clicks.weight.sum() > 0:
        nan = float("nan")
        return ClickReport(len(clicks), positives, nan, nan, nan, nan, None, 0)
    found, users = gauc(clicks) if clicks.user is not None else (None, 0)
    mean = float(np.average(clicks.label, weights=clicks.weight))
    said = float(np.average(clicks.probability, weights=clicks.weight))
    return ClickReport(
        rows=len(clicks),
        positives=positives,
        auc=auc(clicks.probability, clicks.label, clicks.weight),
        log_loss=log_loss(clicks),
        calibration=said / mean if mean else float("nan"),
        ece=ece(clicks),
        gauc=found,
        gauc_users=users,
    )


def auc(score: Floats, label: Floats, weight: Floats | None = None) -> float:
    """The chance that a click scores higher than no click does; equal scores count half.

    NaN where there is only one kind, or a score is NaN, which has no place in an order.
    """
    if np.isnan(score).any():
        return float("nan")
    order = np.argsort(score, kind="stable")
    weight = np.ones(len(score)) if weight is None else weight
    return float(_auc_sorted(_ties(score[order]), label[order], weight[order]))


def _ties(ascending: Floats) -> NDArray[np.int64]:
    """The number of each row's score among the distinct ones."""
    return np.concatenate([[0], np.cumsum(ascending[1:] > ascending[:-1])])[: len(ascending)]


def _auc_sorted(tie: NDArray[np.int64], label: Floats, weight: Floats) -> float:
    size = int(tie[-1]) + 1 if len(tie) else 0
    clicked = np.bincount(tie, weight * label, size)
    rest = np.bincount(tie, weight * (1 - label), size)
    pairs = clicked.sum() * rest.sum()
    below = np.cumsum(rest) - rest
    return float((clicked * (below + rest / 2)).sum() / pairs) if pairs else float("nan")


def log_loss(clicks: Clicks) -> float:
    """Mean of -log of what was said of what happened, clipped by CLIPPED."""
    return float(np.average(_losses(clicks.probability, clicks.label), weights=clicks.weight))


def _losses(probability: Floats, label: Floats) -> Floats:
    said = np.clip(probability, CLIPPED, 1 - CLIPPED)
    return np.asarray(-np.where(label > 0, np.log(said), np.log1p(-said)))


@dataclass(frozen=True)
class CalibrationCurve:
    """Of each bin that has rows, by rising probability: weighted means, and its weight."""

    probability: Floats
    label: Floats
    weight: Floats


def calibration_curve(clicks: Clicks, bins: int = _BINS) -> CalibrationCurve:
    """What was said beside what happened, in at most `bins` bins of equal weight.

    Rows of one probability share a bin, whatever their weight, so that the order of rows is nothing
    to it. Rows that count nothing are in no bin.
    """
    counts = clicks.weight > 0
    order = np.flatnonzero(counts)[np.argsort(clicks.probability[counts], kind="stable")]
    tie = _ties(clicks.probability[order])
    weight, label = clicks.weight[order], clicks.label[order]
    of_tie = np.bincount(tie, weight)
    # The middle of each tie's weight says in which bin it is.
    middle = (np.cumsum(of_tie) - of_tie / 2) / of_tie.sum() if len(of_tie) else of_tie
    bin_of = (middle * bins).astype(np.int64).clip(0, bins - 1)[tie]
    total = np.bincount(bin_of, weight)
    said = np.bincount(bin_of, weight * clicks.probability[order])
    happened = np.bincount(bin_of, weight * label)
    some = total > 0
    return CalibrationCurve(
        said[some] / total[some], happened[some] / total[some], np.asarray(total[some])
    )


def ece(clicks: Clicks, bins: int = _BINS) -> float:
    """Expected calibration error: mean over calibration_curve's bins of |mean probability - mean
    label|, by weight. NaN of rows that count nothing."""
    curve = calibration_curve(clicks, bins)
    if not len(curve.weight):
        return float("nan")
    return float(np.average(np.abs(curve.probability - curve.label), weights=curve.weight))


def gauc(clicks: Clicks) -> tuple[float, int]:
    """Mean AUC of each user's own rows, weighted by their number; users whose labels are all alike
    have none. Returns how many had one as well."""
    found, rows = auc_by_user(clicks)
    return (float(np.average(found, weights=rows)) if len(rows) else float("nan")), len(rows)


def auc_by_user(clicks: Clicks) -> tuple[Floats, NDArray[np.int64]]:
    """The AUC of each user's own rows, and how many they are; of users with both labels."""
    assert clicks.user is not None
    order = np.lexsort((clicks.probability, clicks.user))
    score, user = clicks.probability[order], clicks.user[order]
    label, weight = clicks.label[order], clicks.weight[order]
    first = np.flatnonzero(np.diff(user, prepend=user[0] - 1))
    tie = np.cumsum((np.diff(score, prepend=0) != 0) | (np.diff(user, prepend=user[0] - 1) != 0))
    tie -= tie[0]
    clicked, rest = np.bincount(tie, weight * label), np.bincount(tie, weight * (1 - label))
    starts = tie[first]
    below = np.cumsum(rest) - rest
    below -= np.repeat(below[starts], np.diff(starts, append=len(rest)))
    won = np.add.reduceat(clicked * (below + rest / 2), starts)
    pairs = np.add.reduceat(clicked, starts) * np.add.reduceat(rest, starts)
    rows = np.diff(first, append=len(user))[pairs > 0]
    return won[pairs > 0] / pairs[pairs > 0], rows


def user_auc(clicks: Clicks) -> Floats | None:
    """The AUC of each user's own rows, whose mean a release gate goes by, each user counting once;
    None where no user has one, or users are not known, or a probability is not a number."""
    if clicks.user is None or not len(clicks) or np.isnan(clicks.probability).any():
        return None
    found = auc_by_user(clicks)[0]
    return found if len(found) else None


def paired_auc(
    scores: Sequence[Floats],
    label: Floats,
    user: NDArray[np.int64],
    draws: int = 200,
    seed: int = 0,
    weight: Floats | None = None,
) -> tuple[list[Interval], list[Interval]]:
    """The AUC of each model, and the first one's less each other's, over the same drawn users.

    Users are drawn with replacement; a row counts its weight as often as its user was drawn.
    """
    _, who = np.unique(user, return_inverse=True)
    num_users = int(who.max()) + 1
    weight = np.ones(len(label)) if weight is None else weight
    rng = np.random.default_rng(seed)
    orders = [np.argsort(score, kind="stable") for score in scores]
    ties = [_ties(score[order]) for score, order in zip(scores, orders, strict=True)]
    found = np.empty((draws + 1, len(scores)))
    for draw in range(draws + 1):
        times = np.ones(num_users, np.int64)
        if draw:
            times = np.bincount(rng.integers(0, num_users, num_users), minlength=num_users)
        for at, (order, tie) in enumerate(zip(orders, ties, strict=True)):
            found[draw, at] = _auc_sorted(tie, label[order], (times[who] * weight)[order])
    less = found[:, :1] - found
    return (
        [Interval.of(column[0], column[1:]) for column in found.T],
        [Interval.of(column[0], column[1:]) for column in less.T[1:]],
    )


def paired_log_loss(
    said: Sequence[Floats],
    label: Floats,
    user: NDArray[np.int64],
    draws: int = 200,
    seed: int = 0,
    weight: Floats | None = None,
) -> tuple[list[Interval], list[Interval]]:
    """The log loss of each model's probabilities, and the first one's less each other's, over the
    users that paired_auc draws by the same seed."""
    _, who = np.unique(user, return_inverse=True)
    num_users = int(who.max()) + 1
    weight = np.ones(len(label)) if weight is None else weight
    sums = np.stack(
        [np.bincount(who, weight * _losses(one, label), num_users) for one in said], axis=1
    )
    counts = np.bincount(who, weight, num_users)
    rng = np.random.default_rng(seed)
    found = [sums.sum(axis=0) / counts.sum()]
    for _ in range(draws):
        times = np.bincount(rng.integers(0, num_users, num_users), minlength=num_users)
        total = times @ counts
        found.append(times @ sums / total if total else np.full(len(said), np.nan))
    drawn = np.stack(found)
    less = drawn[:, :1] - drawn
    return (
        [Interval.of(column[0], column[1:]) for column in drawn.T],
        [Interval.of(column[0], column[1:]) for column in less.T[1:]],
    )
