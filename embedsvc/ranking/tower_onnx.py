"""A trained history tower as one ONNX graph: ids in, the vector that asks an index out.

    input    history  int64 [n, L]        ids of items, the newest last; -1 is padding; L >= 1
             features int64 [n, F]        rows of features, -1 where one is not known; of a tower
                                          that has some
    outputs  x        float32 [n, D]      the tower's vector
             query    float32 [n, D + 1]  [x, 1], for the inner product with rows [w, b]

The rows of items are in the graph, with a column that says which were learnt: others count
nothing, as in training, and the row that -1 finds is the last, of zeros.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from embedsvc.ranking.onnx_graph import MAX_BYTES, OnnxGraph
from embedsvc.ranking.towers import HistoryTower
from partitions.errors import DataError

HISTORY, FEATURES, X, QUERY = "history", "features", "x", "query"


def export_tower(
    tower: HistoryTower,
    rows: NDArray[np.float32],
    learnt: NDArray[np.bool_],
    newest: int | None,
) -> onnx.ModelProto:
    """rows: float32 [learnt.sum(), D], of the items that were learnt, bool [items]. newest: so many
    last places of a history are looked at; None: all. Raises DataError for rows above 2 GB."""
    dim = tower.table.dim
    num_bytes = 4 * (len(learnt) + 1) * (dim + 1)
    if num_bytes > MAX_BYTES:
        raise DataError(
            f"The tower's rows take {num_bytes:,} bytes; an ONNX file holds {MAX_BYTES:,}."
        )
    table = np.zeros((len(learnt) + 1, dim + 1), np.float32)
    table[:-1][learnt, :-1] = rows
    table[:-1, -1] = learnt
    graph = OnnxGraph()
    pooled = _pooled(graph, tower, table, newest)
    inputs = [(HISTORY, TensorProto.INT64, ("n", "l"))]
    if tower.features is not None:
        of_features = np.pad(tower.features.weight.detach().numpy(), ((0, 1), (0, 0)))
        found = graph.node("Gather", graph.constant(of_features), FEATURES, axis=0)
        pooled = graph.node("Add", pooled, graph.sum(found, 1))
        inputs.append((FEATURES, TensorProto.INT64, ("n", "f")))
    x = _layers(graph, tower, pooled)
    graph.node("Identity", x, named=X)
    one = graph.constant([0, 0, 0, 1], np.int64)
    graph.node("Pad", x, one, graph.constant(1.0), named=QUERY)
    outputs = [(name, TensorProto.FLOAT, ("n", dim + at)) for at, name in enumerate((X, QUERY))]
    return graph.made("tower", inputs, outputs)


def _pooled(
    graph: OnnxGraph, tower: HistoryTower, table: NDArray[np.float32], newest: int | None
) -> str:
    history, dim = HISTORY, table.shape[1] - 1
    if newest is not None:
        # From place -newest on, which runtimes take for 0 where there are fewer.
        bounds = [graph.constant([at], np.int64) for at in (-newest, np.iinfo(np.int64).max, 1)]
        history = graph.node("Slice", history, *bounds)
    found = graph.node("Gather", graph.constant(table), history, axis=0)
    split = graph.constant([0], np.int64), graph.constant([dim], np.int64)
    rows = graph.node("Slice", found, *split, graph.constant([2], np.int64))
    there = graph.node("Gather", found, graph.constant(dim, np.int64), axis=2)
    return tower.pooling.export(graph, rows, there, tower.learnt)


def _layers(graph: OnnxGraph, tower: HistoryTower, pooled: str) -> str:
    def numbers(name: str) -> NDArray[np.float32]:
        return np.asarray(tower.get_parameter(name).detach().numpy())

    x = graph.node("Add", pooled, graph.constant(numbers("bias")))
    if tower.layers is None:
        return x
    first = graph.constant(numbers("layers.0.weight").T)
    hidden = graph.node("Gemm", pooled, first, graph.constant(numbers("layers.0.bias")))
    second = graph.constant(numbers("layers.2.weight").T)
    return graph.node("Add", x, graph.node("MatMul", graph.node("Relu", hidden), second))
