"""Once an engine, on one machine and in this order: build, upload, record."""

from __future__ import annotations

from prefect import task
from prefect.logging import get_run_logger

from enginefarm import engines, stages
from enginefarm.cancellation import CANCEL
from enginefarm.manifest import Manifest
from tasks.artifacts import progress_artifact, publish_log
from tasks.policy import STEP


@task(name="build", task_run_name="build {job.spec.label}", **STEP)
def build_plan(job: engines.Job, workspace_mib: int | None = None) -> engines.Built | Manifest:
    with progress_artifact(job.spec.label):
        built = engines.build(stages.here(), job, cancel=CANCEL, workspace_mib=workspace_mib)
    if isinstance(built, Manifest):
        get_run_logger().info("%s: published meanwhile by another run", job.spec.label)
    else:
        get_run_logger().info("%s: plan %s", job.spec.label, built.plan.digest[:12])
    return built


@task(name="upload", task_run_name="upload {job.spec.label}", **STEP)
def upload_plan(job: engines.Job, built: engines.Built) -> engines.Built:
    return engines.upload(stages.here(), built)


@task(name="record", task_run_name="record {job.spec.label}", **STEP)
def record_manifest(job: engines.Job, built: engines.Built) -> Manifest:
    manifest = engines.publish(stages.here(), job, built)
    publish_log(manifest)
    get_run_logger().info("%s: manifest %s", job.spec.label, manifest.spec_digest[:12])
    return manifest
