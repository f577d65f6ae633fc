"""QuantizeLinear and DequantizeLinear nodes that a model has from the start.

TensorRT quantizes symmetrically, to int8 and a few smaller types. Its parser silently reads uint8
as int8: the engine would cut off numbers above 127 steps, and would not cut off those below 0.
"""

from __future__ import annotations

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from enginefarm.errors import EnginefarmError
from enginefarm.graph.model import bounds, walk
from enginefarm.graph.model.constants import to_initializers
from enginefarm.graph.model.edit import drop_unused, rewrite
from enginefarm.graph.model.onnx_shapes import infer_types, known_types

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
TAKEN = ("FLOAT4E2M1", "FLOAT8E4M3FN", "INT4", "INT8")


def prepare(model: ModelProto, error: type[EnginefarmError]) -> bool:
    """In place: replaces each of them that TensorRT lacks by its result where that is a constant,
    as for an int32 bias or weights with a zero point. Returns whether it replaced any.

    Raises: `error` for an activation that is quantized in such a way.
    """
    if not any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in walk.nodes(model.graph)):
        return False
    to_initializers(model)
    infer_types(model)
    types = known_types(walk.graphs(model.graph))
    constants = dict(walk.constants(model.graph))

    def replaced(node: NodeProto, graph: GraphProto) -> list[NodeProto] | None:
        lack = _lack(node, constants, types)
        constant = constants.keys() >= {name for name in node.input if name}
        made = _computed(node, constants, walk.opset(model)) if lack and constant else None
        if made is not None:
            graph.initializer.append(made)
            constants[made.name] = made
            return []
        if lack and (constant or node.op_type == QUANTIZE):
            raise error(
                f"source: node {walk.label(node)!r} ({node.op_type}) quantizes {lack}",
                why="TensorRT quantizes symmetrically, to int8, int4, float8e4m3fn or "
                "float4e2m1 with zero points of 0, and would compute other numbers",
                fix="start from the model in FP32: the recipe's `precisions` quantize it; or "
                "quantize it to int8 symmetrically",
            )
        return None

    changed = rewrite(model, replaced)
    if changed:
        drop_unused(model)
    return changed


def _lack(node: NodeProto, constants: dict[str, TensorProto], types: dict[str, int]) -> str:
    """What TensorRT does not take of the node's type or zero point; empty where it takes all.

    A result that is dequantized is left to the node that makes it."""
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


def _computed(node: NodeProto, constants: dict[str, TensorProto], opset: int) -> TensorProto | None:
    """The node's result from constants; None if ONNX's reference cannot compute it."""
    arrays = [numpy_helper.to_array(constants[name]) for name in node.input if name]
    made = bounds.computed(node, arrays, opset)
    return None if made is None else numpy_helper.from_array(made, node.output[0])
