"""Manifest: the JSON that says an engine is complete. Written last, never changed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from enginefarm.documents.builder import DType
from enginefarm.documents.comparing import ComparisonRules, OutputComparison
from enginefarm.documents.signed import Signature
from enginefarm.documents.spec import BlobRef, BuildSpec, OnnxRef
from enginefarm.names import PrecisionName
from enginefarm.schema import Digest, Frozen, Moment, Name

SCHEMA_VERSION = 1


class TensorInfo(Frozen):
    """One input or output of the engine; -1 is a dynamic dim."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    role: Literal["input", "output"]
    dims: tuple[str | None, ...] = Field(
        default=(),
        description="The name of each dynamic dim, as the recipe or the exporter says; null for a "
        "fixed one, and where nobody named it. Manifests of earlier versions have none.",
    )
    is_shape_tensor: bool = Field(
        default=False,
        description="The engine takes its values as sizes, and reads them on the CPU.",
    )


class GraphVerification(Frozen):
    """The precision's graph through ONNX Runtime on CPU against FP32 PyTorch."""

    samples: int
    runtime: str
    outputs: tuple[OutputComparison, ...]
    comparing: ComparisonRules = Field(default_factory=ComparisonRules)
    asked: Digest | None = Field(
        default=None,
        description="Everything but the graph and the budget that decides the figures: source, "
        "data, what outputs mean, and how graphs are verified.",
    )
    corners: tuple[str, ...] = Field(
        default=(), description="Sizes it was run at, next to the data's."
    )
    not_checked: tuple[str, ...] = Field(
        default=(), description="What could not be run: branches that no data took, sizes."
    )
    random_data: bool = Field(
        default=False, description="It was run on seeded random inputs, not on data of the user."
    )
    seconds: float | None = Field(default=None, ge=0)
    operators: str = Field(
        default="", description="How much of the graph computes in the precision."
    )
    over_budget: tuple[str, ...] = Field(
        default=(),
        description="One line for each figure over budget, and by how much; empty: passed.",
    )

    @property
    def passed(self) -> bool:
        return not self.over_budget


class DeviceVerification(Frozen):
    """The engine itself, run on the GPU it was built for, in a fresh process."""

    status: Literal["pending", "passed", "failed"]
    gpu: str | None = None
    driver: str | None = None
    outputs: tuple[OutputComparison, ...] = ()
    reason: str = ""
    signatures: tuple[Signature, ...] = Field(
        default=(),
        description="Made by the worker that ran the engine. They cover the other fields here and "
        "the manifest.",
    )


class Environment(Frozen):
    """Where it was built. Recorded, and not part of the key."""

    host: str
    os: str
    arch: str
    python: str
    packages: dict[str, str]
    licenses: dict[str, str] = Field(
        default_factory=dict[str, str],
        description="Package -> what its metadata declares, as an SPDX expression.",
    )
    gpu_name: str | None = None
    driver: str | None = None


class BuildRecord(Frozen):
    seconds: float = Field(ge=0)
    peak_memory_bytes: int = Field(ge=0)
    log: BlobRef | None = None
    layers: BlobRef | None = Field(default=None, description="Engine inspector JSON.")
    compute_capabilities: tuple[str, ...] = Field(
        default=(), description="What the plan carries; empty: its GPU's own alone."
    )
    built_with: Name | None = Field(
        default=None, description="The GPU whose build made the shared plan; none: this one's own."
    )
    command: str | None = Field(
        default=None, description="The trtexec line, for the trtexec toolchain."
    )
    details: dict[str, JsonValue] = Field(default_factory=dict)


class Refit(Frozen):
    """How a host that has the skeleton's plan makes the engine: it sets these weights in it.

    Only a hint of a shorter way: what comes out counts if it has the engine's digest.
    """

    skeleton: BlobRef = Field(description="The plan of a model with the same graph.")
    weights: BlobRef = Field(description="safetensors: the weights that differ, by their names.")


class Manifest(Frozen):
    schema_version: int = SCHEMA_VERSION
    recipe: Name
    spec: BuildSpec
    spec_digest: Digest
    engine: BlobRef
    refit: Refit | None = None
    graph: OnnxRef = Field(description="The ONNX that was built: after slim and precision.")
    reference: BlobRef | None = Field(default=None, description="npz of inputs and FP32 outputs.")
    tensors: tuple[TensorInfo, ...]
    verification: GraphVerification
    device_verification: DeviceVerification
    build: BuildRecord
    environment: Environment
    provenance: dict[str, JsonValue] = Field(default_factory=dict)
    notes: tuple[str, ...] = Field(
        default=(),
        description="What was changed or left out between the file and the graph: an opset that "
        "was raised, a graph that could not be slimmed.",
    )
    created_at: Moment

    @property
    def needs(self) -> tuple[BlobRef, ...]:
        """The blobs without which the engine is not complete: it, its graph, its reference."""
        found = (self.engine, self.graph.model, self.graph.data, self.reference)
        return tuple(ref for ref in found if ref is not None)

    @property
    def names(self) -> tuple[BlobRef, ...]:
        """Every blob that the manifest names, also those that the engine is whole without."""
        refit = (self.refit.skeleton, self.refit.weights) if self.refit else ()
        found = (*self.needs, self.build.log, self.build.layers, *refit)
        return tuple(ref for ref in found if ref is not None)

    @property
    def precision(self) -> PrecisionName:
        return self.spec.precision.name

    @property
    def gpu(self) -> str:
        return self.spec.gpu.label
