"""partitions.buffer_states: what must meet meets, c at a time, one swap after the other."""

from collections.abc import Sequence
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from partitions.buffer_states import (
    Needs,
    State,
    beta_swaps,
    elimination,
    greedy,
    least_swaps,
    shortest,
    tables_of,
)
from partitions.schema import Bucket, Slot
from partitions.short_orders import SHORT_ORDERS


def square(p: int) -> Needs:
    pairs = [Bucket(i, j) for i in range(p) for j in range(p)]
    return {bucket: frozenset(Slot("node", at) for at in bucket) for bucket in pairs}


def check(needs: Needs, capacity: int, states: Sequence[State]) -> None:
    assert all(len(state) <= capacity for state in states)
    for before, after in pairwise(states):
        assert len(after - before) == 1 and len(before - after) <= 1
    for tables in needs.values():
        assert any(tables <= state for state in states)


@pytest.mark.parametrize(("p", "c"), SHORT_ORDERS)
def test_a_stored_sequence_meets_all_pairs_with_fewer_swaps_than_beta(p: int, c: int) -> None:
    tables = tables_of(square(p))
    for given_order in (tables, tables[::-1]):
        states = shortest(given_order, c)
        assert states is not None
        check(square(p), c, states)
        assert states[0] == frozenset(given_order[:c])
        assert least_swaps(p, c) <= len(states) - 1 < beta_swaps(p, c)


def test_what_is_not_stored_is_left_to_others() -> None:
    assert shortest(tables_of(square(40)), 4) is None


@pytest.mark.parametrize("c", range(2, 9))
@pytest.mark.parametrize("p", range(1, 20))
def test_elimination_takes_the_swaps_of_beta(p: int, c: int) -> None:
    states = elimination(square(p), c, np.random.default_rng(p))
    check(square(p), c, states)
    assert states[-1] and len({slot for state in states for slot in state}) == p
    entered = [after - before for before, after in pairwise(states)]
    assert sum(len(slots) for slots in entered) - max(min(p, c) - len(states[0]), 0) == beta_swaps(
        p, c
    )


@pytest.mark.parametrize(("p", "c"), [(17, 5), (16, 4), (10, 3), (9, 8)])
def test_a_retired_table_is_never_brought_in_again(p: int, c: int) -> None:
    """Retired: all its buckets could have been played. Every swap makes new ones possible."""
    tables = tables_of(square(p))
    for states in (elimination(square(p), c, np.random.default_rng(2)), shortest(tables, c) or []):
        met: set[frozenset[Slot]] = set()
        for before, after in pairwise([frozenset[Slot](), *states]):
            now = {frozenset((a, b)) for a in after for b in after}
            assert any(not pair.isdisjoint(after - before) for pair in now - met)
            met |= now


@given(
    pairs=st.dictionaries(
        st.builds(Bucket, st.integers(0, 6), st.integers(0, 6)),
        st.lists(
            st.builds(Slot, st.sampled_from("ab"), st.integers(0, 4)), min_size=1, max_size=3
        ).map(frozenset),
        max_size=25,
    ),
    capacity=st.integers(3, 6),
    seed=st.integers(0, 3),
)
def test_any_needs_are_met(pairs: Needs, capacity: int, seed: int) -> None:
    check(pairs, capacity, greedy(pairs, capacity, np.random.default_rng(seed)))
    two = {bucket: frozenset(sorted(tables)[:2]) for bucket, tables in pairs.items()}
    check(two, capacity, elimination(two, capacity, np.random.default_rng(seed)))
