"""Walks over the graphs, nodes and tensors of a model, the bodies of If, Loop and Scan included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

LARGEST_BYTES = 1 << 30
"""The most bytes of weights of a small model: what tries several graphs of a model holds it once
more for each, and the memory of a stage has to stay a small multiple of the weights."""


def bodies(node: NodeProto) -> list[GraphProto]:
    """The graphs inside a node: branches of an If, the body of a Loop or a Scan."""
    found: list[GraphProto] = []
    for attribute in node.attribute:
        found += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
    return found


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and every body in it."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from graphs(body)


def nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of the graph, then those of the bodies in it."""
    for inner in graphs(graph):
        yield from inner.node


def nested(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Each node, followed by those of its bodies."""
    for node in nodes:
        yield node
        for body in bodies(node):
            yield from nested(body.node)


def nested_ifs(graph: GraphProto) -> list[NodeProto]:
    """Ifs at any depth inside the branches of the graph's own Ifs."""
    return [
        inner
        for node in graph.node
        if node.op_type == "If"
        for body in bodies(node)
        for inner in nested(body.node)
        if inner.op_type == "If"
    ]


def reads(graph: GraphProto) -> set[str]:
    """The names of all values that the graph and its bodies read or return."""
    found = {name for node in nodes(graph) for name in node.input}
    return found | {output.name for inner in graphs(graph) for output in inner.output}


def reads_of(node: NodeProto) -> set[str]:
    """The names of all values that the node and its bodies read."""
    return set(node.input).union(*map(reads, bodies(node)))


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor with values: initializers and constants, and those of functions that
    `onnx_files.read` left."""
    owners: list[Any] = [*graphs(model.graph), *model.functions]
    outside = (body for one in model.functions for node in one.node for body in bodies(node))
    for owner in (*owners, *(graph for body in outside for graph in graphs(body))):
        yield from getattr(owner, "initializer", ())  # functions have none
        for attribute in (attribute for node in owner.node for attribute in node.attribute):
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def is_small(model: ModelProto) -> bool:
    """Whether the model may be in memory once more."""
    return sum(tensor.ByteSize() for tensor in tensors(model)) <= LARGEST_BYTES


def constants(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """The name and the tensor of each initializer and Constant, bodies included."""
    for inner in graphs(graph):
        yield from ((tensor.name, tensor) for tensor in inner.initializer)
        for node in inner.node:
            if node.op_type == "Constant" and (value := attributes(node).get("value")):
                yield node.output[0], value.t


def attributes(node: NodeProto) -> dict[str, AttributeProto]:
    """The attributes of the node by name."""
    return {attribute.name: attribute for attribute in node.attribute}


def value(node: NodeProto, name: str, default: Any) -> Any:
    """The node's attribute of that name; `default`, an int, a float or bytes, where it has none.
    The default says which of them it is: files of IR version 1 do not."""
    found = attributes(node).get(name)
    return default if found is None else getattr(found, FIELDS[type(default)])


FIELDS = {int: "i", float: "f", bytes: "s"}
"""Type of an attribute -> the field of an AttributeProto that holds it."""


def label(node: NodeProto) -> str:
    """What messages call the node: its name, or else its first result's."""
    return node.name or next(iter(node.output), "")


def opset(model: ModelProto) -> int:
    """The version of the default operator set; 0 where the model imports none."""
    return next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
