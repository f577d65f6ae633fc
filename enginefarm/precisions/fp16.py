"""FP16, mixed: weights and arithmetic in FP16, operators that sum or exponentiate in FP32."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from enginefarm import onnx_files, progress
from enginefarm.errors import PrecisionError
from enginefarm.precisions import ConversionReport
from enginefarm.precisions.graph import finish, infer_types
from enginefarm.recipe import Recipe
from enginefarm.spec import PrecisionUse, ToolUse

if TYPE_CHECKING:
    from onnx import ModelProto

    from enginefarm.data import Batch

WIDE = (
    "CumSum",
    "Exp",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "Log",
    "LpNormalization",
    "MeanVarianceNormalization",
    "Pow",
    "RMSNormalization",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMean",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
)
"""Operators that stay in FP32: their sums and powers leave FP16's range of 65504 first.
Softmax subtracts its maximum and is safe; in FP32 it would break fused attention."""
MAX_FP16 = 65504.0
MIN_FP16 = 2.0**-24


class FP16:
    name = "fp16"
    calibrated = False

    def use(self, recipe: Recipe, calibration_digest: str | None) -> PrecisionUse:
        return PrecisionUse(name="fp16", tools=(cast_tool(),))

    def convert(
        self, src: Path, dest_dir: Path, recipe: Recipe, batches: Iterable[Batch]
    ) -> ConversionReport:
        progress.report("fp16", 0, 1)
        model = cast(onnx_files.read(src, error=PrecisionError))
        report = finish(model, dest_dir, "fp16", wide_nodes(model))
        progress.report("fp16", 1, 1)
        return report


def cast_tool() -> ToolUse:
    return ToolUse(
        name="onnxconverter-common",
        version=version("onnxconverter-common"),
        arguments={"wide": list(WIDE), "max": MAX_FP16, "min": MIN_FP16},
    )


def cast(model: ModelProto) -> ModelProto:
    """The graph in FP16, its inputs and outputs as they were.

    Raises: PrecisionError.
    """
    from onnxconverter_common import float16

    infer_types(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each weight it clamps
            return float16.convert_float_to_float16(
                model,
                min_positive_val=MIN_FP16,
                max_finite_val=MAX_FP16,
                keep_io_types=True,
                disable_shape_infer=True,
                op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *WIDE],
                check_fp16_ready=False,
            )
    except Exception as error:
        raise PrecisionError(
            "the cast to FP16 failed", why=onnx_files.one_line(f"{type(error).__name__}: {error}")
        ) from error


def wide_nodes(model: ModelProto) -> dict[str, JsonValue]:
    """How many nodes of which operators stayed wide, for the manifest."""
    from collections import Counter

    found = Counter(node.op_type for node in model.graph.node if node.op_type in WIDE)
    casts = sum(node.op_type == "Cast" for node in model.graph.node)
    return {"wide_nodes": dict(sorted(found.items())), "casts": casts}
