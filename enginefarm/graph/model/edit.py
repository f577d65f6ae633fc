"""Changes a graph in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enginefarm.graph.model import walk

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from onnx import GraphProto, ModelProto, NodeProto

TYPE_ATTRIBUTES = frozenset(("to", "dtype", "output_dtype", "softmax_precision"))
"""Attributes whose value is a TensorProto type."""


def copied(message: Any) -> Any:
    """A copy of a protobuf message: one that is in a graph cannot be put into another list."""
    made = type(message)()
    made.CopyFrom(message)
    return made


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Puts copies of these nodes into the graph instead of its own, which may be among them."""
    copies = [copied(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def rewrite(
    model: ModelProto, replaced: Callable[[NodeProto, GraphProto], list[NodeProto] | None]
) -> bool:
    """Puts the nodes that `replaced` makes of a node of a graph in its place, in the graph and the
    bodies in it; None: the node stays. Returns whether any was replaced."""
    changed = False
    for graph in walk.graphs(model.graph):
        made = [(node, replaced(node, graph)) for node in graph.node]
        if any(new is not None for _, new in made):
            replace_nodes(
                graph, [one for node, new in made for one in ([node] if new is None else new)]
            )
            changed = True
    return changed


def drop_unused(model: ModelProto) -> None:
    """Drops weights that nothing reads any more, and Casts, which may feed one another."""
    read, dropped = walk.reads(model.graph), False
    for graph in walk.graphs(model.graph):
        for index in reversed(range(len(graph.node))):
            if graph.node[index].op_type == "Cast" and read.isdisjoint(graph.node[index].output):
                del graph.node[index]
                dropped = True
    if dropped:
        return drop_unused(model)
    for weights in (graph.initializer for graph in walk.graphs(model.graph)):
        for index in reversed(range(len(weights))):  # a copy would need the memory twice
            if weights[index].name not in read:
                del weights[index]


def retype(graph: GraphProto, values: Iterable[Any], kinds: Container[int], to: int) -> bool:
    """Gives these values, and all attributes of the graph's own nodes that name a type, the
    TensorProto type `to` where theirs is one of `kinds`. Returns whether there were any."""
    found = False
    for value in values:
        if value.type.tensor_type.elem_type in kinds:
            value.type.tensor_type.elem_type, found = to, True
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.name in TYPE_ATTRIBUTES and attribute.i in kinds:
            attribute.i, found = to, True
    return found
