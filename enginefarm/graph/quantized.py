"""QuantizeLinear and DequantizeLinear of a model as it came.

TensorRT quantizes symmetrically, to int8 and a few smaller types. Its parser takes uint8 for int8
without a word: numbers above 127 steps would be cut off in the engine, and those below 0 would not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from enginefarm.errors import EnginefarmError
from enginefarm.graph import onnx_files
from enginefarm.graph.messages import replace_nodes

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
TAKEN = ("FLOAT4E2M1", "FLOAT8E4M3FN", "INT4", "INT8")


def prepare(model: ModelProto, error: type[EnginefarmError]) -> bool:
    """In place: what is made of constants in a way that TensorRT lacks (from an int32 bias, from
    weights with a zero point) becomes a constant. Returns whether there was anything.

    Raises: `error` for an activation that is quantized so.
    """
    graphs = list(onnx_files.graphs(model.graph))
    if not any(node.op_type in (QUANTIZE, DEQUANTIZE) for graph in graphs for node in graph.node):
        return False
    from enginefarm.graph.precisions.constants import to_initializers
    from enginefarm.graph.precisions.graph import drop_unused, infer_types, known_types

    to_initializers(model)
    infer_types(model)
    types = known_types(graphs)
    opset, changed = onnx_files.opset(model), False
    constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
    for graph in reversed(graphs):  # bodies first: a node that is put back is a copy
        kept: list[NodeProto] = []
        for node in graph.node:
            lack = _lack(node, constants, types)
            if lack and all(name in constants for name in node.input if name):
                made = _computed(node, constants, opset)
                graph.initializer.append(made)
                constants[made.name] = made
            elif lack and node.op_type == QUANTIZE:
                raise error(
                    f"source: node {node.name or node.output[0]!r} ({QUANTIZE}) quantizes {lack}",
                    why="TensorRT quantizes symmetrically, to int8, int4, float8e4m3fn or "
                    "float4e2m1 with zero points of 0, and would compute other numbers",
                    fix="start from the model in FP32: the recipe's `precisions` quantize it; or "
                    "quantize it to int8 symmetrically",
                )
            else:
                kept.append(node)
        if len(kept) < len(graph.node):
            replace_nodes(graph, kept)
            changed = True
    if changed:
        drop_unused(model)
    return changed


def _lack(node: NodeProto, constants: dict[str, TensorProto], types: dict[str, int]) -> str:
    """What TensorRT does not take of the node's type or zero point; empty where it takes all.

    A result that is dequantized is left to the node that makes it."""
    from onnx import TensorProto, numpy_helper

    if node.op_type not in (QUANTIZE, DEQUANTIZE):
        return ""
    stored = node.input[0] if node.op_type == DEQUANTIZE else node.output[0]
    name = TensorProto.DataType.Name(types.get(stored, TensorProto.UNDEFINED))
    if name not in TAKEN and (node.op_type == QUANTIZE or stored in constants):
        return f"to {name.lower()}"
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    if zero is not None and numpy_helper.to_array(zero).astype("float32").any():
        return "with a zero point that is not 0"
    return ""


def _computed(node: NodeProto, constants: dict[str, TensorProto], opset: int) -> TensorProto:
    """The node's result from ONNX's own reference."""
    from onnx import numpy_helper

    reference: Any = import_module("onnx.reference")
    feeds = {name: numpy_helper.to_array(constants[name]) for name in node.input if name}
    made = reference.ReferenceEvaluator(node, opsets={"": opset}).run(None, feeds)
    return numpy_helper.from_array(made[0], node.output[0])
