"""A recipe whose engine takes seconds to build: time to stop its builder in the middle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests import tiny_recipe

LAYERS = 20


def write(folder: Path, *, name: str, gpus: list[str]) -> Path:
    path = tiny_recipe.write(
        folder,
        name=name,
        gpus=gpus,
        precisions=["fp16"],
        accuracy={"fp16": {"min_cosine": 0.5, "max_relative_l2": 1.0}},
    )
    onnx.save(many_layers(name), folder / "model.onnx")
    return path


def many_layers(name: str) -> onnx.ModelProto:
    """images [batch, 3, 16, 16] -> scores [batch, 10], no two convolutions alike.

    name: seeds the weights, so that two recipes are two models.
    """
    random = np.random.default_rng(list(name.encode()))
    nodes, weights, current, width = [], [], "images", 3
    for index in range(LAYERS):
        out, size = 8 + (index * 5) % 61, 3 if index % 2 else 5
        # Activations keep their size, or they would vanish in FP16 and be kept in FP32.
        spread = (2 / (width * size * size)) ** 0.5
        kernel = (spread * random.standard_normal((out, width, size, size))).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{index}"))
        nodes += [
            helper.make_node(
                "Conv", [current, f"w{index}"], [f"c{index}"], f"conv{index}", pads=[size // 2] * 4
            ),
            helper.make_node("Tanh" if index % 3 else "Relu", [f"c{index}"], [f"r{index}"]),
        ]
        current, width = f"r{index}", out
    dense = (0.3 * random.standard_normal((width, 10))).astype(np.float32)
    weights.append(numpy_helper.from_array(dense, "dense"))
    nodes += [
        helper.make_node("GlobalAveragePool", [current], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "dense"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
