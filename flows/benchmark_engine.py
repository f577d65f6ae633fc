"""One engine on the GPU that it was built for: verified in a fresh process, then timed."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from enginefarm.documents.thresholds import Budget
from enginefarm.errors import EnginefarmError
from enginefarm.farm.parameters import SpecDigest
from tasks.device import measure, verify_on_gpu


@flow(name="benchmark-engine", persist_result=False)
def benchmark_engine(
    spec_digest: SpecDigest,
    budget: Budget | None = None,
    class_scores: Annotated[list[str], Field(max_length=100)] = [],  # noqa: B006 - never changed
) -> State[Any]:
    """Verify and time the engine. Ends Verified, or `Failed: <kind>`; an engine that fails on its
    GPU is quarantined.

    Args:
        spec_digest: The whole digest of the engine's spec (see `enginefarm list --json`).
        budget: The accuracy budget. Empty: the precision's default.
        class_scores: Outputs that are class scores: top-1 is compared on these.
    """
    try:
        manifest = verify_on_gpu(spec_digest, budget, tuple(class_scores))
        if manifest.device_verification.status != "passed":
            why = manifest.device_verification.reason
            return Failed(name="Quarantined", message=f"{manifest.spec.label}: {why}")
        rows = measure(manifest)
    except EnginefarmError as error:
        return Failed(name=f"Failed: {type(error).__name__}", message=str(error), data=error)
    return Completed(name="Verified", message=f"{manifest.spec.label}: {len(rows)} rows")
