"""Small ONNX models, made node by node, and the specs that build them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from enginefarm.documents.spec import BuildSpec, MinOptMax, ShapeProfile, ToolchainId
from tests import specs

OPSET = 17
"""What every TensorRT since 8.6 parses; nothing here needs more."""
CAPABILITIES = {"t4": "7.5", "a100": "8.0", "l4": "8.9", "h100": "9.0"}


def save(
    path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any]
) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.save(model, path)
    return path


def value(name: str, shape: list[Any] | None, dtype: int = TensorProto.FLOAT16) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def convolutions(path: Path, layers: int = 1, channels: int = 8) -> Path:
    """x [n, 3, 16, 16] float16 -> y [n, channels, 16, 16], `layers` Conv + Relu."""
    rng = np.random.default_rng(0)
    nodes, weights, current, width = [], [], "x", 3
    for index in range(layers):
        kernel = (0.1 * rng.standard_normal((channels, width, 3, 3))).astype(np.float16)
        weights.append(numpy_helper.from_array(kernel, f"w{index}"))
        out = "y" if index == layers - 1 else f"r{index}"
        nodes += [
            helper.make_node(
                "Conv", [current, f"w{index}"], [f"c{index}"], f"conv{index}", pads=[1, 1, 1, 1]
            ),
            helper.make_node("Relu", [f"c{index}"], [out], f"relu{index}"),
        ]
        current, width = out, channels
    return save(
        path,
        nodes,
        [value("x", ["n", 3, 16, 16])],
        [value("y", ["n", channels, 16, 16])],
        weights,
    )


def nonzero(path: Path) -> Path:
    """An operator that the parser refuses."""
    node = helper.make_node("NonZero", ["x"], ["y"], "find_nonzero")
    return save(
        path,
        [node],
        [value("x", ["n", 4], TensorProto.FLOAT)],
        [value("y", [2, "k"], TensorProto.INT64)],
        [],
    )


def topk_of_float_k(path: Path) -> Path:
    """TopK whose K is a float vector: the ONNX parser of 1.7.1 segfaults on it."""
    node = helper.make_node("TopK", ["x", "k"], ["v", "i"], "topk0")
    k = helper.make_tensor("k", TensorProto.FLOAT, [2], [3.0, 3.0])
    return save(
        path,
        [node],
        [value("x", [4, 8], TensorProto.FLOAT)],
        [value("v", None, TensorProto.FLOAT), value("i", None, TensorProto.INT64)],
        [k],
    )


def float_gemm(path: Path) -> Path:
    """A Gemm in FP32, which T4 (7.5) does not get from TensorRT-RTX."""
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "matmul0")
    return save(
        path,
        [node],
        [value("x", ["n", 4], TensorProto.FLOAT)],
        [value("y", ["n", 4], TensorProto.FLOAT)],
        [weight],
    )


def reshape_by_input(path: Path) -> Path:
    """`shape` is a shape tensor: its values, not its dims, decide the output's dims."""
    node = helper.make_node("Reshape", ["x", "shape"], ["y"], "reshape0")
    return save(
        path,
        [node],
        [value("x", [8], TensorProto.FLOAT), value("shape", [2], TensorProto.INT64)],
        [value("y", [None, None], TensorProto.FLOAT)],
        [],
    )


def spec(
    toolchain: ToolchainId,
    *,
    shapes: dict[str, tuple[tuple[int, ...], ...]] | None = None,
    gpu: str = "a100",
    **builder: Any,
) -> BuildSpec:
    """A spec with one profile; shapes are (min, opt, max) of each input."""
    wanted = shapes or {"x": ((1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16))}
    profile = {
        name: MinOptMax(min=low, opt=opt, max=high) for name, (low, opt, high) in wanted.items()
    }
    return specs.spec(
        toolchain,
        gpu=(gpu, CAPABILITIES[gpu]),
        profiles=(ShapeProfile(name="default", shapes=profile),),
        **builder,
    )
