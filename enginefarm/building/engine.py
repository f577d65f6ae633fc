"""From one BuildSpec to a published manifest: build, upload, record.

The three steps run on one machine, in this order. The manifest is written last: until it exists,
nobody can find the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from enginefarm.building import native as native_build
from enginefarm.building import refit
from enginefarm.building.build_locks import locked, turn
from enginefarm.building.environment import environment
from enginefarm.building.isolate import LOG_NAME
from enginefarm.building.job import BuildResult, Job
from enginefarm.building.signing_checks import (
    SMALLER_WORKSPACE,
    require_plan_of,
    require_signed_record,
)
from enginefarm.child import output_files
from enginefarm.child.cancellation import CANCEL
from enginefarm.documents.gpus import gpu
from enginefarm.documents.manifest import BuildRecord, DeviceVerification, Manifest
from enginefarm.documents.spec import BuildSpec
from enginefarm.documents.stage import StageOutput, StageRecord
from enginefarm.errors import (
    BuildCancelled,
    BuildCrashed,
    BuildError,
    EngineRunError,
    StoreConflict,
    StoreError,
)
from enginefarm.progress import SINK, report
from enginefarm.settings import build_limits
from enginefarm.store import failed_builds, layout
from enginefarm.store import quarantine as device_records
from enginefarm.store.site import Site, materialize, recorded, whole
from enginefarm.store.statements import signing_policy
from enginefarm.toolchains import BuildOutput, BuildRequest

ONE_MAY_FAIL_ALL = (BuildError, BuildCrashed)
"""How a shared plan fails when a single compute capability lacks something."""

RECORDED_VALUES = {
    "tensors",
    "compute_capabilities",
    "seconds",
    "peak_memory_bytes",
    "command",
    "details",
}


def build(
    site: Site,
    job: Job,
    *,
    cancel: threading.Event | None = None,
    workspace_mib: int | None = None,
) -> BuildResult | Manifest:
    """The plan, built in a child process if it does not exist; the manifest if it exists.

    A plan that GPUs share is built by the first of them; the others find its record. On one machine
    only one process builds a given plan: others wait, and then find its record. workspace_mib:
    less than the spec's, for the one retry after an out-of-memory; recorded in the manifest.

    Raises: ParseError, BuildError and its kinds, ToolchainError.
    """
    spec = job.spec
    with locked(site, spec.plan_key):
        _refuse_quarantined(site, spec)
        published = whole(site, job.recipe, spec.digest, signing_policy())
        if published is not None:
            report(f"build {spec.label}", 1, 1, "cached")
            return published
        asked = spec
        if workspace_mib is not None:
            builder = spec.builder.model_copy(update={"workspace_mib": workspace_mib})
            asked = spec.model_copy(update={"builder": builder})
        try:
            built = _plan(site, job, asked, cancel)
        except BuildError as error:
            if not asked.compute_capabilities or type(error) not in ONE_MAY_FAIL_ALL:
                raise
            report(f"build {spec.label}", 0, None, "for this GPU alone")
            built = _plan(site, job, asked.model_copy(update={"compute_capabilities": ()}), cancel)
        if workspace_mib is not None:
            details = {**built.details, SMALLER_WORKSPACE: workspace_mib}
            built = built.model_copy(update={"details": details})
        return built


def _plan(site: Site, job: Job, asked: BuildSpec, cancel: threading.Event | None) -> BuildResult:
    """The plan from its record in the store, or else built now and recorded."""

    policy = signing_policy()

    def work(scratch: Path) -> StageOutput:
        request = _request(site, job, asked, scratch)
        tried = None
        if asked.builder.refit:
            with turn(site, asked), _labeled_progress(asked.label):
                tried = refit.attempt(site, job, request, policy, cancel or CANCEL)
        output = (tried and tried.output) or _build(site, job, request, cancel)
        kept = {"plan": output.plan, "log": output.log, "layers": output.layers}
        values = output.model_dump(mode="json", include=RECORDED_VALUES)
        if tried is not None:
            kept["weights"] = tried.weights
            said = {refit.NOTE: tried.said} if tried.said else {}
            values |= {"details": {**output.details, **said}, **tried.values}
        return StageOutput(
            files={name: path for name, path in kept.items() if path and path.is_file()},
            values={**values, "gpu": asked.gpu.label},
        )

    stage = f"plan-{asked.precision.name}"
    record, cached = recorded(site, stage, asked.plan_key, work, policy)
    if not cached and refit.KEY in record.values:
        refit.remember(site, job, record, policy)
    return _result_of(record, asked.gpu.label)


def _result_of(record: StageRecord, gpu_label: str) -> BuildResult:
    """The result that a plan's record stands for, for one of the GPUs that share the plan."""
    values = {name: record.values[name] for name in RECORDED_VALUES & record.values.keys()}
    first = record.values["gpu"]
    built = BuildResult.model_validate(
        {
            **values,
            **{name: record.outputs.get(name) for name in ("plan", "log", "layers")},
            "refit": refit.named_by(record),
            "plan_key": record.key,
        }
    )
    if first == gpu_label:
        return built
    shared = {"built_with": first, "seconds": 0.0, "peak_memory_bytes": 0}
    return built.model_copy(update=shared)


def _request(site: Site, job: Job, asked: BuildSpec, scratch: Path) -> BuildRequest:
    work_dir = scratch / "build"
    work_dir.mkdir()
    limits = build_limits()
    return BuildRequest(
        spec=asked,
        onnx=materialize(site, job.prepared.graph, scratch / "onnx"),
        work_dir=work_dir,
        plugins=tuple(site.cache.ensure(site.store, ref) for ref in job.prepared.plugins),
        timeout_s=limits.timeout_s,
        memory_limit_bytes=limits.memory_bytes,
    )


def _build(
    site: Site, job: Job, request: BuildRequest, cancel: threading.Event | None
) -> BuildOutput:
    try:
        with turn(site, request.spec), _labeled_progress(request.spec.label):
            return native_build.build(
                site.store,
                request,
                reference=_reference(site, job),
                budget=job.budget,
                figures=job.prepared.verification,
                cancel=cancel,
            )
    except BuildError as error:
        if not isinstance(error, BuildCancelled):
            _keep_log(site, job, request.work_dir / LOG_NAME, error)
        raise


def _keep_log(site: Site, job: Job, log: Path, error: BuildError) -> None:
    """Stores the reason and the builder's log. An unreachable store must not hide the reason."""
    said = output_files.text(log, failed_builds.LOG_BYTES).encode() or b"the builder left no log\n"
    text = f"{type(error).__name__}: {error}\n\n".encode() + said[-failed_builds.LOG_BYTES // 2 :]
    spec = job.spec
    with suppress(StoreError):
        failed_builds.record(
            site.store, job.recipe, spec.gpu.label, spec.precision.name, spec.digest, text
        )


def _refuse_quarantined(site: Site, spec: BuildSpec) -> None:
    failed = device_records.quarantined(site.store, spec.digest)
    if failed is not None:
        device_records.withdraw(site.store, failed.manifest)  # who wrote it may have died then
        raise EngineRunError(
            f"{spec.label}: an engine of exactly this spec failed on its GPU and is in quarantine",
            why=failed.verification.reason,
            fix="correct the cause; to build the same engine again, change the recipe's `salt`",
        )


def _reference(site: Site, job: Job) -> Path | None:
    """The reference, which is downloaded only if several attempts are compared with it."""
    if job.spec.builder.attempts == 1:
        return None
    return site.cache.ensure(site.store, job.prepared.reference)


def upload(site: Site, built: BuildResult) -> BuildResult:
    """Uploads plan, log and layers. Blobs that exist get a new date, so that gc keeps them."""
    for ref in (built.plan, built.log, built.layers):
        if ref is not None and site.cache.has(ref):
            site.store.put_blob(site.cache.path(ref))
    return built


def publish(site: Site, job: Job, built: BuildResult) -> Manifest:
    """Writes the manifest, and returns the one that counts: the first that was written.

    A process with a signing key signs it if a record that a trusted builder signed (this process
    is one) says the same of the plan. It trusts no unsigned manifest.
    Raises: SignatureRejected, PlanDamaged, StoreMissing.
    """
    policy = signing_policy()
    if policy is not None:
        require_signed_record(site, job, built, policy, said=_result_of)
    # Who does not sign downloads no plan of another machine only to read its header.
    if policy is not None or site.cache.has(built.plan):
        require_plan_of(site, job.spec, built.plan)
    manifest = Manifest(
        recipe=job.recipe,
        spec=job.spec,
        spec_digest=job.spec.digest,
        engine=built.plan,
        refit=built.refit,
        graph=job.prepared.graph,
        reference=job.prepared.reference,
        tensors=built.tensors,
        verification=job.prepared.verification,
        device_verification=DeviceVerification(status="pending"),
        build=BuildRecord(
            seconds=built.seconds,
            peak_memory_bytes=built.peak_memory_bytes,
            log=built.log,
            layers=built.layers,
            compute_capabilities=built.compute_capabilities,
            built_with=built.built_with,
            command=built.command,
            details={**built.details, "precision": job.prepared.details},
        ),
        environment=environment(),
        notes=(*job.prepared.notes, *_refit_note(built)),
        # The newest is promoted: one clock for all builders.
        created_at=site.store.objects.clock(layout.INDEX),
    )
    if policy is None:
        created = site.store.publish(manifest)
    else:
        trusted = partial(policy.signed, site.store)
        created = site.store.publish(manifest, policy.signer, trusted)
    if created:
        return manifest
    published = whole(site, job.recipe, job.spec.digest, policy)
    if published is None:
        raise StoreConflict(
            f"{job.recipe} {job.spec.label}: another builder published this engine first, and it "
            "was deleted again",
            fix="build the recipe again",
        )
    return published


def _refit_note(built: BuildResult) -> tuple[str, ...]:
    said = built.details.get(refit.NOTE)
    return (str(said),) if said else ()


def smaller_workspace(spec: BuildSpec) -> int:
    """Half of what the build had, in MiB, for the one retry after an out-of-memory."""
    had = spec.builder.workspace_mib or int(gpu(spec.gpu.label).memory_gib * 1024)
    return max(64, had // 2)


@contextmanager
def _labeled_progress(label: str) -> Generator[None]:
    """Adds the label to this build's progress, so that parallel builds have separate lines."""
    watcher = SINK.get()

    def named(step: str, done: float, total: float | None, note: str = "") -> None:
        watcher(f"{step} {label}", done, total, note)

    token = SINK.set(named)
    try:
        yield
    finally:
        SINK.reset(token)
