"""An ONNX graph as it is written: nodes and constants as they come, by operators of opset 17.

    graph = OnnxGraph()
    graph.node("Identity", graph.sum("x", 1), named="y")
    graph.made("sums", [("x", TensorProto.FLOAT, ("n", 3))], [("y", TensorProto.FLOAT, ("n",))])

Old runtimes read it too, and onnxruntime-web has the operators.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 17, 8  # of 2022
MAX_BYTES = (1 << 31) - (1 << 20)  # of a protobuf message, less what is no table

Told = tuple[str, int, Sequence[str | int]]  # name, type, shape


class OnnxGraph:
    """What a node makes has a name of its own."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def node(
        self, kind: str, *inputs: str, named: str | None = None, output: int = 0, **attributes: Any
    ) -> str:
        """The name of one of its outputs."""
        name = named or f"{kind.lower()}{len(self._nodes)}"
        names = [f"{name}.{at}" for at in range(output)] + [name]
        self._nodes.append(helper.make_node(kind, inputs, names, name, **attributes))
        return name

    def constant(self, values: Any, kind: Any = np.float32) -> str:
        name = f"c{len(self._constants)}"
        array: NDArray[Any] = np.ascontiguousarray(values, kind).reshape(np.shape(values))
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def columns(self, of: str, wanted: Sequence[int], total: int) -> str:
        """Columns of [n, total], as they are where all are wanted in their order."""
        if list(wanted) == list(range(total)):
            return of
        return self.node("Gather", of, self.constant(wanted, np.int64), axis=1)

    def sum(self, of: str, axis: int, *, keep: bool = False) -> str:
        axes = self.constant([axis], np.int64)
        return self.node("ReduceSum", of, axes, keepdims=int(keep))

    def made(self, name: str, inputs: Sequence[Told], outputs: Sequence[Told]) -> onnx.ModelProto:
        told, said = (
            [helper.make_tensor_value_info(*part) for part in parts] for parts in (inputs, outputs)
        )
        graph = helper.make_graph(self._nodes, name, told, said, self._constants)
        opset = [helper.make_opsetid("", OPSET)]
        found = helper.make_model(graph, opset_imports=opset, producer_name="embedsvc")
        found.ir_version = IR_VERSION
        return found
