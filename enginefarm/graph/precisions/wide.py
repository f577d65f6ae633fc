"""Which operators stay in FP32 when the rest of a graph is cast to 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import NodeProto

WIDE = (
    "CastLike",
    "CumSum",
    "Exp",
    "EyeLike",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "Log",
    "LpNormalization",
    "MeanVarianceNormalization",
    "NegativeLogLikelihoodLoss",
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
    "SoftmaxCrossEntropyLoss",
)
"""Operators that stay in FP32. Their sums and powers leave FP16's range of 65504 first; Range
and NonMaxSuppression count in floats; Resize has scales among its inputs; CastLike and EyeLike
make floats of integers. Softmax subtracts its maximum and is safe; in FP32 it would break fused
attention."""
WIDE_IN_BF16 = ("ConvTranspose", "GRU", "HardSwish", "LpPool", "Mish")
"""TensorRT-RTX 1.7.1 refuses these in BF16; it built 73 other operators."""
FP32_INPUTS = {"LSTM": (4, 7), "GRU": (4,), "RNN": (4,)}
"""Indexes of the inputs that TensorRT-RTX takes in FP32 only: sequence_lens, and peepholes."""


def wide_operators(low: int) -> tuple[str, ...]:
    """Operators that stay in FP32 when the rest becomes `low`."""
    from onnx import TensorProto

    return (*WIDE, *WIDE_IN_BF16) if low == TensorProto.BFLOAT16 else WIDE


def stays_wide(node: NodeProto, low: int) -> bool:
    """Whether the operator, used as it is here, stays in FP32."""
    if node.op_type in wide_operators(low):
        return True
    return any(
        len(node.input) > index and bool(node.input[index])
        for index in FP32_INPUTS.get(node.op_type, ())
    )
