"""Shared samples of classes, drawn by how frequent they are.

Samplers know ranks: rank 0 is the most frequent class. They draw from ranks first .. C - 1, since
the `first` most frequent classes, the head, are looked at in every step anyway. Draws are with
replacement, and a function of a key alone. Whoever merges duplicates expects the class of chance q
among n draws with the probability that `log_presence` gives.

The whole job of adding one: one class here. A contract test holds its draws to its chances.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedsvc.compiled import jit
from partitions.errors import ConfigError
from partitions.hashing import GOLDEN, mix
from partitions.registry import Registry

_GOLDEN = np.uint64(GOLDEN)


class Sampler(Protocol):
    def fit(self, frequencies: NDArray[np.float64], first: int) -> None:
        """frequencies: [C] above 0, by rank: in descending order. Work and memory are O(C)."""

    def draw(self, num: int, key: np.uint64) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ranks [num], and the chance of each: that a draw gives it. C = first gives none."""

    def chances(self) -> NDArray[np.float64]:
        """[C]: of every rank; 0 below `first`, positive above; the sum is 1."""


SAMPLERS: Registry[Sampler] = Registry("sampler")


def log_presence(chance: NDArray[np.float64], num: int) -> NDArray[np.float64]:
    """log(1 - (1 - q)^n): of the probability that n draws give a class of chance q at least once.

    Right for every q in [0, 1]: for tiny q it is log(n q), which 1 - (1 - q)^n would lose.
    """
    with np.errstate(divide="ignore"):
        return np.log(-np.expm1(num * np.log1p(-chance)))


def key_of(seed: int, step: int) -> np.uint64:
    """Of the draws of a step."""
    start = np.random.SeedSequence([seed, 0x5A]).generate_state(1, np.uint64)[0]
    return np.uint64(mix(np.uint64((int(start) + GOLDEN * (step + 1)) % 2**64)))


@SAMPLERS.add("log_uniform")
@dataclass
class LogUniform:
    """Zipf's law: q[rank] = log((rank + 2) / (rank + 1)) / log((C + 1) / (first + 1)).

    What TensorFlow calls the log-uniform candidate sampler (Jozefowicz et al. 2016 use it); it asks
    for the order of the frequencies, not for the frequencies.
    """

    _num: int = field(default=0, init=False)
    _first: int = field(default=0, init=False)

    def fit(self, frequencies: NDArray[np.float64], first: int) -> None:
        self._num, self._first = len(frequencies), first

    def draw(self, num: int, key: np.uint64) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return _log_uniform(self._num, self._first, num if self._num > self._first else 0, key)

    def chances(self) -> NDArray[np.float64]:
        ranks = np.arange(self._num, dtype=np.float64)
        chances = np.log1p(1 / (ranks + 1)) / np.log((self._num + 1) / (self._first + 1))
        chances[: self._first] = 0
        return np.minimum(chances, 1)


@SAMPLERS.add("unigram")
@dataclass
class Unigram:
    """q[rank] is proportional to frequency^alpha (Mikolov et al. 2013); alpha = 0 is uniform.

    Drawn by Walker's alias method (Vose 1991): three reads a draw, 12 B a class. The right one
    where frequencies are known: to log_uniform, equally frequent classes are as unequal as any.
    """

    alpha: float = 0.75
    _first: int = field(default=0, init=False)
    _chance: NDArray[np.float32] = field(
        default_factory=lambda: np.empty(0, np.float32), init=False
    )
    _own: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32), init=False)
    _alias: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32), init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"unigram's alpha is {self.alpha}; it must be from 0 to 1.")

    def fit(self, frequencies: NDArray[np.float64], first: int) -> None:
        tail = frequencies[first:] ** self.alpha
        chance = tail / tail.sum() if len(tail) else tail
        own, alias = _alias_table(chance)
        self._first, self._chance = first, chance.astype(np.float32)
        self._own, self._alias = own.astype(np.float32), alias.astype(np.int32)

    def draw(self, num: int, key: np.uint64) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        num = num if len(self._chance) else 0
        return _by_alias(self._own, self._alias, self._chance, self._first, num, key)

    def chances(self) -> NDArray[np.float64]:
        return np.concatenate([np.zeros(self._first), self._chance.astype(np.float64)])


@jit
def _fraction(state: Any) -> Any:
    """The upper 53 of 64 random bits, as a number in [0, 1)."""
    return np.float64(state >> np.uint64(11)) * 2.0**-53


@jit
def _log_uniform(num_ranks, first, num, key):  # type: ignore[no-untyped-def]
    ranks, chances = np.empty(num, np.int64), np.empty(num, np.float64)
    span = np.log((num_ranks + 1.0) / (first + 1.0))
    state = np.uint64(key)
    for i in range(num):
        state += _GOLDEN
        # The distribution function of rank r is log((r + 2) / (first + 1)) / span.
        rank = np.int64((first + 1.0) * np.exp(_fraction(mix(state)) * span)) - 1
        rank = min(max(rank, first), num_ranks - 1)  # should rounding have passed an end
        ranks[i] = rank
        chances[i] = min(np.log1p(1.0 / (rank + 1.0)) / span, 1.0)  # of one rank, it is rounded
    return ranks, chances


@jit
def _alias_table(chance):  # type: ignore[no-untyped-def]
    """Of n places, each holds its own rank with probability own, else another: its alias."""
    n = chance.size
    own, alias = chance * n, np.arange(n)
    poor, rich = np.empty(n, np.int64), np.empty(n, np.int64)
    num_poor, num_rich = 0, 0
    for i in range(n):
        if own[i] < 1:
            poor[num_poor] = i
            num_poor += 1
        else:
            rich[num_rich] = i
            num_rich += 1
    while num_poor and num_rich:
        num_poor -= 1
        to, giver = poor[num_poor], rich[num_rich - 1]
        alias[to] = giver
        own[giver] -= 1 - own[to]
        if own[giver] < 1:
            num_rich -= 1
            poor[num_poor] = giver
            num_poor += 1
    for i in range(num_poor):  # what rounding left over
        own[poor[i]] = 1
    for i in range(num_rich):
        own[rich[i]] = 1
    return own, alias


@jit
def _by_alias(own, alias, chance, first, num, key):  # type: ignore[no-untyped-def]
    ranks, chances = np.empty(num, np.int64), np.empty(num, np.float64)
    state = np.uint64(key)
    for i in range(num):
        state += _GOLDEN
        place = min(np.int64(_fraction(mix(state)) * own.size), own.size - 1)
        state += _GOLDEN
        at = place if _fraction(mix(state)) < own[place] else alias[place]
        ranks[i] = first + at
        chances[i] = chance[at]
    return ranks, chances
