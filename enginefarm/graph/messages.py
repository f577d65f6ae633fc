"""Copies protobuf messages: a node that is in a graph cannot be put into another list as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


def copied(message: Any) -> Any:
    made = type(message)()
    made.CopyFrom(message)
    return made


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Gives a graph copies of these nodes instead of its own. The nodes may be the graph's."""
    copies = [copied(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
