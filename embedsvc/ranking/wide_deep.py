"""Wide & Deep (Cheng et al. 2016): a linear model that memorises and layers that generalise.

    logit[t] = sum of wide weights of all ids of the row + <wide weights, numbers>
             + <h, head[t]> + bias[t] ;  h = layers([embeddings, numbers])

Ids and their weights are slots.py's: FTRL for the wide part, a row optimizer for embeddings. The
layers are torch's, and learn by its AdaGrad, or Adam: most by a step that is written out
(layers.py), the others by autograd. All learn from one loss, of one forward pass:

    loss = sum over rows and tasks of weight * positive * log-loss / B
           positive = `positive_weight` for label 1, else 1; 0 where the label is NaN: not known

Wide-only is hidden layers of nothing (`deep=None`), deep-only no wide slots, and two towers are
layers for either side, whose <u, v> is one more logit (`Towers`).

Letters: B batch, H hidden units, M numbers, T tasks, W numbers of all embeddings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from embedsvc.outputs.sparse import ROW_OPTIMIZERS, Floats, Workspace
from embedsvc.ranking.layers import Layers, Slopes
from embedsvc.ranking.slots import Few, Ftrl, SlotTables
from partitions.errors import ConfigError, DataError
from partitions.features import Encoded, Layout

Optimizer = Literal["adagrad", "adam"]


@dataclass(frozen=True)
class Deep:
    """The deep part. dims: slot -> numbers of its embedding; towers: slots and numbers of either
    side (two towers of `hidden`, the last layer's being the vectors), or none."""

    dims: Mapping[str, int]
    dense: Sequence[str]
    hidden: Sequence[int] = (256, 128)
    dropout: float = 0.0
    optimizer: Optimizer = "adagrad"
    lr: float = 0.01
    row_optimizer: str | dict[str, Any] = "rowwise_adagrad"
    row_lr: float = 0.05
    decay: float = 0.0  # L2 of embeddings
    init_scale: float = 0.01  # of embeddings
    towers: tuple[frozenset[str], frozenset[str]] | None = None


@dataclass(frozen=True)
class Wide:
    """The wide part: its slots, and the names of its numbers."""

    slots: frozenset[str]
    dense: Sequence[str]
    ftrl: Ftrl = field(default_factory=Ftrl)


class WideDeep(nn.Module):
    """**Learns in `learn`**, by its own optimizers; called, it says logits [B, T].

    positive_weight: of each task, what a row of label 1 counts.
    """

    def __init__(
        self,
        layout: Layout,
        wide: Wide | None,
        deep: Deep | None,
        *,
        num_tasks: int = 1,
        positive_weight: Sequence[float] | None = None,
        threads: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if wide is None and deep is None:
            raise ConfigError("A ranker needs a wide part, a deep part, or both.")
        self.layout, self.num_tasks = layout, num_tasks
        self.wide, self.deep = wide or Wide(frozenset(), ()), deep or Deep({}, (), ())
        self.slots = SlotTables(
            layout.slots,
            self.deep.dims,
            self.wide.slots,
            num_tasks,
            ROW_OPTIMIZERS.build(self.deep.row_optimizer),
            self.wide.ftrl,
            init_scale=self.deep.init_scale,
            threads=threads,
            seed=seed,
        )
        self._wide_dense = _columns(layout.dense, self.wide.dense)
        self._deep_dense = _columns(layout.dense, self.deep.dense)
        # z and n of the wide weights of numbers, and of the bias, which no L1 holds at 0
        self.wide_dense = np.zeros((len(self._wide_dense), num_tasks, 2), np.float32)
        self.bias = np.zeros((1, num_tasks, 2), np.float32)
        self.positive_weight = np.ones(num_tasks, np.float32)
        if positive_weight is not None:
            self.positive_weight[:] = positive_weight
        self.body = self._make_body(seed) if deep is not None else None
        self.optimizer: torch.optim.Optimizer | None = None
        if self.body is not None:
            make = {"adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam}
            self.optimizer = make[self.deep.optimizer](self.body.parameters(), lr=self.deep.lr)
        self.fast: Layers | None = None  # None: by autograd
        covered = isinstance(self.body, Body) and self.deep.hidden and not self.deep.dropout
        if self.optimizer is not None and covered:
            sizes = [len(self.inputs), *self.deep.hidden, num_tasks]
            self.fast = Layers(sizes, self.optimizer, threads)
        self._space = Workspace()

    def _make_body(self, seed: int) -> nn.Module:
        width = self.slots.width + len(self._deep_dense)
        if not width:
            raise ConfigError("The deep part has no feature to learn from.")
        generator = torch.Generator().manual_seed(seed)
        hidden, dropout = self.deep.hidden, self.deep.dropout
        if self.deep.towers is None:
            return Body(width, hidden, dropout, self.num_tasks, generator)
        sides = tuple(self._columns_of(side) for side in self.deep.towers)
        return Towers(sides, hidden, dropout, self.num_tasks, generator)

    @property
    def inputs(self) -> list[str]:
        """The names of the body's inputs, in order."""
        found = [f"{t.slot.name}[{d}]" for t in self.slots.tables for d in range(t.dim)]
        return found + [self.layout.dense[column] for column in self._deep_dense]

    def _columns_of(self, features: frozenset[str]) -> list[int]:
        """The body's inputs that are made of these features."""
        found: list[int] = []
        for table in self.slots.tables:
            if table.slot.name in features:
                found += range(table.at, table.at + table.dim)
        dense = self.layout.dense_of(features)
        return found + [
            self.slots.width + at
            for at, column in enumerate(self._deep_dense)
            if self.layout.dense[column] in dense
        ]

    def forward(self, batch: Encoded) -> Tensor:
        """Logits, float32 [B, T]."""
        inputs, logit = self._inputs(batch)
        logits = torch.from_numpy(logit)
        if self.body is None:
            return logits
        with torch.no_grad():
            found: Tensor = self.body(inputs)
        return logits + found

    def _few(self, batch: Encoded) -> Few | None:
        """The slots whose ids the written-out step looks up once each."""
        if self.fast is None:
            return None
        return self.slots.few(batch, training=self.training, others=len(self._deep_dense))

    def _inputs(
        self, batch: Encoded, space: Workspace | None = None, few: Few | None = None
    ) -> tuple[Tensor, Floats]:
        """What the body reads, [B, W + M], and the wide part's logits, both without those of `few`.
        space: for the former."""
        width, space = self.slots.width, space or Workspace()
        width -= sum(table.dim for table in few.tables) if few is not None else 0
        inputs = space.floats("inputs", len(batch), width + len(self._deep_dense))
        _, logit = self.slots.look_up(batch, training=self.training, out=inputs, few=few)
        ftrl = self.wide.ftrl
        if len(self._wide_dense):
            numbers = batch.dense[:, self._wide_dense]
            with np.errstate(over="ignore", invalid="ignore"):  # the loss shows it
                logit += numbers @ ftrl.weights(self.wide_dense)
        logit += ftrl._replace(l1=0.0, l2=0.0).weights(self.bias)
        if len(self._deep_dense):
            inputs[:, width:] = batch.dense[:, self._deep_dense]
        return torch.from_numpy(inputs), logit

    def learn(self, batch: Encoded, label_BT: Floats, weight_B: Floats) -> float:
        """One update of all parts. Returns the mean loss before it.

        label_BT: 0, 1 or NaN: not known. Raises DataError where numbers overflow; then no slot has
        learnt from the batch.
        """
        few, (lr, decay) = self._few(batch), (self.deep.row_lr, self.deep.decay)
        inputs, logit = self._inputs(batch, self._space, few)
        gradient, found = self._learn_layers(inputs, logit, label_BT, weight_B, few)
        self.slots.learn(batch, gradient, found.logit, lr, decay, few)
        if few is not None:
            decay /= len(batch)
            self.slots.learn_few(few, found.few, found.few_logit, found.few_seen, lr, decay)
        self._learn_numbers(batch.dense[:, self._wide_dense], found.logit)
        return found.loss / max(len(batch), 1)

    def learn_layers(self, batch: Encoded, label_BT: Floats, weight_B: Floats) -> float:
        """The same, of the layers alone: all else stays as it is."""
        few = self._few(batch)
        inputs, logit = self._inputs(batch, self._space, few)
        _, found = self._learn_layers(inputs, logit, label_BT, weight_B, few)
        return found.loss / max(len(batch), 1)

    def _learn_layers(
        self, inputs: Tensor, logit: Floats, label_BT: Floats, weight_B: Floats, few: Few | None
    ) -> tuple[Floats, Slopes]:
        """(slope of the mean loss by the inputs [B, W + M], the other slopes)"""
        if self.fast is None:
            return self._learn_by_autograd(inputs, logit, label_BT, weight_B)
        gradient, positive = inputs.numpy(), self.positive_weight
        found = self.fast.slope(gradient, logit, label_BT, weight_B, positive, few)
        _check(found.loss)
        self.fast.update()
        return gradient, found

    def _learn_by_autograd(
        self, inputs: Tensor, logit: Floats, label_BT: Floats, weight_B: Floats
    ) -> tuple[Floats, Slopes]:
        """The same."""
        inputs.requires_grad_()
        with torch.enable_grad():
            deep = self.body(inputs) if self.body is not None else torch.zeros(logit.shape)
        loss, slope = _loss(
            torch.from_numpy(logit) + deep.detach(), label_BT, weight_B, self.positive_weight
        )
        _check(loss)
        num = max(len(label_BT), 1)
        if self.optimizer is not None:
            self.optimizer.zero_grad()
            deep.backward(slope / num)
            self.optimizer.step()
        gradient = np.empty((num, 0), np.float32) if inputs.grad is None else inputs.grad.numpy()
        none = np.empty(0, np.float32)
        return gradient, Slopes(loss, slope.numpy(), [], none, none)

    def _learn_numbers(self, numbers: Floats, slopes: Floats) -> None:
        if len(self._wide_dense):
            _follow(self.wide_dense, numbers.T @ slopes, self.wide.ftrl)
        _follow(self.bias, slopes.sum(0)[None], self.wide.ftrl._replace(l1=0.0, l2=0.0))


class Body(nn.Module):
    """Layers of ReLU, and a linear head a task."""

    def __init__(
        self,
        width: int,
        hidden: Sequence[int],
        dropout: float,
        num_tasks: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.layers = _layers(width, hidden, dropout, generator)
        self.heads = _linear([width, *hidden][-1], num_tasks, generator)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.heads(self.layers(inputs))
        return found


class Towers(nn.Module):
    """logit[t] = scale[t] <u, v> + bias[t]: vectors of either side, for retrieval by v."""

    def __init__(
        self,
        sides: Sequence[Sequence[int]],
        hidden: Sequence[int],
        dropout: float,
        num_tasks: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if not hidden or not all(sides):
            raise ConfigError("Two towers need hidden layers, and features on both sides.")
        # Plain attributes: they follow from the layout, and are in no checkpoint.
        self.left_columns, self.right_columns = (torch.tensor(list(side)) for side in sides)
        self.left, self.right = (self._tower(len(s), hidden, dropout, generator) for s in sides)
        self.scale = nn.Parameter(torch.ones(num_tasks))
        self.bias = nn.Parameter(torch.zeros(num_tasks))

    @staticmethod
    def _tower(
        width: int, hidden: Sequence[int], dropout: float, generator: torch.Generator
    ) -> nn.Sequential:
        last = [width, *hidden[:-1]][-1]
        layers = _layers(width, hidden[:-1], dropout, generator)
        return layers.append(_linear(last, hidden[-1], generator))

    def vectors(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H] of either side."""
        return self.left(inputs[:, self.left_columns]), self.right(inputs[:, self.right_columns])

    def forward(self, inputs: Tensor) -> Tensor:
        left, right = self.vectors(inputs)
        return (left * right).sum(1, keepdim=True) * self.scale + self.bias


def _layers(
    width: int, hidden: Sequence[int], dropout: float, generator: torch.Generator
) -> nn.Sequential:
    found = nn.Sequential()
    for size in hidden:
        found.extend([_linear(width, size, generator), nn.ReLU()])
        if dropout:
            found.append(nn.Dropout(dropout))
        width = size
    return found


def _linear(width: int, size: int, generator: torch.Generator) -> nn.Linear:
    """Weights of deviation sqrt(2 / (width + size)) (Glorot and Bengio 2010), biases of 0."""
    layer = nn.Linear(width, size)
    with torch.no_grad():
        layer.weight.normal_(0, (2 / (width + size)) ** 0.5, generator=generator)
        layer.bias.zero_()
    return layer


def _columns(names: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    return np.array([names.index(name) for name in wanted], np.int64)


def _loss(
    logits_BT: Tensor, label_BT: Floats, weight_B: Floats, positive_weight: Floats
) -> tuple[float, Tensor]:
    """The summed loss, and its slope by each logit."""
    labels, weight = torch.from_numpy(label_BT), torch.from_numpy(weight_B)[:, None]
    known = ~labels.isnan()
    labels = labels.nan_to_num(0.0)
    weight = weight * (1 + labels * (torch.from_numpy(positive_weight) - 1)) * known
    loss = functional.binary_cross_entropy_with_logits(logits_BT, labels, weight, reduction="sum")
    return float(loss), (logits_BT.sigmoid() - labels) * weight


def _check(loss: float) -> None:
    if not np.isfinite(loss):
        raise DataError(f"The loss became {loss}.")


def _follow(wide: Floats, grad: Floats, ftrl: Ftrl) -> None:
    """FTRL's update of (z, n) [..., 2] by gradients [...]: slot_kernels.learn_weight, many."""
    weight, before = ftrl.weights(wide), wide[..., 1].copy()
    wide[..., 1] += grad * grad
    wide[..., 0] += grad - (np.sqrt(wide[..., 1]) - np.sqrt(before)) / ftrl.alpha * weight
