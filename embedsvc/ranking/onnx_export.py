"""A trained ranker as one ONNX graph: encoded rows in, probabilities out.

    inputs   single  int32 [n, S]     ids of the slots with one a row, as Encoded.single has them
             bag0..  int32 [n, L]     ids of a bag, each row filled up with -1; L at least 1
             dense   float32 [n, M]
    outputs  logit, probability  float32 [n, T]

Only inputs that the layout has are there. Every weight of the wide part is one number, made of
FTRL's two, so that what L1 holds at 0 is 0 there. What training counted ones for is taken off the
logit, and the calibration is part of the graph.

Tables of one width are laid end to end and read by one Gather, an id going by its slot's first row:
200 rows take so little time that a node's own cost counts. A bag's table ends in a row of zeros,
which is what -1 finds.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn

from embedsvc.ranking.calibration import Calibration
from embedsvc.ranking.onnx_graph import MAX_BYTES, OnnxGraph, Told
from embedsvc.ranking.slots import SlotTable
from embedsvc.ranking.wide_deep import Body, Towers, WideDeep
from partitions.errors import ConfigError, DataError
from partitions.ranker_files import BAG, DENSE, LOGIT, PROBABILITY, SINGLE


def export(model: WideDeep, calibration: Sequence[Calibration]) -> onnx.ModelProto:
    """Raises ConfigError for a model that looks at nothing, DataError for one above 2 GB."""
    num_bytes = sum(4 * len(t.values) * (t.dim + t.wide.shape[1]) for t in model.slots.tables)
    if num_bytes > MAX_BYTES:
        raise DataError(
            f"The ranker's tables take {num_bytes:,} bytes; an ONNX file holds {MAX_BYTES:,}. Give "
            "its features fewer buckets, a higher min_count or a smaller dim, and train again."
        )
    graph = _Graph()
    logit = _Exporter(graph, model).logit()
    graph.node("Identity", logit, named=LOGIT)
    graph.node("Identity", _calibrated(graph, logit, calibration), named=PROBABILITY)
    return graph.finish(model)


class _Graph(OnnxGraph):
    def finish(self, model: WideDeep) -> onnx.ModelProto:
        whole, real, layout = TensorProto.INT32, TensorProto.FLOAT, model.layout
        inputs: list[Told] = []
        if layout.num_single:
            inputs.append((SINGLE, whole, ("n", layout.num_single)))
        inputs += [(f"{BAG}{at}", whole, ("n", f"l{at}")) for at in range(layout.num_bags)]
        if layout.dense:
            inputs.append((DENSE, real, ("n", len(layout.dense))))
        outputs = [(name, real, ("n", model.num_tasks)) for name in (LOGIT, PROBABILITY)]
        return self.made("ranker", inputs, outputs)


class _Exporter:
    def __init__(self, graph: _Graph, model: WideDeep) -> None:
        self.graph, self.model, self.layout = graph, model, model.layout
        self._terms: list[str] = []  # of the logit
        self._parts: list[str] = []  # of the body's inputs
        self._order: list[int] = []  # of the body's inputs, as the parts have them

    def logit(self) -> str:
        """[n, T]: of the log-odds that labels have, not of those that training had."""
        graph, model = self.graph, self.model
        self._singles()
        for table in model.slots.tables:
            if table.slot.bag and (table.dim or table.wide.shape[1]):
                self._bag(table)
        self._numbers()
        bias = model.wide.ftrl._replace(l1=0.0, l2=0.0).weights(model.bias)[0].astype(np.float64)
        bias -= np.log(model.positive_weight.astype(np.float64))
        if model.body is not None:
            inputs = graph.node("Concat", *self._parts, axis=1)
            self._terms.append(self._body(model.body, inputs, bias))
        elif self._terms:
            self._terms.append(graph.constant(bias))
        else:
            raise ConfigError("The ranker looks at no feature: there is nothing to export.")
        return graph.node("Sum", *self._terms) if len(self._terms) > 1 else self._terms[0]

    def _singles(self) -> None:
        """Tables of one width together: the weights of the wide part, and embeddings by width."""
        graph, model = self.graph, self.model
        tables = [table for table in model.slots.tables if not table.slot.bag]
        if wide := [table for table in tables if table.wide.shape[1]]:
            weights = [model.wide.ftrl.weights(table.wide) for table in wide]
            self._terms.append(graph.sum(self._looked_up(wide, weights), 1))
        for dim in sorted({table.dim for table in tables} - {0}):
            some = [table for table in tables if table.dim == dim]
            found = self._looked_up(some, [table.values for table in some])
            shape = graph.constant([0, dim * len(some)], np.int64)  # 0: as it is
            self._parts.append(graph.node("Reshape", found, shape))
            for table in some:
                self._order += range(table.at, table.at + dim)

    def _looked_up(self, tables: Sequence[SlotTable], values: Sequence[NDArray[np.float32]]) -> str:
        """float32 [n, tables, width]"""
        graph = self.graph
        columns = [table.slot.column for table in tables]
        ids = graph.columns(SINGLE, columns, self.layout.num_single)
        if len(tables) > 1:
            firsts = np.cumsum([0, *(table.slot.size for table in tables[:-1])])
            ids = graph.node("Add", ids, graph.constant(firsts, np.int32))
        joined = values[0] if len(values) == 1 else np.concatenate(values)
        return graph.node("Gather", graph.constant(joined), ids, axis=0)

    def _bag(self, table: SlotTable) -> None:
        """The sum of weights, and the mean of embeddings, of as many ids as there are."""
        graph, dim = self.graph, table.dim
        weights = self.model.wide.ftrl.weights(table.wide)
        rows = np.concatenate([table.values, weights], axis=1)
        rows = np.concatenate([rows, np.zeros((1, rows.shape[1]), np.float32)])
        ids = f"{BAG}{table.slot.column}"
        found = graph.sum(graph.node("Gather", graph.constant(rows), ids, axis=0), 1)
        width = rows.shape[1]
        if dim < width:
            self._terms.append(graph.columns(found, range(dim, width), width))
        if dim:
            there = graph.node("GreaterOrEqual", ids, graph.constant(0, np.int32))
            count = graph.sum(graph.node("Cast", there, to=TensorProto.FLOAT), 1, keep=True)
            count = graph.node("Max", count, graph.constant(1.0))
            values = graph.columns(found, range(dim), width)
            self._parts.append(graph.node("Div", values, count))
            self._order += range(table.at, table.at + dim)

    def _numbers(self) -> None:
        graph, model, total = self.graph, self.model, len(self.layout.dense)
        wide, deep = (
            [self.layout.dense.index(name) for name in part.dense]
            for part in (model.wide, model.deep)
        )
        if wide:
            weights = graph.constant(model.wide.ftrl.weights(model.wide_dense))
            self._terms.append(graph.node("MatMul", graph.columns(DENSE, wide, total), weights))
        if deep:
            self._parts.append(graph.columns(DENSE, deep, total))
            self._order += range(model.slots.width, model.slots.width + len(deep))

    def _body(self, body: nn.Module, inputs: str, bias: NDArray[np.float64]) -> str:
        """bias: of each task, beside the body's own."""
        graph = self.graph
        if isinstance(body, Body):
            layers = [*body.layers, body.heads]
            return self._layers(layers, inputs, self._order, bias)
        assert isinstance(body, Towers)
        place = np.argsort(self._order)  # of each of the body's inputs, its column here
        sides = []
        for tower, columns in (
            (body.left, body.left_columns),
            (body.right, body.right_columns),
        ):
            found = graph.columns(inputs, place[columns.numpy()].tolist(), len(place))
            sides.append(self._layers([*tower], found, range(len(columns)), None))
        product = graph.sum(graph.node("Mul", *sides), 1, keep=True)
        scaled = graph.node("Mul", product, graph.constant(_numpy(body.scale)))
        return graph.node("Add", scaled, graph.constant(_numpy(body.bias) + bias))

    def _layers(
        self,
        layers: Sequence[nn.Module],
        found: str,
        order: Sequence[int],
        bias: NDArray[np.float64] | None,
    ) -> str:
        """order: which of the first layer's inputs each column is; bias: the last one's besides."""
        graph = self.graph
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        for layer in layers:
            if isinstance(layer, nn.ReLU):
                found = graph.node("Relu", found)
            elif isinstance(layer, nn.Linear):
                weight, add = _numpy(layer.weight).T, _numpy(layer.bias)
                weight = weight[list(order)] if layer is linear[0] else weight
                add = add + bias if layer is linear[-1] and bias is not None else add
                found = graph.node("Gemm", found, graph.constant(weight), graph.constant(add))
            else:
                assert isinstance(layer, nn.Dropout)  # in use it does nothing
        return found


