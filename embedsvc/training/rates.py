"""Learning-rate schedules: what `train.lr` is multiplied by, as a pure function of progress.

Progress is in epochs: 2.25 is a quarter of the third epoch's edges. Nothing is carried from one
batch to the next, so a run that resumes goes on with the same bits. A schedule that falls to an end
has a length of its own, so that raising `train.epochs` later changes nothing of what was done.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

from partitions.errors import ConfigError
from partitions.registry import Registry


class Rate(Protocol):
    def __call__(self, progress: float) -> float:
        """progress: epochs, from 0 on. Returns a factor: 1 at 0, never below 0."""


RATES: Registry[Rate] = Registry("lr_schedule")


@RATES.add("constant")
@dataclass(frozen=True)
class Constant:
    """1"""

    def __call__(self, progress: float) -> float:
        return 1.0


@RATES.add("linear")
@dataclass(frozen=True)
class Linear:
    """From 1 to `final` in a straight line over `epochs`, then stays."""

    epochs: float
    final: float = 0.0

    def __post_init__(self) -> None:
        _check("linear", self.epochs, self.final)

    def __call__(self, progress: float) -> float:
        return 1.0 + (self.final - 1.0) * min(progress / self.epochs, 1.0)


@RATES.add("cosine")
@dataclass(frozen=True)
class Cosine:
    """From 1 to `final` along half a cosine over `epochs` (Loshchilov and Hutter 2017, without
    restarts), then stays."""

    epochs: float
    final: float = 0.0

    def __post_init__(self) -> None:
        _check("cosine", self.epochs, self.final)

    def __call__(self, progress: float) -> float:
        turned = math.cos(math.pi * min(progress / self.epochs, 1.0))
        return self.final + (1.0 - self.final) * (1.0 + turned) / 2


@RATES.add("exponential")
@dataclass(frozen=True)
class Exponential:
    """factor ^ progress: each epoch ends at `factor` times the rate that it began with."""

    factor: float

    def __post_init__(self) -> None:
        if not 0 < self.factor <= 1:
            raise ConfigError(
                f"lr_schedule exponential: factor = {self.factor}: must be above 0 and at most 1."
            )

    def __call__(self, progress: float) -> float:
        return float(self.factor**progress)


def _check(name: str, epochs: float, final: float) -> None:
    if not epochs > 0:
        raise ConfigError(f"lr_schedule {name}: epochs = {epochs}: must be above 0.")
    if not 0 <= final <= 1:
        raise ConfigError(f"lr_schedule {name}: final = {final}: must be from 0 to 1.")


@dataclass(frozen=True)
class WarmedUp:
    """A schedule whose rate first grows from 0 in a straight line over `epochs`; 0: at once."""

    rate: Rate
    epochs: float

    @staticmethod
    def build(spec: str | dict[str, Any], warmup_epochs: float) -> "WarmedUp":
        return WarmedUp(RATES.build(spec), warmup_epochs)

    def __call__(self, progress: float) -> float:
        warmth = min(progress / self.epochs, 1.0) if self.epochs else 1.0
        return warmth * self.rate(progress)
