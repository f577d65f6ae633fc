"""Explicit quantisation: Q/DQ pairs around what TensorRT runs in 8 bits.

Conv, ConvTranspose, Gemm and MatMul with constant weights get a per-tensor Q/DQ on the
activation and a per-channel DQ on the weight, both symmetric. Outputs, biases and products
of two activations (attention) stay in the base precision: quantising those costs accuracy
and gains TensorRT nothing that it does not fuse by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from enginefarm.errors import PrecisionError
from enginefarm.graph.precisions.graph import keep_initializers

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, NodeProto, TensorProto

    Array = np.ndarray[Any, Any]

MIN_SCALE = 2.0**-20
"""FP16 holds smaller numbers, down to 2**-24, with too few bits to scale by."""


@dataclass(frozen=True)
class Storage:
    """An 8-bit number: its ONNX element type, and the largest magnitude that it holds."""

    element: str
    largest: float


INT8 = Storage("INT8", 127.0)
FP8 = Storage("FLOAT8E4M3FN", 448.0)


@dataclass(frozen=True)
class Counts:
    quantize: int
    dequantize: int
    nodes: int


def activations(model: ModelProto) -> tuple[str, ...]:
    """Names of the tensors that need a range, in graph order.

    Raises: PrecisionError when the graph is quantised already, or has nothing to quantise.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise PrecisionError(
            "the graph has Q/DQ nodes already",
            fix="start from the FP32 model, or ask for fp16, which keeps the Q/DQ it has",
        )
    names = [model.graph.node[index].input[0] for index in _axes(model)]
    if not names:
        raise PrecisionError(
            "there is nothing to quantise: no Conv, Gemm or MatMul has constant weights",
            fix="drop int8/fp8 from the recipe's precisions",
        )
    return tuple(dict.fromkeys(names))


def insert(model: ModelProto, ranges: Mapping[str, float], storage: Storage) -> Counts:
    """Rewrites the FP32 graph in place, with these ranges of |x| for its activations.

    Scales are rounded to FP16 first, so that an FP16 base computes the same.
    """
    from onnx import helper

    targets = _axes(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    uses = _uses(model)
    dequantized: dict[str, str] = {}
    nodes: list[NodeProto] = []
    quantize = dequantize = 0
    for index, node in enumerate(model.graph.node):
        axis = targets.get(index)
        if axis is not None:
            source, weight = node.input[0], node.input[1]
            if source not in dequantized:
                scale, zero = _add_scale(model, source, ranges[source], storage)
                middle, result = f"{source}_quantized", f"{source}_dequantized"
                nodes.append(
                    helper.make_node(
                        "QuantizeLinear", [source, scale, zero], [middle], f"{source}_Q"
                    )
                )
                nodes.append(
                    helper.make_node(
                        "DequantizeLinear", [middle, scale, zero], [result], f"{source}_DQ"
                    )
                )
                dequantized[source] = result
                quantize, dequantize = quantize + 1, dequantize + 1
            key = f"{weight}@{axis}"
            if key not in dequantized:
                nodes.append(_weight(model, weights[weight], axis, storage))
                dequantized[key] = nodes[-1].output[0]
                dequantize += 1
            uses[weight] -= 1
            node.input[0], node.input[1] = dequantized[source], dequantized[key]
        nodes.append(node)
    _replace(model, nodes, {name for name in weights if not uses[name]})
    return Counts(quantize, dequantize, len(targets))


def _axes(model: ModelProto) -> dict[int, int]:
    """Index of each node that can be quantised -> output-channel axis of its weight."""
    from onnx import TensorProto

    weights = {
        tensor.name: len(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    found: dict[int, int] = {}
    for index, node in enumerate(model.graph.node):
        if node.op_type not in OUTPUT_AXIS or node.input[0] in weights:
            continue
        rank = weights.get(node.input[1], 0)
        if rank >= 2:
            found[index] = OUTPUT_AXIS[node.op_type](node, rank)
    return found


def _transposed(node: NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


OUTPUT_AXIS: dict[str, Callable[[NodeProto, int], int]] = {
    "Conv": lambda node, rank: 0,
    "ConvTranspose": lambda node, rank: 1,
    "Gemm": lambda node, rank: 0 if _transposed(node) else 1,
    "MatMul": lambda node, rank: rank - 1,
}
"""Operator -> axis of the output channels in its weight, by node and the weight's rank."""


def _uses(model: ModelProto) -> dict[str, int]:
    from collections import Counter

    from enginefarm.graph.onnx_files import graphs

    uses: Counter[str] = Counter()
    for graph in graphs(model.graph):
        for node in graph.node:
            uses.update(node.input)
        uses.update(output.name for output in graph.output)
    return uses


def _replace(model: ModelProto, nodes: list[NodeProto], unused: set[str]) -> None:
    from onnx import NodeProto as Node

    copies: list[NodeProto] = []
    for node in nodes:
        copy = Node()
        copy.CopyFrom(node)
        copies.append(copy)
    del model.graph.node[:]
    model.graph.node.extend(copies)
    keep_initializers(model.graph, {tensor.name for tensor in model.graph.initializer} - unused)


def _scale(amax: Any, storage: Storage) -> Any:
    """amax / largest, rounded up to an FP16 number, so that amax still fits."""
    import numpy as np

    wanted = np.maximum(np.asarray(amax, np.float64) / storage.largest, MIN_SCALE)
    rounded = wanted.astype(np.float16)
    low = rounded.astype(np.float64) < wanted
    rounded = np.where(low, np.nextafter(rounded, np.float16(np.inf)), rounded)
    return rounded.astype(np.float32)


def _add_scale(model: ModelProto, name: str, amax: float, storage: Storage) -> tuple[str, str]:
    from onnx import TensorProto, helper, numpy_helper

    scale, zero = f"{name}_scale", f"{name}_zero_point"
    model.graph.initializer.append(numpy_helper.from_array(_scale(amax, storage), scale))
    element = TensorProto.DataType.Value(storage.element)
    model.graph.initializer.append(helper.make_tensor(zero, element, [], bytes(1), raw=True))
    return scale, zero


def _weight(model: ModelProto, weight: TensorProto, axis: int, storage: Storage) -> NodeProto:
    """Adds the 8-bit weight with its scales; gives its DequantizeLinear."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    values = numpy_helper.to_array(weight)
    others = tuple(index for index in range(values.ndim) if index != axis)
    scale = _scale(np.abs(values).max(axis=others), storage)
    shape = [1] * values.ndim
    shape[axis] = -1
    stored = _round(values / scale.reshape(shape), storage)
    name = f"{weight.name}_{axis}" if f"{weight.name}_scale" in _names(model) else weight.name
    element = TensorProto.DataType.Value(storage.element)
    model.graph.initializer.extend(
        [
            helper.make_tensor(
                f"{name}_quantized", element, values.shape, stored.tobytes(), raw=True
            ),
            numpy_helper.from_array(scale, f"{name}_scale"),
            helper.make_tensor(
                f"{name}_zero_point", element, scale.shape, bytes(scale.size), raw=True
            ),
        ]
    )
    return helper.make_node(
        "DequantizeLinear",
        [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"],
        [f"{name}_dequantized"],
        f"{name}_DQ",
        axis=axis,
    )


def _names(model: ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


def _round(values: Array, storage: Storage) -> Array:
    import numpy as np

    clipped = np.clip(values, -storage.largest, storage.largest)
    if storage is INT8:
        return np.rint(clipped).astype(np.int8)
    import ml_dtypes

    return clipped.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
