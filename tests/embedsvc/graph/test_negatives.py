"""Negatives are drawn as often as they are said to be, and the correction makes up for it."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from embedsvc.config import NegativesConfig
from embedsvc.graph.batches import Batch, Batcher, Group
from embedsvc.graph.losses import LOSSES
from embedsvc.graph.negatives import Sampler, Sampling
from partitions.edges import Edges
from partitions.schema import Slot

LEFT, RIGHT = Slot("left", 0), Slot("right", 3)
NUM_ROWS = {LEFT: 9, RIGHT: 6}
GROUPS = [Group(LEFT, RIGHT, "identity"), Group(RIGHT, RIGHT, "identity")]
ENDS = [(group.lhs, group.rhs) for group in GROUPS]


def some_edges(num_edges: int = 40, seed: int = 0) -> Edges:
    """Row 5 of either table has no edge; low rows have most."""
    rng = np.random.default_rng(seed)
    lhs, rhs = (np.minimum(rng.geometric(0.4, num_edges) - 1, 4) for _ in range(2))
    rel = rng.integers(0, 2, num_edges)
    return Edges(lhs.astype(np.uint32), rel.astype(np.uint8), rhs.astype(np.uint32))


def degrees(edges: Edges) -> dict[Slot, list[int]]:
    count: Counter[tuple[Slot, int]] = Counter()
    for lhs, rel, rhs in zip(*(x.tolist() for x in (edges.lhs, edges.rel, edges.rhs)), strict=True):
        count[ENDS[rel][0], lhs] += 1
        count[ENDS[rel][1], rhs] += 1
    return {slot: [count[slot, row] for row in range(n)] for slot, n in NUM_ROWS.items()}


def a_sampler(edges: Edges, num_uniform: int = 0, **settings: object) -> Sampler:
    shared = edges.rel.astype(np.int64)
    return Sampler(Sampling(**settings), num_uniform, NUM_ROWS, ENDS, edges, shared)


@pytest.mark.parametrize("slot", [LEFT, RIGHT])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
def test_entities_are_drawn_by_a_power_of_their_degree(alpha: float, slot: Slot) -> None:
    edges = some_edges()
    drawn = a_sampler(edges, degree=200, alpha=alpha).draw(slot, 500, np.random.default_rng(2))
    assert drawn.shape == (500, 200)
    # 0 ** 0 is 1 in numpy: with alpha = 0 all are alike.
    weights = np.array(degrees(edges)[slot], float) ** alpha
    wanted = drawn.size * weights / weights.sum()
    found = np.bincount(drawn.ravel(), minlength=NUM_ROWS[slot])
    assert (abs(found - wanted) <= 6 * np.sqrt(wanted)).all()
    assert (found[weights == 0] == 0).all()


def test_uniform_and_weighted_draws_stand_side_by_side_and_depend_on_the_seed_alone() -> None:
    sampler = a_sampler(some_edges(), num_uniform=3, degree=2)
    drawn = [sampler.draw(LEFT, 4, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert drawn[0].shape == (4, 5) and drawn[0].dtype == np.int64
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
    plain = a_sampler(some_edges(), num_uniform=3).draw(LEFT, 4, np.random.default_rng(1))
    assert np.array_equal(drawn[0][:, :3], plain), "what is added changes no uniform draw"


def test_all_entities_are_candidates_once() -> None:
    drawn = a_sampler(some_edges(), every=True).draw(RIGHT, 2, np.random.default_rng(1))
    assert drawn.tolist() == [list(range(6))] * 2


@pytest.mark.parametrize("in_batch", [False, True])
def test_expected_counts_equal_a_plain_loop(in_batch: bool) -> None:
    edges = some_edges()
    sampling = Sampling(degree=4, alpha=0.7, in_batch=in_batch, log_q=True)
    batcher = Batcher(GROUPS, NUM_ROWS, 20, 5, 3, True, sampling=sampling)
    degree = {
        slot: [0.0 if not n else n**0.7 for n in counts] for slot, counts in degrees(edges).items()
    }
    for batch in batcher.batches(edges, np.random.default_rng(3)):
        for side, ends, drawn, found in (
            ("lhs", batch.lhs_KC, batch.neg_lhs_KU, batch.log_q_lhs),
            ("rhs", batch.rhs_KC, batch.neg_rhs_KU, batch.log_q_rhs),
        ):
            slot = getattr(batch.group, side)
            candidates = np.concatenate([ends, drawn], axis=1) if in_batch else drawn
            assert found is not None and found.shape == candidates.shape
            for (chunk, column), row in np.ndenumerate(candidates):
                wanted = 3 / NUM_ROWS[slot] + 4 * degree[slot][row] / sum(degree[slot])
                if in_batch:
                    rel = batch.rel_KC[chunk, 0]
                    same = getattr(edges, side)[edges.rel == rel]
                    others = int(batch.real_KC[chunk].sum()) - 1
                    wanted += others * np.mean(same == row)
                assert found[chunk, column] == pytest.approx(math.log(wanted), abs=1e-5)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(degree=2), Sampling(every=True, log_q=True)], ids=str
)
def test_counts_are_left_out_where_nothing_is_to_be_corrected(sampling: Sampling) -> None:
    batcher = Batcher(GROUPS, NUM_ROWS, 20, 5, 3, False, sampling=sampling)
    for batch in batcher.batches(some_edges(), np.random.default_rng(3)):
        assert batch.log_q_lhs is None and batch.log_q_rhs is None


def test_the_corrected_sum_over_candidates_is_an_unbiased_one_over_entities() -> None:
    """Over many draws, the mean of sum exp(score - log count) is the sum over all entities."""
    edges, rng = some_edges(), np.random.default_rng(5)
    score = rng.standard_normal(NUM_ROWS[RIGHT])
    sampler = a_sampler(edges, num_uniform=2, degree=3, in_batch=False, log_q=True)
    drawn = sampler.draw(RIGHT, 20_000, rng)
    none = np.empty((len(drawn), 0), np.int64)
    shared, real = np.zeros(len(drawn), np.int64), np.zeros(len(drawn), np.int64)
    log_q = sampler.log_counts(RIGHT, 1, shared, real, none, drawn)
    sums = np.exp(score[drawn] - log_q).sum(axis=1)
    truth = np.exp(score).sum()
    assert sums.mean() == pytest.approx(truth, abs=5 * sums.std() / len(drawn) ** 0.5)


def test_a_whole_partition_of_candidates_gives_the_full_softmax() -> None:
    """What the sampled softmax estimates: its loss with every entity once and no correction."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(1, 7, generator=generator)
    masked = scores.clone()
    masked[0, 2] = -torch.inf  # the true one is no negative
    found = LOSSES.build("sampled_softmax")(scores[:, 2], masked)
    torch.testing.assert_close(found, -scores.log_softmax(-1)[:, 2])


