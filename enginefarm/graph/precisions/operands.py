"""What the schema of an operator says about the float dtypes of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import onnx

FLOAT = "tensor(float)"


class Operands(NamedTuple):
    """Whether the operator computes in the low dtype, and which operands are FP32 all the same.

    fixed_inputs, fixed_outputs: for each formal parameter, whether its dtype is FP32 by the
    schema whatever the others are (the scales of Upsample and, until opset 18, of
    QuantizeLinear). The last one stands for all that follow it.
    """

    takes_low: bool = False
    fixed_inputs: tuple[bool, ...] = ()
    fixed_outputs: tuple[bool, ...] = ()


def is_fixed(flags: Sequence[bool], index: int) -> bool:
    """What such flags say about an operand."""
    return bool(flags) and flags[min(index, len(flags) - 1)]


@cache
def operands(op_type: str, domain: str, opset: int, low: str) -> Operands:
    """low: `tensor(float16)` or `tensor(bfloat16)`. `Operands()` for an operator without schema."""
    if domain not in ("", "ai.onnx"):
        return Operands()
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return Operands()
    floats: list[Any] = [c for c in schema.type_constraints if FLOAT in c.allowed_type_strs]
    return Operands(
        takes_low=all(low in constraint.allowed_type_strs for constraint in floats),
        fixed_inputs=tuple(item.type_str == FLOAT for item in schema.inputs),
        fixed_outputs=tuple(item.type_str == FLOAT for item in schema.outputs),
    )
