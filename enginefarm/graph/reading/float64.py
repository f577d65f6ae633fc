"""Rewrites float64 inside a graph as float32: TensorRT has no float64."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from enginefarm.graph.model import edit, walk

if TYPE_CHECKING:
    from onnx import ModelProto


def to_float32(model: ModelProto) -> bool:
    """In place: every float64 of the graph as float32, as TensorRT computes it. Numbers that
    float32 cannot hold become its largest ones. Returns whether there were any."""
    from onnx import TensorProto, numpy_helper

    np: Any = import_module("numpy")  # its functions are typed in part
    double, single = TensorProto.DOUBLE, TensorProto.FLOAT
    largest, found = float(np.finfo(np.float32).max), False
    for tensor in walk.tensors(model):
        if tensor.data_type == double:
            values: Any = numpy_helper.to_array(tensor)
            held: Any = np.where(np.isinf(values), values, np.clip(values, -largest, largest))
            tensor.CopyFrom(numpy_helper.from_array(held.astype(np.float32), tensor.name))
            found = True
    for graph in walk.graphs(model.graph):
        values = (*graph.input, *graph.output, *graph.value_info)
        found |= edit.retype(graph, values, (double,), single)
    return found
