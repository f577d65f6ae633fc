"""Which operators stay in FP32 when the rest of a graph is cast to 16 bits."""

from __future__ import annotations

WIDE = (
    "CumSum",
    "Exp",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "Log",
    "LpNormalization",
    "MeanVarianceNormalization",
    "NonMaxSuppression",
    "Pow",
    "RMSNormalization",
    "Range",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMean",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Resize",
)
"""Operators that stay in FP32. Their sums and powers leave FP16's range of 65504 first; Range
and NonMaxSuppression count in floats; Resize has scales among its inputs. Softmax subtracts
its maximum and is safe; in FP32 it would break fused attention."""
WIDE_IN_BF16 = ("ConvTranspose", "GRU", "HardSwish", "Mish")
"""TensorRT-RTX 1.7.1 refuses these four in BF16; it built 73 other operators."""


def wide_operators(low: int) -> tuple[str, ...]:
    """Operators that stay in FP32 when the rest becomes `low`."""
    from onnx import TensorProto

    return (*WIDE, *WIDE_IN_BF16) if low == TensorProto.BFLOAT16 else WIDE
