"""Contracts of every registered comparator."""

from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from torch import Tensor

from embedsvc.graph.comparators import COMPARATORS
from partitions.errors import ConfigError

SPECS = [*COMPARATORS, {"name": "cos", "scale": 10.0}]


def vectors(num_a: int, num_b: int, dim: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(num_a, dim, dtype=torch.float64, generator=generator)
    return a, torch.randn(num_b, dim, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("dim", [1, 2, 7])
@pytest.mark.parametrize("name", list(COMPARATORS))
def test_pairs_equal_a_plain_loop(name: str, dim: int, plain: SimpleNamespace) -> None:
    a, b = vectors(5, 5, dim)
    loop = [plain.comparators[name](x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    found = COMPARATORS.build(name).pairs(a, b)
    torch.testing.assert_close(found, torch.tensor(loop, dtype=torch.float64))


def test_the_cosine_is_multiplied_by_its_scale() -> None:
    a, b = vectors(5, 5, 4)
    plain, scaled = COMPARATORS.build("cos"), COMPARATORS.build({"name": "cos", "scale": 10})
    torch.testing.assert_close(scaled.pairs(a, b), 10 * plain.pairs(a, b))
    torch.testing.assert_close(scaled.blocks(a, b), 10 * plain.blocks(a, b))


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_cosine_that_does_not_reward_likeness_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match="scale"):
        COMPARATORS.build({"name": "cos", "scale": scale})


@pytest.mark.parametrize("name", list(COMPARATORS))
def test_what_an_index_searches_by_is_no_setting(name: str) -> None:
    with pytest.raises(ConfigError, match="has no setting metric"):
        COMPARATORS.build({"name": name, "metric": "dot"})


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_blocks_equal_pairs(spec: str | dict[str, object]) -> None:
    compare = COMPARATORS.build(spec)
    a, b = vectors(8, 10, 3)
    a, b = a.view(2, 4, 3), b.view(2, 5, 3)
    pairs = compare.pairs(a[:, :, None], b[:, None, :])
    assert pairs.shape == (2, 4, 5)
    torch.testing.assert_close(compare.blocks(a, b), pairs)


@pytest.mark.parametrize("dim", [1, 3, 8, 33, 100, 257])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_pairs_score_has_the_same_bits_whatever_pairs_are_beside_it(
    spec: str | dict[str, object], dim: int
) -> None:
    """Evaluation rests on it: ranks may not depend on tiles."""
    compare = COMPARATORS.build(spec)
    a, b = vectors(2000, 2000, dim)
    whole = compare.pairs(a, b)
    for rows in (slice(0, 1), slice(7, 10), slice(1990, 2000), slice(100, 1100)):
        assert torch.equal(compare.pairs(a[rows], b[rows]), whole[rows])


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_blocks_of_no_candidates_are_empty(spec: str | dict[str, object]) -> None:
    a, b = vectors(3, 0, 4)
    assert COMPARATORS.build(spec).blocks(a, b).shape == (3, 0)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_comparator_has_the_gradient_of_its_values(spec: str | dict[str, object]) -> None:
    compare = COMPARATORS.build(spec)
    a, b = vectors(3, 3, 4)
    a.requires_grad_()
    b.requires_grad_()
    assert torch.autograd.gradcheck(compare.pairs, (a, b))
    assert torch.autograd.gradcheck(compare.blocks, (a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_scores_and_gradients_are_finite_for_equal_zero_and_large_vectors(
    spec: str | dict[str, object], value: float, dtype: torch.dtype
) -> None:
    compare = COMPARATORS.build(spec)
    for score in (compare.pairs, compare.blocks):
        a = torch.full((2, 4), value, dtype=dtype, requires_grad=True)
        b = torch.full((2, 4), value, dtype=dtype, requires_grad=True)
        found = score(a, b)
        found.sum().backward()
        assert torch.isfinite(found).all()
        assert torch.isfinite(a.grad).all() and torch.isfinite(b.grad).all()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_nearer_vector_scores_higher(spec: str | dict[str, object]) -> None:
    compare = COMPARATORS.build(spec)
    query = torch.tensor([[1.0, 0.0]])
    near, far = torch.tensor([[0.9, 0.1]]), torch.tensor([[-0.9, 0.1]])
    assert compare.pairs(query, near) > compare.pairs(query, far)


def test_l2_and_its_square_rank_alike() -> None:
    a, b = vectors(5, 40, 6)
    root, square = (COMPARATORS.build(name) for name in ("l2", "squared_l2"))
    assert root.metric == square.metric
    orders = [compare.blocks(a, b).argsort(dim=1) for compare in (root, square)]
    assert torch.equal(*orders)
    torch.testing.assert_close(square.blocks(a, b), -root.blocks(a, b).square())


@settings(max_examples=150)
@given(
    spec=st.sampled_from(SPECS),
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(1, 300)),
    scales=st.tuples(st.floats(-7, 6), st.floats(-7, 6)),
    spread=st.sampled_from([0.0, 1e-7, 1e-3, 1.0]),
    seed=st.integers(0, 1000),
)
@example("l2", (3, 4, 1), (-7.0, -7.0), 1.0, 0)  # far below the floor under the root
@example("l2", (20, 40, 300), (0.0, 0.0), 0.0, 0)  # b repeats a: all but cancelled
def test_the_error_bound_holds(
    spec: str | dict[str, object],
    sizes: tuple[int, int, int],
    scales: tuple[float, float],
    spread: float,
    seed: int,
) -> None:
    compare = COMPARATORS.build(spec)
    num_a, num_b, dim = sizes
    a, b = vectors(num_a, num_b, dim, seed)
    a, b = (a * 10 ** scales[0]).float(), (b * 10 ** scales[1]).float()
    if spread < 1:  # each candidate lies near some query, where differences cancel
        b = a[torch.arange(num_b) % num_a] * (1 + spread * torch.sign(b))
    truth = compare.pairs(a.double()[:, None], b.double()[None, :])
    error = (compare.blocks(a, b).double() - truth).abs().amax(dim=1)
    assert (error <= compare.error_bound(a, b).double()).all()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_error_bound_is_small_enough_to_be_of_use(spec: str | dict[str, object]) -> None:
    compare = COMPARATORS.build(spec)
    a, b = (x.float() for x in vectors(100, 1000, 100))
    scores = compare.blocks(a, b)
    unsure = (scores - scores[:, :1]).abs() <= 2 * compare.error_bound(a, b).unsqueeze(1)
    # All but the compared candidate itself; the root of the distance has the widest bound.
    assert unsure.float().mean() < (0.2 if spec == "l2" else 0.005)
