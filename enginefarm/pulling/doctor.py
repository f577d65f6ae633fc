"""Doctor: shows what this host has and whether a plan can run on it, without loading the plan."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from enginefarm.digest import sha256_file
from enginefarm.documents.host import Host
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import CorruptBlob, EnginefarmError, HostError, UsageError, command
from enginefarm.host.detect import detect
from enginefarm.host.plan_header import MAGIC, RUNTIME, read_plan_header
from enginefarm.host.runtimes import LOADERS
from enginefarm.names import runtime_of
from enginefarm.pulling.checks import CHECKS, fit_of, is_caveat
from enginefarm.store import untrusted_files
from enginefarm.store.cache import BlobCache


class Finding(NamedTuple):
    subject: str
    verdict: Literal["ok", "unknown", "fails"]
    detail: str


def examine(
    plan: Path | None, *, gpu: str, manifest: Path | None
) -> tuple[Host, tuple[Finding, ...]]:
    """This host, and the findings about the host or about a plan on it.

    manifest: the plan's manifest file; None looks for it (see manifest_for).
    Raises: UsageError for a file that cannot be read; CorruptBlob for an invalid manifest;
    GpuError.
    """
    cache = BlobCache()
    try:
        host = detect(gpu)
    except HostError:
        host = Host()
    if plan is None:
        return host, host_findings(host, cache)
    try:
        found = _manifest(manifest) if manifest else manifest_for(plan, cache)
        return host, plan_findings(plan, found, host)
    except OSError as error:
        raise UsageError(f"{command('doctor')}: {error.filename}: {error.strerror}") from error


def host_findings(host: Host, cache: BlobCache) -> tuple[Finding, ...]:
    """Findings about the GPU, the driver, the runtimes and the free space of the cache."""
    gpu = host.gpu or host.gpu_name or "none found"
    capability = f", compute capability {host.compute_capability}" if host.gpu else ""
    told = {
        "GPU": (host.compute_capability, f"{gpu}{capability}"),
        "driver": (host.driver, host.driver or "unknown"),
        "system": (host.os and host.arch, f"{host.os or 'unknown'}/{host.arch or 'unknown'}"),
    }
    for runtime in LOADERS:
        build = host.runtimes.get(runtime)
        told[runtime] = (build, build or "its Python package is not installed")
    folder = next(path for path in (cache.root, *cache.root.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    return (
        *(
            Finding(subject, "ok" if known else "unknown", detail)
            for subject, (known, detail) in told.items()
        ),
        Finding(
            "cache",
            "ok" if free > 1 << 30 else "fails",
            f"{cache.root}, {free / 1e9:,.1f} GB free",
        ),
    )


def plan_findings(plan: Path, manifest: Manifest | None, host: Host) -> tuple[Finding, ...]:
    """Whether the plan has the digest in its manifest, and whether it can run on the host.

    Raises: OSError for a file that cannot be read.
    """
    findings = [*_header(plan, manifest, host)]
    if manifest is None:
        why = "neither next to the plan nor in the cache: only the header can be checked"
        return (*findings, Finding("manifest", "unknown", why))
    return (_bytes(plan, manifest), *findings, *_rules(manifest, host))


def _bytes(plan: Path, manifest: Manifest) -> Finding:
    digest = sha256_file(plan)
    if digest == manifest.engine.digest:
        return Finding("bytes", "ok", f"sha256 {digest[:12]}, as published")
    expected = f"the manifest says {manifest.engine.digest[:12]}"
    return Finding("bytes", "fails", f"sha256 {digest[:12]}; {expected}")


def _header(plan: Path, manifest: Manifest | None, host: Host) -> Iterator[Finding]:
    with plan.open("rb") as stream:
        magic = stream.read(len(MAGIC))
    portable = manifest is not None and runtime_of(manifest.spec.toolchain.name)[0] == RUNTIME
    if magic != MAGIC and not portable:
        why = "it is not a TensorRT-RTX plan: only its manifest can be checked"
        yield Finding("header", "unknown", why)
        return
    try:
        header = read_plan_header(plan)
    except EnginefarmError as error:
        yield Finding("header", "fails", f"{error.what}. {error.why}")
        return
    made_for = ", ".join(header.compute_capabilities)
    fails = host.compute_capability is not None and (
        host.compute_capability not in header.compute_capabilities
    )
    other = f"; the host has {host.compute_capability}" if fails else ""
    detail = f"TensorRT-RTX {header.version} for {made_for}{other}"
    yield Finding("header", "fails" if fails else "ok", detail)
    here = host.runtimes.get(RUNTIME)
    if here is not None and here != header.version:
        detail = f"built with TensorRT-RTX {header.version}; the host has {here}"
        yield Finding("header", "fails", detail)


def _rules(manifest: Manifest, host: Host) -> Iterator[Finding]:
    for check in CHECKS:
        finding = check(manifest, host)
        subject = check.__name__.strip("_")
        if finding is None:
            fit = fit_of(manifest, host)
            detail = f"fit: {fit.words}" if subject == "gpu" and fit is not None else "fits"
            yield Finding(subject, "ok", detail)
        else:
            yield Finding(subject, "unknown" if is_caveat(finding) else "fails", str(finding))


def failures(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(one for one in findings if one.verdict == "fails")


def manifest_for(plan: Path, cache: BlobCache) -> Manifest | None:
    """The manifest of a plan: `<plan>.json` next to it, else the record of its pull."""
    beside = plan.with_name(f"{plan.name}.json")
    if beside.is_file():
        return _manifest(beside)
    digest = sha256_file(plan)
    for path in sorted((cache.root / "records").glob("*/" + "?" * 64 + ".json")):
        if digest.encode() in (untrusted_files.read(path) or b""):
            manifest = _manifest(path)
            if manifest.engine.digest == digest:
                return manifest
    return None


def _manifest(file: Path) -> Manifest:
    """Raises: OSError; CorruptBlob for any other file."""
    try:
        return Manifest.read(file.read_bytes())
    except ValidationError as error:
        raise CorruptBlob(
            f"{command('doctor')}: {file} is not a valid manifest", fix="pull the engine again"
        ) from error
