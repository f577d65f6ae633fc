"""Constants of a graph: gathered, widened or narrowed to FP32, rounded to 16 bits, and those that
cannot be."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import ml_dtypes
import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from enginefarm.graph.model import edit, emulate, walk
from enginefarm.graph.model.arrays import Array
from enginefarm.graph.model.edit import FreeNames, copied, rename_inside, replace_nodes

MAX_FP16, MIN_FP16 = 65504.0, 2.0**-24
MIN_NORMAL_FP16 = 2.0**-14
MAX_BF16 = float((2 - 2**-7) * 2.0**127)
MASK = 30000.0
"""What a mask's -1e9 or -3.4e38 becomes in 16 bits: two of them and a score still are finite, and
a score beside one is below FP16's step there, as it is beside -1e9 in FP32."""


def to_initializers(model: ModelProto) -> None:
    """Every Constant node of every graph becomes an initializer, so that a wide operator reads
    the FP32 number, and a low one a number rounded once."""

    def moved(node: NodeProto, graph: GraphProto) -> list[NodeProto] | None:
        tensor = _value(node) if node.op_type == "Constant" else None
        if tensor is None:
            return None
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        return []

    edit.rewrite(model, moved)


def _value(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant; None for a sparse one or for strings."""
    for attribute in node.attribute:
        if attribute.name == "value":
            return copied(attribute.t)
        if attribute.name in NUMBERS:
            field, kind = NUMBERS[attribute.name]
            return numpy_helper.from_array(np.asarray(getattr(attribute, field), kind))
    return None


NUMBERS = {
    "value_float": ("f", "float32"),
    "value_floats": ("floats", "float32"),
    "value_int": ("i", "int64"),
    "value_ints": ("ints", "int64"),
}
"""Attribute of a Constant -> the field that holds its numbers, and their type."""


def overflows(tensor: TensorProto) -> bool:
    """Whether it holds finite numbers beyond FP16's largest, 65504."""
    values = _floats(tensor)
    return bool((np.isfinite(values) & (np.abs(values) > MAX_FP16)).any())


def vanishes(tensor: TensorProto) -> bool:
    """Whether FP16 loses nearly all of it: all of its numbers are below the smallest that
    FP16 holds with full precision, 6.1e-5."""
    values = np.abs(_floats(tensor))
    largest = float(values.max(initial=0.0))
    return 0 < largest < MIN_NORMAL_FP16


def lowered(tensor: TensorProto, name: str, target: int, *, limit: float | None = None) -> Any:
    """The tensor rounded to nearest in `target` (FLOAT16 or BFLOAT16), under that name.

    A finite number stays finite and one above zero stays above it: -3.4e38 becomes the lowest
    number there is, and in FP16 an epsilon of 1e-12 becomes 6e-8.
    limit: what lies beyond 16 bits becomes ±limit (masks).
    """
    values = _floats(tensor)
    fp16 = target == TensorProto.FLOAT16
    largest = MAX_FP16 if fp16 else MAX_BF16
    beyond = np.isfinite(values) & (np.abs(values) > largest)
    values = np.where(beyond, np.copysign(np.float32(limit or largest), values), values)
    if fp16:
        vanishing = (values != 0) & (np.abs(values) < MIN_FP16)
        values = np.where(vanishing, np.copysign(np.float32(MIN_FP16), values), values)
    data = values.astype(np.float16 if fp16 else ml_dtypes.bfloat16).tobytes()
    return helper.make_tensor(name, target, tensor.dims, data, raw=True)


def _floats(tensor: TensorProto) -> Array:
    return np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)


def widen(model: ModelProto) -> None:
    """Makes a graph of half or bfloat16 numbers one of FP32, in place.

    Inputs and outputs of the model keep the dtypes that they are declared with: a Cast stands
    behind each such input and before each such output. Every half and bfloat16 number is an
    FP32 number, so that the weights are the same.
    """
    if not emulate.narrow(model):
        return
    for tensor in walk.tensors(model):
        emulate.widen(tensor)
    for graph in walk.graphs(model.graph):
        border = () if graph is model.graph else (*graph.input, *graph.output)
        edit.retype(graph, border, emulate.LOWS, TensorProto.FLOAT)
        del graph.value_info[:]
    _casts_at_the_border(model, emulate.LOWS)


def _casts_at_the_border(model: ModelProto, narrow: Container[int]) -> None:
    free, graph = FreeNames(model), model.graph
    constants = {tensor.name for tensor in graph.initializer}
    inside: dict[str, str] = {}
    first: list[NodeProto] = []
    last: list[NodeProto] = []
    for value in graph.input:
        if value.type.tensor_type.elem_type not in narrow:
            continue
        if value.name in constants:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
            continue
        inside[value.name] = free.make(f"{value.name}_wide")
        first.append(
            helper.make_node(
                "Cast",
                [value.name],
                [inside[value.name]],
                free.make(f"{value.name}_wide_cast"),
                to=TensorProto.FLOAT,
            )
        )
    for value in graph.output:
        kind = value.type.tensor_type.elem_type
        if kind in narrow:
            source = inside.get(value.name) or free.make(f"{value.name}_wide")
            inside[value.name] = source
            last.append(
                helper.make_node(
                    "Cast", [source], [value.name], free.make(f"{value.name}_cast"), to=kind
                )
            )
    rename_inside(graph.node, inside)
    replace_nodes(graph, [*first, *graph.node, *last])


def to_float32(model: ModelProto) -> bool:
    """In place: every float64 of the graph as float32, as TensorRT computes it. Numbers that
    float32 cannot hold become its largest ones. Returns whether there were any."""
    double, single = TensorProto.DOUBLE, TensorProto.FLOAT
    largest, found = float(np.finfo(np.float32).max), False
    for tensor in walk.tensors(model):
        if tensor.data_type == double:
            values: Array = numpy_helper.to_array(tensor)
            held: Array = np.where(np.isinf(values), values, values.clip(-largest, largest))
            tensor.CopyFrom(numpy_helper.from_array(held.astype(np.float32), tensor.name))
            found = True
    for graph in walk.graphs(model.graph):
        typed = (*graph.input, *graph.output, *graph.value_info)
        found |= edit.retype(graph, typed, (double,), single)
    return found
