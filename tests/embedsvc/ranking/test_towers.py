"""Poolings against plain loops and torch's autograd; the tower that they stand in."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from embedsvc.outputs.full import FullSoftmax
from embedsvc.ranking.examples import NextItem
from embedsvc.ranking.sequences import Sequences
from embedsvc.ranking.towers import POOLINGS, Attention, Gru, HistoryTower, Max, places_from_newest
from partitions.errors import ConfigError, DataError

ITEMS, DIM = 20, 6

EACH = pytest.mark.parametrize("pooling", list(POOLINGS))


def padded(lists: list[list[int]], left: bool = True) -> Tensor:
    width = max(map(len, lists))
    gaps = [[-1] * (width - len(one)) for one in lists]
    return torch.tensor([g + o if left else o + g for g, o in zip(gaps, lists, strict=True)])


HISTORIES = [[3, 5, 7, 5], [1], [], [9, 2], [4, 4, 4, 0]]


def tower_of(pooling: str, **settings: object) -> HistoryTower:
    """With an attention that prefers some, and a bias that can be seen."""
    tower = HistoryTower(ITEMS, DIM, pooling=pooling, max_history=6, seed=3, **settings)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tower.learnt.values():
            parameter.normal_(generator=generator)
        tower.bias.normal_(generator=generator)
    return tower


def plain(pooling: str, tower: HistoryTower, items: list[int]) -> list[float]:
    """By the docstrings, on Python floats; items: the oldest first."""
    rows = [tower.table.weight[i].tolist() for i in items]
    if pooling == "max":
        return [max(row[d] for row in rows) if rows else 0.0 for d in range(DIM)]
    if pooling == "gru":
        return plain_gru({k: p.tolist() for k, p in tower.learnt.items()}, rows)
    shares = [1.0] * len(rows)
    if pooling == "recency":
        shares = [0.8 ** (len(rows) - 1 - at) for at in range(len(rows))]
    elif pooling == "attention":
        query, place = tower.learnt["query"].tolist(), tower.learnt["place"].tolist()
        for at, row in enumerate(rows):
            inner = sum(q * x for q, x in zip(query, row, strict=True))
            score = torch.tensor(inner / DIM**0.5 + place[len(rows) - 1 - at])
            shares[at] = float(score.double().exp())
    return [
        sum(s * row[d] for s, row in zip(shares, rows, strict=True)) / (sum(shares) or 1)
        for d in range(DIM)
    ]


def plain_gru(learnt: dict[str, list[Any]], rows: list[list[float]]) -> list[float]:
    """Step by step, number by number."""

    def times(weights: list[list[float]], bias: list[float], of: list[float]) -> list[list[float]]:
        found = [
            b + sum(w * x for w, x in zip(row, of, strict=True))
            for row, b in zip(weights, bias, strict=True)
        ]
        return [found[:DIM], found[DIM : 2 * DIM], found[2 * DIM :]]

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    state = [0.0] * DIM
    for row in rows:
        by_row = times(learnt["row_weight"], learnt["row_bias"], row)
        by_state = times(learnt["state_weight"], learnt["state_bias"], state)
        for d in range(DIM):
            (r_w, z_w, n_w), (r_u, z_u, n_u) = ([part[d] for part in p] for p in (by_row, by_state))
            update = sigmoid(z_w + z_u)
            new = math.tanh(n_w + sigmoid(r_w + r_u) * n_u)
            state[d] = (1 - update) * new + update * state[d]
    return state


@EACH
def test_a_pooling_is_what_its_docstring_says(pooling: str) -> None:
    tower = tower_of(pooling)
    for left in (True, False):
        found = tower(padded(HISTORIES, left)) - tower.bias
        for row, items in zip(found, HISTORIES, strict=True):
            assert row.tolist() == pytest.approx(plain(pooling, tower, items), abs=1e-5)


@EACH
def test_more_padding_changes_nothing(pooling: str) -> None:
    tower = tower_of(pooling).eval()
    narrow = padded(HISTORIES)
    wide = torch.cat([torch.full((len(narrow), 2), -1), narrow], 1)
    assert torch.allclose(tower(narrow), tower(wide), atol=1e-6)


@EACH
def test_an_empty_history_gives_the_bias(pooling: str) -> None:
    tower = tower_of(pooling)
    before = tower.table.weight.clone()
    for history in (torch.full((2, 3), -1), torch.empty(2, 0, dtype=torch.int64)):
        found = tower(history)
        assert torch.equal(found, tower.bias.expand(2, DIM))
        found.sum().backward()
        assert all(
            bool(p.grad.isfinite().all()) for p in tower.dense_parameters() if p.grad is not None
        )
    assert torch.equal(tower.table.weight, before)
    assert tower(torch.empty(0, 3, dtype=torch.int64)).shape == (0, DIM)


@EACH
def test_rows_and_parameters_learn_as_by_autograd(pooling: str) -> None:
    tower = tower_of(pooling, optimizer="sgd", lr=0.5, hidden=4)
    assert tower.layers is not None
    with torch.no_grad():
        tower.layers[2].weight.normal_(generator=torch.Generator().manual_seed(2))
    history = padded(HISTORIES)
    weight = tower.table.weight.clone().requires_grad_()
    rows = functional.embedding(history.clamp(min=0), weight) * (history >= 0)[:, :, None]
    if pooling in ("mean", "recency"):
        decay = 1.0 if pooling == "mean" else 0.8
        share = decay ** places_from_newest(history) * (history >= 0)
        pooled = (rows * (share / share.sum(1, keepdim=True).clamp(min=1))[:, :, None]).sum(1)
    else:
        names = ("query", "place", "row_weight", "state_weight", "row_bias", "state_bias")
        learnt = [tower.learnt[name] for name in names if name in tower.learnt]
        pooled = tower.pooling.of(rows, history, *learnt)  # type: ignore[attr-defined]
    twin = pooled + tower.bias + tower.layers(pooled)
    slope = torch.randn(twin.shape, generator=torch.Generator().manual_seed(5))
    wanted = torch.autograd.grad(twin, [weight, *tower.dense_parameters()], slope)
    found = tower(history)
    assert torch.allclose(found, twin, atol=1e-6)
    found.backward(slope)
    assert torch.allclose(tower.table.weight, weight - 0.5 * wanted[0], atol=1e-5)
    for parameter, grad in zip(tower.dense_parameters(), wanted[1:], strict=True):
        assert parameter.grad is not None and torch.allclose(parameter.grad, grad, atol=1e-5)


def test_gradients_of_poolings_in_torch() -> None:
    history = padded(HISTORIES)
    generator = torch.Generator().manual_seed(8)

    def doubles(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)

    rows = doubles(*history.shape, 3)
    assert torch.autograd.gradcheck(lambda r: Max().of(r, history), (rows,))
    arguments = (rows, doubles(3), doubles(4))
    assert torch.autograd.gradcheck(lambda r, q, p: Attention().of(r, history, q, p), arguments)
    gates = (rows, doubles(9, 3), doubles(9, 3), doubles(9), doubles(9))
    assert torch.autograd.gradcheck(lambda r, *g: Gru().of(r, history, *g), gates)


def test_gru_forgets_no_order_and_seeds_give_its_weights() -> None:
    """Gaps between items count nothing; their order does."""
    tower = HistoryTower(ITEMS, DIM, pooling="gru", seed=3).eval()
    found = tower(torch.tensor([[-1, 3, -1, 5, 7], [3, 5, 7, -1, -1], [5, 3, 7, -1, -1]]))
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert not torch.allclose(found[1], found[2], atol=1e-3)
    weights = [HistoryTower(ITEMS, DIM, pooling="gru", seed=s).learnt for s in (3, 3, 4)]
    assert torch.equal(weights[0]["row_weight"], weights[1]["row_weight"])
    assert not torch.equal(weights[0]["row_weight"], weights[2]["row_weight"])


def test_attention_begins_as_the_mean_and_layers_as_nothing() -> None:
    history = padded(HISTORIES)
    mean = HistoryTower(ITEMS, DIM, seed=3)(history)
    for settings in (
        {"pooling": "attention"},
        {"hidden": 8},
        {"pooling": {"name": "recency", "decay": 1.0}},
    ):
        assert torch.allclose(
            HistoryTower(ITEMS, DIM, seed=3, **settings)(history), mean, atol=1e-6
        )  # type: ignore[arg-type]


@EACH
def test_one_seed_and_one_thread_give_the_same_bits(pooling: str) -> None:
    found = []
    for _ in range(2):
        tower = HistoryTower(ITEMS, DIM, pooling=pooling, hidden=5, threads=1, seed=9)
        softmax = FullSoftmax(DIM, ITEMS, threads=1, seed=9)
        found.append((learn(tower, softmax, 2), tower.table.weight, softmax.weight))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1]) and torch.equal(found[0][2], found[1][2])


@EACH
def test_a_chain_of_items_is_learnt(pooling: str) -> None:
    """Item i + 1 comes after i. A mean of two items tells their order's end too."""
    tower = HistoryTower(ITEMS, 16, pooling=pooling, max_history=2, lr=0.3, seed=1)
    softmax = FullSoftmax(16, ITEMS, lr=0.3, seed=1)
    learn(tower, softmax, 60)
    tower.eval(), softmax.eval()
    history = torch.stack([torch.arange(ITEMS - 2), torch.arange(1, ITEMS - 1)], 1)
    right = softmax.predict(tower(history).detach()) == torch.arange(2, ITEMS)
    assert right.float().mean() > 0.9


