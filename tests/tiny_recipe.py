"""A recipe of an ONNX classifier so small that all its engines build in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

CHANNELS, CLASSES, SIZE = 8, 10, 16


def write(folder: Path, *, model_name: str = "model.onnx", **changes: Any) -> Path:
    """recipe.yaml, an FP32 ONNX file and its data in `folder`; gives the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(classifier(), folder / model_name)
    random = np.random.default_rng(7)
    images = random.standard_normal((64, 3, SIZE, SIZE)).astype(np.float32)
    np.savez(folder / "data.npz", images=images)
    recipe = {
        "name": "tiny",
        "source": {"kind": "onnx", "path": model_name},
        "inputs": [{"name": "images", "shape": ["batch", 3, SIZE, SIZE]}],
        "profiles": [{"dims": {"batch": [1, 4, 8]}}],
        "precisions": ["fp16", "int8"],
        "gpus": ["t4", "a100", "l4"],
        "calibration": {"data": {"path": "data.npz"}, "batches": 8, "batch_size": 4},
        "verification": {"batches": 4, "batch_size": 4, "class_scores": ["scores"]},
        "accuracy": {"int8": {"min_cosine": 0.9, "max_relative_l2": 0.5}},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def classifier(extra: list[Any] | None = None) -> onnx.ModelProto:
    """images [batch, 3, 16, 16] -> scores [batch, 10]: Conv, Relu, mean, Gemm."""
    random = np.random.default_rng(3)
    weights = {
        "kernel": 0.3 * random.standard_normal((CHANNELS, 3, 3, 3)),
        "dense": 0.5 * random.standard_normal((CHANNELS, CLASSES)),
        "bias": 0.1 * random.standard_normal(CLASSES),
    }
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "dense", "bias"], ["scores"], "gemm"),
    ]
    graph = helper.make_graph(
        nodes + (extra or []),
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model
