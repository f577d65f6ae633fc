"""Inlines a model's local functions into its graph.

Nothing after this looks into functions, so types, weights and operators inside them are treated
as all others are. A few hundred bytes of functions that call each other can stand for more nodes
than any machine holds: their size is computed before anything is written out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from enginefarm.errors import EnginefarmError
from enginefarm.graph.model.walk import nested

if TYPE_CHECKING:
    from collections.abc import Iterable

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
                f"{name}: the function {operator!r} has the name of an operator of ONNX",
                why="runtimes differ in which of the two a node of that name is",
                fix="give the function a name, or a domain, of its own",
            )
    _Sizes(model.functions, name, error).require_room(model, limit_nodes)
    if all(
        version in model.opset_import for one in model.functions for version in one.opset_import
    ):
        return onnx.inliner.inline_local_functions(model)
    try:  # the conversion needs every type
        typed = onnx.shape_inference.infer_shapes(model)
        return onnx.inliner.inline_local_functions(typed, convert_version=True)
    except Exception:  # it does not convert every operator
        return onnx.inliner.inline_local_functions(model)


class _Sizes:
    """The size of each function, computed once, whoever calls it."""

    def __init__(
        self, functions: Iterable[FunctionProto], name: str, error: type[EnginefarmError]
    ) -> None:
        self._functions = {_key(one.domain, one.name, one.overload): one for one in functions}
        self._known: dict[Key, Size] = {}
        self._name = name
        self._error = error

    def require_room(self, model: ModelProto, limit_nodes: int) -> None:
        total, worst, worst_nodes = self._of(model.graph.node, ()), "", -1
        for node in nested(model.graph.node):
            key = _key_of(node)
            if key in self._functions and self._known[key].nodes > worst_nodes:
                worst, worst_nodes = node.op_type, self._known[key].nodes
        if total.nodes > limit_nodes:
            raise self._error(
                f"{self._name}: {_counted(total.nodes)} nodes with its functions written out is "
                f"over the limit of {limit_nodes}",
                why=f"one call of the function {worst!r} stands for {_counted(worst_nodes)} nodes",
                fix="export the model with fewer calls of functions inside functions",
            )
        size_bytes = model.ByteSize() + total.size_bytes
        if size_bytes > LIMIT_BYTES:
            raise self._error(
                f"{self._name}: {_counted(size_bytes)} bytes with its functions written out is "
                f"over the limit of {LIMIT_BYTES}",
                why="constants inside a function are repeated at each call",
                fix="export the model with its weights as initializers of the main graph",
            )

    def _of(self, nodes: Iterable[NodeProto], callers: tuple[Key, ...]) -> Size:
        """What these nodes stand for. depth: of functions inside functions."""
        count = size_bytes = depth = 0
        for node in nested(nodes):
            key = _key_of(node)
            if key not in self._functions:
                count += 1
                continue
            found = self._of_function(key, callers)
            count += found.nodes
            size_bytes += found.size_bytes
            depth = max(depth, found.depth + 1)
        return Size(min(count, CEILING), min(size_bytes, CEILING), depth)

    def _of_function(self, key: Key, callers: tuple[Key, ...]) -> Size:
        if key in callers:
            raise self._error(
                f"{self._name}: the function {key[1]!r} calls itself",
                why=" calls ".join(repr(one[1]) for one in (*callers[callers.index(key) :], key)),
                fix="a function of an ONNX model cannot be recursive; use a Loop",
            )
        if key not in self._known:
            nodes = self._functions[key].node
            inside = Size(depth=LIMIT_DEPTH)
            if len(callers) < LIMIT_DEPTH:
                inside = self._of(nodes, (*callers, key))
            if inside.depth >= LIMIT_DEPTH:
                raise self._error(
                    f"{self._name}: functions call functions more than {LIMIT_DEPTH} deep",
                    why=f"the function {key[1]!r} is one of them",
                    fix="export the model with fewer functions inside functions",
                )
            own_bytes = sum(node.ByteSize() for node in nodes)
            self._known[key] = inside._replace(size_bytes=inside.size_bytes + own_bytes)
        return self._known[key]


def _key_of(node: NodeProto) -> Key:
    return _key(node.domain, node.op_type, node.overload)


def _key(domain: str, name: str, overload: str) -> Key:
    return ("" if domain == "ai.onnx" else domain, name, overload)


def _counted(number: int) -> str:
    return f"more than {CEILING}" if number >= CEILING else str(number)
