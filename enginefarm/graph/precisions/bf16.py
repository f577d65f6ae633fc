"""BF16, mixed: as FP16, with BF16's range and 8 bits of mantissa."""

from __future__ import annotations

from importlib.metadata import version

from enginefarm.documents.spec import ToolUse
from enginefarm.graph.precisions.sixteen_bits import SixteenBits
from enginefarm.names import PrecisionName

OPSET = 22
"""The first in which Conv and pooling take BF16."""


class BF16(SixteenBits):
    name: PrecisionName = "bf16"
    element = "BFLOAT16"
    opset = OPSET

    def converters(self) -> tuple[ToolUse, ...]:
        return (
            ToolUse(
                name="onnx.version_converter", version=version("onnx"), arguments={"opset": OPSET}
            ),
        )
