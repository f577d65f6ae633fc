"""An engine, run on this machine's GPU in a fresh process, against the FP32 reference.

Only a process that has seen nothing but the plan proves that the plan alone yields these
outputs. A crash of the engine is a failed verification, not a crash of the worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from enginefarm.child.call import Child, Limits
from enginefarm.documents.comparing import ComparisonRules, OutputComparison
from enginefarm.documents.manifest import DeviceVerification
from enginefarm.documents.spec import ShapeProfile
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import BuildCancelled, EnginefarmError, EngineRunError, HostError
from enginefarm.schema import Frozen

LOG_NAME = "device.log"


class DeviceRequest(Frozen):
    """One verification, as it is handed to the fresh process."""

    plan: Path
    reference: Path = Field(description="npz of inputs and FP32 outputs.")
    toolchain: str
    cuda_major: int | None = None
    profiles: tuple[ShapeProfile, ...]
    budget: Budget
    comparing: ComparisonRules = ComparisonRules()
    measured: tuple[OutputComparison, ...] = Field(
        default=(), description="The graph's figures: what FP32 rounding costs it is in them."
    )
    plugins: tuple[Path, ...] = ()


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
        found = child.ask("enginefarm.run.verify_child:verify", request, DeviceVerification)
    except (HostError, BuildCancelled):
        raise
    except EnginefarmError as error:
        reason = "; ".join(part for part in (error.what, error.why) if part)
        found = DeviceVerification(status="failed", reason=reason)
    return DeviceCheck(found, work_dir / LOG_NAME)


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
