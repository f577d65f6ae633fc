"""One spec -> one engine in the store, on the machine that this run was sent to."""

from __future__ import annotations

from prefect import flow

from enginefarm.engines import Job, smaller_workspace
from enginefarm.errors import BuildOutOfMemory
from enginefarm.manifest import Manifest
from tasks.engine import build_plan, record_manifest, upload_plan


@flow(name="build-engine", flow_run_name="{job.recipe} {job.spec.label}", persist_result=False)
def build_engine(job: Job) -> Manifest:
    """Build the plan, upload it, write its manifest.

    Out of memory is tried once more with half of the workspace; nothing else is.
    """
    try:
        built = build_plan(job)
    except BuildOutOfMemory:
        built = build_plan(job, workspace_mib=smaller_workspace(job.spec))
    if isinstance(built, Manifest):
        return built
    uploaded = upload_plan(job, built)
    return record_manifest(job, uploaded)
