"""FP16, mixed."""

from __future__ import annotations

from enginefarm.graph.precisions.prepare import LEAST_OPSET
from enginefarm.graph.precisions.sixteen_bits import SixteenBits
from enginefarm.names import PrecisionName


class FP16(SixteenBits):
    name: PrecisionName = "fp16"
    element = "FLOAT16"
    opset = LEAST_OPSET
