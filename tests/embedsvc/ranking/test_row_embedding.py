"""A table whose rows learn in backward, against torch's dense gradients and plain loops."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from embedsvc.outputs.sparse import ROW_OPTIMIZERS
from embedsvc.ranking.row_embedding import RowEmbedding, grouped
from partitions.errors import ConfigError, DataError

ROWS, DIM = 40, 5


def histories(seed: int, batch: int = 12, places: int = 7) -> Tensor:
    """A third of the places are padding, and one history is nothing else; rows 30 .. are unused."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 30, (batch, places))
    ids[rng.random(ids.shape) < 1 / 3] = -1
    ids[3] = -1
    ids[5] = 8  # seven times the same
    return torch.from_numpy(ids)


def dense(table: RowEmbedding, ids_BL: Tensor, share_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The table in float64, and the weighted sums of its rows."""
    weight = table.weight.double().clone().requires_grad_()
    there = ids_BL >= 0
    rows_BLD = functional.embedding(ids_BL.clamp(min=0), weight)
    return weight, (rows_BLD * (share_BL * there)[:, :, None]).sum(1)


def mean_shares(ids_BL: Tensor) -> Tensor:
    there = (ids_BL >= 0).double()
    return there / there.sum(1, keepdim=True).clamp(min=1)


def updated(optimizer: str, row: list[float], steps: list[list[float]], lr: float) -> list[float]:
    """What the docstrings of ROW_OPTIMIZERS say, of one row whose gradients are not 0."""
    total = second = 0.0
    for t, grad in enumerate(steps, 1):
        mean = sum(g * g for g in grad) / len(grad)
        step = lr
        if optimizer == "rowwise_adagrad":
            total += mean
            step = lr / (math.sqrt(total) + 1e-10)
        elif optimizer == "adam_lite":
            second = 0.999 * second + 0.001 * mean
            step = lr / (math.sqrt(second / (1 - 0.999**t)) + 1e-8)
        row = [x - step * g for x, g in zip(row, grad, strict=True)]
    return row


@pytest.mark.parametrize("optimizer", list(ROW_OPTIMIZERS))
def test_rows_learn_as_by_their_summed_gradients(optimizer: str) -> None:
    table = RowEmbedding(ROWS, DIM, optimizer=optimizer, lr=0.3, seed=4)
    before = table.weight.clone()
    grads = []
    for seed in (1, 2):
        ids = histories(seed)
        slope = torch.randn(len(ids), DIM, generator=torch.Generator().manual_seed(seed))
        weight, wanted = dense(table, ids, mean_shares(ids))
        found = table.pooled(ids)
        assert torch.allclose(found.double(), wanted, atol=1e-6)
        assert found[3].tolist() == [0] * DIM
        found.backward(slope)
        wanted.backward(slope.double())
        assert weight.grad is not None
        grads.append(weight.grad)
    for row in range(ROWS):
        steps = [grad[row].tolist() for grad in grads if grad[row].any()]
        wanted_row = updated(optimizer, before[row].tolist(), steps, 0.3)
        assert table.weight[row].tolist() == pytest.approx(wanted_row, rel=1e-4, abs=1e-5)
    assert torch.equal(table.weight[30:], before[30:])
    assert not table.optimizer_state[30:].any()


def test_weights_of_places_weigh_values_and_gradients() -> None:
    table = RowEmbedding(ROWS, DIM, optimizer="sgd", lr=0.5)
    ids = histories(3)
    share = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1))
    weight, wanted = dense(table, ids, share.double())
    found = table.pooled(ids, share)
    assert torch.allclose(found.double(), wanted, atol=1e-6)
    (found**2).sum().backward()
    (wanted**2).sum().backward()
    assert weight.grad is not None
    assert torch.allclose(table.weight.double(), weight.detach() - 0.5 * weight.grad, atol=1e-5)


def test_rows_one_by_one_learn_too() -> None:
    table = RowEmbedding(ROWS, DIM, optimizer="sgd", lr=0.5)
    before = table.weight.clone()
    ids = torch.tensor([[[4, -1], [4, 9]]])
    found = table(ids)
    assert found.shape == (1, 2, 2, DIM)
    assert torch.equal(found[0, 0, 0], before[4]) and torch.equal(found[0, 1, 1], before[9])
    assert not found[0, 0, 1].any()
    slope = torch.arange(4.0 * DIM).reshape(found.shape)
    found.backward(slope)
    assert torch.allclose(table.weight[4], before[4] - 0.5 * (slope[0, 0, 0] + slope[0, 1, 0]))
    assert torch.allclose(table.weight[9], before[9] - 0.5 * slope[0, 1, 1])
    changed = (table.weight != before).any(1).nonzero()[:, 0].tolist()
    assert changed == [4, 9]


def test_one_and_three_threads_agree_to_the_last_bit() -> None:
    rng = np.random.default_rng(2)
    found = []
    batches = [
        (rng.integers(-1, 900, (256, 20)), rng.normal(size=(256, 16)).astype(np.float32))
        for _ in range(3)
    ]
    for threads in (1, 3, 1):
        table = RowEmbedding(1000, 16, threads=threads, seed=1)
        for ids, slope in batches:
            table.pooled(torch.from_numpy(ids)).backward(torch.from_numpy(slope))
        found.append(table.weight.clone())
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@settings(max_examples=50)
@given(st.lists(st.integers(-1, 6), max_size=40))
def test_places_of_equal_ids_are_listed_together(ids: list[int]) -> None:
    distinct, starts, places = grouped(np.array(ids, np.int64))
    assert distinct.tolist() == [i for i in dict.fromkeys(ids) if i >= 0]
    for u, one in enumerate(distinct):
        wanted = [at for at, other in enumerate(ids) if other == one]
        assert places[starts[u] : starts[u + 1]].tolist() == wanted


def test_a_step_touches_the_pages_of_its_rows_alone() -> None:
    """1.3 GB of rows that nobody filled; a page may be 2 MB."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("counts pages as Linux does")

    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    before = resident_mb()
    table = RowEmbedding(20_000_000, 16, init_scale=0)
    table.pooled(torch.tensor([[5, 19_999_999], [7, 10_000_000]])).sum().backward()
    assert resident_mb() - before < 100
    assert table.weight[10_000_000].any() and not table.weight[10_000_001].any()


def test_rows_learn_in_a_mapped_file(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    rows = np.arange(ROWS * DIM, dtype=np.float32).reshape(ROWS, DIM)
    path.write_bytes(rows.tobytes())
    table = RowEmbedding(ROWS, DIM, optimizer="sgd", lr=1.0, init_scale=0)
    mapped = torch.from_file(str(path), shared=True, size=rows.size)
    table.weight.data = mapped.reshape(ROWS, DIM)
    table.pooled(torch.tensor([[2, 2, 3]])).sum().backward()
    found = np.frombuffer(path.read_bytes(), np.float32).reshape(ROWS, DIM)
    rows[2] -= 2 / 3
    rows[3] -= 1 / 3
    assert np.allclose(found, rows)


def test_nothing_learns_where_it_should_not() -> None:
    table = RowEmbedding(ROWS, DIM)
    before = table.weight.clone()
    with torch.no_grad():
        assert not table(torch.tensor([1])).requires_grad
    table.eval()
    factor = torch.ones(DIM, requires_grad=True)
    (table.pooled(torch.tensor([[1, 2]])) * factor).sum().backward()
    assert torch.equal(table.weight, before) and factor.grad is not None


def test_a_second_backward_is_refused() -> None:
    table = RowEmbedding(ROWS, DIM)
    total = table(torch.tensor([1])).sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="earlier backward"):
        total.backward()


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    table = RowEmbedding(ROWS, DIM)
    before = table.weight.clone()
    with pytest.raises(DataError, match="no row was updated"):
        (
            table.pooled(torch.tensor([[1], [2]])) * torch.tensor([[1.0], [math.nan]])
        ).sum().backward()
    assert torch.equal(table.weight, before)


def test_a_batch_of_none_and_of_padding() -> None:
    table = RowEmbedding(ROWS, DIM)
    before = table.weight.clone()
    for shape in [(0, 3), (3, 0), (2, 3)]:
        found = table.pooled(torch.full(shape, -1))
        assert found.shape == (shape[0], DIM) and not found.any()
        found.sum().backward()
    assert torch.equal(table.weight, before)


def test_state_is_restored() -> None:
    one, two = RowEmbedding(ROWS, DIM, seed=1), RowEmbedding(ROWS, DIM, seed=2)
    one.pooled(histories(1)).sum().backward()
    assert not torch.equal(one.weight, two.weight)
    two.load_state_dict(one.state_dict())
    for table in (one, two):
        table.pooled(histories(2)).sum().backward()
    assert torch.equal(one.weight, two.weight)


def test_bad_input() -> None:
    table = RowEmbedding(ROWS, DIM)
    for ids in (40, -2):
        with pytest.raises(DataError, match=f"There is no row {ids}: ids are 0 to 39, and -1"):
            table.pooled(torch.tensor([[0, ids]]))
    with pytest.raises(DataError, match="int64"):
        table(torch.tensor([1], dtype=torch.int32))
    with pytest.raises(DataError, match=r"\[batch, places\], found \[1\]"):
        table.pooled(torch.tensor([1]))
    for arguments in ({"num_rows": 0, "dim": 3}, {"num_rows": 3, "dim": 0}):
        with pytest.raises(ConfigError, match="at least one row"):
            RowEmbedding(**arguments)
    with pytest.raises(ConfigError, match="init_scale is -1"):
        RowEmbedding(3, 3, init_scale=-1)
    with pytest.raises(ConfigError, match="no row optimizer named"):
        RowEmbedding(3, 3, optimizer="lion")


@pytest.mark.parametrize("pooled", [True, False])
def test_what_was_looked_up_learns_though_the_ids_are_filled_anew(pooled: bool) -> None:
    """As where a loader uses one buffer for all batches; what it holds then is checked later."""
    table, ids = RowEmbedding(ROWS, DIM, lr=1.0, seed=1), torch.tensor([[3, 4]])
    before = table.weight.detach().clone()
    found = table.pooled(ids) if pooled else table(ids)
    ids[:] = torch.tensor([[7, ROWS + 1]])
    found.sum().backward()
    changed = (table.weight != before).any(1).nonzero().flatten()
    assert changed.tolist() == [3, 4]
