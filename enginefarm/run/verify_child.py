"""In the fresh process of `verify_on_device`: loads one plan, runs it and compares."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from enginefarm.documents.manifest import DeviceVerification
from enginefarm.errors import EngineRunError
from enginefarm.graph.verification.reference import ReferenceBatch, read_reference
from enginefarm.graph.verification.verify import compare
from enginefarm.host.detect import first_gpu
from enginefarm.run.artifacts import RunningArtifact, open_artifact
from enginefarm.run.verify import DeviceRequest, profile_for

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Arrays


def verify(request_json: str) -> str:
    """A DeviceRequest in, a DeviceVerification out, both as JSON."""
    return verified(DeviceRequest.model_validate_json(request_json)).model_dump_json()


def verified(request: DeviceRequest) -> DeviceVerification:
    """Runs every batch of the reference on the profile that takes it.

    Raises: HostError, EngineRunError.
    """
    with ExitStack() as stack:
        artifact = stack.enter_context(
            open_artifact(
                request.plan,
                toolchain=request.toolchain,
                plugins=request.plugins,
                cuda_major=request.cuda_major,
            )
        )
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
