"""INT8 and FP8: calibrated Q/DQ over an FP16 base.

The base is FP16 because a GPU of compute capability 7.5 has no FP32 GEMM in TensorRT-RTX.
Scales are FP16 too, so that DequantizeLinear feeds Conv and Gemm directly: a Cast between
them would keep the builder from fusing the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from enginefarm.documents.data import Calibration
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import CalibrationUse, PrecisionUse, ToolUse
from enginefarm.errors import CalibrationError, PrecisionError
from enginefarm.graph.precisions import ConversionReport, targets, use
from enginefarm.names import PrecisionName

if TYPE_CHECKING:
    from enginefarm.graph.precisions.evidence import Evidence
    from enginefarm.graph.samples.data import Batch

VERSION = "8"
"""The version of calibration.py, quantizing.py, qdq.py and targets.py: raise it when the graphs
that they make change."""


class EightBits:
    """Either of the two; they differ by how a number is stored."""

    name: PrecisionName
    ranged = True
    storage: use.Storage

    def options(self, recipe: Recipe) -> Calibration:
        """The recipe's calibration, as this precision uses it."""
        if recipe.calibration is None:
            raise CalibrationError(
                "calibration: int8 and fp8 need representative data", fix="add it to the recipe"
            )
        return recipe.calibration

    def suits(self, target: targets.Target) -> bool:
        """Whether this operator is worth computing in this precision."""
        return True

    def use(
        self, recipe: Recipe, calibration_digest: str | None, reference_digest: str | None = None
    ) -> PrecisionUse:
        options = self.options(recipe)
        if calibration_digest is None:
            raise CalibrationError(f"{self.name}: the calibration data has no digest")
        quantizer = ToolUse(
            name="enginefarm.qdq",
            version=VERSION,
            arguments={
                "operators": [*sorted(targets.OUTPUT_AXIS), *sorted(targets.OTHERS)],
                "storage": self.storage.element,
                "bins": use.BINS,
                "levels": use.LEVELS,
                "stride": use.STRIDE,
            },
        )
        percentile = options.percentile if options.method in ("percentile", "auto") else None
        return PrecisionUse(
            name=self.name,
            tools=(
                quantizer,
                use.cast_tool("FLOAT16"),
                *use.wide_tools(recipe, self.name, reference_digest),
            ),
            calibration=CalibrationUse(
                data_digest=calibration_digest,
                method=options.method,
                percentile=percentile,
                batches=options.batches,
                batch_size=options.batch_size,
                seed=options.seed,
            ),
        )

    def convert(
        self,
        src: Path,
        dest_dir: Path,
        recipe: Recipe,
        batches: Iterable[Batch],
        evidence: Evidence | None = None,
    ) -> ConversionReport:
        from onnx import TensorProto

        from enginefarm.graph.precisions import calibration, kept_wide, prepare, qdq, quantizing
        from enginefarm.graph.precisions.finish import finish, wide_nodes

        options = self.options(recipe)
        model = prepare.fp32(src, self.name, use.SAME_FROM)
        kept = kept_wide.find(model, TensorProto.FLOAT16, recipe.keep_wide, evidence)
        possible = [
            target
            for target in qdq.candidates(model)
            if target.node not in kept and self.suits(target)
        ]
        if not any(target.group == targets.WEIGHTS for target in possible):
            raise PrecisionError(
                f"{self.name}: there is nothing to quantize",
                why="every Conv, Gemm and MatMul with constant weights stays in FP32",
                fix=f"drop {self.name} from the recipe's precisions, or names from `keep_wide`",
            )
        names = qdq.activations(model, possible)
        seen = calibration.histograms(model, names, batches, options)
        possible = quantizing.in_range(
            model, quantizing.reached(model, possible, seen), seen, self.storage
        )
        work = quantizing.Quantizing(model, self.storage, kept, evidence)
        method, ranges = work.choose(seen, options, possible)
        chosen = work.groups(ranges, possible)
        found = work.searched(ranges, chosen)
        # They stay in FP16, as in the graph that the search's judge accepted: not in FP32.
        chosen = [target for target in chosen if target.node not in found]
        made, counts = work.made(ranges, chosen)
        qdq.require(made, counts, self.name)
        details: dict[str, JsonValue] = {
            "method": method,
            "quantize_nodes": counts.quantize,
            "dequantize_nodes": counts.dequantize,
            "quantized_operators": counts.nodes,
            "quantizable_operators": len(qdq.candidates(model)),
            "kept_wide": kept_wide.listed(made, kept | found),
            **wide_nodes(made),
        }
        return finish(made, dest_dir, self.name, details)


class Int8(EightBits):
    name: PrecisionName = "int8"
    storage = use.INT8


class FP8(EightBits):
    """Ranges are always minmax: FP8's steps shrink towards zero, so clipping gains little and
    costs the outliers (measured: docs/decisions/0111). Depthwise and other grouped convolutions
    stay in FP16: they are bound by memory, and lose most by 3 bits of mantissa (0111)."""

    name: PrecisionName = "fp8"
    storage = use.FP8

    def options(self, recipe: Recipe) -> Calibration:
        return super().options(recipe).model_copy(update={"method": "minmax"})

    def suits(self, target: targets.Target) -> bool:
        return not target.grouped
