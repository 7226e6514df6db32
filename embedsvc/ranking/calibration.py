"""What a ranker's logit means: a probability, as the validation rows say.

    none       p = sigmoid(z)
    platt      p = sigmoid(a z + b)                    (Platt 1999), by Newton's method
    isotonic   p rises with z, in at most KNOTS steps  (Zadrozny and Elkan 2002), by merging
               neighbours that fall, then straight lines between the means of steps

z: the logit less log(positive_weight), which takes back what training counted ones for.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kind = Literal["none", "platt", "isotonic"]

KNOTS = 64
_ROUNDS = 50  # of Newton's method, which takes some five


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


def fit(kind: Kind, logit: Floats, label: Floats, weight: Floats) -> Calibration:
    """label: 0, 1 or NaN: left out. Where all labels are alike there is nothing to fit."""
    known = ~np.isnan(label) & (weight > 0)
    logit, label, weight = logit[known], label[known], weight[known]
    if kind == "none" or not (label > 0).any() or not (label == 0).any():
        return Calibration()
    return _platt(logit, label, weight) if kind == "platt" else _isotonic(logit, label, weight)


def _platt(logit: Floats, label: Floats, weight: Floats) -> Calibration:
    design = np.stack([logit, np.ones_like(logit)], 1)
    found = np.array([1.0, 0.0])
    for _ in range(_ROUNDS):
        p = sigmoid(design @ found)
        slope = design.T @ (weight * (p - label))
        curve = design.T @ (design * (weight * np.maximum(p * (1 - p), 1e-12))[:, None])
        step = np.linalg.solve(curve + 1e-9 * np.eye(2), slope)
        found -= step
        if np.abs(step).max() < 1e-10:
            break
    return Calibration("platt", float(found[0]), float(found[1]))


def _isotonic(logit: Floats, label: Floats, weight: Floats) -> Calibration:
    order = np.argsort(logit, kind="stable")
    z, y, w = logit[order], label[order], weight[order]
    # Bins of equal weight first: a step for each row would be noise, and the file large.
    bin_of = (np.cumsum(w) - w / 2) * (min(KNOTS, len(z)) / w.sum())
    _, number = np.unique(bin_of.astype(np.int64), return_inverse=True)
    total = np.bincount(number, w)
    middle = np.bincount(number, w * z) / total
    steps: list[tuple[float, float, float]] = []  # (mean label, weight, mean logit)
    means = np.bincount(number, w * y) / total
    for one in zip(means, total, middle, strict=True):
        steps.append(one)
        while len(steps) > 1 and steps[-2][0] >= steps[-1][0]:
            (m1, w1, z1), (m2, w2, z2) = steps[-2:]
            share = w1 / (w1 + w2)
            steps[-2:] = [(share * m1 + (1 - share) * m2, w1 + w2, share * z1 + (1 - share) * z2)]
    return Calibration(
        "isotonic",
        at=tuple(float(step[2]) for step in steps),
        probability=tuple(float(step[0]) for step in steps),
    )
