"""Towers: what somebody did, as one vector, to be multiplied with those of what they may do next.

    tower = HistoryTower(num_items, 64, pooling="mean")
    output, loss = softmax(tower(history_BL), next_item_B)

Adding a pooling is one class here. Contract tests parametrise over the registry.

Letters: B batch, D dimension, L places of a history.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from embedsvc.ranking.row_embedding import RowEmbedding
from partitions.errors import ConfigError, DataError
from partitions.registry import Registry

if TYPE_CHECKING:
    from embedsvc.ranking.onnx_graph import OnnxGraph


class Pooling(Protocol):
    """Vectors of histories. The constructor's arguments are the config keys."""

    def prepare(self, dim: int, max_history: int, seed: int) -> nn.ParameterDict:
        """What it learns besides the table; called once, and may be empty."""

    def __call__(self, table: RowEmbedding, history_BL: Tensor, learnt: nn.ParameterDict) -> Tensor:
        """[B, D]; 0 for a history of nothing but padding."""

    def export(self, graph: "OnnxGraph", rows: str, there: str, learnt: nn.ParameterDict) -> str:
        """The same in ONNX, L at least 1. there: float32 [B, L], 1 where an item is; rows: float32
        [B, L, D], 0 where none is."""


POOLINGS: Registry[Pooling] = Registry("pooling")

_INT32, _INT64 = 6, 7  # as ONNX numbers types


def places_from_newest(history_BL: Tensor) -> Tensor:
    """int64 [B, L]: how many items came after that of each place; padding is no item."""
    there = (history_BL >= 0).long()
    return there.flip(1).cumsum(1).flip(1) - there


def _after(graph: "OnnxGraph", there: str) -> str:
    """float32 [B, L]: `places_from_newest` in ONNX."""
    return graph.node("CumSum", there, graph.constant(1, np.int64), exclusive=1, reverse=1)


def _weighted(graph: "OnnxGraph", rows: str, weight: str) -> str:
    """sum over l of weight[b, l] row[b, l] in ONNX."""
    weight = graph.node("Unsqueeze", weight, graph.constant([2], np.int64))
    return graph.sum(graph.node("Mul", weight, rows), 1)


def _at_least_1(graph: "OnnxGraph", weight: str) -> str:
    """[B, 1]: the sum of weights in ONNX; with nothing there any number will do."""
    return graph.node("Max", graph.sum(weight, 1, keep=True), graph.constant(1.0))


@POOLINGS.add("mean")
@dataclass(frozen=True)
class Mean:
    """The mean of the rows: a bag of items, whatever their order."""

    def prepare(self, dim: int, max_history: int, seed: int) -> nn.ParameterDict:
        return nn.ParameterDict()

    def __call__(self, table: RowEmbedding, history_BL: Tensor, learnt: nn.ParameterDict) -> Tensor:
        return table.pooled(history_BL)

    def export(self, graph: "OnnxGraph", rows: str, there: str, learnt: nn.ParameterDict) -> str:
        return graph.node("Div", graph.sum(rows, 1), _at_least_1(graph, there))


@POOLINGS.add("recency")
@dataclass(frozen=True)
class Recency:
    """Weights fall geometrically: row i from the newest weighs decay^i / sum of all of them."""

    decay: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ConfigError(f"recency's decay is {self.decay}; it must be above 0, at most 1.")

    def prepare(self, dim: int, max_history: int, seed: int) -> nn.ParameterDict:
        return nn.ParameterDict()

    def __call__(self, table: RowEmbedding, history_BL: Tensor, learnt: nn.ParameterDict) -> Tensor:
        weight_BL = self.decay ** places_from_newest(history_BL).double() * (history_BL >= 0)
        # The newest weighs 1, so only where there is none the sum is less.
        return table.pooled(history_BL, weight_BL / weight_BL.sum(1, keepdim=True).clamp(min=1))

    def export(self, graph: "OnnxGraph", rows: str, there: str, learnt: nn.ParameterDict) -> str:
        weight = graph.node("Pow", graph.constant(self.decay), _after(graph, there))
        weight = graph.node("Mul", weight, there)
        share = graph.node("Div", weight, _at_least_1(graph, weight))
        return _weighted(graph, rows, share)


