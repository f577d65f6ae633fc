"""BF16, mixed: as FP16, with BF16's range and 8 bits of mantissa."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm import progress
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import PrecisionUse, ToolUse
from enginefarm.errors import PrecisionError
from enginefarm.graph import onnx_files
from enginefarm.graph.precisions import ConversionReport
from enginefarm.graph.precisions.graph import cast_tool, finish, wide_nodes

if TYPE_CHECKING:
    from onnx import ModelProto

    from enginefarm.graph.data import Batch

OPSET = 22
"""The first in which Conv and pooling take BF16."""


class BF16:
    name = "bf16"
    calibrated = False

    def use(self, recipe: Recipe, calibration_digest: str | None) -> PrecisionUse:
        converter = ToolUse(
            name="onnx.version_converter", version=version("onnx"), arguments={"opset": OPSET}
        )
        return PrecisionUse(name="bf16", tools=(cast_tool("BFLOAT16"), converter))

    def convert(
        self, src: Path, dest_dir: Path, recipe: Recipe, batches: Iterable[Batch]
    ) -> ConversionReport:
        from onnx import TensorProto

        from enginefarm.graph.precisions import prepare
        from enginefarm.graph.precisions.mixed import cast

        progress.report("bf16", 0, 1)
        model = cast(prepare.fp32(src, "bf16", OPSET), TensorProto.BFLOAT16)
        report = finish(model, dest_dir, "bf16", wide_nodes(model))
        progress.report("bf16", 1, 1)
        return report


def emulate(model: ModelProto) -> ModelProto:
    """The same arithmetic for a runtime without BF16: in FP32, every result rounded to BF16.

    Tensor cores multiply BF16 numbers exactly and add in FP32, so this differs from them by
    the order of additions only. Each rounding is a pair of Casts.
    """
    from onnx import ModelProto as Model
    from onnx import TensorProto, helper, numpy_helper

    made = Model()
    made.CopyFrom(model)
    if len(list(onnx_files.graphs(made.graph))) > 1:
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
