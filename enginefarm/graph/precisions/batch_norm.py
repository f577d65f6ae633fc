"""BatchNormalization with its four constants folded into two, in FP64.

A running variance may be any number: 4.97e5 in CREPE, which FP16 does not hold. What the operator
computes is x · scale + shift, and those two are usually close to one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginefarm.graph import onnx_files
from enginefarm.graph.precisions.free_names import FreeNames

if TYPE_CHECKING:
    from onnx import ModelProto

EPSILON = 1e-5
"""The operator's own default."""


def fold(model: ModelProto) -> None:
    """In place: each one whose constants are initializers gets mean 0, variance 1, epsilon 0,
    and the scale and shift that make it compute the same."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graphs = list(onnx_files.graphs(model.graph))
    tensors = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
    free = FreeNames(model)
    for graph in graphs:
        for node in graph.node:
            given = {attribute.name: attribute for attribute in node.attribute}
            training = "training_mode" in given and given["training_mode"].i
            if node.op_type != "BatchNormalization" or training:
                continue
            found = [tensors.get(name) for name in node.input[1:]]
            if any(t is None or t.data_type != TensorProto.FLOAT for t in found):
                continue
            gamma, beta, mean, variance = (
                numpy_helper.to_array(tensor).astype(np.float64) for tensor in found if tensor
            )
            epsilon = given["epsilon"].f if "epsilon" in given else EPSILON
            scale = gamma / np.sqrt(variance + epsilon)
            parts = (scale, beta - mean * scale, np.zeros_like(mean), np.ones_like(mean))
            for index, (part, what) in enumerate(
                zip(parts, ("scale", "shift", "mean", "variance"), strict=True), start=1
            ):
                name = free.make(f"{node.name}_{what}")
                graph.initializer.append(numpy_helper.from_array(part.astype(np.float32), name))
                node.input[index] = name
            if "epsilon" in given:
                node.attribute.remove(given["epsilon"])
            node.attribute.append(helper.make_attribute("epsilon", 0.0))
