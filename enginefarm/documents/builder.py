"""What a builder is asked for, and the types of its tensors."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from enginefarm.schema import Frozen

DType = Literal["float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]
"""The types that inputs and outputs of an engine can have, by their names in numpy."""


class TypeNames(NamedTuple):
    """What others call one type: trt.DataType, onnx.TensorProto.DataType, and Triton (KServe)."""

    tensorrt: str
    onnx: str
    triton: str


DTYPES: dict[DType, TypeNames] = {
    "float32": TypeNames("FLOAT", "FLOAT", "FP32"),
    "float16": TypeNames("HALF", "FLOAT16", "FP16"),
    "bfloat16": TypeNames("BF16", "BFLOAT16", "BF16"),
    "int64": TypeNames("INT64", "INT64", "INT64"),
    "int32": TypeNames("INT32", "INT32", "INT32"),
    "int8": TypeNames("INT8", "INT8", "INT8"),
    "uint8": TypeNames("UINT8", "UINT8", "UINT8"),
    "bool": TypeNames("BOOL", "BOOL", "BOOL"),
}


class BuilderOptions(Frozen):
    """Options for the builder. Every field is part of the action key."""

    optimization_level: int = Field(
        default=3,
        ge=0,
        le=5,
        description="A higher level makes the build longer and the engine faster.",
    )
    workspace_mib: int | None = Field(
        default=None, ge=1, description="None: the builder's own limit."
    )
    compatibility: Literal["none", "same_compute_capability", "ampere_plus"] = Field(
        default="none", description="Which other GPUs a native plan may run on."
    )
    version_compatible: bool = Field(
        default=False,
        description="The plan can be loaded by later versions of the same major release.",
    )
    sparse_weights: bool = Field(
        default=False, description="Allow kernels for weights with 2:4 sparsity."
    )
    tactic_sources: tuple[str, ...] | None = Field(
        default=None, description="Only these kernel libraries, by TensorRT's names."
    )
    attempts: int = Field(
        default=1,
        ge=1,
        le=20,
        description="Build lottery: build this many times, and keep the fastest accurate engine.",
    )
    refit: bool = Field(
        default=False,
        description="When only weights of the model change, set them in the plan that exists "
        "instead of building, and let hosts do the same. Toolchain `tensorrt`, fp32 and fp16. Such "
        "plans are larger, and can be slower.",
    )

    @model_serializer(mode="wrap")
    def _as_written(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Options that do not name `refit` read, and are digested, as before there was one."""
        written: dict[str, Any] = {**serialize(self), **(self.model_extra or {})}
        if "refit" not in self.model_fields_set:
            written.pop("refit", None)
        return written

    @property
    def asked(self) -> BuilderOptions:
        """The same options, with one action key whether or not a recipe names a default."""
        return self if self.refit else BuilderOptions(**self.model_dump(exclude={"refit"}))
