"""What a ranker's logit means: a probability, as the validation rows say.

    none       p = sigmoid(z)
    platt      p = sigmoid(a z + b), a > 0             (Platt 1999), by Newton's method
    isotonic   p rises with z, in at most KNOTS steps  (Zadrozny and Elkan 2002), by merging
               neighbours that fall, then straight lines between the means of steps

z: the logit less log(positive_weight), which takes back what training counted ones for.
"""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kind = Literal["none", "platt", "isotonic"]

logger = logging.getLogger(__name__)

KNOTS = 64
_ROUNDS = 100  # of Newton's method, which takes some five
_SETTLED = 1e-13  # of the loss, so that a and b are right to some 1e-6
_SHORTEST = 1e-10  # part of a step
_NEAREST = 1e-5  # of the largest logit: what is nearer than that differs by rounding


@dataclass(frozen=True)
class Calibration:
    """Of one task. at, probability: the knots of "isotonic", ascending."""

    kind: Kind = "none"
    a: float = 1.0
    b: float = 0.0
    at: tuple[float, ...] = ()
    probability: tuple[float, ...] = ()

    def __call__(self, logit: Floats) -> Floats:
        if self.kind == "isotonic":
            return np.interp(logit, self.at, self.probability)
        return np.asarray(sigmoid(self.a * logit + self.b))

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Calibration":
        knots = {name: tuple(value[name]) for name in ("at", "probability")}
        return Calibration(value["kind"], value["a"], value["b"], **knots)


def sigmoid(z: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(z / 2)))


def fit(
    kind: Kind, logit: Floats, label: Floats, weight: Floats, name: str = "the labels"
) -> Calibration:
    """label: 0, 1 or NaN: left out; name: of the label, for the log. Where the rows can't say what
    a logit means, the log says why, and probabilities stay as they are."""
    known = ~np.isnan(label) & (weight > 0)
    logit, label, weight = logit[known], label[known], weight[known]
    if kind == "none":
        return Calibration()
    found: Calibration | str = "the validation rows that are known are all alike"
    if not np.isfinite(logit).all():
        found = "some logits are not finite"
    elif (label > 0).any() and (label == 0).any():
        found = (_platt if kind == "platt" else _isotonic)(logit, label, weight)
    if isinstance(found, str):
        logger.warning("calibration of %s stays none instead of %s: %s", name, kind, found)
        return Calibration()
    return found


# --- Platt ----------------------------------------------------------------------------------------


def _platt(logit: Floats, label: Floats, weight: Floats) -> Calibration | str:
    """Or why there is none. Targets are Platt's, a little off 0 and 1: else a and b of logits that
    part ones from zeros would grow without end."""
    ones = int((label > 0).sum())
    target = np.where(label > 0, (ones + 1) / (ones + 2), 1 / (len(label) - ones + 2))
    share = weight / weight.sum()
    middle = float(share @ logit)
    spread = float(np.sqrt(share @ (logit - middle) ** 2))
    if spread <= _NEAREST * float(np.abs(logit).max()):
        logit, spread = np.full_like(logit, middle), 1.0  # all alike: b alone says the share
    design = np.stack([(logit - middle) / spread, np.ones_like(logit)], 1)
    line = _newton(design, target, share)
    if line is None:
        return "Newton's method did not come to an end"
    a, b = float(line[0] / spread), float(line[1] - line[0] * middle / spread)
    if not a > 0:
        return f"higher logits have fewer ones (a = {a:.3g})"
    return Calibration("platt", a, b)


def _newton(design: Floats, target: Floats, share: Floats) -> Floats | None:
    """The logistic regression of targets; a step is halved until the loss falls, since a whole one
    may jump to where p is 0 or 1 of all rows and no slope is left."""
    mean = float(share @ target)
    found = np.array([1.0, np.log(mean / (1 - mean))])
    loss = _loss(design @ found, target, share)
    for _ in range(_ROUNDS):
        p = sigmoid(design @ found)
        slope = design.T @ (share * (p - target))
        curve = design.T @ (design * (share * p * (1 - p))[:, None])
        step = np.linalg.solve(curve + 1e-12 * np.eye(2), slope)
        promised = float(slope @ step)  # twice what the loss would fall by, were it a parabola
        if promised < _SETTLED:
            return found
        length = 1.0
        while (now := _loss(design @ (found - length * step), target, share)) > loss - (
            1e-4 * length * promised
        ):
            length /= 2
            if length < _SHORTEST:
                return None
        found, loss = found - length * step, now
    return None


def _loss(line: Floats, target: Floats, share: Floats) -> float:
    return float(share @ (np.logaddexp(0, line) - target * line))


# --- isotonic -------------------------------------------------------------------------------------


def _isotonic(logit: Floats, label: Floats, weight: Floats) -> Calibration:
    z, w, ones = _bins(logit, label, weight)
    steps: list[tuple[float, float, float]] = []  # (mean label, weight, mean logit)
    for one in zip(ones / w, w, z, strict=True):
        steps.append(one)
        while len(steps) > 1 and _are_one(*steps[-2:]):
            (m1, w1, z1), (m2, w2, z2) = steps[-2:]
            share = w1 / (w1 + w2)
            steps[-2:] = [(share * m1 + (1 - share) * m2, w1 + w2, share * z1 + (1 - share) * z2)]
    return Calibration(
        "isotonic",
        at=tuple(float(np.float32(step[2])) for step in steps),
        probability=tuple(float(step[0]) for step in steps),
    )


def _are_one(before: tuple[float, float, float], after: tuple[float, float, float]) -> bool:
    """Whether two neighbours of (mean label, weight, mean logit) are one step: the second has no
    more ones, but for rounding, or float32, in which logits are, does not tell them apart."""
    return before[0] >= after[0] - 1e-12 or bool(np.float32(before[2]) >= np.float32(after[2]))


def _bins(logit: Floats, label: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean logits, ascending, weights and weights of ones of at most KNOTS bins of about equal
    weight: a step for each row would be noise, and the file large. Equal logits share a bin."""
    z, number = np.unique(logit, return_inverse=True)
    alike = _alike(z)
    w = np.bincount(alike, np.bincount(number, weight))
    bin_of = np.arange(len(w))
    if len(w) > KNOTS:
        _, bin_of = np.unique(
            ((np.cumsum(w) - w / 2) * (KNOTS / w.sum())).astype(np.int64), return_inverse=True
        )
    bin_of = bin_of[alike][number]
    total, sums, ones = (
        np.bincount(bin_of, each).astype(np.float64)
        for each in (weight, weight * logit, weight * label)
    )
    return sums / total, total, ones


def _alike(z: Floats) -> NDArray[np.int64]:
    """A number for each of ascending logits, the same where they differ by rounding: a step between
    those would be steep, and what is published rounds otherwise."""
    nearest = _NEAREST * float(np.abs(z).max()) or 1.0
    begins = np.diff(z, prepend=-np.inf) > nearest
    run = np.cumsum(begins) - 1
    # A long run of neighbours is as many pieces as it is wide.
    piece = ((z - z[begins][run]) / nearest).astype(np.int64)
    return np.cumsum(begins | (np.diff(piece, prepend=0) != 0)) - 1