def test_no_edges_make_no_batches_with_any_sampling() -> None:
    edges = Edges(*(np.zeros(0, dtype) for dtype in (np.uint32, np.uint8, np.uint32)))
    sampling = Sampling(degree=2, log_q=True)
    batcher = Batcher(GROUPS, NUM_ROWS, 20, 5, 3, False, sampling=sampling)
    assert list(batcher.batches(edges, np.random.default_rng(1))) == []


def test_weights_of_relations_multiply_those_of_edges() -> None:
    edges = some_edges()
    edges = Edges(edges.lhs, edges.rel, edges.rhs, np.linspace(1, 2, 40, dtype=np.float32))
    weights = np.array([0.5, 3.0], np.float32)

    def found(given: np.ndarray | None) -> list[Batch]:
        batcher = Batcher(GROUPS, NUM_ROWS, 20, 5, 3, False, relation_weights=given)
        return list(batcher.batches(edges, np.random.default_rng(1)))

    for plain, weighted in zip(found(None), found(weights), strict=True):
        wanted = plain.weight_KC * weights[plain.rel_KC]
        np.testing.assert_array_equal(weighted.weight_KC, wanted)
        assert (weighted.weight_KC[~weighted.real_KC] == 0).all()


def test_all_takes_the_place_of_the_other_negatives() -> None:
    config = NegativesConfig.model_validate({"all": True})
    assert not config.in_batch and not config.uniform and not config.degree
    assert NegativesConfig.model_validate(config.model_dump()) == config
    with pytest.raises(ValueError, match="takes every entity already: remove uniform, degree"):
        NegativesConfig.model_validate({"all": True, "uniform": 5, "degree": 2})
    with pytest.raises(ValueError, match="negatives need"):
        NegativesConfig(in_batch=False, uniform=0)


@pytest.mark.parametrize("word", [1, "true", "yes", "on"])
def test_all_is_true_or_false_and_nothing_like_it(word: object) -> None:
    with pytest.raises(ValueError, match="should be a valid boolean"):
        NegativesConfig.model_validate({"all": word})
