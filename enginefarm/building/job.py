"""One engine to build, and the result: what a worker receives and what it returns."""

from __future__ import annotations

from pydantic import Field, JsonValue

from enginefarm.documents.manifest import Refit, TensorInfo
from enginefarm.documents.spec import BlobRef, BuildSpec
from enginefarm.documents.thresholds import Budget
from enginefarm.planning.graphs import PreparedGraph
from enginefarm.schema import Digest, Frozen, Name


class Job(Frozen):
    """One engine to build. It contains everything that a worker needs, by value or digest."""

    recipe: Name
    spec: BuildSpec
    prepared: PreparedGraph
    budget: Budget | None = Field(default=None, description="What several attempts are held to.")


class BuildResult(Frozen):
    """A plan in the store, with figures of its build."""

    plan: BlobRef
    plan_key: Digest = Field(description="The key of the stage record that names this plan.")
    log: BlobRef | None
    layers: BlobRef | None
    tensors: tuple[TensorInfo, ...]
    compute_capabilities: tuple[str, ...] = ()
    built_with: Name | None = None
    seconds: float
    peak_memory_bytes: int
    command: str | None
    refit: Refit | None = None
    details: dict[str, JsonValue]
