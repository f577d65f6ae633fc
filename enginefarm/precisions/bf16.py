"""BF16, mixed: as FP16, with BF16's range and 8 bits of mantissa."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm import onnx_files, progress
from enginefarm.errors import PrecisionError
from enginefarm.precisions import ConversionReport, fp16
from enginefarm.precisions.graph import finish
from enginefarm.recipe import Recipe
from enginefarm.spec import PrecisionUse, ToolUse

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, TensorProto

    from enginefarm.data import Batch

OPSET = 22
"""The first in which Conv and pooling take BF16."""


class BF16:
    name = "bf16"
    calibrated = False

    def use(self, recipe: Recipe, calibration_digest: str | None) -> PrecisionUse:
        converter = ToolUse(
            name="onnx.version_converter", version=version("onnx"), arguments={"opset": OPSET}
        )
        return PrecisionUse(name="bf16", tools=(fp16.cast_tool(), converter))

    def convert(
        self, src: Path, dest_dir: Path, recipe: Recipe, batches: Iterable[Batch]
    ) -> ConversionReport:
        progress.report("bf16", 0, 1)
        model = _at_opset(onnx_files.read(src, error=PrecisionError))
        weights = _weights(model)
        model = fp16.cast(model)
        relabel(model, weights)
        report = finish(model, dest_dir, "bf16", fp16.wide_nodes(model))
        progress.report("bf16", 1, 1)
        return report


def _at_opset(model: ModelProto) -> ModelProto:
    from onnx import version_converter

    if onnx_files.opset(model) >= OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:
        raise PrecisionError(
            f"bf16 needs opset {OPSET}, and the graph cannot be converted to it",
            why=onnx_files.one_line(error),
            fix=f"set export.opset to {OPSET}",
        ) from error


def _weights(model: ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    """FP32 values by name: FP16's range must not cut them on the way."""
    from onnx import TensorProto, numpy_helper

    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }


def relabel(model: ModelProto, weights: dict[str, np.ndarray[Any, Any]]) -> None:
    """Turns every FP16 tensor into BF16, in place; weights from their FP32 values."""
    from onnx import TensorProto

    for graph in onnx_files.graphs(model.graph):
        for value in (*graph.value_info, *graph.input, *graph.output):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
                value.type.tensor_type.elem_type = TensorProto.BFLOAT16
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                    attribute.i = TensorProto.BFLOAT16
    for tensor in onnx_files.tensors(model):
        if tensor.data_type == TensorProto.FLOAT16:
            _to_bf16(tensor, weights)


def _to_bf16(tensor: TensorProto, weights: dict[str, np.ndarray[Any, Any]]) -> None:
    import ml_dtypes
    import numpy as np
    from onnx import TensorProto, numpy_helper

    values = weights.get(tensor.name)
    if values is None:
        values = numpy_helper.to_array(tensor).astype(np.float32)
    data = values.astype(ml_dtypes.bfloat16).tobytes()
    tensor.ClearField("int32_data")
    tensor.data_type = TensorProto.BFLOAT16
    tensor.raw_data = data


def emulate(model: ModelProto) -> ModelProto:
    """The same arithmetic for a runtime without BF16: in FP32, every result rounded to BF16.

    Tensor cores multiply BF16 numbers exactly and add in FP32, so this differs from them by
    the order of additions only. Each rounding is a pair of Casts.
    """
    from onnx import ModelProto as Model
    from onnx import TensorProto, helper, numpy_helper

    made = Model()
    made.CopyFrom(model)
    if any(len(list(onnx_files.graphs(node_graph))) > 1 for node_graph in [made.graph]):
        raise PrecisionError("bf16 with subgraphs (If, Loop) cannot be emulated on a CPU")
    narrow = {
        value.name
        for value in made.graph.value_info
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16
    }
    for tensor in onnx_files.tensors(made):
        if tensor.data_type == TensorProto.BFLOAT16:
            tensor.CopyFrom(
                numpy_helper.from_array(
                    numpy_helper.to_array(tensor).astype("float32"), tensor.name
                )
            )
    nodes = list(made.graph.node)
    copies: list[Any] = []
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
        wide = [name for name in node.output if name in narrow]
        for index, name in enumerate(node.output):
            if name in narrow:
                node.output[index] = f"{name}__wide"
        copy = type(node)()
        copy.CopyFrom(node)
        copies.append(copy)
        for name in wide:
            copies.append(
                helper.make_node(
                    "Cast", [f"{name}__wide"], [f"{name}__bf16"], to=TensorProto.BFLOAT16
                )
            )
            copies.append(helper.make_node("Cast", [f"{name}__bf16"], [name], to=TensorProto.FLOAT))
    del made.graph.node[:]
    made.graph.node.extend(copies)
    del made.graph.value_info[:]
    return made
