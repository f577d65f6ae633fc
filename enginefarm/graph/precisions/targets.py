"""What can be computed in 8 bits: operators, and which of their inputs are quantized."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enginefarm.graph.model import walk

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

WEIGHTS, SUMS, POOLS, PRODUCTS = "weights", "sums", "pools", "products"
GROUPS = (WEIGHTS, SUMS, POOLS, PRODUCTS)
"""Products with constant weights; sums of two activations, as residual connections are; pooling;
products of two activations, as in attention. The last three save memory traffic more than
arithmetic, and are taken where they cost no accuracy."""


@dataclass(frozen=True)
class Target:
    """One operator. activations: indices of the inputs that get a scale for the whole tensor.
    axis: of the output channels in its weight, which is input 1; None where it has none.
    grouped: a convolution in groups of channels, as depthwise ones are."""

    node: str
    op_type: str
    group: str
    activations: tuple[int, ...]
    axis: int | None = None
    grouped: bool = False


def find(model: ModelProto) -> list[Target]:
    """In the graph's order, those in the branches of an If included. Operators in the body of a
    Loop or a Scan stay as they are, because their values cannot be observed from outside.

    model: of `prepare.fp32`, with the dtypes and shapes of its values.
    """
    constants: dict[str, int] = {}
    shapes: dict[str, tuple[object, ...]] = {}
    for graph in branches(model.graph):
        _known(graph, constants, shapes)
    found: list[Target] = []
    for graph in branches(model.graph):
        for node in graph.node:
            target = _product(node, constants) or _other(node, constants, shapes)
            if target is not None:
                found.append(target)
    return found


def branches(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and the branches of every If in it, those in branches included."""
    yield graph
    for node in graph.node:
        if node.op_type == "If":
            for body in walk.bodies(node):
                yield from branches(body)


def _known(
    graph: GraphProto,
    constants: dict[str, int],
    shapes: dict[str, tuple[object, ...]],
) -> None:
    from onnx import TensorProto

    for tensor in graph.initializer:
        constants[tensor.name] = len(tensor.dims) if tensor.data_type == TensorProto.FLOAT else -1
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type == TensorProto.FLOAT and kind.HasField("shape"):
            shapes[value.name] = tuple(
                dim.dim_value or dim.dim_param or None for dim in kind.shape.dim
            )


def _product(node: NodeProto, constants: Mapping[str, int]) -> Target | None:
    if node.op_type not in OUTPUT_AXIS or node.input[0] in constants:
        return None
    rank = constants.get(node.input[1], 0)
    if rank < 2:
        return None
    axis = OUTPUT_AXIS[node.op_type](node, rank)
    grouped = walk.value(node, "group", 1) > 1
    return Target(node.name, node.op_type, WEIGHTS, (0,), axis, grouped)


def _other(
    node: NodeProto, constants: Collection[str], shapes: dict[str, tuple[object, ...]]
) -> Target | None:
    group = OTHERS.get(node.op_type)
    if group is None:
        return None
    inputs = range(1 if group == POOLS else 2)
    read = [shapes.get(node.input[index]) for index in inputs]
    if any(node.input[index] in constants for index in inputs) or None in read:
        return None
    if group == SUMS and not (read[0] == read[1] and len(read[0] or ()) > 2):
        return None
    return Target(node.name, node.op_type, group, tuple(inputs))


OTHERS = {
    "Add": SUMS,
    "AveragePool": POOLS,
    "GlobalAveragePool": POOLS,
    "MatMul": PRODUCTS,
    "MaxPool": POOLS,
}


OUTPUT_AXIS: dict[str, Callable[[NodeProto, int], int]] = {
    "Conv": lambda node, rank: 0,
    "ConvTranspose": lambda node, rank: 1,
    "Gemm": lambda node, rank: 0 if walk.value(node, "transB", 0) else 1,
    "MatMul": lambda node, rank: rank - 1,
}
"""Operator -> axis of the output channels in its weight, by node and the weight's rank."""
