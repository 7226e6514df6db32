"""Examples: what is asked (a history) and what is right (a target), from sequences of items.

An epoch is each example once, in an order that a seed and the epoch's number fix. Nothing is
shuffled in memory: example number i of an epoch is example p(i), where p is a pseudo-random
permutation that can be asked at any place (a Feistel network over the smallest power of 4 that is
no smaller; what falls outside is permuted again). So training goes on at any batch at once.

The whole job of adding a kind: one class here. Contract tests parametrise over the registry.

Letters: B batch, C classes, L places of a history, S sequences.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedsvc.compiled import jit
from embedsvc.ranking.sequences import Ids, Sequences, copy_before
from partitions.errors import ConfigError
from partitions.hashing import GOLDEN, mix
from partitions.registry import Registry

_GOLDEN = np.uint64(GOLDEN)
_ROUNDS = 8


class Examples(Protocol):
    """Examples of each sequence, numbered; the constructor's arguments are the config keys."""

    def num_examples(self, sequences: Sequences) -> int: ...

    def frequencies(self, sequences: Sequences, num_classes: int) -> Ids:
        """int64 [C]: how many examples have each class as their target."""

    def batches(
        self, sequences: Sequences, batch_size: int, seed: int, epoch: int, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(history_BL, target_B), int64, from batch `first` on; the last one may be smaller.

        Histories have the newest item last and are padded with -1 at the left; L is the length of
        the longest. Which examples a batch has is a function of all arguments, and of nothing else.
        Takes 8 bytes a sequence, besides the batch.
        """


EXAMPLES: Registry[Examples] = Registry("kind of examples")


@EXAMPLES.add("next_item")
@dataclass(frozen=True)
class NextItem:
    """Each item but the first of a sequence is a target; up to max_history before it are its
    history. A sequence of n items has n - 1 examples, one of fewer than 2 has none. With `first`
    the first is one, too, of an empty history: what features of the owner alone should find."""

    max_history: int = 50
    first: bool = False

    def __post_init__(self) -> None:
        if self.max_history < 1:
            raise ConfigError(f"max_history is {self.max_history}; it must be at least 1.")

    def num_examples(self, sequences: Sequences) -> int:
        return int(_ends_of_next(sequences.starts, self.first)[-1])

    def frequencies(self, sequences: Sequences, num_classes: int) -> Ids:
        if self.first:
            return np.bincount(sequences.items, minlength=num_classes)
        firsts = sequences.starts[:-1][np.diff(sequences.starts) > 0]
        return np.bincount(sequences.items, minlength=num_classes) - np.bincount(
            sequences.items[firsts], minlength=num_classes
        )

    def batches(
        self, sequences: Sequences, batch_size: int, seed: int, epoch: int, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for _, *batch in self.of_owners(sequences, batch_size, seed, epoch, first):
            yield batch[0], batch[1]

    def of_owners(
        self, sequences: Sequences, batch_size: int, seed: int, epoch: int, first: int = 0
    ) -> Iterator[tuple[Ids, Tensor, Tensor]]:
        """`batches`, and before each the numbers of its sequences."""
        ends = _ends_of_next(sequences.starts, self.first)
        for numbers in order(int(ends[-1]), batch_size, seed, epoch, first):
            owner = np.searchsorted(ends, numbers, side="right") - 1
            begins = sequences.starts[owner]
            target_at = begins + numbers - ends[owner] + (not self.first)
            width = min(max(int((target_at - begins).max()), 1), self.max_history)
            history = np.empty((len(numbers), width), np.int64)
            copy_before(sequences.items, begins, target_at, history)
            target = torch.from_numpy(sequences.items[target_at])
            yield owner, torch.from_numpy(history), target


@EXAMPLES.add("skip_gram")
@dataclass(frozen=True)
class SkipGram:
    """Of each two items of a sequence at most `window` apart, each is asked for given the other.

    As in word2vec (Mikolov et al. 2013), without its random shortening of windows and without its
    leaving out frequent items. Histories are one item long.
    """

    window: int = 5

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"window is {self.window}; it must be at least 1.")

    def num_examples(self, sequences: Sequences) -> int:
        return int(_ends_of_pairs(sequences.starts, self.window)[-1])

    def frequencies(self, sequences: Sequences, num_classes: int) -> Ids:
        found = np.zeros(num_classes, np.int64)
        _count_pairs(sequences.starts, sequences.items, self.window, found)
        return found

    def batches(
        self, sequences: Sequences, batch_size: int, seed: int, epoch: int, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        ends = _ends_of_pairs(sequences.starts, self.window)
        for numbers in order(int(ends[-1]), batch_size, seed, epoch, first):
            owner = np.searchsorted(ends, numbers, side="right") - 1
            centre, target = np.empty((len(numbers), 1), np.int64), np.empty(len(numbers), np.int64)
            _pairs(sequences.starts, sequences.items, owner, numbers - ends[owner], centre, target)
            yield torch.from_numpy(centre), torch.from_numpy(target)


# --- numbers of examples --------------------------------------------------------------------------
# ends[s]: how many examples the sequences before s have; [S + 1].


def _ends_of_next(starts: Ids, first: bool) -> Ids:
    ends = np.zeros(len(starts), np.int64)
    np.cumsum(np.maximum(np.diff(starts) - (not first), 0), out=ends[1:])
    return ends


def _ends_of_pairs(starts: Ids, window: int) -> Ids:
    """n items have n - d pairs at the distance d, each in two directions."""
    num = np.diff(starts)
    widest = np.maximum(np.minimum(num - 1, window), 0)
    ends = np.zeros(len(starts), np.int64)
    np.cumsum(2 * widest * num - widest * (widest + 1), out=ends[1:])
    return ends


@jit
def _pairs(starts, items, owner, number, centre, target):  # type: ignore[no-untyped-def]
    """Pair `number` of each owner, by distance, then place, then direction."""
    for b in range(owner.size):
        begin = starts[owner[b]]
        size = starts[owner[b] + 1] - begin
        distance, left = 1, number[b]
        while left >= 2 * (size - distance):
            left -= 2 * (size - distance)
            distance += 1
        one = begin + left // 2
        two = one + distance
        if left % 2:
            one, two = two, one
        centre[b, 0], target[b] = items[one], items[two]


@jit
def _count_pairs(starts, items, window, found):  # type: ignore[no-untyped-def]
    """Add to found[c]: of how many pairs class c is the target."""
    for s in range(starts.size - 1):
        for at in range(starts[s], starts[s + 1]):
            before = min(at - starts[s], window)
            after = min(starts[s + 1] - 1 - at, window)
            found[items[at]] += before + after


# --- order ----------------------------------------------------------------------------------------


def order(num: int, batch_size: int, seed: int, epoch: int, first: int = 0) -> Iterator[Ids]:
    """The numbers 0 .. num - 1 in the order of an epoch, in batches, from batch `first` on."""
    if batch_size < 1 or first < 0:
        raise ConfigError(
            f"batch_size is {batch_size} and the first batch {first}; they must be at least 1 "
            "and 0."
        )
    keys = np.random.SeedSequence([seed, epoch, 0xE8]).generate_state(_ROUNDS, np.uint64)
    for begin in range(first * batch_size, num, batch_size):
        out: NDArray[np.int64] = np.empty(min(batch_size, num - begin), np.int64)
        _permuted(begin, num, keys, out)
        yield out


@jit
def _permuted(begin, num, keys, out):  # type: ignore[no-untyped-def]
    """out[i] = p(begin + i), where p permutes 0 .. num - 1.

    A round of Feistel's network keeps the right half, and adds (xor) a hash of it to the left one:
    whatever the hash, that can be undone, so it is a permutation of all numbers of that many bits.
    From a number below `num`, permuting until one below `num` appears is one of those.
    """
    half = np.uint64(1)
    while (np.int64(1) << np.int64(2 * half)) < num:
        half += np.uint64(1)
    mask = (np.uint64(1) << half) - np.uint64(1)
    for i in range(out.size):
        value = np.uint64(begin + i)
        while True:
            left, right = value >> half, value & mask
            for key in keys:
                left, right = right, left ^ (mix(right * _GOLDEN + key) & mask)
            value = (left << half) | right
            if value < np.uint64(num):
                break
        out[i] = np.int64(value)
