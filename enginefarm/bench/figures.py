"""Samples -> figures. Percentiles are of all samples, never of windows' percentiles."""

from __future__ import annotations

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
