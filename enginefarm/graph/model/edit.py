"""Changes a graph in place, and the names in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enginefarm.graph.model import walk

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping

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


class FreeNames:
    """Hands out names; each one is taken from then on.

    ONNX forbids that a body hides a name of the graph around it, so that the names of all
    graphs of the model count.
    """

    def __init__(self, model: ModelProto) -> None:
        self._taken: set[str] = set()
        for graph in walk.graphs(model.graph):
            for value in (*graph.input, *graph.output, *graph.initializer):
                self._taken.add(value.name)
            for sparse in graph.sparse_initializer:
                self._taken.add(sparse.values.name)
            for node in graph.node:
                self._taken.update((node.name, *node.input, *node.output))

    def __contains__(self, name: str) -> bool:
        return name not in self._taken

    def take(self, name: str) -> None:
        self._taken.add(name)

    def make(self, wanted: str) -> str:
        """`wanted` itself where it is free, else `wanted_2`, `wanted_3` and so on."""
        name, count = wanted, 1
        while not name or name not in self:
            count += 1
            name = f"{wanted}_{count}"
        self.take(name)
        return name


def rename(model: ModelProto, names: Mapping[str, str]) -> None:
    """Renames values of the main graph, and every use of them; what else has one of the new names
    already, in any graph, is moved out of the way."""
    free = FreeNames(model)
    in_the_way = {name for name in names.values() if name not in free} - names.keys()
    for name in names.values():
        free.take(name)
    changes = {**names, **{name: free.make(name) for name in sorted(in_the_way)}}
    rename_inside(model.graph.node, changes)
    _rename_border(model.graph, changes)


def rename_inside(nodes: Iterable[NodeProto], names: Mapping[str, str]) -> None:
    """Renames values where these nodes make or read them, bodies included."""
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for body in walk.bodies(node):
            rename_inside(body.node, names)
            _rename_border(body, names)


def _rename_border(graph: GraphProto, names: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = names.get(value.name, value.name)


def name_nodes(model: ModelProto) -> None:
    """Gives each node without a name, or with another node's name, a unique name.

    The names are made of operator and output, so that the same graph always gets the same.
    """
    free = FreeNames(model)
    seen: set[str] = set()
    for node in walk.nodes(model.graph):
        if not node.name or node.name in seen:
            output = next((name for name in node.output if name), "")
            node.name = free.make(f"{node.op_type}_{output}" if output else node.op_type)
        seen.add(node.name)


def unique_values(model: ModelProto) -> None:
    """Renames what two bodies call alike, as both branches of an If may, so that one name means
    one value in the whole model."""
    free = FreeNames(model)
    seen = _own_names(model.graph)
    for node in model.graph.node:
        for body in walk.bodies(node):
            _unique_body(body, free, seen, {})


def _unique_body(
    body: GraphProto, free: FreeNames, seen: set[str], outer: Mapping[str, str]
) -> None:
    renames = dict(outer)
    for name in sorted(_own_names(body)):
        renames[name] = free.make(name) if name in seen else name
        seen.add(renames[name])
    _rename_border(body, renames)
    for node in body.node:
        node.input[:] = [renames.get(name, name) for name in node.input]
        node.output[:] = [renames.get(name, name) for name in node.output]
        for inner in walk.bodies(node):
            _unique_body(inner, free, seen, renames)


def _own_names(graph: GraphProto) -> set[str]:
    names = {value.name for value in (*graph.input, *graph.initializer)}
    return names | {name for node in graph.node for name in node.output if name}
