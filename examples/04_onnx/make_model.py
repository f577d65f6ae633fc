"""Writes model.onnx: a small convolutional detector head, straight from onnx.helper.

    python examples/04_onnx/make_model.py

It stands for a file that came from elsewhere: no PyTorch is involved. The weights are random
(seed 0), so it detects nothing; it shows the road, not a model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def main() -> None:
    random = np.random.default_rng(0)
    initializers, nodes, channels, value = [], [], 3, "image"
    for index, (wide, stride) in enumerate([(16, 2), (32, 2), (32, 1), (64, 2)]):
        scale = np.sqrt(2 / (channels * 9))
        weight = random.normal(0, scale, (wide, channels, 3, 3)).astype(np.float32)
        initializers.append(numpy_helper.from_array(weight, f"w{index}"))
        initializers.append(numpy_helper.from_array(np.zeros(wide, np.float32), f"b{index}"))
        nodes.append(
            helper.make_node(
                "Conv",
                [value, f"w{index}", f"b{index}"],
                [f"c{index}"],
                f"conv{index}",
                strides=[stride, stride],
                pads=[1, 1, 1, 1],
            )
        )
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], f"relu{index}"))
        value, channels = f"r{index}", wide
    for name, wide in (("boxes", 4), ("classes", 8)):
        weight = random.normal(0, 0.1, (wide, channels, 1, 1)).astype(np.float32)
        initializers.append(numpy_helper.from_array(weight, f"w_{name}"))
        nodes.append(helper.make_node("Conv", [value, f"w_{name}"], [name], f"head_{name}"))
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", 4, None, None]),
            helper.make_tensor_value_info("classes", TensorProto.FLOAT, ["n", 8, None, None]),
        ],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, Path(__file__).with_name("model.onnx"))


if __name__ == "__main__":
    main()
