"""Accuracy against latency: a GPU's engines, and which of them another one beats in both."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from enginefarm.documents import facts
from enginefarm.documents.manifest import Manifest
from enginefarm.report import svg
from enginefarm.report.assemble import shape_of
from enginefarm.report.model import ModelSection
from enginefarm.report.svg import number, power
from enginefarm.tables.rows import BenchmarkRow

LEAST = 1e-7
"""Where an error of zero is drawn: the axis is logarithmic."""


@dataclass(frozen=True)
class FrontierPoint:
    """One engine of one GPU. kept: its nodes that stay in more bits. beaten_by: a precision that is
    at least as fast and as accurate."""

    gpu: str
    precision: str
    latency_ms: float
    relative_l2: float
    command: str
    kept: int = 0
    beaten_by: str = ""

    @property
    def words(self) -> str:
        beaten = f"; dominated by {self.beaten_by}" if self.beaten_by else ""
        figures = f"{number(self.latency_ms)} ms, relative L2 {power(self.relative_l2)}"
        mix = f", a mix with {self.kept} nodes in more bits" if self.kept else ""
        return f"{self.gpu} {self.precision}{mix}: {figures}{beaten}"


def frontier(
    model: ModelSection, manifests: Mapping[str, Manifest] | None = None
) -> dict[str, list[FrontierPoint]]:
    """GPU -> its engines that were measured alike and stably, the fastest first.

    Among several shapes and harnesses, the one that most engines share counts. A GPU with one
    such engine has no frontier. manifests: by spec digest; they say which engines are mixes.
    """
    by_gpu: defaultdict[str, list[BenchmarkRow]] = defaultdict(list)
    for cell in model.engines:
        row = cell.row
        if row is not None and cell.state != "failed" and _measured(row):
            by_gpu[cell.gpu].append(row)
    found: dict[str, list[FrontierPoint]] = {}
    for gpu, rows in by_gpu.items():
        counts = Counter(_conditions(row) for row in rows)
        usual = max(counts, key=lambda one: (counts[one], str(one)))
        places = [
            _place(model.recipe, row, manifests or {}) for row in rows if _conditions(row) == usual
        ]
        if len(places) > 1:
            ranked = sorted(places, key=lambda one: (one.latency_ms, one.precision))
            found[gpu] = [_with_dominance(one, ranked) for one in ranked]
    return found


def _measured(row: BenchmarkRow) -> bool:
    known = row.latency_ms_median is not None and row.relative_l2_max is not None
    return known and row.cov_verdict != "unstable"


def _conditions(row: BenchmarkRow) -> tuple[object, ...]:
    return (*shape_of(row), row.gpu_name, row.host_class, row.harness, row.harness_flags)


def _place(recipe: str, row: BenchmarkRow, manifests: Mapping[str, Manifest]) -> FrontierPoint:
    gpu, manifest = row.gpu or "", manifests.get(row.spec_digest or "")
    return FrontierPoint(
        gpu=gpu,
        precision=row.precision,
        latency_ms=row.latency_ms_median or 0.0,
        relative_l2=row.relative_l2_max or 0.0,
        command=f"enginefarm pull {recipe} --gpu {gpu} --precision {row.precision}",
        kept=len(facts.kept_wide(manifest)) if manifest else 0,
    )


def _with_dominance(place: FrontierPoint, others: list[FrontierPoint]) -> FrontierPoint:
    mine = (place.latency_ms, place.relative_l2)
    for other in others:
        theirs = (other.latency_ms, other.relative_l2)
        if theirs != mine and theirs[0] <= mine[0] and theirs[1] <= mine[1]:
            return replace(place, beaten_by=other.precision)
    return place


def chart(places: list[FrontierPoint]) -> str:
    """A dot an engine, both axes logarithmic; lower left is better."""
    tracks = [
        svg.Track(
            name=f"{one.precision} (dominated)" if one.beaten_by else one.precision,
            tone=f"p-{one.precision}",
            dots=(
                svg.Dot(
                    x=one.latency_ms,
                    y=max(one.relative_l2, LEAST),
                    tone=f"p-{one.precision}" + (" doubtful" if one.beaten_by else ""),
                    title=f"{one.words}; {one.command}",
                ),
            ),
        )
        for one in places
        if one.latency_ms > 0
    ]
    return svg.scatter(tracks, x_name="median latency, ms", y_name="relative L2 against FP32")
