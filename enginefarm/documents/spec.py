"""BuildSpec: one fully resolved build. Its sha256 is the action key.

What changes the plan is in here; what does not (driver, clocks, power, free memory, host
name) is recorded in the manifest instead. Change a field's meaning: raise KEY_VERSION.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, model_serializer

from enginefarm.documents.builder import BuilderOptions
from enginefarm.names import PrecisionName, ToolchainName
from enginefarm.schema import Digest, Frozen, Name, canonical_json

KEY_VERSION = 2
"""2: builders compute FP32 as such, and not in TF32 (decision 0210)."""


class BlobRef(Frozen):
    """Bytes in the store or the cache, by content."""

    digest: Digest
    size_bytes: int = Field(ge=0)


class OnnxRef(Frozen):
    """An ONNX model: the graph, and its external data where it has any.

    The two files are always written as `model.onnx` and `model.onnx.data`, so that no
    user's file name takes part in a digest.
    """

    model: BlobRef
    data: BlobRef | None = None
    opset: int

    @property
    def digest(self) -> str:
        return self.model.digest if self.data is None else self.sha256()


class ToolUse(Frozen):
    """A tool, its version, and the arguments it was called with."""

    name: str
    version: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)


class CalibrationUse(Frozen):
    data_digest: Digest
    method: Literal["auto", "entropy", "minmax", "percentile"]
    percentile: float | None
    batches: int
    batch_size: int
    seed: int


class PrecisionUse(Frozen):
    """A precision and everything that decides the graph it rewrites to."""

    name: PrecisionName
    tools: tuple[ToolUse, ...]
    calibration: CalibrationUse | None = None


class MinOptMax(Frozen):
    """Shapes of one input in one profile; all of one rank."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class ShapeProfile(Frozen):
    name: Name
    shapes: dict[str, MinOptMax]


class GpuTarget(Frozen):
    label: Name
    compute_capability: str = Field(pattern=r"^\d+\.\d$")


class ToolchainId(Frozen):
    """The exact build of a toolchain. Plans of two builds are never confused."""

    name: ToolchainName
    build: str = Field(description="Full version, as the library reports it: 1.7.1.116")
    cuda: str
    os: str
    arch: str


class BuildSpec(Frozen):
    key_version: int = KEY_VERSION
    salt: str = ""
    onnx_digest: Digest = Field(description="The slimmed FP32 graph, external data included.")
    exporter: ToolUse
    slimmer: ToolUse
    precision: PrecisionUse
    profiles: tuple[ShapeProfile, ...]
    gpu: GpuTarget
    compute_capabilities: tuple[str, ...] = Field(
        default=(), description="What the plan is to carry; empty: this GPU's alone."
    )
    toolchain: ToolchainId
    builder: BuilderOptions
    plugins: tuple[Digest, ...] = ()

    @model_serializer(mode="wrap")
    def _as_written(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A spec that shares no plan reads, and is digested, as before there were such plans."""
        written: dict[str, Any] = {**serialize(self), **(self.model_extra or {})}
        if not self.compute_capabilities:
            written.pop("compute_capabilities", None)
        return written

    @property
    def digest(self) -> str:
        """The action key."""
        return self.sha256()

    @property
    def plan_key(self) -> str:
        """What decides the plan's bytes: one for all the GPUs that share a plan."""
        if not self.compute_capabilities:
            return self.digest
        decides = self.model_dump(mode="json", exclude={"gpu"})
        return hashlib.sha256(canonical_json(decides)).hexdigest()

    @property
    def label(self) -> str:
        """Short, for people: `t4/int8`."""
        return f"{self.gpu.label}/{self.precision.name}"
