"""An engine, run on this machine's GPU in a fresh process, against the FP32 reference.

Only a process that has seen nothing but the plan proves that the plan alone yields these
outputs. A crash of the engine is a failed verification, not a crash of the worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from enginefarm.child.call import Child, Limits
from enginefarm.documents.comparing import ComparisonRules, OutputComparison
from enginefarm.documents.manifest import DeviceVerification
from enginefarm.documents.spec import ShapeProfile
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import BuildCancelled, EnginefarmError, EngineRunError, HostError
from enginefarm.graph.verification.reference import ReferenceBatch, read_reference
from enginefarm.graph.verification.verify import compare
from enginefarm.host.detect import first_gpu
from enginefarm.run.artifacts import RunningArtifact, open_artifact
from enginefarm.run.running import OpenRequest

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Arrays

LOG_NAME = "device.log"


class DeviceRequest(OpenRequest):
    """One verification, as it is handed to the fresh process."""

    reference: Path = Field(description="npz of inputs and FP32 outputs.")
    profiles: tuple[ShapeProfile, ...]
    budget: Budget
    comparing: ComparisonRules = ComparisonRules()
    measured: tuple[OutputComparison, ...] = Field(
        default=(), description="The graph's figures: what FP32 rounding costs it is in them."
    )


@dataclass(frozen=True)
class DeviceCheck:
    """verification: passed or failed, never pending. log: what the process printed."""

    verification: DeviceVerification
    log: Path


def verify_on_device(
    request: DeviceRequest, work_dir: Path, *, timeout_s: float = 600
) -> DeviceCheck:
    """Runs the engine on every batch of the reference.

    Raises: HostError (and DriverTooOld) where this host cannot run any engine of this
    toolchain: that tells nothing about the engine.
    """
    child = Child(
        what="the engine",
        error=EngineRunError,
        limits=Limits(timeout_s),
        folder=work_dir,
        log_name=LOG_NAME,
    )
    try:
        found = child.ask(f"{__name__}:verify_here", request, DeviceVerification)
    except (HostError, BuildCancelled):
        raise
    except EnginefarmError as error:
        reason = "; ".join(part for part in (error.what, error.why) if part)
        found = DeviceVerification(status="failed", reason=reason)
    return DeviceCheck(found, work_dir / LOG_NAME)


def verify_here(request_json: str) -> str:
    """The child's part: a DeviceRequest in, a DeviceVerification out, both as JSON."""
    return verified(DeviceRequest.model_validate_json(request_json)).model_dump_json()


def verified(request: DeviceRequest) -> DeviceVerification:
    """Runs every batch of the reference on the profile that takes it.

    Raises: HostError, EngineRunError.
    """
    with ExitStack() as stack:
        artifact = stack.enter_context(open_artifact(request))
        opened: dict[int, RunningArtifact] = {}

        def run(batch: ReferenceBatch) -> Arrays:
            shapes = {name: tuple(array.shape) for name, array in batch.inputs.items()}
            profile = profile_for(shapes, request.profiles)
            if profile is None:
                raise EngineRunError(f"no profile takes the reference's shapes {shapes}")
            if profile not in opened:
                running = artifact.running(request.plan.name, profile=profile)
                stack.callback(running.close)
                opened[profile] = running
            opened[profile].bind(batch.inputs)
            opened[profile].iterate()
            return opened[profile].outputs()

        batches = read_reference(request.reference)
        result = compare(batches, run, request.budget, request.comparing, measured=request.measured)
        name = artifact.device_name
    print(f"{name}: {result.samples} samples", *result.over_budget, sep="\n", flush=True)
    gpu = first_gpu()
    return DeviceVerification(
        status="failed" if result.over_budget else "passed",
        gpu=name,
        driver=gpu.driver if gpu else None,
        outputs=result.outputs,
        reason="; ".join(result.over_budget),
    )


def profile_for(shapes: dict[str, tuple[int, ...]], profiles: Sequence[ShapeProfile]) -> int | None:
    """The first profile that takes these input shapes."""
    for index, profile in enumerate(profiles):
        bounds = profile.shapes
        if all(
            len(shape) == len(bounds[name].min)
            and all(
                low <= dim <= high
                for low, dim, high in zip(bounds[name].min, shape, bounds[name].max, strict=True)
            )
            for name, shape in shapes.items()
            if name in bounds
        ):
            return index
    return None
