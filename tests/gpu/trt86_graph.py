"""A graph of ours as TensorRT 8.6 can take it.

Our INT8 graphs are of opset 19: FP16 values, FP16 scales, and weights stored in 8 bits. 8.6
knows none of these. The same numbers are written as it wants them: FP32 values, and Q and DQ
around FP32 weights, which round to the very same 8 bits. Its builder flags then choose the
precisions, as they did before networks were strongly typed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


def lifted(src: Path, dest: Path) -> Path:
    model = onnx.load(src)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    nodes = []
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            nodes.append(_quantize_weight(node, constants))
        nodes.append(node)
    copies = [_copy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    del graph.value_info[:]
    model.opset_import[0].version = OPSET
    model.ir_version = 8
    onnx.save(model, dest)
    return dest


def _quantize_weight(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> onnx.NodeProto:
    """Turns an 8-bit weight into FP32, and gives the Q that rounds it back."""
    weight, scale = node.input[0], numpy_helper.to_array(constants[node.input[1]])
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    stored = numpy_helper.to_array(constants[weight]).astype(np.float32)
    shape = [-1 if index == axis else 1 for index in range(stored.ndim)]
    wide = stored * (scale.reshape(shape) if scale.ndim else scale)
    constants[weight].CopyFrom(numpy_helper.from_array(wide.astype(np.float32), weight))
    rounded = f"{weight}.rounded"
    made = helper.make_node("QuantizeLinear", [weight, *node.input[1:]], [rounded], axis=axis)
    node.input[0] = rounded
    return made


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied
