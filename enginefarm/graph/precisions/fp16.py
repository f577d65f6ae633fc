"""FP16, mixed: weights and arithmetic in FP16, operators that sum or exponentiate in FP32."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from enginefarm import progress
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import PrecisionUse
from enginefarm.graph.precisions import ConversionReport
from enginefarm.graph.precisions.graph import cast_tool, finish, wide_nodes

if TYPE_CHECKING:
    from enginefarm.graph.data import Batch


class FP16:
    name = "fp16"
    calibrated = False

    def use(self, recipe: Recipe, calibration_digest: str | None) -> PrecisionUse:
        return PrecisionUse(name="fp16", tools=(cast_tool("FLOAT16"),))

    def convert(
        self, src: Path, dest_dir: Path, recipe: Recipe, batches: Iterable[Batch]
    ) -> ConversionReport:
        from onnx import TensorProto

        from enginefarm.graph.precisions import prepare
        from enginefarm.graph.precisions.mixed import cast

        progress.report("fp16", 0, 1)
        model = cast(prepare.fp32(src, "fp16"), TensorProto.FLOAT16)
        report = finish(model, dest_dir, "fp16", wide_nodes(model))
        progress.report("fp16", 1, 1)
        return report
