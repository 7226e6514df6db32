"""Batches hold each edge of the bucket once, and nothing else that counts."""

from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from embedsvc.graph.batches import Batch, Batcher, Group
from partitions.edges import Edges
from partitions.schema import Slot

USER, ITEM, TAG = Slot("user", 1), Slot("item", 0), Slot("tag", 0)
NUM_ROWS = {USER: 50, ITEM: 30, TAG: 7}
# Relations 0 and 2 can share a batch, the others can't.
GROUPS = [
    Group(USER, ITEM, "diagonal"),
    Group(USER, ITEM, "identity"),
    Group(USER, ITEM, "diagonal"),
    Group(ITEM, TAG, "diagonal"),
]


def random_edges(num_edges: int, seed: int = 0, *, weighted: bool = False) -> Edges:
    rng = np.random.default_rng(seed)
    rel = rng.integers(0, len(GROUPS), num_edges).astype(np.uint8)
    rows = np.array([[NUM_ROWS[g.lhs], NUM_ROWS[g.rhs]] for g in GROUPS])[rel].reshape(-1, 2)
    return Edges(
        lhs=rng.integers(0, rows[:, 0]).astype(np.uint32),
        rel=rel,
        rhs=rng.integers(0, rows[:, 1]).astype(np.uint32),
        weight=rng.random(num_edges).astype(np.float32) if weighted else None,
    )


def batches(
    edges: Edges,
    *,
    seed: int = 1,
    batch_size: int = 8,
    chunk_size: int = 4,
    num_uniform: int = 3,
    chunk_by_relation: bool = False,
) -> list[Batch]:
    batcher = Batcher(GROUPS, NUM_ROWS, batch_size, chunk_size, num_uniform, chunk_by_relation)
    return list(batcher.batches(edges, np.random.default_rng(seed)))


def content(batch: Batch) -> Counter[tuple[float, ...]]:
    parts = (batch.lhs_KC, batch.rel_KC, batch.rhs_KC, batch.weight_KC)
    return Counter(zip(*(part[batch.real_KC].tolist() for part in parts), strict=True))


@given(
    num_edges=st.integers(0, 70),
    seed=st.integers(0, 99),
    chunk_size=st.integers(1, 9),
    chunks=st.integers(1, 4),
    weighted=st.booleans(),
    chunk_by_relation=st.booleans(),
)
def test_every_edge_is_in_the_epoch_once(
    num_edges: int,
    seed: int,
    chunk_size: int,
    chunks: int,
    weighted: bool,
    chunk_by_relation: bool,
) -> None:
    edges = random_edges(num_edges, seed, weighted=weighted)
    found = batches(
        edges,
        seed=seed,
        batch_size=chunk_size * chunks,
        chunk_size=chunk_size,
        chunk_by_relation=chunk_by_relation,
    )
    weight = edges.weight if edges.weight is not None else np.ones(num_edges, np.float32)
    columns = (edges.lhs, edges.rel, edges.rhs, weight)
    wanted = Counter(zip(*(column.tolist() for column in columns), strict=True))
    assert sum(map(content, found), Counter()) == wanted
    assert sum(batch.num_edges for batch in found) == num_edges
    shared = Counter(r if chunk_by_relation else GROUPS[r] for r in edges.rel.tolist())
    width = min(chunk_size, max(shared.values(), default=1))
    for batch in found:
        group = {GROUPS[rel] for rel in np.unique(batch.rel_KC)}
        assert group == {batch.group}
        assert len(batch.lhs_KC) <= chunks and batch.lhs_KC.shape[1] == width
        assert batch.real_KC.any(axis=1).all(), "a chunk of padding only"
        assert (batch.weight_KC[~batch.real_KC] == 0).all()
        for rows, slot in (
            (batch.lhs_KC, batch.group.lhs),
            (batch.rhs_KC, batch.group.rhs),
            (batch.neg_lhs_KU, batch.group.lhs),
            (batch.neg_rhs_KU, batch.group.rhs),
        ):
            assert ((rows >= 0) & (rows < NUM_ROWS[slot])).all()
        if chunk_by_relation:
            assert (batch.rel_KC == batch.rel_KC[:, :1]).all()


