"""From one BuildSpec to a published manifest: build, upload, record.

The three run on one machine, in this order. The manifest comes last: until it is there,
nothing of the build can be found by anybody.
"""

from __future__ import annotations

import fcntl
import os
import platform
import threading
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

from pydantic import Field, JsonValue

from enginefarm import device_records, native_build
from enginefarm.errors import EngineRunError
from enginefarm.gpus import gpu
from enginefarm.manifest import (
    BuildRecord,
    DeviceVerification,
    Environment,
    Manifest,
    TensorInfo,
)
from enginefarm.progress import SINK, report
from enginefarm.recipe import Budget, BuilderOptions
from enginefarm.schema import Frozen, Name
from enginefarm.settings import build_limits
from enginefarm.site import Site, materialise
from enginefarm.spec import BlobRef, BuildSpec
from enginefarm.stages import Prepared
from enginefarm.store.failures import writing
from enginefarm.toolchains import BuildRequest

# A builder keeps about one core busy: more of them at once only take more memory.
_SLOTS = threading.BoundedSemaphore(os.cpu_count() or 1)

RECORDED_PACKAGES = ("enginefarm", "onnx", "onnxruntime", "onnxslim", "torch", "tensorrt")


class Job(Frozen):
    """One engine to build: all that a worker has to be told, by value and digest."""

    recipe: Name
    spec: BuildSpec
    prepared: Prepared
    budget: Budget | None = Field(default=None, description="What several attempts are held to.")


class Built(Frozen):
    """A plan in this machine's cache, and what was seen while it was built."""

    plan: BlobRef
    log: BlobRef | None
    layers: BlobRef | None
    tensors: tuple[TensorInfo, ...]
    seconds: float
    peak_memory_bytes: int
    command: str | None
    details: dict[str, JsonValue]


def build(
    site: Site,
    job: Job,
    *,
    cancel: threading.Event | None = None,
    workspace_mib: int | None = None,
) -> Built | Manifest:
    """Builds the plan in a child process; gives the manifest instead when it is there already.

    One process at a time builds a given spec on one machine: whoever comes second waits, and
    then finds the first one's manifest. workspace_mib: less than the spec's, for the one
    retry after an out-of-memory; recorded in the manifest.

    Raises: ParseError, BuildError and its kinds, ToolchainError.
    """
    spec = job.spec
    with _alone(site, spec.digest):
        published = site.store.manifest(spec.digest)
        if published is not None:
            report(f"build {spec.label}", 1, 1, "cached")
            return published
        _refuse_quarantined(site, spec)
        with site.scratch() as scratch, writing(scratch):
            work_dir = scratch / "build"
            work_dir.mkdir()
            limits = build_limits()
            asked = spec
            if workspace_mib is not None:
                asked = spec.model_copy(
                    update={"builder": _with_workspace(spec.builder, workspace_mib)}
                )
            request = BuildRequest(
                spec=asked,
                onnx=materialise(site, job.prepared.graph, scratch / "onnx"),
                work_dir=work_dir,
                plugins=tuple(site.cache.ensure(site.store, ref) for ref in job.prepared.plugins),
                timeout_s=limits.timeout_s,
                memory_limit_bytes=limits.memory_bytes,
            )
            with _SLOTS, _named(spec.label):
                output = native_build.build(
                    site.store,
                    request,
                    reference=_reference(site, job),
                    budget=job.budget,
                    cancel=cancel,
                )
            details = dict(output.details)
            if workspace_mib is not None:
                details["workspace_mib_after_out_of_memory"] = workspace_mib
            return Built(
                plan=site.cache.add(output.plan),
                log=_kept(site, output.log),
                layers=_kept(site, output.layers),
                tensors=output.tensors,
                seconds=output.seconds,
                peak_memory_bytes=output.peak_memory_bytes,
                command=output.command,
                details=details,
            )


def _refuse_quarantined(site: Site, spec: BuildSpec) -> None:
    failed = device_records.quarantined(site.store, spec.digest)
    if failed is not None:
        raise EngineRunError(
            f"{spec.label}: an engine of this very spec failed on its GPU and is in quarantine",
            why=failed.verification.reason,
            fix="mend what it says; change the recipe's `salt` to build the same thing again",
        )


def _reference(site: Site, job: Job) -> Path | None:
    """Fetched only where several attempts are judged by it."""
    if job.spec.builder.attempts == 1:
        return None
    return site.cache.ensure(site.store, job.prepared.reference)


def upload(site: Site, built: Built) -> Built:
    """Plan, log and layers into the store; what is there already is not sent again."""
    for ref in (built.plan, built.log, built.layers):
        if ref is not None:
            site.store.put_blob(site.cache.path(ref))
    return built


def publish(site: Site, job: Job, built: Built) -> Manifest:
    """Writes the manifest. When somebody else's came first, theirs is the one that counts."""
    manifest = Manifest(
        recipe=job.recipe,
        spec=job.spec,
        spec_digest=job.spec.digest,
        engine=built.plan,
        graph=job.prepared.graph,
        reference=job.prepared.reference,
        tensors=built.tensors,
        verification=job.prepared.verification,
        device_verification=DeviceVerification(
            status="pending", reason="not yet run on a GPU of that label"
        ),
        build=BuildRecord(
            seconds=built.seconds,
            peak_memory_bytes=built.peak_memory_bytes,
            log=built.log,
            layers=built.layers,
            command=built.command,
            details=built.details,
        ),
        environment=environment(),
        created_at=datetime.now(UTC),
    )
    if site.store.publish(manifest):
        return manifest
    published = site.store.manifest(job.spec.digest)
    return manifest if published is None else published


def smaller_workspace(spec: BuildSpec) -> int:
    """Half of what the build had, in MiB, for the one retry after an out-of-memory."""
    had = spec.builder.workspace_mib or int(gpu(spec.gpu.label).memory_gib * 1024)
    return max(64, had // 2)


@cache
def environment() -> Environment:
    """This machine, as it is recorded in manifests."""
    packages: dict[str, str] = {}
    for name in RECORDED_PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return Environment(
        host=platform.node(),
        os=platform.system().lower(),
        arch=platform.machine(),
        python=platform.python_version(),
        packages=packages,
    )


@contextmanager
def _named(label: str) -> Generator[None]:
    """Progress of this build on a line of its own, beside the builds that run with it."""
    watcher = SINK.get()

    def named(step: str, done: float, total: float | None, note: str = "") -> None:
        watcher(f"{step} {label}", done, total, note)

    token = SINK.set(named)
    try:
        yield
    finally:
        SINK.reset(token)


def _with_workspace(options: BuilderOptions, workspace_mib: int) -> BuilderOptions:
    return options.model_copy(update={"workspace_mib": workspace_mib})


def _kept(site: Site, path: Path | None) -> BlobRef | None:
    return None if path is None or not path.exists() else site.cache.add(path)


@contextmanager
def _alone(site: Site, spec_digest: str) -> Generator[None]:
    """Holds a lock that the kernel gives back when this process dies, however it dies."""
    folder = site.cache.root / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / spec_digest).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
