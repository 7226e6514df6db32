"""int8 for the layers of an exported ranker: dynamic quantisation by onnxruntime's own tool.

A layer's weights become int8 with a scale for each unit; what it reads is made uint8 by the range
that the call's rows have. Embeddings, wide weights and everything else stay float32.
"""

import tempfile
from pathlib import Path

import onnx
from onnxruntime import quantization


def quantized(graph: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    # The tool's own preparation infers shapes, which it does again, and says so in its log.
    onnx.helper.set_model_props(copy, {"onnx.quant.pre_process": "onnxruntime.quant"})
    wide = [node.name for node in graph.graph.node if node.op_type == "MatMul"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ranker.onnx"
        quantization.quantize_dynamic(
            copy,
            path,
            op_types_to_quantize=["MatMul"],  # it makes Gemms these
            per_channel=True,
            reduce_range=True,  # CPUs without VNNI overflow at 8 bits
            nodes_to_exclude=wide,
        )
        return onnx.load(path)
