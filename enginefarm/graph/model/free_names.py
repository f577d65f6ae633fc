"""Names that no value and no node of a model has yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginefarm.graph.model import walk
from enginefarm.graph.model.walk import bodies

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from onnx import GraphProto, ModelProto, NodeProto


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
        for body in bodies(node):
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
        for body in bodies(node):
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
        for inner in bodies(node):
            _unique_body(inner, free, seen, renames)


def _own_names(graph: GraphProto) -> set[str]:
    names = {value.name for value in (*graph.input, *graph.initializer)}
    return names | {name for node in graph.node for name in node.output if name}
