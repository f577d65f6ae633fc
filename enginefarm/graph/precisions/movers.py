"""Nodes that only move numbers, from one FP32 node to another: in 16 bits they would round what
both ends keep.

A Relu between two convolutions that are kept wide, a Pad between an input and its filter: each is
exact in any dtype, and only the Casts around it lose something.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnx import ModelProto, NodeProto, TensorProto

from enginefarm.graph.model.emulate import EXACT
from enginefarm.graph.model.walk import bodies
from enginefarm.graph.precisions.rules import Links


def between(
    model: ModelProto, is_wide: Callable[[NodeProto], bool], types: Mapping[str, int]
) -> set[str]:
    """Names of nodes that move FP32 numbers, some of which an FP32 node reads.

    is_wide: whether a node computes in FP32. types: dtype of each value in the FP32 graph, which
    has one name for each value. All float inputs except constants must be inputs of the model or
    results in FP32. Nodes that read the result in 16 bits read it through a Cast.
    """
    links = Links(model)
    wide = {node.name for node in links.nodes if not bodies(node) and is_wide(node)}
    given = {value.name for value in model.graph.input} - links.constants.keys()
    movers: dict[str, NodeProto] = {}
    fp32 = given | {name for n in links.nodes if n.name in wide for name in n.output}

    def moves_fp32(node: NodeProto) -> bool:
        floats = [
            name
            for name in node.input
            if types.get(name) == TensorProto.FLOAT and name not in links.constants
        ]
        return bool(floats) and fp32.issuperset(floats)

    for node in links.nodes:  # makers come before readers
        exact = node.op_type in EXACT and node.name not in wide and not bodies(node)
        if exact and moves_fp32(node):
            movers[node.name] = node
            fp32.update(node.output)
    wanted: set[str] = set()
    for node in reversed(movers.values()):
        readers = (reader.name for name in node.output for reader in links.readers[name])
        if any(reader in wide or reader in wanted for reader in readers):
            wanted.add(node.name)
    return wanted
