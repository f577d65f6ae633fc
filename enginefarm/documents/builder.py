"""What a builder is asked for, and the types of its tensors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from enginefarm.schema import Frozen

DType = Literal["float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]


class BuilderOptions(Frozen):
    """What the builder is asked for; every field is part of the action key."""

    optimization_level: int = Field(
        default=3, ge=0, le=5, description="Higher: a longer build, a faster engine."
    )
    workspace_mib: int | None = Field(
        default=None, ge=1, description="None: the builder's own limit."
    )
    compatibility: Literal["none", "same_compute_capability", "ampere_plus"] = Field(
        default="none", description="Which other GPUs a native plan may run on."
    )
    version_compatible: bool = Field(
        default=False, description="A plan that later versions of the same major release load."
    )
    sparse_weights: bool = Field(
        default=False, description="Allow kernels for weights with 2:4 sparsity."
    )
    tactic_sources: tuple[str, ...] | None = Field(
        default=None, description="Only these kernel libraries, by TensorRT's names."
    )
    attempts: int = Field(
        default=1, ge=1, le=20, description="Build lottery: keep the best accurate one."
    )
