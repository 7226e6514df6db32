"""Wide & Deep against a twin: dense tables, autograd through everything, float64."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedsvc.ranking.slots import Ftrl
from embedsvc.ranking.wide_deep import Deep, Towers, Wide, WideDeep
from partitions.errors import ConfigError, DataError
from partitions.features import Encoded, Layout, Slot

SLOTS = (Slot("user", 30, False, 0), Slot("tags", 7, True, 0), Slot("both", 40, False, 1))
LAYOUT = Layout(SLOTS, ("age", "age:missing", "taste:0"), frozenset({"both"}))
EVERY = frozenset(slot.name for slot in SLOTS)
WIDE = Wide(EVERY, LAYOUT.dense, Ftrl(0.3, 1.0, 0.05, 0.1))
DEEP = Deep({"user": 4, "tags": 4}, LAYOUT.dense, (8, 5), lr=0.1, row_lr=0.3, init_scale=0.3)


def batch_of(seed: int, rows: int = 32) -> Encoded:
    rng = np.random.default_rng(seed)
    single = np.stack([rng.integers(0, 30, rows), rng.integers(0, 40, rows)], 1).astype(np.int32)
    ends = np.concatenate([[0], np.cumsum(rng.integers(0, 4, rows))]).astype(np.int64)
    bag = rng.integers(0, 7, ends[-1]).astype(np.int32), ends
    return Encoded(single, (bag,), rng.normal(size=(rows, 3)).astype(np.float32))


def labels_of(seed: int, rows: int = 32, tasks: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed + 1000)
    labels = rng.integers(0, 2, (rows, tasks)).astype(np.float32)
    return labels, rng.random(rows).astype(np.float32) + 0.5


def weights_of(wide: np.ndarray, ftrl: Ftrl) -> Tensor:
    """A leaf of the weights that FTRL's numbers stand for."""
    return torch.from_numpy(ftrl.weights(wide.astype(np.float64))).double().requires_grad_()


class Twin:
    """One step of a model, all of it by autograd in float64; its leaves have the gradients."""

    def __init__(self, model: WideDeep, batch: Encoded) -> None:
        free = model.wide.ftrl._replace(l1=0.0, l2=0.0)
        self.wide = [weights_of(t.wide, model.wide.ftrl) for t in model.slots.tables]
        self.numbers = weights_of(model.wide_dense, model.wide.ftrl)
        self.bias = weights_of(model.bias, free)
        noisy, _ = model.slots.look_up(batch, training=True)
        self.inputs = (
            torch.cat([torch.from_numpy(noisy), torch.from_numpy(batch.dense)], 1)
            .double()
            .requires_grad_()
        )
        dense = torch.from_numpy(batch.dense).double()
        logits = self.bias + dense @ self.numbers
        for slot, weight in zip(SLOTS, self.wide, strict=True):
            if slot.bag:
                values, ends = (torch.from_numpy(x) for x in batch.bags[slot.column])
                logits = logits + functional.embedding_bag(
                    values.long(), weight, ends.long(), mode="sum", include_last_offset=True
                )
            else:
                logits = logits + weight[torch.from_numpy(batch.single[:, slot.column]).long()]
        self.body = nn.Sequential(model.body.layers, model.body.heads)
        self.params = {
            n: p.detach().double().requires_grad_() for n, p in self.body.named_parameters()
        }
        deep = torch.func.functional_call(self.body, self.params, (self.inputs,))
        self.logits = logits + deep

    def loss(self, labels: np.ndarray, weight: np.ndarray, positive: float) -> Tensor:
        y, w = torch.from_numpy(labels).double(), torch.from_numpy(weight).double()[:, None]
        known = ~y.isnan()
        y = y.nan_to_num(0)
        each = -(positive * y * functional.logsigmoid(self.logits))
        each = each - (1 - y) * functional.logsigmoid(-self.logits)
        return (each * w * known).sum()


@pytest.mark.parametrize("tasks, positive", [(1, 1.0), (2, 3.0)])
def test_a_step_is_that_of_autograd_through_dense_tables(tasks: int, positive: float) -> None:
    model = WideDeep(LAYOUT, WIDE, DEEP, num_tasks=tasks, positive_weight=[positive] * tasks)
    for step in range(3):
        batch = batch_of(step)
        labels, weight = labels_of(step, tasks=tasks)
        labels[3, -1] = np.nan
        before = [t.wide.copy() for t in model.slots.tables]
        sums = {
            n: model.optimizer.state[p]["sum"].clone() for n, p in model.body.named_parameters()
        }
        twin = Twin(model, batch)
        loss = twin.loss(labels, weight, positive)
        loss.backward()
        said = model.learn(batch, labels, weight)
        assert said == pytest.approx(loss.item() / 32, rel=1e-5)
        for table, old, leaf in zip(model.slots.tables, before, twin.wide, strict=True):
            grad = leaf.grad.numpy()
            np.testing.assert_allclose(
                table.wide[..., 1], old[..., 1] + grad**2, rtol=1e-4, atol=1e-5
            )
        names = ["layers.0.weight", "layers.2.bias", "heads.weight"]
        own = dict(model.body.named_parameters())
        for name, key in zip(names, ["0.0.weight", "0.2.bias", "1.weight"], strict=True):
            grad = twin.params[key].grad / 32
            total = sums[name].double() + grad**2
            moved = twin.params[key].detach() - 0.1 * grad / (total.sqrt() + 1e-10)
            torch.testing.assert_close(own[name].double(), moved, rtol=1e-3, atol=1e-5)


def test_the_embeddings_gradient_is_that_of_the_mean_loss() -> None:
    model = WideDeep(LAYOUT, WIDE, DEEP)
    batch, (labels, weight) = batch_of(0), labels_of(0)
    twin = Twin(model, batch)
    twin.loss(labels, weight, 1.0).backward()
    user = batch.single[:, 0]
    row = int(user[0])
    grad = twin.inputs.grad[user == row, :4].sum(0).numpy() / 32
    first = twin.inputs[0, :4].detach().numpy()
    model.learn(batch, labels, weight)
    moved = first - 0.3 * grad / np.sqrt((grad**2).mean())
    np.testing.assert_allclose(model.slots.tables[0].values[row], moved, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("wide, deep", [(WIDE, None), (None, DEEP), (WIDE, DEEP)])
def test_each_part_learns_alone_and_with_the_other(wide: Wide | None, deep: Deep | None) -> None:
    model = WideDeep(LAYOUT, wide, deep)
    batch, (labels, weight) = batch_of(0), labels_of(0)
    losses = [model.learn(batch, labels, weight) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.2


def test_two_towers_see_their_own_side_only() -> None:
    sides = frozenset({"user"}), frozenset({"tags", "taste"})
    deep = Deep(DEEP.dims, ("taste:0",), (8, 5), towers=sides)
    model = WideDeep(LAYOUT, None, deep)
    assert isinstance(model.body, Towers)
    batch, (labels, weight) = batch_of(0), labels_of(0)
    losses = [model.learn(batch, labels, weight) for _ in range(20)]
    assert losses[-1] < losses[0]
    inputs, _ = model._inputs(batch)
    left, right = model.body.vectors(inputs)
    other = inputs.clone()
    other[:, 4:] += 1  # all but the user's embedding
    assert torch.equal(model.body.vectors(other)[0], left)
    assert not torch.equal(model.body.vectors(other)[1], right)
    torch.testing.assert_close(
        model.body(inputs), (left * right).sum(1, keepdim=True) * model.body.scale + model.body.bias
    )


def test_an_empty_batch_and_unknown_labels_change_nothing() -> None:
    model = WideDeep(LAYOUT, WIDE, DEEP)
    labels, weight = labels_of(0)
    assert model.learn(batch_of(0), np.full_like(labels, np.nan), weight) == 0
    assert not model.bias[..., 1].any()
    assert len(model(batch_of(0).slice(0, 0))) == 0


def test_numbers_that_overflow_are_one_sentence() -> None:
    model = WideDeep(LAYOUT, WIDE, DEEP)
    batch, (labels, weight) = batch_of(0), labels_of(0)
    broken = Encoded(batch.single, batch.bags, np.full_like(batch.dense, np.inf))
    with pytest.raises(DataError, match="loss became"):
        model.learn(broken, labels, weight)


def test_a_model_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="wide part, a deep part"):
        WideDeep(LAYOUT, None, None)
    with pytest.raises(ConfigError, match="no feature"):
        WideDeep(LAYOUT, None, Deep({}, ()))