@POOLINGS.add("max")
@dataclass(frozen=True)
class Max:
    """The largest of the rows, number by number; of equal ones torch's choice learns."""

    def prepare(self, dim: int, max_history: int, seed: int) -> nn.ParameterDict:
        return nn.ParameterDict()

    def __call__(self, table: RowEmbedding, history_BL: Tensor, learnt: nn.ParameterDict) -> Tensor:
        return self.of(table(history_BL), history_BL)

    def of(self, rows_BLD: Tensor, history_BL: Tensor) -> Tensor:
        there = (history_BL >= 0)[:, :, None]
        if not history_BL.shape[1]:
            return rows_BLD.sum(1)
        found = rows_BLD.masked_fill(~there, -torch.inf).amax(1)
        return found.masked_fill(~there.any(1), 0)

    def export(self, graph: "OnnxGraph", rows: str, there: str, learnt: nn.ParameterDict) -> str:
        each = graph.node("Unsqueeze", there, graph.constant([2], np.int64))
        each = graph.node("Greater", each, graph.constant(0.0))
        kept = graph.node("Where", each, rows, graph.constant(-np.inf))
        found = graph.node("ReduceMax", kept, axes=[1], keepdims=0)
        some = graph.node("Greater", graph.sum(there, 1, keep=True), graph.constant(0.0))
        return graph.node("Where", some, found, graph.constant(0.0))


@POOLINGS.add("attention")
@dataclass(frozen=True)
class Attention:
    """One learnt query, and a learnt number for each place from the newest on:

    out = sum over l of a[l] row[l] ;  a = softmax over l of <query, row[l]> / sqrt(D) + place[l]

    Both are 0 at first: it begins as the mean.
    """

    def prepare(self, dim: int, max_history: int, seed: int) -> nn.ParameterDict:
        return nn.ParameterDict(
            {
                "query": nn.Parameter(torch.zeros(dim)),
                "place": nn.Parameter(torch.zeros(max_history)),
            }
        )

    def __call__(self, table: RowEmbedding, history_BL: Tensor, learnt: nn.ParameterDict) -> Tensor:
        return self.of(table(history_BL), history_BL, learnt["query"], learnt["place"])

    def of(self, rows_BLD: Tensor, history_BL: Tensor, query_D: Tensor, place: Tensor) -> Tensor:
        there = history_BL >= 0
        score_BL = rows_BLD @ query_D * len(query_D) ** -0.5
        score_BL = score_BL + place[places_from_newest(history_BL)]
        # Finite, so that a history of nothing has no NaN; its weights are 0 after all.
        share_BL = score_BL.masked_fill(~there, -1e30).softmax(1) * there
        return (share_BL[:, :, None] * rows_BLD).sum(1)

    def export(self, graph: "OnnxGraph", rows: str, there: str, learnt: nn.ParameterDict) -> str:
        query, place = (learnt[name].detach().numpy() for name in ("query", "place"))
        scaled = graph.constant(query[:, None] * len(query) ** -0.5)
        score = graph.node("MatMul", rows, scaled)
        score = graph.node("Squeeze", score, graph.constant([2], np.int64))
        after = graph.node("Cast", _after(graph, there), to=_INT64)
        score = graph.node("Add", score, graph.node("Gather", graph.constant(place), after))
        none = graph.node("Less", there, graph.constant(0.5))
        score = graph.node("Where", none, graph.constant(-1e30), score)
        share = graph.node("Mul", graph.node("Softmax", score, axis=1), there)
        return _weighted(graph, rows, share)


