"""GRUs of 3 to 6 units that reset before their product, as Keras writes them: TensorRT-RTX 1.7.1
never ends building one for a batch of one, from five steps on. With 8 units, of which nothing reads
the added ones, it does."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from enginefarm.graph.model import walk
from enginefarm.graph.model.edit import FreeNames, drop_unused, rewrite

OPERATOR = "GRU"
NEVER_END = range(3, 7)
UNITS = 8
GATES = 3
WEIGHT, RECURRENT, BIAS, STATE = 1, 2, 3, 5
"""Indices of the inputs that have an axis of units."""


def write_out(model: ModelProto) -> bool:
    """In place. Returns whether there was one, with weights that are constants."""
    free = FreeNames(model)

    def widened(node: NodeProto, graph: GraphProto) -> list[NodeProto] | None:
        weights = set(node.input[WEIGHT : BIAS + 1]) - {""}
        if not _never_ends(node) or weights - {tensor.name for tensor in graph.initializer}:
            return None
        return _widened(node, graph, free)

    changed = rewrite(model, widened)
    if changed:
        drop_unused(model)
    return changed


def _never_ends(node: NodeProto) -> bool:
    if node.op_type != OPERATOR or walk.value(node, "linear_before_reset", 0):
        return False
    return walk.value(node, "hidden_size", 0) in NEVER_END


def _widened(node: NodeProto, graph: GraphProto, free: FreeNames) -> list[NodeProto]:
    """The node with 8 units, between nodes that add units to its first state and take them away."""
    size = walk.attributes(node)["hidden_size"]
    units, base, before, after = size.i, node.name or node.output[0], list[Any](), list[Any]()
    more, size.i = UNITS - units, UNITS
    tensors = {tensor.name: tensor for tensor in graph.initializer}

    def constant(array: Any, what: str) -> str:
        name = free.make(f"{base}_{what}")
        graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    for index, parts in ((WEIGHT, GATES), (RECURRENT, GATES), (BIAS, 2 * GATES)):
        if index < len(node.input) and node.input[index]:
            array: Any = numpy_helper.to_array(tensors[node.input[index]])
            split = array.reshape(len(array), parts, units, *array.shape[2:])
            added = [(0, 0), (0, 0), (0, more), (0, more if index == RECURRENT else 0)]
            wide = np.pad(split, added[: split.ndim])
            shape = (len(array), parts * UNITS, *wide.shape[3:])
            node.input[index] = constant(wide.reshape(shape), f"input_{index}")
    if len(node.input) > STATE and node.input[STATE]:
        pads, state = constant(np.array([0, 0, 0, 0, 0, more]), "pads"), free.make(f"{base}_state")
        before.append(helper.make_node("Pad", [node.input[STATE], pads], [state], state))
        node.input[STATE] = state
    limits = [constant(np.array([one]), what) for one, what in ((0, "from"), (units, "to"))]
    limits.append(constant(np.array([-1]), "axis"))
    for index, name in enumerate(node.output):
        if name:
            node.output[index] = wide = free.make(f"{name}_wide")
            after.append(helper.make_node("Slice", [wide, *limits], [name], f"{wide}_slice"))
    return [*before, node, *after]
