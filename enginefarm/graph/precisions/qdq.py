"""Explicit quantization: Q/DQ pairs around what TensorRT runs in 8 bits.

An activation gets a per-tensor Q/DQ, a constant weight a per-channel DQ, both symmetric. Biases
stay in the base precision. Which operators those are: targets.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from enginefarm.errors import PrecisionError
from enginefarm.graph.model import walk
from enginefarm.graph.model.arrays import Array
from enginefarm.graph.model.constants import MIN_NORMAL_FP16
from enginefarm.graph.model.edit import FreeNames, drop_unused, replace_nodes
from enginefarm.graph.precisions import targets
from enginefarm.graph.precisions.targets import Target
from enginefarm.graph.precisions.use import INT8, Storage

MIN_SCALE = 2.0**-20
"""The smallest scale of a channel's weights. FP16 holds smaller numbers, down to 2**-24, but with
too few bits for a scale."""


def least_range(storage: Storage) -> float:
    """The least range of |x| whose scale FP16 holds with all of its bits. A smaller scale stays
    FP32, and TensorRT-RTX takes no product of which one scale is FP32 and one FP16."""
    return storage.largest * MIN_NORMAL_FP16


@dataclass(frozen=True)
class Counts:
    quantize: int
    dequantize: int
    nodes: int


def candidates(model: ModelProto) -> list[Target]:
    """What of the FP32 graph can be quantized, in graph order.

    Raises: PrecisionError when the graph is quantized already, or has nothing to quantize.
    """
    kinds = {node.op_type for node in walk.nodes(model.graph)}
    if not kinds.isdisjoint(("QuantizeLinear", "DequantizeLinear")):
        raise PrecisionError(
            "the graph has Q/DQ nodes already",
            fix="start from the FP32 model, or ask for fp16, which keeps the Q/DQ it has",
        )
    found = targets.find(model)
    if not any(target.group == targets.WEIGHTS for target in found):
        raise PrecisionError(
            "there is nothing to quantize: no Conv, Gemm or MatMul has constant weights",
            fix="drop int8/fp8 from the recipe's precisions",
        )
    return found


def activations(model: ModelProto, chosen: Sequence[Target]) -> tuple[str, ...]:
    """Names of the values that need a range, each once."""
    nodes = {node.name: node for node in walk.nodes(model.graph)}
    names = [nodes[t.node].input[index] for t in chosen for index in t.activations]
    return tuple(dict.fromkeys(names))


def largest_weights(model: ModelProto, chosen: Sequence[Target]) -> dict[str, float]:
    """The largest magnitude among the weights of each operator that has some, by its name."""
    nodes = {node.name: node for node in walk.nodes(model.graph)}
    tensors = dict(walk.constants(model.graph))
    return {
        one.node: float(np.abs(numpy_helper.to_array(tensors[nodes[one.node].input[1]])).max())
        for one in chosen
        if one.axis is not None
    }


@dataclass
class _Insertion:
    storage: Storage
    ranges: Mapping[str, float]
    targets: Mapping[str, Target]
    weights: Mapping[str, tuple[GraphProto, TensorProto]]
    free: FreeNames
    quantize: int = 0
    dequantize: int = 0
    nodes: int = 0
    scales: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])


def insert(
    model: ModelProto, ranges: Mapping[str, float], storage: Storage, chosen: Sequence[Target]
) -> Counts:
    """Rewrites the FP32 graph in place, with these ranges of |x| for its activations.

    Scales are rounded to FP16 first, so that an FP16 base computes the same.
    """
    graphs = list(walk.graphs(model.graph))
    state = _Insertion(
        storage=storage,
        ranges=ranges,
        targets={target.node: target for target in chosen},
        weights={tensor.name: (g, tensor) for g in graphs for tensor in g.initializer},
        free=FreeNames(model),
    )
    _graph(state, model.graph, model.graph)
    drop_unused(model)
    return Counts(state.quantize, state.dequantize, state.nodes)


def require(model: ModelProto, counts: Counts, name: str) -> None:
    """A graph that was silently left unquantized builds and verifies well: count.

    Raises: PrecisionError where the graph has other nodes than `counts` says.
    """
    found = [node.op_type for node in walk.nodes(model.graph)]
    quantize, dequantize = found.count("QuantizeLinear"), found.count("DequantizeLinear")
    if not counts.nodes or (quantize, dequantize) != (counts.quantize, counts.dequantize):
        raise PrecisionError(
            f"{name}: the graph has {quantize} QuantizeLinear and {dequantize} DequantizeLinear",
            why=f"{counts.quantize} and {counts.dequantize} were inserted, "
            f"for {counts.nodes} operators",
            fix="this is a defect of enginefarm: report it with the graph",
        )


def _graph(state: _Insertion, main: GraphProto, graph: GraphProto) -> None:
    """One graph, and the bodies in it. Each has its own Q/DQ nodes, on shared scales."""
    made: dict[str, str] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        for body in walk.bodies(node):
            _graph(state, main, body)
        target = state.targets.get(node.name)
        if target is not None:
            for index in target.activations:
                name = node.input[index]
                if name not in made:
                    made[name] = _activation(state, main, nodes, name)
                node.input[index] = made[name]
            if target.axis is not None:
                key = f"{node.input[1]}@{target.axis}"
                if key not in made:
                    made[key] = _weight(state, nodes, node.input[1], target.axis)
                node.input[1] = made[key]
            state.nodes += 1
        nodes.append(node)
    replace_nodes(graph, nodes)


def _activation(state: _Insertion, main: GraphProto, nodes: list[NodeProto], name: str) -> str:
    free = state.free
    if name not in state.scales:
        scale, zero = free.make(f"{name}_scale"), free.make(f"{name}_zero_point")
        amax = max(state.ranges[name], least_range(state.storage))
        values = _scale(amax, state.storage)
        main.initializer.append(numpy_helper.from_array(values, scale))
        element = TensorProto.DataType.Value(state.storage.element)
        main.initializer.append(helper.make_tensor(zero, element, [], bytes(1), raw=True))
        state.scales[name] = scale, zero
    scale, zero = state.scales[name]
    middle, result = free.make(f"{name}_quantized"), free.make(f"{name}_dequantized")
    for operator, source, output, short in (
        ("QuantizeLinear", name, middle, "Q"),
        ("DequantizeLinear", middle, result, "DQ"),
    ):
        node_name = free.make(f"{name}_{short}")
        nodes.append(helper.make_node(operator, [source, scale, zero], [output], node_name))
    state.quantize, state.dequantize = state.quantize + 1, state.dequantize + 1
    return result


def _weight(state: _Insertion, nodes: list[NodeProto], name: str, axis: int) -> str:
    """Adds the 8-bit weight with its scales, where the weight is; returns the DequantizeLinear's
    result."""
    home, tensor = state.weights[name]
    values = numpy_helper.to_array(tensor)
    others = tuple(index for index in range(values.ndim) if index != axis)
    scale = _scale(np.abs(values).max(axis=others), state.storage)
    shape = [1] * values.ndim
    shape[axis] = -1
    stored = _round(values / scale.reshape(shape), state.storage)
    element = TensorProto.DataType.Value(state.storage.element)
    parts = [state.free.make(f"{name}_{part}") for part in ("quantized", "scale", "zero_point")]
    home.initializer.extend(
        [
            helper.make_tensor(parts[0], element, values.shape, stored.tobytes(), raw=True),
            numpy_helper.from_array(scale, parts[1]),
            helper.make_tensor(parts[2], element, scale.shape, bytes(scale.size), raw=True),
        ]
    )
    result = state.free.make(f"{name}_dequantized")
    node_name = state.free.make(f"{name}_DQ")
    nodes.append(helper.make_node("DequantizeLinear", parts, [result], node_name, axis=axis))
    state.dequantize += 1
    return result


def _scale(amax: Any, storage: Storage) -> Any:
    """amax / largest, rounded up to an FP16 number, so that amax still fits."""
    wanted = np.maximum(np.asarray(amax, np.float64) / storage.largest, MIN_SCALE)
    rounded = wanted.astype(np.float16)
    low = rounded.astype(np.float64) < wanted
    rounded = np.where(low, np.nextafter(rounded, np.float16(np.inf)), rounded)
    return rounded.astype(np.float32)


def _round(values: Array, storage: Storage) -> Array:
    clipped = np.clip(values, -storage.largest, storage.largest)
    if storage is INT8:
        return np.rint(clipped).astype(np.int8)
    return clipped.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
