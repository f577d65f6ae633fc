"""Which operators stay in FP32 when the rest of a graph is cast to 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginefarm.graph import operators

if TYPE_CHECKING:
    from onnx import NodeProto

WIDE = (
    *("CastLike", "CumSum", "Exp", "EyeLike", "GroupNormalization", "InstanceNormalization"),
    *("LayerNormalization", "Log", "LpNormalization", "MeanVarianceNormalization"),
    *("NegativeLogLikelihoodLoss", "NonMaxSuppression", "Pow", "RMSNormalization", "Range"),
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare", "Resize", "SoftmaxCrossEntropyLoss"),
)
"""Operators that stay in FP32. Their sums and powers leave FP16's range of 65504 first; Range
and NonMaxSuppression count in floats; Resize has scales among its inputs; CastLike and EyeLike
make floats of integers. Softmax subtracts its maximum and is safe; in FP32 it would break fused
attention."""
WIDE_IN_BF16 = ("ConvTranspose", "GRU", "GlobalLpPool", "HardSwish", "LpPool", "Mish")
"""TensorRT-RTX 1.7.1 refuses these in BF16; it built 73 other operators."""


def wide_operators(low: int) -> tuple[str, ...]:
    """Operators that stay in FP32 when the rest becomes `low`."""
    from onnx import TensorProto

    return (*WIDE, *WIDE_IN_BF16) if low == TensorProto.BFLOAT16 else WIDE


def stays_wide(node: NodeProto, low: int) -> bool:
    """Whether the operator, used as it is here, stays in FP32."""
    return node.op_type in wide_operators(low) or operators.has_fp32_operands(node)
