"""BF16, mixed: as FP16, with BF16's range and 8 bits of mantissa."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from enginefarm import progress
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import PrecisionUse, ToolUse
from enginefarm.graph.precisions import ConversionReport
from enginefarm.graph.precisions.graph import cast_tool, finish, wide_nodes

if TYPE_CHECKING:
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
