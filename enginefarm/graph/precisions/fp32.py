"""FP32: the slimmed graph as it is; one of half or bfloat16 numbers is computed in FP32."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import PrecisionUse, ToolUse
from enginefarm.errors import PrecisionError
from enginefarm.graph.model import onnx_files
from enginefarm.graph.precisions import ConversionReport

if TYPE_CHECKING:
    from enginefarm.graph.precisions.evidence import Evidence
    from enginefarm.graph.samples.data import Batch


class FP32:
    name = "fp32"
    ranged = False

    def use(
        self, recipe: Recipe, calibration_digest: str | None, reference_digest: str | None = None
    ) -> PrecisionUse:
        return PrecisionUse(name="fp32", tools=(ToolUse(name="none", version="2"),))

    def convert(
        self,
        src: Path,
        dest_dir: Path,
        recipe: Recipe,
        batches: Iterable[Batch],
        evidence: Evidence | None = None,
    ) -> ConversionReport:
        from enginefarm.graph.model.emulate import narrow
        from enginefarm.graph.precisions import prepare
        from enginefarm.graph.precisions.finish import finish

        model = onnx_files.read(src, error=PrecisionError)
        if narrow(model):
            model = prepare.fp32(src, "fp32")
        return finish(model, dest_dir, "fp32")
