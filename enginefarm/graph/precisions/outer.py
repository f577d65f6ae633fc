"""MatMul of a column with a row as the Mul that it is.

Positions times frequencies are written so in most text models (`position_ids @ inv_freq`). As a
Mul it can stay in FP32 on every GPU; TensorRT-RTX has no FP32 MatMul on compute capability 7.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginefarm.graph import onnx_files
from enginefarm.graph.onnx_shapes import known_dim
from enginefarm.graph.precisions.graph import infer_types

if TYPE_CHECKING:
    from onnx import ModelProto


def as_mul(model: ModelProto) -> None:
    """In place: each MatMul whose sum has one term becomes a Mul, which broadcasts the same way.

    Raises: PrecisionError where shapes cannot be inferred.
    """
    graphs = list(onnx_files.graphs(model.graph))
    products = [node for graph in graphs for node in graph.node if node.op_type == "MatMul"]
    if not products:
        return
    infer_types(model)
    shapes: dict[str, list[int | str | None]] = {
        value.name: [known_dim(dim) for dim in value.type.tensor_type.shape.dim]
        for graph in graphs
        for value in (*graph.value_info, *graph.input)
    }
    shapes |= {tensor.name: list(tensor.dims) for graph in graphs for tensor in graph.initializer}
    for node in products:
        left, right = (shapes.get(name, []) for name in node.input)
        if len(left) > 1 and len(right) > 1 and 1 in (left[-1], right[-2]):
            node.op_type = "Mul"
