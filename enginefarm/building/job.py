"""One engine to build, and the plan that came of it: what a worker is told, and what it returns."""

from __future__ import annotations

from pydantic import Field, JsonValue

from enginefarm.documents.manifest import TensorInfo
from enginefarm.documents.spec import BlobRef, BuildSpec
from enginefarm.documents.thresholds import Budget
from enginefarm.planning.graphs import PreparedGraph
from enginefarm.schema import Digest, Frozen, Name


class Job(Frozen):
    """One engine to build: all that a worker has to be told, by value and digest."""

    recipe: Name
    spec: BuildSpec
    prepared: PreparedGraph
    budget: Budget | None = Field(default=None, description="What several attempts are held to.")


class BuildResult(Frozen):
    """A plan in the store, and what was seen while it was built."""

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
    details: dict[str, JsonValue]
