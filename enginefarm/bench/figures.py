"""Samples -> figures. Percentiles are of all samples, never of windows' percentiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from enginefarm.schema import Frozen
from enginefarm.tables.rows import STABLE_COV


class Figures(Frozen):
    """Statistics of one kind of time, in milliseconds."""

    samples: int
    ms_min: float
    ms_mean: float
    ms_median: float
    ms_p90: float
    ms_p95: float
    ms_p99: float
    ms_max: float
    cov: float
    """Standard deviation over mean."""

    @property
    def verdict(self) -> Literal["stable", "unstable"]:
        return "stable" if self.cov <= STABLE_COV else "unstable"


def figures(samples_ms: Sequence[float]) -> Figures:
    """Raises ValueError for no samples."""
    if not samples_ms:
        raise ValueError("no samples")
    ordered = sorted(samples_ms)
    mean = math.fsum(ordered) / len(ordered)
    variance = math.fsum((value - mean) ** 2 for value in ordered) / len(ordered)
    return Figures(
        samples=len(ordered),
        ms_min=ordered[0],
        ms_mean=mean,
        ms_median=percentile(ordered, 50),
        ms_p90=percentile(ordered, 90),
        ms_p95=percentile(ordered, 95),
        ms_p99=percentile(ordered, 99),
        ms_max=ordered[-1],
        cov=math.sqrt(variance) / mean if mean else 0.0,
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Linear between the two closest ranks, as numpy's default."""
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
