"""One spec -> one engine in the store, on the machine that this run was sent to."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from enginefarm.building.engine import Job, smaller_workspace
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import BuildOutOfMemory, EnginefarmError
from enginefarm.farm.policy import NO_RESULTS
from enginefarm.farm.worker.card import check_spec
from tasks.engine import build_plan, publish_engine


@flow(name="build-engine", **NO_RESULTS)
def build_engine(job: Job) -> State[Manifest]:
    """Build the plan, upload it, write its manifest. Ends Built, or `Failed: <kind>`."""
    try:
        manifest, _ = build_here(job)
    except EnginefarmError as error:
        return Failed(name=f"Failed: {type(error).__name__}", message=str(error), data=error)
    return Completed(name="Built", message=manifest.engine.digest, data=manifest)


def build_here(job: Job) -> tuple[Manifest, bool]:
    """The steps, in this process: the manifest, and whether it was already published. Out of memory
    is tried once more, with half the workspace."""
    check_spec(job.spec)
    try:
        built = build_plan(job)
    except BuildOutOfMemory:
        built = build_plan(job, workspace_mib=smaller_workspace(job.spec))
    if isinstance(built, Manifest):
        return built, True
    return publish_engine(job, built), False