@POOLINGS.add("gru")
@dataclass(frozen=True)
class Gru:
    """The last state of a gated recurrent unit (Cho et al. 2014), which reads the oldest row first.

    r = sigmoid(Wr row + br + Ur h + cr) ;  z = sigmoid(Wz row + bz + Uz h + cz)
    n = tanh(Wn row + bn + r * (Un h + cn)) ;  h = (1 - z) * n + z * h, from h = 0 on

    As in torch.nn.GRU: [Wr, Wz, Wn] is row_weight [3D, D], [Ur, Uz, Un] state_weight [3D, D], their
    biases [3D]. All are uniform within 1 / sqrt(D) at first, by the seed.
    """

    def prepare(self, dim: int, max_history: int, seed: int) -> nn.ParameterDict:
        # Not the table's draws, which are of the same seed.
        generator = torch.Generator().manual_seed((seed + 1) % (1 << 63))

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-1, 1, generator=generator) / dim**0.5)

        return nn.ParameterDict(
            {
                "row_weight": drawn(3 * dim, dim),
                "state_weight": drawn(3 * dim, dim),
                "row_bias": drawn(3 * dim),
                "state_bias": drawn(3 * dim),
            }
        )

    def __call__(self, table: RowEmbedding, history_BL: Tensor, learnt: nn.ParameterDict) -> Tensor:
        names = ("row_weight", "state_weight", "row_bias", "state_bias")
        return self.of(table(history_BL), history_BL, *(learnt[name] for name in names))

    def of(self, rows_BLD: Tensor, history_BL: Tensor, *learnt: Tensor) -> Tensor:
        there = history_BL >= 0
        num_B = there.sum(1)
        some = num_B.nonzero()[:, 0]
        if not len(some):
            return rows_BLD.sum(1)  # of padding, so 0
        first = (~there[some]).long().argsort(dim=1, stable=True)  # padding goes to the right
        rows = rows_BLD[some].gather(1, first[:, :, None].expand(-1, -1, rows_BLD.shape[2]))
        packed = pack_padded_sequence(rows, num_B[some], batch_first=True, enforce_sorted=False)
        start = rows.new_zeros(1, len(some), rows.shape[2])
        # With biases, one layer, no dropout, training or not, in one direction.
        shape = (True, 1, 0.0, False, False)
        _, last = torch.gru(packed.data, packed.batch_sizes, start, learnt, *shape)
        pooled_BD = rows.new_zeros(len(num_B), rows.shape[2])
        return pooled_BD.index_copy(0, some, last[0][packed.unsorted_indices])

    def export(self, graph: "OnnxGraph", rows: str, there: str, learnt: nn.ParameterDict) -> str:
        # The oldest first and padding after them, by how many came after; ONNX reads [L, B, D].
        none = graph.node("Less", there, graph.constant(0.5))
        key = graph.node("Where", none, graph.constant(-1.0), _after(graph, there))
        length = graph.node("Shape", there, start=1, end=2)
        first = graph.node("TopK", key, length, axis=1, output=1)
        first = graph.node("Unsqueeze", first, graph.constant([2], np.int64))
        first = graph.node("Expand", first, graph.node("Shape", rows))
        steps = graph.node("GatherElements", rows, first, axis=1)
        steps = graph.node("Transpose", steps, perm=[1, 0, 2])
        # With a row more, of one step: onnxruntime 1.31 crashes where it has no step to take.
        one_row = graph.constant([0, 0, 0, 0, 1, 0], np.int64)
        steps = graph.node("Pad", steps, one_row)
        sizes = graph.sum(there, 1)
        sizes = graph.node("Pad", sizes, graph.constant([0, 1], np.int64), graph.constant(1.0))
        sizes = graph.node("Cast", sizes, to=_INT32)
        weights = [graph.constant(part[None]) for part in self._in_onnx(learnt)]
        dim = learnt["state_weight"].shape[1]
        settings = {"hidden_size": dim, "linear_before_reset": 1, "output": 1}
        last = graph.node("GRU", steps, *weights, sizes, **settings)
        last = graph.node("Squeeze", last, graph.constant([0], np.int64))
        rows_asked = [graph.constant([at], np.int64) for at in (0, -1, 0)]
        last = graph.node("Slice", last, *rows_asked)
        some = graph.node("Greater", graph.sum(there, 1, keep=True), graph.constant(0.0))
        return graph.node("Where", some, last, graph.constant(0.0))

    def _in_onnx(self, learnt: nn.ParameterDict) -> list[NDArray[np.float32]]:
        """Weights of rows, of the state, and both biases; the gates in the order z, r, n."""

        def ordered(name: str) -> NDArray[np.float32]:
            r, z, n = np.split(learnt[name].detach().numpy(), 3)
            return np.concatenate([z, r, n])

        biases = np.concatenate([ordered("row_bias"), ordered("state_bias")])
        return [ordered("row_weight"), ordered("state_weight"), biases]


