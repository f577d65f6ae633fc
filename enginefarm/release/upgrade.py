"""A new toolchain build: which engines stop working, what is rebuilt, and what that changes.

Before the rebuild the answer comes from manifests alone; after it, from the benchmark rows of
both builds, compared like with like except for the toolchain's build.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any, Literal

from pydantic import Field

from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import BuildSpec
from enginefarm.documents.thresholds import Regression
from enginefarm.documents.versions import version_tuple
from enginefarm.schema import Frozen
from enginefarm.tables.regression import State, baseline, classify
from enginefarm.tables.rows import BenchmarkRow, comparable

CHANGED_ON_PURPOSE = ("toolchain_build", "cuda", "driver")
"""Columns that an upgrade changes on purpose; all others must be equal."""

Fate = Literal["lives", "to-rebuild", "rebuilt"]


class EngineFate(Frozen):
    """What the new build means for one engine."""

    recipe: str
    gpu: str
    precision: str
    spec_digest: str
    build: str
    fate: Fate
    reason: str
    new_spec_digest: str | None = Field(default=None, description="Of the successor.")
    build_seconds: float = Field(default=0, description="What its build took; the next will too.")


class Change(Frozen):
    """One cell after the rebuild, new over old."""

    recipe: str
    gpu: str
    precision: str
    state: State
    latency_ms_old: float | None = None
    latency_ms_new: float | None = None
    relative_l2_old: float | None = None
    relative_l2_new: float | None = None
    top1_old: float | None = None
    top1_new: float | None = None
    size_bytes_old: int | None = None
    size_bytes_new: int | None = None
    build_seconds_old: float | None = None
    build_seconds_new: float | None = None
    because: str = Field(default="", description="Why timings were not compared.")
    spec_digest_old: str | None = None
    spec_digest_new: str | None = Field(default=None, description="`enginefarm diff OLD NEW`.")

    @property
    def less_accurate(self) -> bool:
        """Top-1 fell, or the distance to FP32 grew by more than a tenth."""
        if self.top1_old is not None and self.top1_new is not None:
            return self.top1_new < self.top1_old
        if self.relative_l2_old is None or self.relative_l2_new is None:
            return False
        return self.relative_l2_new > 1.1 * self.relative_l2_old


class UpgradeReport(Frozen):
    toolchain: str
    build: str
    engines: tuple[EngineFate, ...]
    changes: tuple[Change, ...] = ()

    def with_fate(self, fate: Fate) -> tuple[EngineFate, ...]:
        return tuple(engine for engine in self.engines if engine.fate == fate)

    @property
    def rebuild_seconds(self) -> float:
        """Sum of what the engines still to rebuild took last time."""
        return sum(engine.build_seconds for engine in self.with_fate("to-rebuild"))


def upgrade_report(
    manifests: Iterable[Manifest],
    toolchain: str,
    build: str,
    rows: Iterable[BenchmarkRow] = (),
    rules: Mapping[str, Regression] | None = None,
) -> UpgradeReport:
    """What a new build of a toolchain does to the engines that it has made.

    manifests: of the whole store. rows: benchmark rows of both builds, oldest first; without
    them there is nothing about speed and accuracy. rules: by recipe.
    """
    ours = [manifest for manifest in manifests if manifest.spec.toolchain.name == toolchain]
    successors = {
        _digest_without_toolchain_build(manifest.spec): manifest.spec_digest
        for manifest in ours
        if manifest.spec.toolchain.build == build
    }
    older = _newest(manifest for manifest in ours if manifest.spec.toolchain.build != build)
    by_cell: defaultdict[tuple[str, str, str], list[BenchmarkRow]] = defaultdict(list)
    for row in rows:
        if row.toolchain == toolchain and row.gpu is not None and row.engine_digest:
            by_cell[row.recipe, row.gpu, row.precision].append(row)
    changes = [
        change
        for (recipe, _, _), found in sorted(by_cell.items())
        if (change := _change(found, build, (rules or {}).get(recipe, Regression())))
    ]
    return UpgradeReport(
        toolchain=toolchain,
        build=build,
        engines=tuple(_fate(manifest, build, successors) for manifest in older),
        changes=tuple(changes),
    )


def _newest(manifests: Iterable[Manifest]) -> list[Manifest]:
    """The newest engine of each cell."""
    newest: dict[tuple[str, str, str], Manifest] = {}
    for manifest in sorted(manifests, key=lambda one: one.created_at):
        newest[manifest.recipe, manifest.gpu, manifest.precision] = manifest
    return [newest[key] for key in sorted(newest)]


def _digest_without_toolchain_build(spec: BuildSpec) -> str:
    """What two builds of one thing share: everything of the spec but the toolchain's version."""
    neutral = spec.toolchain.model_copy(update={"build": "", "cuda": ""})
    return spec.model_copy(update={"toolchain": neutral}).sha256()


