"""Inlines a model's local functions into its graph.

Nothing after this looks into functions, so types, weights and operators inside them are treated
as all others are. A few hundred bytes of functions that call each other can stand for more nodes
than any machine holds: their size is computed before anything is written out.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, NamedTuple

from enginefarm.errors import EnginefarmError
from enginefarm.graph.model.walk import nested

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from onnx import FunctionProto, ModelProto, NodeProto

LIMIT_BYTES = 1 << 31
"""Protobuf's own: a larger graph cannot be one message."""
LIMIT_DEPTH = 100
"""onnx's own, of functions that call functions."""

CEILING = 10**15
"""Larger counts are not distinguished."""

Key = tuple[str, str, str]
"""Domain, name and overload."""


class Size(NamedTuple):
    """What a call becomes when it is written out. depth: of functions inside functions."""

    nodes: int = 0
    size_bytes: int = 0
    depth: int = 0


def inlined(
    model: ModelProto, name: str, *, limit_nodes: int, error: type[EnginefarmError]
) -> ModelProto:
    """The same model without local functions, or, where onnx cannot convert one of them to the
    model's opset, with those that are left.

    name: of the model, as errors say it. The weights of the model may be outside it still.
    Raises: `error` for functions that call themselves, or have the name of an operator of ONNX, and
    for more nodes or bytes than fit.
    """
    if not model.functions:
        return model
    import onnx
    import onnx.inliner

    for one in model.functions:
        domain, operator, _ = _key(one.domain, one.name, one.overload)
        if not domain and onnx.defs.has(operator):
            raise error(
                f"{name}: the function {operator!r} has the name of an ONNX operator",
                why="runtimes differ in which of the two they run for such a node",
                fix="give the function another name or another domain",
            )
    _require_room(model, name, limit_nodes, error)
    if all(
        version in model.opset_import for one in model.functions for version in one.opset_import
    ):
        return onnx.inliner.inline_local_functions(model)
    try:  # the conversion needs every type
        typed = onnx.shape_inference.infer_shapes(model)
        return onnx.inliner.inline_local_functions(typed, convert_version=True)
    except Exception:  # it does not convert every operator
        return onnx.inliner.inline_local_functions(model)


def _require_room(
    model: ModelProto, name: str, limit_nodes: int, error: type[EnginefarmError]
) -> None:
    """The size of each function is computed once, whoever calls it."""
    functions = {_key(one.domain, one.name, one.overload): one for one in model.functions}
    known: dict[Key, Size] = {}

    def size(nodes: Iterable[NodeProto]) -> Size:
        """What these nodes stand for."""
        count = size_bytes = depth = 0
        for node in nested(nodes):
            found = known.get(_key_of(node), Size(1, depth=-1))
            count += found.nodes
            size_bytes += found.size_bytes
            depth = max(depth, found.depth + 1)
        return Size(min(count, CEILING), min(size_bytes, CEILING), depth)

    for key in _inner_first(functions, name, error):
        nodes = functions[key].node
        inside = size(nodes)
        if inside.depth >= LIMIT_DEPTH:
            raise error(
                f"{name}: functions call functions more than {LIMIT_DEPTH} deep",
                why=f"the function {key[1]!r} is one of them",
                fix="export the model with fewer functions inside functions",
            )
        own_bytes = sum(node.ByteSize() for node in nodes)
        known[key] = inside._replace(size_bytes=inside.size_bytes + own_bytes)
    total = size(model.graph.node)
    if total.nodes > limit_nodes:
        called = [key for node in nested(model.graph.node) if (key := _key_of(node)) in known]
        worst = max(called, key=lambda key: known[key].nodes)
        raise error(
            f"{name}: {_counted(total.nodes)} nodes with its functions written out is "
            f"over the limit of {limit_nodes}",
            why=f"one call of the function {worst[1]!r} stands for "
            f"{_counted(known[worst].nodes)} nodes",
            fix="export the model with fewer calls of functions inside functions",
        )
    size_bytes = model.ByteSize() + total.size_bytes
    if size_bytes > LIMIT_BYTES:
        raise error(
            f"{name}: {_counted(size_bytes)} bytes with its functions written out is "
            f"over the limit of {LIMIT_BYTES}",
            why="constants inside a function are repeated at each call",
            fix="export the model with its weights as initializers of the main graph",
        )


def _inner_first(
    functions: Mapping[Key, FunctionProto], name: str, error: type[EnginefarmError]
) -> list[Key]:
    """Each function after those that it calls. Raises: `error` for one that calls itself."""
    calls = {
        key: {inner for node in nested(one.node) if (inner := _key_of(node)) in functions}
        for key, one in functions.items()
    }
    try:
        return [*TopologicalSorter(calls).static_order()]
    except CycleError as cause:
        circle: list[Key] = cause.args[1][:0:-1]
        start = circle.index(min(circle, key=[*functions].index))
        circle = [*circle[start:], *circle[: start + 1]]
        raise error(
            f"{name}: the function {circle[0][1]!r} calls itself",
            why=" calls ".join(repr(key[1]) for key in circle),
            fix="a function of an ONNX model cannot be recursive; use a Loop",
        ) from None


def _key_of(node: NodeProto) -> Key:
    return _key(node.domain, node.op_type, node.overload)


def _key(domain: str, name: str, overload: str) -> Key:
    return ("" if domain == "ai.onnx" else domain, name, overload)


def _counted(number: int) -> str:
    return f"more than {CEILING}" if number >= CEILING else str(number)
