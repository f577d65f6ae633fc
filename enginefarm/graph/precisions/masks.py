"""Attention masks: large negative constants whose only use is to vanish in a Softmax.

In FP32 they are -1e9 or -3.4e38, which 16 bits turn into an infinity; a row whose entries are all
masked then becomes NaN. Any number that is far below every score does the same work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from enginefarm.graph.model import constants, walk
from enginefarm.graph.model.operators import MOVES

PASSES = MOVES | frozenset(
    (
        *("Add", "Cast", "Clip", "Concat", "ConstantOfShape", "Max", "Min", "Mul", "Pad"),
        *("ScatterElements", "ScatterND", "Sub", "Trilu", "Where"),
    )
)
"""What a mask goes through between its constant and the Softmax."""
SINKS = frozenset(("Softmax", "LogSoftmax", "Attention"))
BOUNDS = frozenset(("Clip", "Max", "Min"))
"""A bound beyond the range of 16 bits bounds nothing there."""


@dataclass(frozen=True)
class Masks:
    """constants: initializers that may be clipped. values: what is computed from them on the way
    to a Softmax. nodes: ConstantOfShape nodes whose value may be clipped."""

    constants: frozenset[str] = frozenset()
    values: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()


def find(model: ModelProto) -> Masks:
    """Looks through the FP32 graph, whose values and nodes all have names of their own."""
    results = {output.name for graph in walk.graphs(model.graph) for output in graph.output}
    nodes = list(walk.nodes(model.graph))
    tensors = dict(walk.constants(model.graph))
    ends_well = _only_feed_softmax(nodes, results)
    starts = {
        name for name, tensor in tensors.items() if _large_negative(tensor) and ends_well.get(name)
    }
    filled = {
        node.name
        for node in nodes
        if node.op_type == "ConstantOfShape"
        and any(a.HasField("t") and _large_negative(a.t) for a in node.attribute)
        and ends_well.get(node.output[0])
    }
    values = set(starts)
    for node in nodes:  # in order: what makes a value comes before what reads it
        reads = node.op_type in PASSES and not values.isdisjoint(node.input)
        if node.name in filled or (reads and all(ends_well.get(name) for name in node.output)):
            values.update(node.output)
    return Masks(frozenset(starts), frozenset(values - starts), frozenset(filled))


def _only_feed_softmax(nodes: list[NodeProto], results: set[str]) -> dict[str, bool]:
    """Value -> whether something reads it, and every path from it ends in a Softmax or a bound."""
    ends_well = dict.fromkeys(results, False)
    for node in reversed(nodes):
        passes = node.op_type in PASSES and all(ends_well.get(name) for name in node.output)
        for index, name in enumerate(node.input):
            bound = node.op_type in BOUNDS and (index > 0 or node.op_type != "Clip")
            well = node.op_type in SINKS or passes or bound
            ends_well[name] = well and ends_well.get(name, True)
    return ends_well


def _large_negative(tensor: TensorProto) -> bool:
    """Whether it holds finite numbers beyond FP16, all of them below zero."""
    if tensor.data_type != TensorProto.FLOAT:
        return False
    values = numpy_helper.to_array(tensor)
    beyond = np.isfinite(values) & (np.abs(values) > constants.MAX_FP16)
    return bool(beyond.any() and (values[beyond] < 0).all())
