"""Benchmark rows for tests: one measured row, changed as a test needs."""

from __future__ import annotations

import datetime as dt
from typing import Any

from enginefarm.tables.rows import BenchmarkRow

NIGHT = dt.date(2026, 11, 20)


def make_row(night: dt.date | int = NIGHT, **changes: Any) -> BenchmarkRow:
    """A measured row. night: a date, or so many nights after NIGHT."""
    day = night if isinstance(night, dt.date) else NIGHT + dt.timedelta(days=night)
    fields: dict[str, Any] = {
        "date": day,
        "measured_at": dt.datetime.combine(day, dt.time(3), dt.UTC),
        "writer": "worker-t4",
        "recipe": "minilm",
        "outcome": "measured",
        "runtime": "tensorrt",
        "precision": "fp16",
        "gpu": "t4",
        "spec_digest": "ab" * 32,
        "engine_digest": "cd" * 32,
        "toolchain": "tensorrt",
        "toolchain_build": "10.16.1.11",
        "host_class": "x86_64, 8 CPUs",
        "harness": "enginefarm/1",
        "latency_ms_median": 2.0,
        "latency_ms_p99": 2.4,
        "throughput_samples_per_s": 500.0,
        "cov_verdict": "stable",
    }
    return BenchmarkRow.model_validate({**fields, **changes})
