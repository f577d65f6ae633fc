"""Benchmarks: one engine at every shape that matters, or several runtimes side by side.

Latency is measured on the host's clock, from before the inputs are copied in to after the
outputs are copied out, in the same way for every runtime. Engines also tell copy in, compute
and copy out on the GPU's clock, of a pass that is queued behind another one: what trtexec calls
GPU Compute Time. One pass at a time: figures are latencies of a server that
is asked once and again, and throughput is that server's, not the most a GPU can be made to do.
"""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm.bench.gpu_state import GpuState
from enginefarm.bench.harness import (
    HARNESS,
    HOST_CLOCK,
    Figures,
    Harness,
    Samples,
    figures,
    interleave,
)
from enginefarm.bench.shapes import Point, points
from enginefarm.documents.comparing import ComparisonRules, OutputComparison
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import EngineRunError
from enginefarm.graph.samples.feeds import shaped
from enginefarm.graph.verification.reference import ReferenceBatch, read_reference
from enginefarm.graph.verification.verify import compare
from enginefarm.names import RUNTIMES, RuntimeName
from enginefarm.progress import report
from enginefarm.run.artifacts import Artifact, open_artifact
from enginefarm.run.running import Contender, OpenRequest
from enginefarm.schema import Frozen
from enginefarm.tables.from_manifest import rows_from_manifest
from enginefarm.tables.rows import BenchmarkRow

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Arrays


class Measurement(Frozen):
    """One contender at one set of shapes."""

    name: str
    runtime: RuntimeName
    total: Figures
    copy_in: Figures | None
    compute: Figures | None
    copy_out: Figures | None
    seconds: float
    samples_per_s: float
    gpu: GpuState
    harness: Harness
    against_first: tuple[OutputComparison, ...] = ()
    """Outputs against those of the first contender."""


def side_by_side(
    contenders: Sequence[Contender],
    feeds: Mapping[str, Any],
    *,
    batch: int,
    harness: Harness,
) -> tuple[Measurement, ...]:
    """Times the contenders in turns on the same inputs, and compares their outputs.

    batch: samples in one pass. The first contender is the one that others are compared with.
    """
    for contender in contenders:
        contender.bind(feeds)
    samples, state = interleave(contenders, harness)
    first = contenders[0].outputs()
    return tuple(
        _measurement(
            contender, found, state, harness, batch, _comparison(feeds, first, contender.outputs())
        )
        for contender, found in zip(contenders, samples, strict=True)
    )


def benchmark_engine(
    manifest: Manifest,
    plan: Path,
    reference: Path,
    *,
    harness: Harness | None = None,
    batch_sweep: bool = True,
    host_class: str = "",
    plugins: Sequence[Path] = (),
) -> tuple[BenchmarkRow, ...]:
    """Rows of one engine on this GPU: each profile's opt shapes, a batch sweep, with and
    without a CUDA graph where one can be captured.

    reference: the manifest's npz, whose inputs are repeated to the shapes measured.
    Raises: HostError, EngineRunError.
    """
    chosen = harness or Harness()
    inputs = next(read_reference(reference)).inputs
    built = {row.profile: row for row in rows_from_manifest(manifest)}
    rows: list[BenchmarkRow] = []
    wanted = points(manifest.spec.profiles, batch_sweep=batch_sweep)
    toolchain = manifest.spec.toolchain.name
    asked = OpenRequest(plan=plan, toolchain=toolchain, plugins=tuple(plugins))
    with open_artifact(asked) as artifact:
        for index, point in enumerate(wanted):
            report("benchmark", index, len(wanted), f"{manifest.spec.label} {point.text}")
            for graph in (False, True):
                settings = chosen.model_copy(update={"cuda_graph": graph})
                row = built[point.profile_name]
                feeds = shaped(inputs, point.shapes)
                try:
                    found = _measure(artifact, row.runtime, point, feeds, settings)
                except EngineRunError as error:
                    if not graph:
                        raise
                    # Not every engine can be captured; it has its row without a graph.
                    report("benchmark", index, len(wanted), error.what)
                    continue
                rows.append(filled(row, found, point, host_class=host_class))
    report("benchmark", len(wanted), len(wanted), manifest.spec.label)
    return tuple(rows)


