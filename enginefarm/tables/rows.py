"""BenchmarkRow: one row of the benchmark tables, and which rows may be compared.

A night leaves a row for every cell (recipe × GPU × precision × runtime × profile): measured,
built and not yet measured, failed, or skipped. CPU runtimes measured side by side are rows
too, with `gpu` None. Rows are immutable; a later row of the same cell says more.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from typing import Literal

from pydantic import Field

from enginefarm.names import PrecisionName, RuntimeName
from enginefarm.schema import Digest, Frozen, Moment, Name
from enginefarm.tables.clocks import clocks_differ

ROW_SCHEMA_VERSION = 1

CellState = Literal["measured", "built", "failed", "skipped"]

STABLE_COV = 0.10
"""Timings whose coefficient of variation is above this are unstable."""


class BenchmarkRow(Frozen):
    """One measurement, or one cell's outcome on one night. None: not known, or not applicable."""

    # when and by whom
    date: dt.date = Field(description="The night it belongs to; several rows share one.")
    measured_at: Moment
    writer: Name = Field(description="Worker or process that wrote it.")

    # what
    recipe: Name
    outcome: CellState
    reason: str = Field(default="", max_length=2000, description="Why it failed or was skipped.")
    runtime: RuntimeName = Field(description="What ran, or would run, the model.")
    precision: PrecisionName
    gpu: Name | None = Field(default=None, description="Label; None: a CPU row.")
    spec_digest: Digest | None = None
    engine_digest: Digest | None = None

    # with what
    toolchain: str = Field(description="tensorrt, trtexec, tensorrt-rtx, onnxruntime, pytorch …")
    toolchain_build: str = ""
    cuda: str = ""
    driver: str = ""
    host_class: str = Field(default="", description="Kind of machine; two never compare.")
    host: str = ""
    gpu_name: str = ""

    # at which shapes
    profile: str = "default"
    batch: int = Field(default=1, ge=1)
    shapes: str = Field(default="", description="image:8x3x224x224, inputs in order.")

    # how it was measured
    harness: str = Field(default="", description="Harness and its revision: enginefarm/3.")
    harness_flags: str = Field(default="", description="Its settings, key=value, sorted by key.")
    cuda_graph: bool | None = None
    warmup_iterations: int | None = None
    iterations: int | None = None
    duration_s: float | None = None

    latency_clock: str = Field(default="", description="The clock of the latencies.")
    parts_clock: str = Field(default="", description="The clock of compute, h2d and d2h.")

    # end to end: host to device, compute, device to host
    latency_ms_min: float | None = Field(default=None, gt=0)
    latency_ms_mean: float | None = Field(default=None, gt=0)
    latency_ms_median: float | None = Field(default=None, gt=0)
    latency_ms_p90: float | None = Field(default=None, gt=0)
    latency_ms_p95: float | None = Field(default=None, gt=0)
    latency_ms_p99: float | None = Field(default=None, gt=0)
    # GPU compute alone
    compute_ms_min: float | None = None
    compute_ms_mean: float | None = None
    compute_ms_median: float | None = None
    compute_ms_p90: float | None = None
    compute_ms_p95: float | None = None
    compute_ms_p99: float | None = None
    h2d_ms_median: float | None = None
    h2d_ms_p99: float | None = None
    d2h_ms_median: float | None = None
    d2h_ms_p99: float | None = None
    throughput_samples_per_s: float | None = Field(default=None, gt=0)
    latency_cov: float | None = Field(default=None, description="Standard deviation over mean.")
    cov_verdict: Literal["stable", "unstable"] | None = Field(
        default=None, description="Unstable above STABLE_COV."
    )

    # under load: no other row has these, and these have no latencies of lone passes
    streams: int | None = Field(default=None, ge=1, description="Sessions behind one queue.")
    slo_p99_ms: float | None = Field(default=None, description="What p99 had to keep.")
    slo_rate_per_s: float | None = Field(
        default=None, description="The highest rate of Poisson arrivals that kept it; none did."
    )
    slo_reached_p99_ms: float | None = Field(default=None, description="p99 at that rate.")
    capacity_per_s: float | None = Field(
        default=None, description="Passes a second when every stream is always busy."
    )

    # state of the GPU meanwhile
    sm_clock_mhz: float | None = Field(default=None, description="Median while measuring.")
    memory_clock_mhz: float | None = None
    clocks_locked: bool | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    power_state: str = ""
    temperature_c: float | None = None
    throttle_reasons: str = ""

    # against the FP32 reference; the worst output of each figure
    verified_on: Literal["graph", "device"] | None = None
    device_verification: Literal["pending", "passed", "failed"] | None = None
    verification_samples: int | None = None
    cosine_min: float | None = None
    max_abs: float | None = None
    relative_l2_max: float | None = None
    top1_agreement: float | None = None
    top1_accuracy: float | None = None
    top1_drop_points: float | None = Field(default=None, description="Lost, labeled data.")

    # the engine
    size_bytes: int | None = Field(default=None, ge=0)
    build_seconds: float | None = Field(default=None, ge=0)
    build_peak_memory_bytes: int | None = Field(default=None, ge=0)

    @property
    def row_id(self) -> str:
        """One value, one id: a row that is appended twice is counted once."""
        return self.sha256()[:32]


# (field, how a reader calls it). Equal, or the rows are not alike.
ALIKE: tuple[tuple[str, str], ...] = (
    ("recipe", "recipe"),
    ("runtime", "runtime"),
    ("precision", "precision"),
    ("gpu", "GPU"),
    ("gpu_name", "GPU name"),
    ("host_class", "host class"),
    ("toolchain", "toolchain"),
    ("toolchain_build", "toolchain build"),
    ("cuda", "CUDA"),
    ("profile", "profile"),
    ("batch", "batch"),
    ("shapes", "shapes"),
    ("harness", "harness"),
    ("harness_flags", "harness flags"),
    ("cuda_graph", "CUDA graph"),
    ("clocks_locked", "locked clocks"),
    ("power_limit_w", "power limit"),
    ("power_state", "power state"),
    ("throttle_reasons", "throttling"),
)


def comparable(
    row: BenchmarkRow, other: BenchmarkRow, *, across: Collection[str] = ()
) -> str | None:
    """Why two rows' timings must not be compared; None when they may be.

    across: fields that may differ on purpose (an upgrade report compares two toolchain
    builds, and nothing else).
    """
    for one in (row, other):
        if one.latency_ms_median is None:
            return "not measured"
    for field, words in ALIKE:
        mine, theirs = getattr(row, field), getattr(other, field)
        if mine != theirs and field not in across:
            return f"{words} differs: {_text(mine)} and {_text(theirs)}"
    return clocks_differ(row.sm_clock_mhz, other.sm_clock_mhz)


def _text(value: object) -> str:
    return "none" if value is None or value == "" else str(value)
