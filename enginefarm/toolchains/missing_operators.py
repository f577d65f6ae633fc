"""What a toolchain is known not to have: asked before anything is built.

Each line was tried: docs/measurements/onnx-nodes.md has what the builder says by operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

from pydantic import JsonValue

from enginefarm.documents.spec import GpuTarget
from enginefarm.errors import ToolchainError
from enginefarm.graph.model.operators import CONV_3D, FORMS, FP32_OPERANDS, NESTED_IF
from enginefarm.graph.precisions.use import BY_NAME, BY_SEARCH
from enginefarm.names import PrecisionName


class Lack(NamedTuple):
    """operators that are missing. capabilities, precisions: where; empty: everywhere."""

    operators: frozenset[str]
    why: str
    fix: str
    capabilities: frozenset[str] = frozenset()
    precisions: frozenset[PrecisionName] = frozenset()

    def holds(self, capability: str, precision: PrecisionName) -> bool:
        return (not self.capabilities or capability in self.capabilities) and (
            not self.precisions or precision in self.precisions
        )


ELSEWHERE = "use toolchain `tensorrt` on a worker that has the GPU"

NOWHERE = frozenset(
    (
        *("AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot"),
        *("BitwiseOr", "BitwiseXor", "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence"),
        *("ConvInteger", "CumProd", "DFT", "DeformConv", "Det", "DynamicQuantizeLinear"),
        *("ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix"),
        *("Multinomial", "NegativeLogLikelihoodLoss", "NonMaxSuppression", "NonZero", "Optional"),
        *("OptionalGetElement", "OptionalHasElement", "QLinearConv", "QLinearMatMul"),
        *("RegexFullMatch", "RoiAlign", "SequenceAt", "SequenceConstruct", "SequenceEmpty"),
        *("SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap"),
        *("SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat", "StringNormalizer"),
        *("StringSplit", "SwiGLU", "TfIdfVectorizer", "Unique"),
    )
)
"""Operators that TensorRT-RTX's parser does not have, or refuses in every form."""

OF_QUANTIZERS = frozenset(
    ("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul")
)
"""Those among them that a quantizer of ONNX Runtime's writes."""

IN_PLACE = Lack(
    frozenset(("TensorScatter",)),
    "TensorRT updates such a cache in place: its output has to be bound to the memory of its "
    "input, and what runs engines here binds each tensor to memory of its own",
    "write the new keys and values behind the old ones with Concat",
)

LACKS: dict[str, tuple[Lack, ...]] = {
    "tensorrt": (IN_PLACE,),
    "trtexec": (IN_PLACE,),
    "tensorrt-rtx": (
        IN_PLACE,
        Lack(
            OF_QUANTIZERS,
            "TensorRT-RTX does not have this operator, which a quantizer wrote",
            "start from the model in FP32: the recipe's `precisions` quantize it",
        ),
        Lack(
            NOWHERE,
            "TensorRT-RTX does not have this operator, in any precision",
            "take it out of the model (the steps after the network can run outside the engine)",
        ),
        Lack(
            frozenset(form.name for form in FORMS),
            "TensorRT-RTX has the operator, but not this form of it, in any precision",
            "write it with other operators, or " + ELSEWHERE,
        ),
        Lack(
            frozenset((NESTED_IF,)),
            "TensorRT-RTX builds no If inside a branch of another If, and this one could not be "
            "moved out of it",
            "compute it before the outer If and select with Where, or give the Loops in that "
            "branch a count",
        ),
        Lack(
            frozenset(FP32_OPERANDS.values()),
            "TensorRT-RTX takes these inputs in FP32 only, and has no FP32 matrix product on "
            "compute capability 7.5",
            "export the model without these inputs, or " + ELSEWHERE,
            frozenset(("7.5",)),
        ),
        # Last: its advice would be wrong where another row refuses every precision.
        Lack(
            frozenset(("Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", CONV_3D)),
            "TensorRT-RTX has no FP32 matrix product on compute capability 7.5",
            "ask for fp16 there, or " + ELSEWHERE,
            frozenset(("7.5",)),
            frozenset(("fp32",)),
        ),
    ),
}
"""Toolchain -> what it lacks, in the order in which it is reported; others find out by building."""

KEPT = {
    BY_NAME: "take it out of `keep_wide`, or ",
    BY_SEARCH: "widen the budget so that it need not be kept, or ",
}
"""Why a node is kept in FP32 -> what can be done about that."""


def lacking(
    toolchain: str,
    gpu: GpuTarget,
    precision: PrecisionName,
    operators: Mapping[str, str],
    details: Mapping[str, JsonValue] | None = None,
) -> ToolchainError | None:
    """The first operator that this toolchain lacks for the GPU and precision, as an error.

    operators: each one -> its first node. details: of the precision's graph once it is there,
    whose `wide_operators` compute in FP32 whatever the precision, for the reasons in `kept_wide`.
    """
    wide = cast("dict[str, str]", (details or {}).get("wide_operators") or {})
    asked: tuple[tuple[PrecisionName, Mapping[str, str], str], ...] = (
        (precision, operators, ""),
        ("fp32", wide, ": this node is kept in FP32"),
    )
    listed = cast("list[dict[str, str]]", (details or {}).get("kept_wide") or [])
    reasons = {one["node"]: one["reason"] for one in listed}
    for lack in LACKS.get(toolchain, ()):
        for in_precision, nodes, kept in asked:
            missing = sorted(lack.operators & nodes.keys())
            if missing and lack.holds(gpu.compute_capability, in_precision):
                others = f"; also {', '.join(missing[1:])}" if missing[1:] else ""
                node = nodes[missing[0]]
                reason = reasons.get(node, "") if kept else ""
                return ToolchainError(
                    f"toolchain {toolchain}: node {node!r} ({missing[0]}) cannot be "
                    f"built for {gpu.label} in {precision}{kept}"
                    + (f", because {reason}" if reason else ""),
                    why=f"{lack.why}{others}",
                    fix=KEPT.get(reason, "") + ELSEWHERE if kept else lack.fix,
                )
    return None
