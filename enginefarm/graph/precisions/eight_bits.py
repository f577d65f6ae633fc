"""INT8 and FP8: calibrated Q/DQ over an FP16 base.

The base is FP16 because a GPU of compute capability 7.5 has no FP32 GEMM in TensorRT-RTX.
Scales are FP16 too, so that DequantizeLinear feeds Conv and Gemm directly: a Cast between
them would keep the builder from fusing the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from enginefarm.documents.data import Calibration
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import CalibrationUse, PrecisionUse, ToolUse
from enginefarm.errors import CalibrationError, PrecisionError
from enginefarm.graph.precisions import ConversionReport, calibration, qdq, ranges, targets, use
from enginefarm.graph.precisions.evidence import Evidence
from enginefarm.graph.precisions.finish import finish, wide_nodes
from enginefarm.graph.precisions.quantizing import Quantizing
from enginefarm.names import PrecisionName

if TYPE_CHECKING:
    from onnx import ModelProto

    from enginefarm.graph.samples.data import Batch

OPSET = ranges.SAME_FROM
"""The first whose Q/DQ take FP16 scales and FP8 numbers."""
VERSION = "8"
"""The version of calibration.py, quantizing.py, qdq.py and targets.py: raise it when the graphs
that they make change."""


class EightBits:
    """Either of the two; they differ by how a number is stored."""

    name: PrecisionName
    ranged = True
    storage: qdq.Storage

    def options(self, recipe: Recipe) -> Calibration:
        """The recipe's calibration, as this precision uses it."""
        return _options(recipe)

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
                "bins": calibration.BINS,
                "levels": calibration.LEVELS,
                "stride": calibration.STRIDE,
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

        from enginefarm.graph.precisions import kept_wide, prepare

        options = self.options(recipe)
        model = prepare.fp32(src, self.name, OPSET)
        kept = kept_wide.find(model, TensorProto.FLOAT16, recipe.keep_wide, evidence)
        possible = [
            target
            for target in qdq.candidates(model)
            if target.node not in kept and self.suits(target)
        ]
        if not any(target.group == targets.WEIGHTS for target in possible):
            raise PrecisionError(
                f"{self.name}: there is nothing to quantize",
                why="every Conv, Gemm and MatMul with constant weights stays wide",
                fix=f"drop {self.name} from the recipe's precisions, or names from `keep_wide`",
            )
        names = qdq.activations(model, possible)
        seen = calibration.histograms(model, names, batches, options)
        possible = _in_range(model, _reached(model, possible, seen), seen, self.storage)
        work = Quantizing(model, self.storage, kept, evidence)
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
    storage = qdq.INT8


class FP8(EightBits):
    """Ranges are always minmax: FP8's steps shrink towards zero, so clipping gains little and
    costs the outliers (measured: docs/decisions/0111). Depthwise and other grouped convolutions
    stay in FP16: they are bound by memory, and lose most by 3 bits of mantissa (0111)."""

    name: PrecisionName = "fp8"
    storage = qdq.FP8

    def options(self, recipe: Recipe) -> Calibration:
        return _options(recipe).model_copy(update={"method": "minmax"})

    def suits(self, target: targets.Target) -> bool:
        return not target.grouped


def _options(recipe: Recipe) -> Calibration:
    if recipe.calibration is None:
        raise CalibrationError(
            "calibration: int8 and fp8 need representative data", fix="add it to the recipe"
        )
    return recipe.calibration


def _reached(
    model: ModelProto,
    possible: Sequence[targets.Target],
    seen: Mapping[str, calibration.AbsHistogram],
) -> list[targets.Target]:
    """Without operators in a branch that no calibration batch took: their range is unknown."""
    reached = [
        target
        for target in possible
        if all(seen[name].size for name in qdq.activations(model, [target]))
    ]
    if not any(target.group == targets.WEIGHTS for target in reached):
        raise CalibrationError(
            "calibration: the data reaches no operator that could be quantized",
            fix="give data that takes the branches with Conv, Gemm or MatMul in them",
        )
    return reached


def _in_range(
    model: ModelProto,
    possible: Sequence[targets.Target],
    seen: Mapping[str, calibration.AbsHistogram],
    storage: qdq.Storage,
) -> list[targets.Target]:
    """Without operators whose weights or inputs are all too small for a scale in FP16: they stay in
    FP16. An input that is always 0 says nothing of its range."""
    largest = qdq.largest_weights(model, possible)
    found = [
        target
        for target in possible
        if largest.get(target.node, storage.least_range) >= storage.least_range
        and all(seen[name].amax >= storage.least_range for name in qdq.activations(model, [target]))
    ]
    if not any(target.group == targets.WEIGHTS for target in found):
        raise PrecisionError(
            "there is nothing to quantize: weights or inputs of every Conv, Gemm and MatMul are "
            f"below {storage.least_range:.2g}",
            why="FP16 does not hold their scales",
            fix="drop int8/fp8 from the recipe's precisions, or scale the model's inputs",
        )
    return found
