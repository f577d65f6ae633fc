"""ONNX models of a few nodes, made without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tiny_onnx
from onnx import TensorProto, helper, numpy_helper


def convolutions(path: Path, layers: int = 6, channels: int = 16) -> Path:
    """tiny_onnx's convolutions in FP32, so that every builder takes them without flags."""
    model = onnx.load(tiny_onnx.convolutions(path, layers=layers, channels=channels))
    for weight in model.graph.initializer:
        weight.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float32), weight.name)
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save(model, path)
    return path


def data_dependent(path: Path) -> Path:
    """NonZero: how large the output is depends on what the input holds."""
    node = helper.make_node("NonZero", ["x"], ["y"], "find_nonzero")
    return tiny_onnx.save(
        path,
        [node],
        [tiny_onnx.value("x", ["n", 4], TensorProto.FLOAT)],
        [tiny_onnx.value("y", [2, "k"], TensorProto.INT64)],
        [],
    )


def other_classifier(path: Path) -> Path:
    """Inputs and outputs as EfficientNet-Lite0's; another model all the same."""
    weight = np.random.default_rng(0).standard_normal((3, 1000)).astype(np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["means"], "means", axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "w"], ["scores"], "scores"),
    ]
    return tiny_onnx.save(
        path,
        nodes,
        [tiny_onnx.value("images", ["n", 3, 224, 224], TensorProto.FLOAT)],
        [tiny_onnx.value("scores", ["n", 1000], TensorProto.FLOAT)],
        [numpy_helper.from_array(weight, "w")],
    )


def with_plugin(path: Path, boxes: int = 6, classes: int = 2) -> Path:
    """Non-maximum suppression by one of TensorRT's own plugins, whose operator ONNX lacks."""
    node = helper.make_node(
        "EfficientNMS_TRT",
        ["boxes", "scores"],
        ["count", "kept", "kept_scores", "kept_classes"],
        "nms",
        plugin_version="1",
        score_threshold=0.25,
        iou_threshold=0.5,
        max_output_boxes=boxes,
        background_class=-1,
        score_activation=0,
        box_coding=0,
    )
    shapes = {
        "count": ["n", 1],
        "kept": ["n", boxes, 4],
        "kept_scores": ["n", boxes],
        "kept_classes": ["n", boxes],
    }
    whole = ("count", "kept_classes")
    return tiny_onnx.save(
        path,
        [node],
        [
            tiny_onnx.value("boxes", ["n", boxes, 4], TensorProto.FLOAT),
            tiny_onnx.value("scores", ["n", boxes, classes], TensorProto.FLOAT),
        ],
        [
            tiny_onnx.value(name, shape, TensorProto.INT32 if name in whole else TensorProto.FLOAT)
            for name, shape in shapes.items()
        ],
        [],
    )


def residual(
    path: Path,
    dtype: Any,
    *,
    seed: int,
    head_seed: int,
    blocks: Sequence[int] = (3, 4, 6, 3),
) -> Path:
    """ResNet-50's graph with BatchNorm folded: x [n, 3, 64, 64] -> y [n, 16, 1, 1], both FP32.

    Biases are zero, as a fresh BatchNorm leaves them.
    seed: of the convolutions' weights. head_seed: of the last layer's.
    """
    body, last = np.random.default_rng(seed), np.random.default_rng(head_seed)
    nodes = [
        helper.make_node(
            "Cast", ["x"], ["x0"], "cast_in", to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        )
    ]
    weights: dict[str, Any] = {}

    def conv(x: str, name: str, shape: tuple[int, ...], stride: int = 1, gain: float = 2) -> str:
        rng = last if name == "head" else body
        scale = np.sqrt(gain / (shape[1] * shape[2] * shape[3]))
        weights[f"{name}.w"] = scale * rng.standard_normal(shape, np.float32)
        weights[f"{name}.b"] = np.zeros(shape[0])
        nodes.append(
            helper.make_node(
                "Conv",
                [x, f"{name}.w", f"{name}.b"],
                [f"{name}.y"],
                name,
                pads=[shape[2] // 2] * 4,
                strides=[stride, stride],
            )
        )
        return f"{name}.y"

    def node(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"{name}.y"], name, **attributes))
        return f"{name}.y"

    x = node("Relu", [conv("x0", "stem", (64, 3, 7, 7), 2)], "stem.relu")
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    x, width = node("MaxPool", [x], "pool", **window), 64
    for stage, count in enumerate(blocks):
        inner = 64 << stage
        for index in range(count):
            name, stride = f"s{stage}b{index}", 2 if stage and not index else 1
            skip = x
            if not index:
                skip = conv(x, f"{name}.down", (4 * inner, width, 1, 1), stride, 1)
            y = node("Relu", [conv(x, f"{name}.a", (inner, width, 1, 1))], f"{name}.a.relu")
            y = conv(y, f"{name}.b", (inner, inner, 3, 3), stride)
            y = conv(
                node("Relu", [y], f"{name}.b.relu"), f"{name}.c", (4 * inner, inner, 1, 1), 1, 0.2
            )
            x = node("Relu", [node("Add", [y, skip], f"{name}.add")], f"{name}.relu")
            width = 4 * inner
    x = conv(node("GlobalAveragePool", [x], "mean"), "head", (16, width, 1, 1))
    nodes.append(helper.make_node("Cast", [x], ["y"], "cast_out", to=TensorProto.FLOAT))
    return tiny_onnx.save(
        path,
        nodes,
        [tiny_onnx.value("x", ["n", 3, 64, 64], TensorProto.FLOAT)],
        [tiny_onnx.value("y", ["n", 16, 1, 1], TensorProto.FLOAT)],
        [numpy_helper.from_array(array.astype(dtype), name) for name, array in weights.items()],
    )
