"""Names of precisions, toolchains and runtimes. It imports nothing: the command line offers
them, and starts fast.

To add one: its name here, beside the file of its own and the line in that folder's table.
"""

from __future__ import annotations

from typing import Literal, get_args

PrecisionName = Literal["fp32", "fp16", "bf16", "int8", "fp8"]

PRECISION_NAMES: tuple[PrecisionName, ...] = get_args(PrecisionName)
"""As commands, forms and the report list them."""

PRECISION_ORDER: tuple[PrecisionName, ...] = ("fp16", "bf16", "fp8", "int8", "fp32")
"""What is taken when nobody asks for a precision: the least lossy fast one first."""

ToolchainName = Literal["tensorrt", "trtexec", "tensorrt-rtx", "ort-trt"]

RuntimeName = Literal["tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt"]

RUNTIME_OF: dict[str, RuntimeName] = {
    "tensorrt": "tensorrt",
    "trtexec": "tensorrt",
    "ort-trt": "onnxruntime-tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
}
"""Toolchain -> what loads its plans on a host."""