def learn(tower: HistoryTower, softmax: FullSoftmax, epochs: int) -> float:
    """The last loss, on chains of items, each one after the one before."""
    items = torch.arange(ITEMS).repeat(20).numpy()
    sequences = Sequences(torch.arange(0, 20 * ITEMS + 1, ITEMS).numpy(), items)
    optimizer = torch.optim.Adagrad(tower.dense_parameters(), lr=0.05)
    loss = torch.zeros(())
    for epoch in range(epochs):
        for history, target in NextItem(2).batches(sequences, 64, 0, epoch):
            _, loss = softmax(tower(history), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return float(loss.detach())


def test_the_table_is_not_for_torchs_optimizers() -> None:
    tower = HistoryTower(ITEMS, DIM, pooling="attention", hidden=3)
    dense = {id(parameter) for parameter in tower.dense_parameters()}
    names = {name for name, parameter in tower.named_parameters() if id(parameter) in dense}
    assert names == {
        *("learnt.query", "learnt.place", "bias"),
        *("layers.0.weight", "layers.0.bias", "layers.2.weight"),
    }


def test_bad_input() -> None:
    with pytest.raises(DataError, match=r"\[batch, at most 50 items\], found \[1, 51\]"):
        HistoryTower(ITEMS, DIM)(torch.zeros(1, 51, dtype=torch.int64))
    with pytest.raises(DataError, match="There is no row 20"):
        HistoryTower(ITEMS, DIM)(torch.tensor([[20]]))
    with pytest.raises(ConfigError, match="no pooling named maen"):
        HistoryTower(ITEMS, DIM, pooling="maen")
    for settings in ({"max_history": 0}, {"hidden": -1}):
        with pytest.raises(ConfigError, match="must be at least 1 and 0"):
            HistoryTower(ITEMS, DIM, **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be above 0, at most 1"):
        HistoryTower(ITEMS, DIM, pooling={"name": "recency", "decay": 0.0})
