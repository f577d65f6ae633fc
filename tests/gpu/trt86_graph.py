"""A graph of ours as TensorRT 8.6 can take it.

Its parser knows the operators of opset 17. It takes later ones for those, without what was added
since: a ReduceMean whose axes are an input reduces all of them, and a Shape from `start` to `end`
is the whole shape. `lowered` writes them as opset 17 has them.

Our INT8 graphs are of opset 19: FP16 values, FP16 scales, and weights stored in 8 bits. 8.6
knows none of these. The same numbers are written as it wants them: FP32 values, and Q and DQ
around FP32 weights, which round to the very same 8 bits. Its builder flags then choose the
precisions, as they did before networks were strongly typed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
AXES_ARE_AN_ATTRIBUTE = {
    f"Reduce{kind}"
    for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
}
ADDED_SINCE = {
    **{kind: {"noop_with_empty_axes"} for kind in AXES_ARE_AN_ATTRIBUTE},
    "Cast": {"saturate"},
    "Resize": {"antialias", "axes", "keep_aspect_ratio_policy"},
    "Split": {"num_outputs"},
}
"""Attributes that 8.6 does not know, by operator; our graphs use none of them but to say what is
so without them."""
GRID_MODES = {b"linear": b"bilinear", b"cubic": b"bicubic"}
"""GridSample's modes as opset 20 names them, and as opset 16 does."""


def values_in_fp32(path: Path) -> set[str]:
    """Names of the values that a graph computes in FP32."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    made = (*graph.value_info, *graph.output)
    return {one.name for one in made if one.type.tensor_type.elem_type == TensorProto.FLOAT}


def lowered(src: Path, dest: Path) -> Path:
    model = onnx.load(src)
    known = onnx.shape_inference.infer_shapes(model).graph
    types = {one.name: one.type.tensor_type.elem_type for one in (*known.value_info, *known.input)}
    _lower(model.graph, {}, types)
    model.opset_import[0].version = min(model.opset_import[0].version, OPSET)
    model.ir_version = 8
    onnx.save(model, dest)
    return dest


def _lower(graph: onnx.GraphProto, outer: dict[str, TensorProto], types: dict[str, int]) -> None:
    constants = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
    constants |= {
        node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"
    }
    nodes = []
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "GridSample" and attribute.name == "mode":
                attribute.s = GRID_MODES.get(attribute.s, attribute.s)
            if attribute.type == onnx.AttributeProto.GRAPH:
                _lower(attribute.g, constants, types)
        for name in ADDED_SINCE.get(node.op_type, ()):
            _drop(node, name)
        if node.op_type in AXES_ARE_AN_ATTRIBUTE and len(node.input) > 1:
            axes = numpy_helper.to_array(constants[node.input.pop()])
            node.attribute.append(helper.make_attribute("axes", axes.tolist()))
        if node.op_type == "Shape" and node.attribute:
            nodes += _part_of_shape(node, graph)
        elif node.op_type == "Gelu":
            dtype = helper.tensor_dtype_to_np_dtype(types.get(node.input[0], TensorProto.FLOAT))
            nodes += _gelu(node, graph, dtype)
        else:
            nodes.append(_copy(node))
    del graph.node[:]
    graph.node.extend(nodes)


def _part_of_shape(node: onnx.NodeProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    part, whole = node.output[0], f"{node.output[0]}.whole"
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    limits = [bounds.get("start", 0), bounds.get("end", 2**31 - 1), 0]
    names = [f"{part}.{name}" for name in ("from", "to", "axis")]
    graph.initializer.extend(
        numpy_helper.from_array(np.array([limit]), name)
        for name, limit in zip(names, limits, strict=True)
    )
    return [
        helper.make_node("Shape", [node.input[0]], [whole]),
        helper.make_node("Slice", [whole, *names], [part]),
    ]


def _gelu(node: onnx.NodeProto, graph: onnx.GraphProto, dtype: Any) -> list[onnx.NodeProto]:
    """x / 2 · (1 + erf(x / √2)), or with tanh for erf where the node approximates."""
    x, y = node.input[0], node.output[0]
    tanh = any(attribute.s == b"tanh" for attribute in node.attribute)
    numbers = {"half": 0.5, "one": 1, "inner": (2 / np.pi) ** 0.5 if tanh else 0.5**0.5}
    numbers |= {"cubic": 0.044715} if tanh else {}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(number, dtype), f"{y}.{name}")
        for name, number in numbers.items()
    )
    steps = [("Mul", [x, f"{y}.half"], f"{y}.halved")]
    inner = x
    if tanh:
        steps += [
            ("Mul", [x, x], f"{y}.square"),
            ("Mul", [f"{y}.square", x], f"{y}.cube"),
            ("Mul", [f"{y}.cube", f"{y}.cubic"], f"{y}.part"),
            ("Add", [x, f"{y}.part"], f"{y}.sum"),
        ]
        inner = f"{y}.sum"
    steps += [
        ("Mul", [inner, f"{y}.inner"], f"{y}.scaled"),
        ("Tanh" if tanh else "Erf", [f"{y}.scaled"], f"{y}.curve"),
        ("Add", [f"{y}.curve", f"{y}.one"], f"{y}.raised"),
        ("Mul", [f"{y}.halved", f"{y}.raised"], y),
    ]
    return [helper.make_node(kind, given, [made]) for kind, given, made in steps]


def _drop(node: onnx.NodeProto, name: str) -> None:
    for index, attribute in enumerate(node.attribute):
        if attribute.name == name:
            del node.attribute[index]
            return


def lifted(src: Path, dest: Path) -> Path:
    model = onnx.load(src)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    nodes = []
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            nodes.append(_quantize_weight(node, constants))
        nodes.append(node)
    copies = [_copy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    del graph.value_info[:]
    model.opset_import[0].version = OPSET
    model.ir_version = 8
    onnx.save(model, dest)
    return dest


def _quantize_weight(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> onnx.NodeProto:
    """Turns an 8-bit weight into FP32, and gives the Q that rounds it back."""
    weight, scale = node.input[0], numpy_helper.to_array(constants[node.input[1]])
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    stored = numpy_helper.to_array(constants[weight]).astype(np.float32)
    shape = [-1 if index == axis else 1 for index in range(stored.ndim)]
    wide = stored * (scale.reshape(shape) if scale.ndim else scale)
    constants[weight].CopyFrom(numpy_helper.from_array(wide.astype(np.float32), weight))
    rounded = f"{weight}.rounded"
    made = helper.make_node("QuantizeLinear", [weight, *node.input[1:]], [rounded], axis=axis)
    node.input[0] = rounded
    return made


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied
