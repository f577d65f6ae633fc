"""Once an engine, on one machine and in this order: build, publish."""

from __future__ import annotations

from prefect import task
from prefect.logging import get_run_logger

from enginefarm.building import engine as engines
from enginefarm.child.cancellation import CANCEL
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import BuildError
from enginefarm.farm.policy import STEP
from enginefarm.farm.worker import metrics
from enginefarm.planning import stages
from tasks.artifacts import progress_artifact, publish_failure_log, publish_log


@task(name="build", task_run_name="build {job.spec.label}", **STEP)
def build_plan(
    job: engines.Job, workspace_mib: int | None = None
) -> engines.BuildResult | Manifest:
    with progress_artifact(job.spec.label), metrics.building(job.spec), metrics.transfers():
        try:
            built = engines.build(stages.here(), job, cancel=CANCEL, workspace_mib=workspace_mib)
        except BuildError:
            publish_failure_log(job.recipe, job.spec)
            raise
    if isinstance(built, Manifest):
        _log(job, "published meanwhile by another run")
    else:
        _log(job, f"plan {built.plan.digest[:12]}")
    return built


@task(name="publish", task_run_name="publish {job.spec.label}", **STEP)
def publish_engine(job: engines.Job, built: engines.BuildResult) -> Manifest:
    site = stages.here()
    with metrics.transfers():
        uploaded = engines.upload(site, built)
    manifest = engines.publish(site, job, uploaded)
    publish_log(manifest)
    _log(job, f"manifest {manifest.spec_digest[:12]}")
    return manifest


def _log(job: engines.Job, text: str) -> None:
    """A log line that can be found by its spec."""
    about = {"spec": job.spec.digest, "recipe": job.recipe, "gpu": job.spec.gpu.label}
    get_run_logger().info("%s: %s", job.spec.label, text, extra=about)