def test_only_the_last_chunk_of_a_group_is_padded() -> None:
    edges = random_edges(100)
    found = batches(edges)
    groups = {g: sum(GROUPS[r] == g for r in edges.rel) for g in set(GROUPS)}
    for group, num_edges in groups.items():
        padded = sum(np.sum(~b.real_KC) for b in found if b.group == group)
        assert padded == -num_edges % 4
    assert sum(len(b.real_KC) for b in found) == sum(-(-n // 4) for n in groups.values())


def test_one_edge_makes_one_chunk_of_one() -> None:
    edges = Edges(np.array([9], np.uint32), np.array([3], np.uint8), np.array([2], np.uint32))
    [batch] = batches(edges)
    assert content(batch) == Counter({(9, 3, 2, 1.0): 1})
    assert batch.lhs_KC.shape == (1, 1) and batch.num_edges == 1
    assert batch.neg_lhs_KU.shape == batch.neg_rhs_KU.shape == (1, 3)


def test_a_chunk_larger_than_the_bucket_holds_it_whole() -> None:
    edges = random_edges(7)
    found = batches(edges, batch_size=50, chunk_size=50)
    assert sum(map(content, found), Counter()).total() == 7
    assert all(len(batch.lhs_KC) == 1 for batch in found)
    largest = max(batch.num_edges for batch in found)
    assert {batch.lhs_KC.shape for batch in found} == {(1, largest)}, "padding costs as edges do"


def test_a_batch_smaller_than_a_chunk_still_has_one_chunk() -> None:
    found = batches(random_edges(20), batch_size=3, chunk_size=4)
    assert all(len(batch.lhs_KC) == 1 for batch in found)


def test_no_negatives_are_drawn_where_none_are_asked_for() -> None:
    for batch in batches(random_edges(9), num_uniform=0):
        assert batch.neg_lhs_KU.shape == batch.neg_rhs_KU.shape == (len(batch.lhs_KC), 0)


def test_batches_depend_on_the_seed_alone() -> None:
    edges = random_edges(60, weighted=True)

    def flat(seed: int) -> list[bytes]:
        return [
            part.tobytes()
            for b in batches(edges, seed=seed)
            for part in (b.lhs_KC, b.rel_KC, b.rhs_KC, b.weight_KC, b.neg_lhs_KU, b.neg_rhs_KU)
        ]

    assert flat(5) == flat(5)
    assert flat(5) != flat(6)


@pytest.mark.parametrize("chunk_by_relation", [False, True])
def test_edges_are_shuffled_over_chunks_and_kinds_over_the_epoch(chunk_by_relation: bool) -> None:
    edges = random_edges(4000)
    found = batches(edges, chunk_by_relation=chunk_by_relation)
    order = np.concatenate([b.lhs_KC[b.real_KC] for b in found])
    assert (np.diff(order) < 0).mean() > 0.3  # in the file's or sorted order: far fewer
    kinds = [GROUPS.index(b.group) for b in found]
    assert np.mean(np.diff(kinds) != 0) > 0.3  # group by group: 2 changes in all


def test_negatives_are_drawn_evenly_from_the_whole_table() -> None:
    edges = Edges(*(np.zeros(400, dtype) for dtype in (np.uint32, np.uint8, np.uint32)))
    found = batches(edges, num_uniform=150)
    lhs = np.bincount(np.concatenate([b.neg_lhs_KU.ravel() for b in found]), minlength=50)
    rhs = np.bincount(np.concatenate([b.neg_rhs_KU.ravel() for b in found]), minlength=30)
    for counts in (lhs, rhs):
        mean = 100 * 150 / len(counts)
        assert (abs(counts - mean) < 6 * np.sqrt(mean)).all()
