"""Takes Ifs out of the branches of other Ifs: TensorRT builds none there.

What an inner If needs is computed before the outer one, whichever branch the outer one takes; the
outer one then selects. The numbers are the same, and work that the other branch would have saved
is done. An If inside a Loop or Scan is built where it is, so that a Loop in a branch that has an If
inside is moved as a whole.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from enginefarm.graph import onnx_files
from enginefarm.graph.functions import all_nodes, bodies, nested_ifs
from enginefarm.graph.messages import copied, replace_nodes
from enginefarm.graph.precisions.free_names import FreeNames, name_nodes, unique_values
from enginefarm.graph.raising import MOST_STEPS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto


def take_out(model: ModelProto) -> list[str]:
    """In place; returns the names of the Ifs that were inside a branch and are no more.

    One that needs a Loop without a limit stays: such a Loop may never end where the outer If does
    not take its branch.
    """
    if not nested_ifs(model.graph):
        return []
    unique_values(model)
    name_nodes(model)
    before = [node.name for node in nested_ifs(model.graph)]
    _take_out(model.graph, FreeNames(model), _endless(model))
    for graph in onnx_files.graphs(model.graph):
        del graph.value_info[:]
    left = {node.name for node in nested_ifs(model.graph)}
    return [name for name in before if name not in left]


def _endless(model: ModelProto) -> set[str]:
    """Loops that only their condition ends: without a count, or with one that stands for none."""
    from onnx import numpy_helper

    graphs = list(onnx_files.graphs(model.graph))
    small = {one.name: one for graph in graphs for one in graph.initializer if prod(one.dims) == 1}
    for graph in graphs:
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                small[node.output[0]] = node.attribute[0].t
    found: set[str] = set()
    for node in (node for graph in graphs for node in graph.node if node.op_type == "Loop"):
        count = small.get(node.input[0])
        if not node.input[0] or (count and numpy_helper.to_array(count).max() >= MOST_STEPS):
            found.add(node.name)
    return found


def _take_out(graph: GraphProto, free: FreeNames, endless: set[str]) -> None:
    """Innermost first."""
    made: list[NodeProto] = []
    for node in graph.node:
        for body in bodies(node) if node.op_type == "If" else ():
            _take_out(body, free, endless)
            made += _moved(body, graph, free, endless)
        made.append(node)
    replace_nodes(graph, made)


def _moved(
    body: GraphProto, graph: GraphProto, free: FreeNames, endless: set[str]
) -> list[NodeProto]:
    """Nodes of the body with an If inside, or that one needs; they and their weights leave it."""
    from onnx import helper

    needed: set[str] = set()
    moved: list[NodeProto] = []
    kept: list[NodeProto] = []
    for node in reversed(body.node):
        inside = [*all_nodes([node])]
        if any(one.op_type == "If" for one in inside) or not needed.isdisjoint(node.output):
            if any(one.name in endless for one in inside):
                return []
            needed.update(name for one in inside for name in one.input)
            needed.update(output.name for output in _outputs(node))
            moved.insert(0, copied(node))
        else:
            kept.insert(0, node)
    if not moved:
        return []
    weights = [copied(tensor) for tensor in body.initializer]
    del body.initializer[:]
    graph.initializer.extend(one for one in weights if one.name in needed)
    body.initializer.extend(one for one in weights if one.name not in needed)
    away = {name for node in moved for name in node.output} | {one.name for one in weights}
    away -= {one.name for one in body.initializer}
    for output in body.output:
        if output.name in away:
            name = free.make(f"{output.name}_taken")
            kept.append(helper.make_node("Identity", [output.name], [name], f"{name}_identity"))
            output.name = name
    replace_nodes(body, kept)
    return moved


def _outputs(node: NodeProto) -> Iterator[ValueInfoProto]:
    """The outputs of every body inside a node. An output may be a value of the graph around it."""
    for body in bodies(node):
        for graph in onnx_files.graphs(body):
            yield from graph.output
