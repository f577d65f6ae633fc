"""Operators that are written out in others, as ONNX defines them.

TensorRT's parser lacks some of them, and makes other numbers of others: LogSoftmax as the Log of a
Softmax is -inf where the definition is -110. What is written out is also what is verified.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import onnx
import onnx.inliner
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto, defs, helper

from enginefarm.errors import PrecisionError
from enginefarm.graph.model import onnx_shapes, walk
from enginefarm.graph.model.edit import FreeNames, replace_nodes, rewrite
from enginefarm.graph.reading import affine_grid, small_gru

Shapes = dict[str, list[int | str | None]]
"""Dims by the name of a value; empty until they are needed."""


def _always(node: NodeProto, shapes: Shapes) -> bool:
    return True


def _more_results(node: NodeProto, shapes: Shapes) -> bool:
    """A LayerNormalization that returns its mean, or an Attention that returns its cache."""
    return any(list(node.output)[1:])


MASK, PAST = 3, 4
"""Indices of an Attention's mask, and of the first input behind it."""


def _unusual(node: NodeProto, shapes: Shapes) -> bool:
    """An Attention with more results than the first, or with something that the parser refuses (a
    past, a cap, a precision of its Softmax, a mask and `is_causal`) or ignores: the number of keys
    that are not padding.

    A causal one is usual where it has as many queries as keys: the parser does not say which of
    them belong together otherwise.
    """
    if _more_results(node, shapes) or any(list(node.input)[PAST:]):
        return True
    if walk.value(node, "softcap", 0.0) or walk.value(node, "softmax_precision", 0):
        return True
    if not walk.value(node, "is_causal", 0):
        return False
    queries, keys = (shapes.get(name, []) for name in node.input[:2])
    lengths = [shape[-2] for shape in (queries, keys) if len(shape) in (3, 4)]
    alike = len(lengths) == 2 and lengths[0] is not None and lengths[0] == lengths[1]
    return not alike or any(list(node.input)[MASK:])


DEFINED: dict[str, Callable[[NodeProto, Shapes], bool]] = {
    "Attention": _unusual,
    "CenterCropPad": _always,
    "LayerNormalization": _more_results,
    "LogSoftmax": _always,
    "NegativeLogLikelihoodLoss": _always,
    "SoftmaxCrossEntropyLoss": _always,
}
"""Operator -> which of its nodes are replaced by ONNX's own definition."""


MADE = "enginefarm.definitions"
"""Domain of the functions that hold the definitions, until they are inlined."""
DEEPEST = 4
"""Definitions that use each other: a loss is one of a LogSoftmax."""


def write_out(model: ModelProto) -> tuple[str, ...]:
    """In place. Returns the operators that were written out."""
    found = {node.op_type for graph in walk.graphs(model.graph) for node in graph.node}
    changed = [name for name, write in WRITERS.items() if name in found and write(model)]
    for _ in range(DEEPEST):
        named = _defined(model)
        if not named:
            break
        changed += [name for name in named if name not in changed]
    return tuple(changed)


def _defined(model: ModelProto) -> list[str]:
    """Replaces nodes by ONNX's definitions of their operators, and returns these.

    A definition depends on the types of what the node reads. A node for which ONNX has none stays.
    """
    if not any(_asks(node, {}) for node in walk.nodes(model.graph)):
        return []
    light = onnx_shapes.without_weights(model)  # protobuf's limit is 2 GiB
    with suppress(PrecisionError):  # a definition that needs no types is found all the same
        onnx_shapes.infer_types(light)
    types = onnx_shapes.known_types(list(walk.graphs(light.graph)))
    shapes = onnx_shapes.known_shapes(walk.graphs(light.graph))
    named, opset = set[str](), walk.opset(light)
    for node in walk.nodes(light.graph):
        definition = _definition(node, opset, types) if _asks(node, shapes) else None
        if definition is None:
            continue
        named.add(node.op_type)
        definition.domain, definition.name = MADE, f"{node.op_type}_{len(light.functions)}"
        node.domain, node.op_type = definition.domain, definition.name
        # Operators of a definition mean the same at the graph's opset, or ONNX would have another
        # one for it; onnx's inliner wants the number to be equal.
        for version in definition.opset_import:
            version.version = opset
        light.functions.append(definition)
    if not named:
        return []
    light.opset_import.add(domain=MADE, version=1)
    made = onnx.inliner.inline_local_functions(light)
    replace_nodes(model.graph, made.graph.node)
    return sorted(named)


def _asks(node: NodeProto, shapes: Shapes) -> bool:
    return not node.domain and node.op_type in DEFINED and DEFINED[node.op_type](node, shapes)


def _definition(node: NodeProto, opset: int, types: dict[str, int]) -> FunctionProto | None:
    schema: Any = defs.get_schema(node.op_type, opset, "")
    if schema.has_function:
        text: bytes = schema.get_function_with_opset_version(
            _newest(schema.function_opset_versions, opset)
        )
    else:
        given: list[bytes] = []
        for name in node.input:
            kind = TypeProto()
            if name:
                kind.tensor_type.elem_type = types.get(name, 0)
            given.append(kind.SerializeToString())
        text = schema.get_context_dependent_function_with_opset_version(
            _newest(schema.context_dependent_function_opset_versions, opset),
            node.SerializeToString(),
            given,
        )
    made = FunctionProto()
    made.ParseFromString(text)
    return made if made.node else None


def _newest(versions: list[int], opset: int) -> int:
    """The newest definition that a graph of this opset can hold."""
    return max((one for one in versions if one <= opset), default=opset)


def _absolute_before_pooling(model: ModelProto) -> bool:
    """GlobalLpPool is the root of a sum of powers of |x|; the parser leaves the bars out, which
    changes it where the power is odd."""
    free = FreeNames(model)

    def with_bars(node: NodeProto, _: GraphProto) -> list[NodeProto] | None:
        if node.op_type != "GlobalLpPool" or walk.value(node, "p", 2) % 2 == 0:
            return None
        name = free.make(f"{node.input[0]}_absolute")
        bars = helper.make_node("Abs", [node.input[0]], [name], name)
        node.input[0] = name
        return [bars, node]

    return rewrite(model, with_bars)


WRITERS: dict[str, Callable[[ModelProto], bool]] = {
    affine_grid.OPERATOR: affine_grid.write_out,
    "GlobalLpPool": _absolute_before_pooling,
    small_gru.OPERATOR: small_gru.write_out,
}
"""Operator -> what mends its nodes in place, and says whether it did."""
