"""Inputs whose values become sizes. An engine needs a range for such values, not a shape.

TensorRT calls them shape tensors. A profile has no range of values for them, so the recipe is
refused by the input's name, rather than an engine built whose sizes come from the wrong place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

SIZES = {
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Loop": (0,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Upsample": (1,),
}
"""Operator -> the operands that are sizes, counts or bounds."""

CARRIES = {
    *("Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "Div", "Flatten", "Floor", "Gather"),
    *("Identity", "Max", "Min", "Mod", "Mul", "Neg", "ReduceMax", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "Reshape", "Round", "Slice", "Split", "Squeeze", "Sub", "Transpose"),
    *("Unsqueeze", "Where"),
}
"""Operators that compute sizes out of sizes."""


class Use(NamedTuple):
    """Where an input's values become sizes."""

    input: str
    node: str
    operator: str


def find(graph: GraphProto, inputs: Iterable[str]) -> Use | None:
    """The first use of one of these inputs' values as sizes; None when there is none.

    inputs: those that can be shape tensors at all, of rank 0 or 1.
    """
    carried = {name: name for name in inputs}
    for node in graph.node:
        for operand in SIZES.get(node.op_type, ()):
            if operand < len(node.input) and node.input[operand] in carried:
                return Use(carried[node.input[operand]], node.name or node.output[0], node.op_type)
        source = _carried(node, carried)
        if source is not None:
            carried |= dict.fromkeys(node.output, source)
    return None


def _carried(node: NodeProto, carried: dict[str, str]) -> str | None:
    if node.op_type not in CARRIES:
        return None
    # Gather and Slice pass on what they take from, not where they take it.
    operands = node.input[:1] if node.op_type in ("Gather", "Slice") else node.input
    return next((carried[name] for name in operands if name in carried), None)