class HistoryTower(nn.Module):
    """A vector of a history of items, from a table that learns in backward (RowEmbedding).

    x = p + bias                                  hidden = 0
    x = p + bias + W2 relu(W1 p + b1)             hidden > 0: that many units
    p = pooling of the items' rows; 0 for an empty history, or one of nothing but padding
        + sum of the rows of features of who asks, where there are some

    Rows of features, W2 and bias are 0 at first. W2, bias, W1, b1 and what a pooling learns are
    ordinary parameters, for an optimizer of torch: torch.optim.Adagrad(tower.dense_parameters()).
    """

    def __init__(
        self,
        num_items: int,
        dim: int,
        *,
        pooling: str | dict[str, Any] = "mean",
        max_history: int = 50,
        hidden: int = 0,
        feature_rows: int = 0,
        optimizer: str | dict[str, Any] = "rowwise_adagrad",
        lr: float = 0.1,
        init_scale: float | None = None,
        threads: int | None = None,
        seed: int = 0,
    ) -> None:
        """feature_rows: values of features, of all of them together."""
        super().__init__()
        if max_history < 1 or hidden < 0:
            raise ConfigError(
                f"max_history is {max_history} and hidden {hidden}; they must be at least 1 and 0."
            )
        self.table = RowEmbedding(
            num_items,
            dim,
            optimizer=optimizer,
            lr=lr,
            init_scale=init_scale,
            threads=threads,
            seed=seed,
        )
        self.features: RowEmbedding | None = None
        if feature_rows:
            self.features = RowEmbedding(
                feature_rows, dim, optimizer=optimizer, lr=lr, init_scale=0, threads=threads
            )
        self.max_history = max_history
        self.pooling = POOLINGS.build(pooling)
        self.learnt = self.pooling.prepare(dim, max_history, seed)
        self.bias = nn.Parameter(torch.zeros(dim))
        self.layers = _layers(dim, hidden, seed) if hidden else None

    def dense_parameters(self) -> list[nn.Parameter]:
        """All but the table: torch's Adagrad makes a state of every parameter that it is given."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(self, history_BL: Tensor, feature_BF: Tensor | None = None) -> Tensor:
        """feature_BF: int64 [B, F], rows of features, -1 where one is not known; None: of nobody.
        history_BL: int64 [B, L], L at most max_history: items, the newest last, and -1 for
        padding, on either side: the order of what is left counts. Returns float32 [B, D]."""
        if history_BL.dim() != 2 or history_BL.shape[1] > self.max_history:
            raise DataError(
                f"Histories must be [batch, at most {self.max_history} items], found "
                f"{list(history_BL.shape)}."
            )
        pooled_BD = self.pooling(self.table, history_BL, self.learnt)
        if self.features is not None and feature_BF is not None:
            ones_BF = torch.ones(feature_BF.shape)
            pooled_BD = pooled_BD + self.features.pooled(feature_BF, ones_BF)
        hidden_BD = pooled_BD + self.bias
        return hidden_BD if self.layers is None else hidden_BD + self.layers(pooled_BD)


def _layers(dim: int, hidden: int, seed: int) -> nn.Sequential:
    first, second = nn.Linear(dim, hidden), nn.Linear(hidden, dim, bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        first.weight.uniform_(-(dim**-0.5), dim**-0.5, generator=generator)
        first.bias.zero_()
        second.weight.zero_()
    return nn.Sequential(first, nn.ReLU(), second)
