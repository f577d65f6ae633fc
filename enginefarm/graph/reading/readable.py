"""Rewrites what later tools do not read: nodes in another order, sparse tensors, parts of a Split
without a name, and names that two nodes share."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from math import prod
from typing import Any

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    defs,
    numpy_helper,
)

from enginefarm.errors import SourceError, one_line
from enginefarm.graph.model import walk
from enginefarm.graph.model.constants import to_initializers
from enginefarm.graph.model.edit import FreeNames, replace_nodes

MODE_OF_ITS_OWN = 14
"""The first opset in which an attribute says that a BatchNormalization trains. Before, it is that
it has more results than one."""
LARGEST = 1 << 28
"""The most elements of a sparse tensor that is written out: 1 GiB in FP32."""


def make_readable(model: ModelProto, what: str) -> None:
    """In place: sparse initializers and constants as dense ones, and every constant that is numbers
    as an initializer: OnnxSlim makes double numbers of `value_floats`. Nodes come after those that
    they read. Then a name for each graph, which onnx's checker wants, for each part of a Split, and
    one for each node of a graph, since ONNX Runtime refuses two nodes of one name. `ai.onnx`
    becomes the empty domain that it means.

    Raises: SourceError for a sparse tensor that is too large or is not valid.
    """
    opset, read = walk.opset(model), walk.reads(model.graph)
    for graph in list(walk.graphs(model.graph))[::-1]:  # bodies first: sorting copies them
        _in_order(graph)
    for graph in walk.graphs(model.graph):
        graph.name = graph.name or "graph"
        graph.initializer.extend(dense(sparse, what) for sparse in graph.sparse_initializer)
        del graph.sparse_initializer[:]
        for node in graph.node:
            node.domain = "" if node.domain == "ai.onnx" else node.domain
            _drop_optional_results(node, opset, read)
            for attribute in node.attribute:
                if attribute.HasField("sparse_tensor"):
                    attribute.t.CopyFrom(dense(attribute.sparse_tensor, what))
                    attribute.ClearField("sparse_tensor")
                    attribute.name, attribute.type = "value", attribute.TENSOR
    to_initializers(model)
    _name_parts(model)
    _distinct_nodes(model)


def _in_order(graph: GraphProto) -> None:
    """In place: each node after those that it reads from, as ONNX asks and ONNX Runtime does not:
    its own FP16 converter writes its Casts at the end. A circle stays."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = [
        [makers[name] for name in sorted(walk.reads_of(node)) if name in makers]
        for node in graph.node
    ]
    if any(max(before, default=-1) >= index for index, before in enumerate(needs)):
        try:
            order = list(TopologicalSorter(dict(enumerate(needs))).static_order())
        except CycleError:
            return  # the checker says so
        replace_nodes(graph, [graph.node[index] for index in order])


def _drop_optional_results(node: NodeProto, opset: int, read: set[str]) -> None:
    """Optional results that nobody reads, such as the mean of a LayerNormalization: TensorRT counts
    the names, and refuses the node."""
    if len(node.output) < 2 or node.domain or not defs.has(node.op_type, opset, ""):
        return
    if node.op_type == "BatchNormalization" and opset < MODE_OF_ITS_OWN:
        return
    optional = defs.OpSchema.FormalParameterOption.Optional
    formal: list[Any] = [*defs.get_schema(node.op_type, opset, "").outputs]
    for index in range(1, min(len(node.output), len(formal))):
        if formal[index].option == optional and node.output[index] not in read:
            node.output[index] = ""
    while len(node.output) > 1 and not node.output[-1] and len(node.output) <= len(formal):
        if formal[len(node.output) - 1].option != optional:
            return
        node.output.pop()


def dense(sparse: SparseTensorProto, what: str) -> TensorProto:
    """The same tensor with its zeros. Raises: SourceError."""
    name, dims = sparse.values.name, tuple(sparse.dims)
    if prod(dims) > LARGEST:
        raise SourceError(
            f"{what}: the sparse tensor {name!r} of shape {dims} is too large to be made dense",
            why=f"it has {prod(dims)} elements with its zeros, and the limit is {LARGEST}",
            fix="engines have no sparse tensors: make it smaller, or split it",
        )
    try:
        values: Any = numpy_helper.to_array(sparse.values)
        indices: Any = numpy_helper.to_array(sparse.indices)
        made = np.zeros(dims, values.dtype)
        if ((indices < 0) | (indices >= (made.size if indices.ndim == 1 else dims))).any():
            raise ValueError(f"an index is outside of the shape {dims}")
        if indices.ndim == 1:
            made.reshape(-1)[indices] = values
        else:
            made[tuple(indices.T)] = values
    except Exception as cause:
        raise SourceError(
            f"{what}: the sparse tensor {name!r} is not valid",
            why=one_line(cause, 200),
            fix="export the model again, with dense tensors",
        ) from cause
    return numpy_helper.from_array(made, name)


def _name_parts(model: ModelProto) -> None:
    """TensorRT refuses a Split that has a part without a name, and ONNX Runtime 1.32 crashes."""
    free: FreeNames | None = None
    for node in nameless_parts(model):
        for index, name in enumerate(node.output):
            if not name:
                free = free or FreeNames(model)
                node.output[index] = free.make(f"{node.name or 'split'}_part_{index}")


def nameless_parts(model: ModelProto) -> list[NodeProto]:
    """Splits with a part that has no name."""
    splits = (node for node in walk.nodes(model.graph) if node.op_type == "Split")
    return [node for node in splits if not all(node.output)]


def _distinct_nodes(model: ModelProto) -> None:
    free: FreeNames | None = None
    for graph in walk.graphs(model.graph):
        seen: set[str] = set()
        for node in graph.node:
            if node.name and node.name in seen:
                free = free or FreeNames(model)
                node.name = free.make(f"{node.name}_again")
            seen.add(node.name)
