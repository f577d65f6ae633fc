"""Inputs of uint8, such as pictures: made floats before anything moves them.

TensorRT reads uint8 and converts it to floats, and has no other operator for it. Models often
transpose a picture first and make it floats then. All 256 numbers are the same in FP32.
"""

from __future__ import annotations

from onnx import GraphProto, ModelProto, TensorProto, helper

from enginefarm.graph.model import walk
from enginefarm.graph.model.edit import FreeNames
from enginefarm.graph.model.operators import MOVES


def convert_first(model: ModelProto) -> bool:
    """In place: a Cast to FP32 right behind each uint8 input that is moved and then cast.

    An input that anything else reads as uint8 is left as it is. False when nothing is changed.
    """
    graph = model.graph
    free, changed = FreeNames(model), False
    for value in graph.input:
        if value.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        moved = _moved(graph, value.name)
        if not moved:
            continue
        name = free.make(f"{value.name}_as_float")
        for node in graph.node:
            if node.op_type != "Cast":
                node.input[:] = [name if read == value.name else read for read in node.input]
        cast = helper.make_node("Cast", [value.name], [name], name, to=TensorProto.FLOAT)
        graph.node.insert(0, cast)
        for known in graph.value_info:
            if known.name in moved:
                known.type.tensor_type.elem_type = TensorProto.FLOAT
        changed = True
    return changed


def _moved(graph: GraphProto, name: str) -> set[str]:
    """The values that the input becomes by being moved; empty if it is cast first, or if anything
    else reads it or one of these values."""
    moved: set[str] = set()
    reads = {name}
    for node in graph.node:
        if node.op_type in MOVES and node.input[0] in reads and reads.isdisjoint(node.input[1:]):
            moved.update(node.output)
            reads.update(node.output)
        elif node.op_type != "Cast" and not reads.isdisjoint(walk.reads_of(node)):
            return set()
    return set() if any(output.name in reads for output in graph.output) else moved
