"""Examples against plain loops over sequences: each once an epoch, from any batch on."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedsvc.ranking.examples import EXAMPLES, NextItem, SkipGram, order
from embedsvc.ranking.sequences import Sequences
from partitions.errors import ConfigError

Example = tuple[tuple[int, ...], int]

LISTS = st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=8)
KINDS = [NextItem(1), NextItem(3), NextItem(50), SkipGram(1), SkipGram(3), SkipGram(20)]


def sequences_of(lists: Sequence[Sequence[int]]) -> Sequences:
    ends = np.cumsum([0, *map(len, lists)])
    return Sequences(ends, np.array([i for one in lists for i in one], np.int64))


def plain(kind: NextItem | SkipGram, lists: Sequence[Sequence[int]]) -> Counter[Example]:
    found: Counter[Example] = Counter()
    for items in lists:
        for t in range(len(items)):
            if isinstance(kind, NextItem):
                if t:
                    found[tuple(items[max(0, t - kind.max_history) : t]), items[t]] += 1
            else:
                for other in range(len(items)):
                    if 0 < abs(other - t) <= kind.window:
                        found[(items[t],), items[other]] += 1
    return found


def given_by(
    kind: NextItem | SkipGram, sequences: Sequences, batch_size: int, *which: int
) -> list[list[Example]]:
    """Batches of examples; that padding is -1, at the left, is looked at on the way."""
    batches = []
    for history, target in kind.batches(sequences, batch_size, *which):
        rows = history.tolist()
        assert len(rows) == len(target) > 0
        width = max(sum(item >= 0 for item in row) for row in rows)
        for row in rows:
            num = sum(item >= 0 for item in row)
            assert len(row) == width and row[: width - num] == [-1] * (width - num)
        batches.append(
            [
                (tuple(item for item in row if item >= 0), one)
                for row, one in zip(rows, target.tolist(), strict=True)
            ]
        )
    return batches


def test_each_kind_is_tested_here() -> None:
    assert {type(kind) for kind in KINDS} == {EXAMPLES[name] for name in EXAMPLES}


@settings(max_examples=60)
@given(LISTS, st.sampled_from(KINDS), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_each_example_comes_once_an_epoch(
    lists: list[list[int]], kind: NextItem | SkipGram, batch_size: int, seed: int, epoch: int
) -> None:
    sequences = sequences_of(lists)
    wanted = plain(kind, lists)
    batches = given_by(kind, sequences, batch_size, seed, epoch)
    assert Counter(example for batch in batches for example in batch) == wanted
    assert kind.num_examples(sequences) == wanted.total()
    assert all(len(batch) == batch_size for batch in batches[:-1])
    targets = Counter(target for _, target in wanted.elements())
    assert kind.frequencies(sequences, 11).tolist() == [targets[c] for c in range(11)]


@settings(max_examples=30)
@given(LISTS, st.sampled_from(KINDS), st.integers(1, 5), st.integers(0, 12))
def test_any_batch_can_be_the_first(
    lists: list[list[int]], kind: NextItem | SkipGram, batch_size: int, first: int
) -> None:
    sequences = sequences_of(lists)
    batches = given_by(kind, sequences, batch_size, 1, 2)
    assert given_by(kind, sequences, batch_size, 1, 2, first) == batches[first:]


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5, 16, 17, 1000, 4096, 4097])
def test_an_order_is_a_permutation(num: int) -> None:
    assert sorted(np.concatenate(list(order(num, 100, 5, 6))).tolist()) == [*range(num)]
    assert list(order(0, 100, 5, 6)) == []


def test_seeds_and_epochs_give_orders_of_their_own() -> None:
    orders = {
        tuple(np.concatenate(list(order(500, 64, *which))).tolist())
        for which in [(0, 0), (0, 1), (1, 0), (1, 1)]
    }
    assert len(orders) == 4
    # By chance one number of a permutation is in its place; odds that 10 are: 1 in 10 million.
    assert all(sum(one == at for at, one in enumerate(each)) < 10 for each in orders)


def test_neighbours_are_not_neighbours_in_the_order() -> None:
    """First differences of a random order of n are evenly spread: +1 occurs about once."""
    found = np.concatenate(list(order(100_000, 100_000, 0, 0)))
    assert np.count_nonzero(np.abs(np.diff(found)) == 1) < 20
    correlation = np.corrcoef(found[:-1], found[1:])[0, 1]
    assert abs(correlation) < 5 / 100_000**0.5
    parts = np.bincount(found[:50_000] // 1000, minlength=100)
    assert abs(parts - 500).max() < 5 * 250**0.5


def test_the_first_batch_of_a_long_epoch_comes_at_once() -> None:
    """Of 2^40 examples; listing them would take 8 TB."""
    for begin in (0, 2**31):
        numbers = next(iter(order(2**40, 256, 0, 0, begin)))
        assert len(set(numbers.tolist())) == 256 and 0 <= numbers.min() <= numbers.max() < 2**40
        assert numbers.max() > 2**39


def test_settings_that_make_no_sense() -> None:
    for spec in ({"name": "next_item", "max_history": 0}, {"name": "skip_gram", "window": 0}):
        with pytest.raises(ConfigError, match="is 0; it must be at least 1"):
            EXAMPLES.build(spec)
    sequences = sequences_of([[1, 2, 3]])
    for batch_size, first in [(0, 0), (5, -1)]:
        with pytest.raises(ConfigError, match="batch_size is"):
            list(islice(NextItem().batches(sequences, batch_size, 0, 0, first), 1))


def test_the_first_of_a_sequence_is_asked_of_nothing_where_it_is_wanted() -> None:
    sequences = sequences_of([[1, 2, 3], [], [4]])
    examples = NextItem(max_history=5, first=True)
    assert examples.num_examples(sequences) == 4
    assert examples.frequencies(sequences, 6).tolist() == [0, 1, 1, 1, 1, 0]
    found = []
    for owner, history, target in examples.of_owners(sequences, 3, 0, 0):
        for who, row, goal in zip(owner, history.tolist(), target.tolist(), strict=True):
            found.append((int(who), [one for one in row if one >= 0], goal))
    assert sorted(found) == [(0, [], 1), (0, [1], 2), (0, [1, 2], 3), (2, [], 4)]
