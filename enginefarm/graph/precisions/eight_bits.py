"""INT8 and FP8: calibrated Q/DQ over an FP16 base.

The base is FP16 because a GPU of compute capability 7.5 has no FP32 GEMM in TensorRT-RTX.
Scales are FP16 too, so that DequantizeLinear feeds Conv and Gemm directly: a Cast between
them would keep the builder from fusing the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from enginefarm.documents.recipe import Calibration, PrecisionName, Recipe
from enginefarm.documents.spec import CalibrationUse, PrecisionUse, ToolUse
from enginefarm.errors import CalibrationError, PrecisionError
from enginefarm.graph import calibration
from enginefarm.graph.precisions import ConversionReport, qdq
from enginefarm.graph.precisions.graph import cast_tool, finish, wide_nodes

if TYPE_CHECKING:
    from onnx import ModelProto

    from enginefarm.graph.data import Batch

OPSET = 19
"""The first whose Q/DQ take FP16 scales and FP8 numbers."""
VERSION = "2"
"""Of calibration.py and qdq.py: raise it when the graph they make changes."""


class EightBits:
    """Either of the two; they differ by how a number is stored."""

    name: PrecisionName
    storage: qdq.Storage
    calibrated = True

    def options(self, recipe: Recipe) -> Calibration:
        """The recipe's calibration, as this precision uses it."""
        return _options(recipe)

    def use(self, recipe: Recipe, calibration_digest: str | None) -> PrecisionUse:
        options = self.options(recipe)
        if calibration_digest is None:
            raise CalibrationError(f"{self.name}: the calibration data has no digest")
        quantiser = ToolUse(
            name="enginefarm.qdq",
            version=VERSION,
            arguments={
                "operators": [*sorted(qdq.OUTPUT_AXIS)],
                "storage": self.storage.element,
                "bins": calibration.BINS,
                "levels": calibration.LEVELS,
                "stride": calibration.STRIDE,
            },
        )
        return PrecisionUse(
            name=self.name,
            tools=(quantiser, cast_tool("FLOAT16")),
            calibration=CalibrationUse(
                data_digest=calibration_digest,
                method=options.method,
                percentile=options.percentile if options.method == "percentile" else None,
                batches=options.batches,
                batch_size=options.batch_size,
                seed=options.seed,
            ),
        )

    def convert(
        self, src: Path, dest_dir: Path, recipe: Recipe, batches: Iterable[Batch]
    ) -> ConversionReport:
        from onnx import TensorProto

        from enginefarm.graph.precisions import prepare
        from enginefarm.graph.precisions.mixed import cast

        options = self.options(recipe)
        model = prepare.fp32(src, self.name, OPSET)
        names = qdq.activations(model)
        ranges = calibration.ranges(model, names, batches, options)
        counts = qdq.insert(model, ranges, self.storage)
        model = cast(model, TensorProto.FLOAT16)
        _expect(model, counts, self.name)
        return finish(
            model,
            dest_dir,
            self.name,
            {
                "method": options.method,
                "quantize_nodes": counts.quantize,
                "dequantize_nodes": counts.dequantize,
                "quantized_operators": counts.nodes,
                **wide_nodes(model),
            },
        )


class Int8(EightBits):
    name: PrecisionName = "int8"
    storage = qdq.INT8


class FP8(EightBits):
    """Ranges are always minmax: FP8's steps shrink towards zero, so clipping gains little and
    costs the outliers (measured: docs/decisions/0021)."""

    name: PrecisionName = "fp8"
    storage = qdq.FP8

    def options(self, recipe: Recipe) -> Calibration:
        return _options(recipe).model_copy(update={"method": "minmax"})


def _options(recipe: Recipe) -> Calibration:
    if recipe.calibration is None:
        raise CalibrationError(
            "calibration: int8 and fp8 need representative data", fix="add it to the recipe"
        )
    return recipe.calibration


def _expect(model: ModelProto, counts: qdq.Counts, name: str) -> None:
    """A graph that was silently left unquantised builds and verifies well: count."""
    found = [node.op_type for node in model.graph.node]
    quantize, dequantize = found.count("QuantizeLinear"), found.count("DequantizeLinear")
    if not counts.nodes or (quantize, dequantize) != (counts.quantize, counts.dequantize):
        raise PrecisionError(
            f"{name}: the graph has {quantize} QuantizeLinear and {dequantize} DequantizeLinear",
            why=f"{counts.quantize} and {counts.dequantize} were inserted, "
            f"for {counts.nodes} operators",
            fix="this is a defect of enginefarm: report it with the graph",
        )
