"""FP16, mixed."""

from __future__ import annotations

from enginefarm.documents.recipe import PrecisionName
from enginefarm.graph.precisions.prepare import LEAST_OPSET
from enginefarm.graph.precisions.sixteen_bits import SixteenBits


class FP16(SixteenBits):
    name: PrecisionName = "fp16"
    element = "FLOAT16"
    opset = LEAST_OPSET
