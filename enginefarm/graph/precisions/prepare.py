"""What is done to the FP32 graph before any precision's own work, the same for all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper, version_converter

from enginefarm.errors import PrecisionError, one_line
from enginefarm.graph.model import constants, onnx_files, onnx_shapes, walk
from enginefarm.graph.model.edit import FreeNames, name_nodes, unique_values
from enginefarm.graph.model.operators import OPSET

EPSILON = 1e-5
"""BatchNormalization's own default."""


def fp32(src: Path, name: str, opset: int = OPSET) -> ModelProto:
    """The graph at `src` in FP32 whatever it was, its functions inlined, its constants as
    initializers, with one name for each node and each value in the whole model.

    Raises: PrecisionError.
    """
    model = onnx_files.read(src, error=PrecisionError)
    model = _at_opset(model, opset, name)
    constants.to_initializers(model)
    unique_values(model)
    name_nodes(model)
    constants.widen(model)
    _fold_batch_norms(model)
    _outer_products_as_mul(model)
    return model


def _at_opset(model: ModelProto, opset: int, name: str) -> ModelProto:
    """The model at that opset at least: older ones lack what the precision writes.

    A second entry of an output, in value_info, is dropped: OnnxSlim's own inference
    has another rank there for some operators, and the converter would believe it.
    Raises: PrecisionError when onnx.version_converter cannot do it.
    """
    if walk.opset(model) >= opset:
        return model
    onnx_shapes.forget(model.graph, {output.name for output in model.graph.output})
    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:
        raise PrecisionError(
            f"{name} needs opset {opset}, and the graph cannot be converted to it from opset "
            f"{walk.opset(model)}",
            why=one_line(error),
            fix=f"export the model at opset {opset}",
        ) from error


def _fold_batch_norms(model: ModelProto) -> None:
    """In place: each BatchNormalization whose constants are initializers gets mean 0, variance 1,
    epsilon 0, and the scale and shift, in FP64, that make it compute the same.

    A running variance may be any number: 4.97e5 in CREPE, which FP16 does not hold. The scale and
    the shift are usually close to one.
    """
    tensors, free = dict(walk.constants(model.graph)), FreeNames(model)
    for graph in walk.graphs(model.graph):
        for node in graph.node:
            training = walk.value(node, "training_mode", 0)
            if node.op_type != "BatchNormalization" or training:
                continue
            found = [tensors.get(name) for name in node.input[1:]]
            if any(t is None or t.data_type != TensorProto.FLOAT for t in found):
                continue
            gamma, beta, mean, variance = (
                numpy_helper.to_array(tensor).astype(np.float64) for tensor in found if tensor
            )
            scale = gamma / np.sqrt(variance + walk.value(node, "epsilon", EPSILON))
            parts = (scale, beta - mean * scale, np.zeros_like(mean), np.ones_like(mean))
            for index, (part, what) in enumerate(
                zip(parts, ("scale", "shift", "mean", "variance"), strict=True), start=1
            ):
                name = free.make(f"{node.name}_{what}")
                graph.initializer.append(numpy_helper.from_array(part.astype(np.float32), name))
                node.input[index] = name
            if given := walk.attributes(node).get("epsilon"):
                node.attribute.remove(given)
            node.attribute.append(helper.make_attribute("epsilon", 0.0))


def _outer_products_as_mul(model: ModelProto) -> None:
    """In place: each MatMul whose sum has one term becomes a Mul, which broadcasts the same way.

    Positions times frequencies are written so in most text models (`position_ids @ inv_freq`). As a
    Mul it can stay in FP32 on every GPU; TensorRT-RTX has no FP32 MatMul on compute capability 7.5.

    Raises: PrecisionError where shapes cannot be inferred.
    """
    products = [node for node in walk.nodes(model.graph) if node.op_type == "MatMul"]
    if not products:
        return
    onnx_shapes.infer_types(model)
    shapes = onnx_shapes.known_shapes(walk.graphs(model.graph))
    for node in products:
        left, right = (shapes.get(name, []) for name in node.input)
        if len(left) > 1 and len(right) > 1 and 1 in (left[-1], right[-2]):
            node.op_type = "Mul"
