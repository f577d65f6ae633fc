"""Inputs whose values become sizes. An engine needs a range for such values, not a shape.

TensorRT calls them shape tensors. A profile has no range of values for them, so the recipe is
refused by the input's name, rather than an engine built whose sizes come from the wrong place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from onnx import GraphProto

from enginefarm.graph.model import walk

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
    *("Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "Div", "Equal", "Expand", "Flatten"),
    *("Floor", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Identity"),
    *("Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow"),
    *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Round"),
    *("ScatterElements", "ScatterND", "Sign", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum"),
    *("Tile", "Transpose", "Unsqueeze", "Where", "Xor"),
}
"""Operators that compute sizes out of sizes."""
TAKE = frozenset(("Gather", "GatherElements", "GatherND", "Slice"))
"""They pass on what they take from, not where they take it."""


class Use(NamedTuple):
    """Where an input's values become sizes."""

    input: str
    node: str
    operator: str


def find(graph: GraphProto, inputs: Iterable[str]) -> Use | None:
    """The first use of one of these inputs' values as sizes; None when there is none.

    inputs: those that can be shape tensors at all, of rank 0 or 1.
    """
    return _find(graph, {name: name for name in inputs})


def _find(graph: GraphProto, carried: dict[str, str]) -> Use | None:
    for node in graph.node:
        for operand in SIZES.get(node.op_type, ()):
            if operand < len(node.input) and node.input[operand] in carried:
                return Use(carried[node.input[operand]], walk.label(node), node.op_type)
        for body in walk.bodies(node):
            if (found := _find(body, dict(carried))) is not None:
                return found
        operands = node.input[:1] if node.op_type in TAKE else node.input
        source = next((carried[name] for name in operands if name in carried), None)
        if source is not None and node.op_type in CARRIES:
            carried |= dict.fromkeys(node.output, source)
    return None
