"""On the GPU itself: verification in a fresh process, then timings. One engine at a time."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.logging import get_run_logger

from enginefarm.bench.engine import benchmark_engine
from enginefarm.bench.recipe import host_class
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.thresholds import DEFAULT_BUDGETS, Budget
from enginefarm.errors import StoreMissing
from enginefarm.farm.policy import STEP
from enginefarm.farm.worker.card import check_device
from enginefarm.planning import stages
from enginefarm.run.verify import DeviceRequest, verify_on_device
from enginefarm.store import quarantine as device_records
from enginefarm.store import signing
from enginefarm.store.site import plugin_libraries
from enginefarm.store.statements import require_manifest, signing_policy
from enginefarm.tables.rows import BenchmarkRow
from enginefarm.tables.tables import BenchmarkTables


@task(name="verify", **STEP)
def verify_on_gpu(
    spec_digest: str, budget: Budget | None, class_scores: tuple[str, ...]
) -> Manifest:
    site = stages.here()
    manifest = site.store.manifest(spec_digest)
    if manifest is None:
        raise StoreMissing(f"benchmark: the store has no engine of spec {spec_digest[:12]}")
    policy = signing_policy()
    trusted = policy.trust if policy else signing.trust()
    if trusted is not None:  # a plan is code, and the result is signed
        require_manifest(site.store, manifest, trusted)
    check_device(manifest.gpu, cross=False)
    plan, reference, plugins = _files(site, manifest)
    request = DeviceRequest(
        plan=plan,
        reference=reference,
        toolchain=manifest.spec.toolchain.name,
        cuda_major=int(manifest.spec.toolchain.cuda.split(".")[0]),
        profiles=manifest.spec.profiles,
        budget=budget or DEFAULT_BUDGETS[manifest.precision],
        comparing=manifest.verification.comparing.model_copy(update={"class_scores": class_scores}),
        measured=manifest.verification.outputs,
        plugins=plugins,
    )
    with site.scratch() as scratch:
        verdict = verify_on_device(request, scratch / "device")
        judged = device_records.record(site.store, manifest, verdict.verification, verdict.log)
    get_run_logger().info("%s on its GPU: %s", manifest.spec.label, verdict.verification.status)
    return judged


@task(name="benchmark", **STEP)
def measure(manifest: Manifest) -> tuple[BenchmarkRow, ...]:
    site = stages.here()
    plan, reference, plugins = _files(site, manifest)
    rows = benchmark_engine(manifest, plan, reference, host_class=host_class(), plugins=plugins)
    BenchmarkTables(site.store.objects).append(rows)
    return rows


def _files(site: stages.Site, manifest: Manifest) -> tuple[Path, Path, tuple[Path, ...]]:
    """Plan, reference and plugin libraries, on this machine."""
    if manifest.reference is None:
        raise StoreMissing(
            f"benchmark: {manifest.spec.label} names no reference outputs to compare with"
        )
    return (
        site.cache.ensure(site.store, manifest.engine),
        site.cache.ensure(site.store, manifest.reference),
        plugin_libraries(site, manifest.spec),
    )
