"""How things are timed: settings, the loop that times several in turn, and figures of the samples.

Percentiles are of all samples, never of windows' percentiles.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from enginefarm.bench.gpu_state import GpuSampler, GpuState
from enginefarm.progress import report
from enginefarm.run.running import Contender, Iteration
from enginefarm.schema import Frozen
from enginefarm.tables.rows import STABLE_COV

HARNESS = "enginefarm/3"
"""Since 2, throughput is that of lone passes; since 3, an engine's compute time is
that of passes in a queue that runs on, as trtexec has it."""

HOST_CLOCK = "host, lone passes"


class Harness(Frozen):
    """Settings; all are part of a row, and rows with other settings are never compared."""

    warmup_iterations: int = Field(default=50, ge=0)
    warmup_s: float = Field(default=0.5, ge=0)
    min_iterations: int = Field(default=200, ge=1)
    min_seconds: float = Field(default=3.0, ge=0)
    max_seconds: float = Field(
        default=30.0, gt=0, description="A slow model stops here, with fewer iterations."
    )
    round_iterations: int = Field(
        default=10,
        ge=1,
        description="Iterations of one contender before it is the next one's turn.",
    )
    cuda_graph: bool = False

    @property
    def flags(self) -> str:
        values = self.model_dump(mode="json", exclude={"cuda_graph"})
        return " ".join(f"{name}={value}" for name, value in sorted(values.items()))


class Samples(NamedTuple):
    iterations: list[Iteration]
    seconds: float
    """Wall time of this contender's own turns."""


def interleave(contenders: Sequence[Contender], harness: Harness) -> tuple[list[Samples], GpuState]:
    """Times the contenders in turns, so that a change of clocks meets all of them alike."""
    for contender in contenders:
        _warm_up(contender, harness)
    samples = [Samples([], 0.0) for _ in contenders]
    with GpuSampler() as sampler:
        while unfinished := [i for i, found in enumerate(samples) if not _enough(found, harness)]:
            for index in unfinished:
                samples[index] = _turn(contenders[index], samples[index], harness)
            done = min(len(found.iterations) for found in samples)
            report("measure", done, None, f"{len(contenders)} contenders")
    return samples, sampler.state()


def _warm_up(contender: Contender, harness: Harness) -> None:
    started, count = time.perf_counter(), 0
    while count < harness.warmup_iterations or time.perf_counter() - started < harness.warmup_s:
        contender.iterate()
        count += 1
        if count >= 1 and time.perf_counter() - started > 10 * max(harness.warmup_s, 0.5):
            return  # a slow model is warm after a few passes


def _turn(contender: Contender, found: Samples, harness: Harness) -> Samples:
    started = time.perf_counter()
    passes = contender.turn(harness.round_iterations)
    return Samples([*found.iterations, *passes], found.seconds + time.perf_counter() - started)


def _enough(found: Samples, harness: Harness) -> bool:
    asked = len(found.iterations) >= harness.min_iterations
    return found.seconds >= harness.max_seconds or (asked and found.seconds >= harness.min_seconds)


class Figures(Frozen):
    """Statistics of one kind of time, in milliseconds."""

    samples: int
    ms_min: float
    ms_mean: float
    ms_median: float
    ms_p90: float
    ms_p95: float
    ms_p99: float
    cov: float
    """Standard deviation over mean."""

    @property
    def verdict(self) -> Literal["stable", "unstable"]:
        return "stable" if self.cov <= STABLE_COV else "unstable"


def figures(samples_ms: Sequence[float]) -> Figures:
    """Raises ValueError for no samples."""
    if not samples_ms:
        raise ValueError("no samples")
    import numpy as np

    low, median, p90, p95, p99 = np.percentile(samples_ms, (0, 50, 90, 95, 99)).tolist()
    mean = float(np.mean(samples_ms))
    return Figures(
        samples=len(samples_ms),
        ms_min=low,
        ms_mean=mean,
        ms_median=median,
        ms_p90=p90,
        ms_p95=p95,
        ms_p99=p99,
        cov=float(np.std(samples_ms)) / mean if mean else 0.0,
    )
