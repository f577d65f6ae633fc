"""Operators of a graph: what they are called where toolchains differ in what they build, and which
of them stay in FP32 when the rest is cast to 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from enginefarm.graph.model import walk

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import ModelProto, NodeProto

OPSET = 13
"""The oldest opset that later stages take: the first in which Q/DQ has an axis. Older ones keep
axes and bounds in attributes, and their Max takes no broadcast."""
MOVES = frozenset(
    (
        *("DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice"),
        *("SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    )
)
"""Operators whose results are numbers of their first input."""
CONV_3D = "Conv3d"
"""A Conv or ConvTranspose over three dims, in `operators`."""
FP32_INPUTS = {"LSTM": (4, 7), "GRU": (4,), "RNN": (4,)}
"""Indexes of the inputs that TensorRT-RTX takes in FP32 only: sequence_lens, and peepholes."""
FP32_OPERANDS = {
    "LSTM": "LSTM with sequence_lens or peepholes",
    "GRU": "GRU with sequence_lens",
    "RNN": "RNN with sequence_lens",
}
"""What an operator that has one of these is called in `operators`."""
MATRIX_PRODUCTS = frozenset(("Attention", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"))
"""Kept wide only where nothing else helps: TensorRT-RTX has no FP32 kernel for them on compute
capability 7.5, and elsewhere an FP32 one costs the most time."""
NO_PRODUCT = "Einsum of one input"
"""A diagonal, a sum or a transposition, in `operators`."""


class Form(NamedTuple):
    """A form of an operator that has a name of its own, in `operators`: given by an attribute, or
    by more results than the first."""

    operators: tuple[str, ...]
    name: str
    attribute: str = ""
    usual: tuple[Any, ...] = ()

    def fits(self, node: NodeProto) -> bool:
        from onnx import helper

        if node.op_type not in self.operators:
            return False
        if not self.attribute:
            return any(list(node.output)[1:])
        found = walk.attributes(node).get(self.attribute)
        value: Any = helper.get_attribute_value(found) if found else self.usual[0]
        values: list[Any] = [*value] if isinstance(value, list) else [value]
        return not {one.decode() if isinstance(one, bytes) else one for one in values} <= {
            *self.usual
        }


PLACES = (
    *("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "tf_half_pixel_for_nn"),
)
FORMS = (
    Form(("MaxPool",), "MaxPool with indices"),
    Form(("AveragePool", "MaxPool"), "pooling with dilations", "dilations", (1,)),
    Form(("LpPool", "LpNormalization"), "a norm other than L1 and L2", "p", (2, 1)),
    # Its parser multiplies an average by the whole window, also where the window leaves the input.
    Form(("LpPool",), "LpPool with ceil_mode", "ceil_mode", (0,)),
    Form(("Resize",), "Resize with antialias", "antialias", (0,)),
    Form(
        ("Resize",),
        "Resize that keeps the aspect ratio",
        "keep_aspect_ratio_policy",
        ("stretch",),
    ),
    Form(("Resize",), "Resize in a rare mode", "coordinate_transformation_mode", PLACES),
    Form(("BatchNormalization",), "BatchNormalization in training mode", "training_mode", (0,)),
    Form(("BatchNormalization",), "BatchNormalization in training mode"),  # until opset 13
    Form(("ScatterElements", "ScatterND"), "Scatter with a reduction", "reduction", ("none",)),
    Form(("LSTM",), "LSTM with input_forget", "input_forget", (0,)),
)
"""The first that fits names the node."""
NESTED_IF = "If inside an If"
"""An If in a branch of another one, in `operators`."""

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


def names(model: ModelProto) -> dict[str, str]:
    """Each operator of the graph and its subgraphs -> the name of its first node."""
    ranks = {name: len(tensor.dims) for name, tensor in walk.constants(model.graph)}
    found: dict[str, str] = {}
    for node in walk.nodes(model.graph):
        found.setdefault(name_of(node, ranks), walk.label(node))
    for node in walk.nested_ifs(model.graph):
        found.setdefault(NESTED_IF, walk.label(node))
    return found


def name_of(node: NodeProto, ranks: Mapping[str, int]) -> str:
    """What the node is called where toolchains differ. ranks: of the weights."""
    deep = node.op_type in ("Conv", "ConvTranspose") and ranks.get(node.input[1]) == 5
    if node.op_type == "Einsum" and len(node.input) == 1:
        return NO_PRODUCT
    if has_fp32_operands(node):
        return FP32_OPERANDS[node.op_type]
    if form := next((one.name for one in FORMS if one.fits(node)), ""):
        return form
    return CONV_3D if deep else node.op_type


def has_fp32_operands(node: NodeProto) -> bool:
    """Whether the node has inputs that TensorRT-RTX takes in FP32 only."""
    return any(
        len(node.input) > index and bool(node.input[index])
        for index in FP32_INPUTS.get(node.op_type, ())
    )


def wide_operators(low: int) -> tuple[str, ...]:
    """Operators that stay in FP32 when the rest becomes `low`."""
    from onnx import TensorProto

    return (*WIDE, *WIDE_IN_BF16) if low == TensorProto.BFLOAT16 else WIDE


def stays_wide(node: NodeProto, low: int) -> bool:
    """Whether the operator, used as it is here, stays in FP32."""
    return node.op_type in wide_operators(low) or has_fp32_operands(node)
