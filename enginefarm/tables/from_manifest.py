"""Benchmark rows of manifests, and of engines that could not be built."""

from __future__ import annotations

import datetime as dt
from typing import Literal

from enginefarm.documents.comparing import OutputComparison
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import ShapeProfile
from enginefarm.names import TOOLCHAINS, PrecisionName
from enginefarm.tables.rows import BenchmarkRow


def rows_from_manifest(
    manifest: Manifest, *, night: dt.date | None = None, writer: str | None = None
) -> tuple[BenchmarkRow, ...]:
    """A `built` row for each profile of an engine: build, size and verification, no timings.

    A measurement takes such a row and fills in the rest
    (`row.model_copy(update={"outcome": "measured", …})`).
    """
    spec = manifest.spec
    device = manifest.device_verification
    on_device = bool(device.outputs)
    outputs = device.outputs if on_device else manifest.verification.outputs
    created = manifest.created_at.astimezone(dt.UTC)
    return tuple(
        BenchmarkRow.model_validate(
            {
                "date": night or created.date(),
                "measured_at": created,
                "writer": writer or writer_name(manifest.environment.host),
                "recipe": manifest.recipe,
                "outcome": "failed" if device.status == "failed" else "built",
                "reason": device.reason if device.status == "failed" else "",
                "runtime": _runtime(spec.toolchain.name),
                "precision": manifest.precision,
                "gpu": manifest.gpu,
                "spec_digest": manifest.spec_digest,
                "engine_digest": manifest.engine.digest,
                "toolchain": spec.toolchain.name,
                "toolchain_build": spec.toolchain.build,
                "cuda": spec.toolchain.cuda,
                "driver": device.driver or manifest.environment.driver or "",
                "host": manifest.environment.host,
                "gpu_name": device.gpu or manifest.environment.gpu_name or "",
                "profile": profile.name,
                "batch": _batch(profile),
                "shapes": " ".join(
                    f"{name}:{'x'.join(map(str, shape.opt))}"
                    for name, shape in profile.shapes.items()
                ),
                "verified_on": "device" if on_device else "graph",
                "device_verification": device.status,
                "verification_samples": manifest.verification.samples,
                "size_bytes": manifest.engine.size_bytes,
                "build_seconds": None if manifest.build.built_with else manifest.build.seconds,
                "build_peak_memory_bytes": manifest.build.peak_memory_bytes,
                **verification_columns(outputs),
            }
        )
        for profile in spec.profiles
    )


def _runtime(toolchain: str) -> str:
    """What runs its plans. A cell may have no toolchain: it stands under the first one's."""
    return TOOLCHAINS.get(toolchain, next(iter(TOOLCHAINS.values()))).runtime


def _batch(profile: ShapeProfile) -> int:
    """First dim of the first input at its opt shape; 1 for a scalar."""
    first = next(iter(profile.shapes.values()), None)
    return first.opt[0] if first and first.opt else 1


def verification_columns(outputs: tuple[OutputComparison, ...]) -> dict[str, float]:
    """The worst figure over all outputs, by column; empty for no outputs."""
    drops = [
        100 * (output.reference_top1_accuracy - output.top1_accuracy)
        for output in outputs
        if output.top1_accuracy is not None and output.reference_top1_accuracy is not None
    ]
    figures: dict[str, list[float]] = {
        "cosine_min": [-output.cosine for output in outputs],
        "max_abs": [output.max_abs for output in outputs],
        "relative_l2_max": [output.relative_l2 for output in outputs],
        "top1_agreement": [-o.top1_agreement for o in outputs if o.top1_agreement is not None],
        "top1_accuracy": [-o.top1_accuracy for o in outputs if o.top1_accuracy is not None],
        "top1_drop_points": drops,
    }
    # Negated where smaller is worse, so that the worst is always the largest.
    smaller_is_worse = {"cosine_min", "top1_agreement", "top1_accuracy"}
    return {
        name: -max(values) if name in smaller_is_worse else max(values)
        for name, values in figures.items()
        if values
    }


def not_built(
    *,
    recipe: str,
    gpu: str,
    precision: PrecisionName,
    toolchain: str,
    outcome: Literal["failed", "skipped"],
    reason: str,
    night: dt.date,
    writer: str,
    spec_digest: str | None = None,
    toolchain_build: str = "",
) -> BenchmarkRow:
    """The row of an engine that could not be built, with the reason."""
    return BenchmarkRow(
        date=night,
        measured_at=dt.datetime.now(dt.UTC),
        writer=writer,
        recipe=recipe,
        outcome=outcome,
        reason=reason[:2000],
        runtime=_runtime(toolchain),
        precision=precision,
        gpu=gpu,
        spec_digest=spec_digest,
        toolchain=toolchain,
        toolchain_build=toolchain_build,
    )


def writer_name(text: str) -> str:
    """A host name as a segment of a key."""
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in text.lower()).strip("-")
    return kept[:64].strip("-") or "unknown"
