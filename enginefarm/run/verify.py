"""An engine, run on this machine's GPU in a fresh process, against the FP32 reference.

Only a process that has seen nothing but the plan proves that the plan alone gives these
outputs. A crash of the engine is a failed verification, not a crash of the worker.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from enginefarm import errors
from enginefarm.child.process import child_environment
from enginefarm.documents.manifest import DeviceVerification
from enginefarm.documents.spec import ShapeProfile
from enginefarm.documents.thresholds import Budget
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
    class_scores: tuple[str, ...] = ()
    plugins: tuple[Path, ...] = ()
    host_code_allowed: bool = False


@dataclass(frozen=True)
class Verdict:
    """verification: passed or failed, never pending. log: what the process printed."""

    verification: DeviceVerification
    log: Path


def verify_on_device(request: DeviceRequest, work_dir: Path, *, timeout_s: float = 600) -> Verdict:
    """Runs the engine on every batch of the reference.

    Raises: HostError (and DriverTooOld) where this host cannot run any engine of this
    toolchain: that says nothing of the engine.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    asked, answer = work_dir / "device_request.json", work_dir / "device_result.json"
    asked.write_text(request.model_dump_json(), "utf-8")
    log = work_dir / LOG_NAME
    with log.open("wb") as stream:
        child = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "enginefarm.run.verify_child"),
                *(str(asked), str(answer), str(os.getpid())),
            ],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=child_environment(work_dir),
            start_new_session=True,
        )
        try:
            code = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return Verdict(_failed(f"still running after {timeout_s:g} s, and killed"), log)
        finally:
            child.kill()
            child.wait()
    if answer.is_file():
        return Verdict(_answer(json.loads(answer.read_text("utf-8"))), log)
    ended = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return Verdict(_failed(f"the process that ran it {ended}"), log)


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


def _answer(fields: dict[str, str]) -> DeviceVerification:
    if "verification" in fields:
        return DeviceVerification.model_validate(fields["verification"])
    error = errors.of_fields(fields, errors.EngineRunError)
    if isinstance(error, errors.HostError):
        raise error
    return _failed("; ".join(part for part in (error.what, error.why) if part))


def _failed(reason: str) -> DeviceVerification:
    return DeviceVerification(status="failed", reason=reason)