def filled(
    row: BenchmarkRow, found: Measurement, point: Point, *, host_class: str = ""
) -> BenchmarkRow:
    """A `built` row with the measurement in it."""
    values: dict[str, Any] = {
        **measured_here(point, host_class),
        "harness": HARNESS,
        "harness_flags": found.harness.flags,
        "latency_clock": HOST_CLOCK,
        "parts_clock": RUNTIMES[found.runtime].clock if found.compute else "",
        "cuda_graph": found.harness.cuda_graph,
        "warmup_iterations": found.harness.warmup_iterations,
        "iterations": found.total.samples,
        "duration_s": found.seconds,
        **_columns("latency", found.total),
        **compute_columns(found.compute),
        "throughput_samples_per_s": found.samples_per_s,
        "latency_cov": found.total.cov,
        "cov_verdict": found.total.verdict,
        **found.gpu.model_dump(),
    }
    for name, part in (("h2d", found.copy_in), ("d2h", found.copy_out)):
        if part is not None:
            values |= {f"{name}_ms_median": part.ms_median, f"{name}_ms_p99": part.ms_p99}
    return row.model_copy(update=values)


def measured_here(point: Point, host_class: str) -> dict[str, Any]:
    """The columns that say when and where a row was measured, and at which shapes."""
    now = dt.datetime.now(dt.UTC)
    return {
        "outcome": "measured",
        "date": now.date(),  # the night it was measured, not the night it was built
        "measured_at": now,
        "host": platform.node(),
        "host_class": host_class,
        "profile": point.profile_name,
        "batch": point.batch,
        "shapes": point.text,
    }


def _measure(
    artifact: Artifact,
    runtime: RuntimeName,
    point: Point,
    feeds: Mapping[str, Any],
    harness: Harness,
) -> Measurement:
    running = artifact.running(runtime, profile=point.profile, cuda_graph=harness.cuda_graph)
    try:
        return side_by_side([running], feeds, batch=point.batch, harness=harness)[0]
    finally:
        running.close()


def _measurement(
    contender: Contender,
    found: Samples,
    state: GpuState,
    harness: Harness,
    batch: int,
    against_first: tuple[OutputComparison, ...],
) -> Measurement:
    def part(index: int) -> Figures | None:
        values = [iteration[index] for iteration in found.iterations]
        return figures([v for v in values if v is not None]) if None not in values else None

    total = figures([iteration.total for iteration in found.iterations])
    return Measurement(
        name=contender.name,
        runtime=contender.runtime,
        total=total,
        copy_in=part(1),
        compute=part(2),
        copy_out=part(3),
        seconds=found.seconds,
        samples_per_s=batch * 1000 / total.ms_mean,
        gpu=state,
        harness=harness,
        against_first=against_first,
    )


def _comparison(
    feeds: Mapping[str, Any], first: Arrays, outputs: Arrays
) -> tuple[OutputComparison, ...]:
    batch = ReferenceBatch(inputs=dict(feeds), outputs=first, labels=None)
    return compare([batch], lambda _: outputs, Budget(), ComparisonRules()).outputs


def compute_columns(found: Figures | None) -> dict[str, float]:
    """The columns of a row for the compute alone; none where the runtime does not tell it."""
    return _columns("compute", found)


def _columns(prefix: str, found: Figures | None) -> dict[str, float]:
    if found is None:
        return {}
    names = ("min", "mean", "median", "p90", "p95", "p99")
    return {f"{prefix}_ms_{name}": getattr(found, f"ms_{name}") for name in names}