def _numpy(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.detach().numpy().astype(np.float64)


# --- calibration ----------------------------------------------------------------------------------


def _calibrated(graph: _Graph, logit: str, tasks: Sequence[Calibration]) -> str:
    if all(task.kind != "isotonic" for task in tasks):
        return _platt(graph, logit, tasks)
    columns = []
    for at, task in enumerate(tasks):
        column = graph.columns(logit, [at], len(tasks))
        made = _isotonic(graph, column, task) if task.kind == "isotonic" else None
        columns.append(made or _platt(graph, column, [task]))
    return graph.node("Concat", *columns, axis=1) if len(columns) > 1 else columns[0]


def _platt(graph: _Graph, logit: str, tasks: Sequence[Calibration]) -> str:
    """`none` is a = 1, b = 0."""
    if any(task.kind == "platt" for task in tasks):
        logit = graph.node("Mul", logit, graph.constant([task.a for task in tasks]))
        logit = graph.node("Add", logit, graph.constant([task.b for task in tasks]))
    return graph.node("Sigmoid", logit)


def _isotonic(graph: _Graph, logit: str, task: Calibration) -> str:
    """Straight lines between knots: p0 + sum over steps of rise * (how much of the step z is past).

    In float64: knots may lie closer than float32 tells apart, where a line is as good as a jump.
    """
    tiny = np.finfo(np.float64).tiny  # of a jump: what is past it at all is past all of it
    knots = zip(pairwise(task.at), pairwise(task.probability), strict=True)
    steps = [(z, max(after - z, tiny), q - p) for (z, after), (p, q) in knots]
    begin = graph.constant(task.probability[:1], np.float64)
    at, width, rise = (graph.constant([s[i] for s in steps], np.float64) for i in range(3))
    z = graph.node("Cast", logit, to=TensorProto.DOUBLE)
    past = graph.node("Div", graph.node("Sub", z, at), width)
    past = graph.node("Clip", past, graph.constant(0, np.float64), graph.constant(1, np.float64))
    rises = graph.sum(graph.node("Mul", past, rise), 1, keep=True)
    found = graph.node("Add", rises, begin)
    return graph.node("Cast", found, to=TensorProto.FLOAT)
