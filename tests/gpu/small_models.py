"""ONNX models of a few nodes, made without PyTorch."""

from __future__ import annotations

from pathlib import Path

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