def _fate(manifest: Manifest, build: str, successors: Mapping[str, str]) -> EngineFate:
    spec = manifest.spec
    successor = successors.get(_digest_without_toolchain_build(spec))
    reason_to_rebuild = why_not_loadable(spec, build)
    fate: Fate = "to-rebuild"
    if successor is not None:
        fate, reason = "rebuilt", "its successor is in the store"
    elif reason_to_rebuild is None:
        fate, reason = "lives", "version-compatible with the new build"
    else:
        reason = reason_to_rebuild
    return EngineFate(
        recipe=manifest.recipe,
        gpu=manifest.gpu,
        precision=manifest.precision,
        spec_digest=manifest.spec_digest,
        build=spec.toolchain.build,
        fate=fate,
        reason=reason,
        new_spec_digest=successor,
        build_seconds=manifest.build.seconds,
    )


def why_not_loadable(spec: BuildSpec, build: str) -> str | None:
    """Why a host with the new build alone cannot load that plan; None when it can.

    A plan runs on the build that made it. A version-compatible plan also runs on later
    builds of the same major version (TensorRT developer guide, "Version Compatibility").
    """
    old = spec.toolchain
    if old.build == build:
        return None
    if not spec.builder.version_compatible:
        return f"a plan of {old.name} {old.build} loads on that build alone"
    before, after = version_tuple(old.build), version_tuple(build)
    if before[:1] != after[:1]:
        return f"version compatibility ends with major version {before[0]}"
    if after < before:
        return f"{build} is older than the build that made it ({old.build})"
    return None


def _change(rows: list[BenchmarkRow], build: str, rule: Regression) -> Change | None:
    """The cell before and after; None where only one of the two builds has rows."""
    new = [row for row in rows if row.toolchain_build == build]
    others = [row for row in rows if row.toolchain_build != build]
    if not new or not others:
        return None
    before = others[-1].toolchain_build
    old = [row for row in others if row.toolchain_build == before]
    state, because, now, then = _timing(old, new, rule)
    return Change(
        recipe=new[0].recipe,
        gpu=new[0].gpu or "",
        precision=new[0].precision,
        state=state,
        because=because,
        latency_ms_old=then,
        latency_ms_new=now,
        relative_l2_old=_last(old, "relative_l2_max"),
        relative_l2_new=_last(new, "relative_l2_max"),
        top1_old=_last(old, "top1_accuracy"),
        top1_new=_last(new, "top1_accuracy"),
        size_bytes_old=_last(old, "size_bytes"),
        size_bytes_new=_last(new, "size_bytes"),
        build_seconds_old=_last(old, "build_seconds"),
        build_seconds_new=_last(new, "build_seconds"),
        spec_digest_old=_last(old, "spec_digest"),
        spec_digest_new=_last(new, "spec_digest"),
    )


def _timing(
    old: list[BenchmarkRow], new: list[BenchmarkRow], rule: Regression
) -> tuple[State, str, float | None, float | None]:
    """Verdict, why there is none, and the two medians (ms) at the shape measured last."""
    measured = [row for row in new if row.latency_ms_median is not None]
    if not measured:
        return "no-baseline", "not measured on the new build yet", None, None
    row = measured[-1]
    if row.cov_verdict == "unstable":
        return "unstable", "timings on the new build are unstable", row.latency_ms_median, None
    reasons = [comparable(row, other, across=CHANGED_ON_PURPOSE) for other in old]
    alike = [other for other, reason in zip(old, reasons, strict=True) if reason is None]
    now = median(one.latency_ms_median or 0.0 for one in measured if comparable(row, one) is None)
    nights: defaultdict[object, list[float]] = defaultdict(list)
    for one in alike:
        if one.cov_verdict != "unstable":
            nights[one.date].append(one.latency_ms_median or 0.0)
    if not nights:
        return "no-baseline", next((r for r in reversed(reasons) if r), "unstable"), now, None
    held = baseline([median(nights[night]) for night in nights][-rule.nights :], rule)
    return classify(now, held, rule), "", now, held.median_ms


def _last(rows: list[BenchmarkRow], column: str) -> Any:
    values = [getattr(row, column) for row in rows]
    return next((value for value in reversed(values) if value is not None), None)
