"""An engine measured at every shape that matters, with the GPU's state beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sample_manifest import make_manifest
from tiny_plans import LARGE, SMALL

from enginefarm.bench.engine import benchmark_engine, side_by_side
from enginefarm.bench.gpu_state import GpuSampler
from enginefarm.bench.harness import Harness
from enginefarm.documents.spec import ToolchainId
from enginefarm.errors import EngineRunError
from enginefarm.run import cuda_graph
from enginefarm.run.artifacts import in_a_process
from enginefarm.run.running import RunRequest

Plan = Callable[..., Path]
Reference = Callable[..., Path]

QUICK = Harness(warmup_iterations=1, warmup_s=0, min_iterations=6, min_seconds=0)
TOOLCHAIN = ToolchainId(name="tensorrt", build="10.16.1.11", cuda="13", os="linux", arch="x86_64")


def manifest() -> Any:
    made = make_manifest()
    spec = made.spec.model_copy(update={"profiles": (SMALL, LARGE), "toolchain": TOOLCHAIN})
    return made.model_copy(update={"spec": spec})


def test_each_profile_and_batch_with_and_without_a_graph(
    plan: Plan, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fake_libcuda import Libcuda

    libcuda = Libcuda()
    monkeypatch.setattr(cuda_graph.ctypes, "CDLL", lambda name: libcuda)
    rows = benchmark_engine(
        manifest(), plan(), reference(), harness=QUICK, batch_sweep=False, host_class="bench"
    )
    assert [(row.profile, row.batch, row.cuda_graph) for row in rows] == [
        ("small", 2, False),
        ("small", 2, True),
        ("large", 8, False),
        ("large", 8, True),
    ]
    for row in rows:
        assert row.outcome == "measured"
        assert row.runtime == "tensorrt"
        assert row.host_class == "bench"
        assert row.iterations >= 6
        parts = [row.h2d_ms_median, row.compute_ms_median, row.d2h_ms_median]
        assert all(part is not None and part >= 0 for part in parts), "by the GPU's clock"
        assert row.latency_ms_median > 0
        assert row.latency_clock == "host, lone passes"
        assert row.parts_clock == "GPU, queued passes", "two clocks, each named in its row"
    swept = benchmark_engine(manifest(), plan(), reference(), harness=QUICK)
    assert {row.batch for row in swept} == {1, 2, 4, 8, 16, 32, 64}
    assert not libcuda.alive


def test_an_engine_that_cannot_be_captured_has_its_row_without_a_graph(
    plan: Plan, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fake_libcuda import Libcuda

    monkeypatch.setattr(cuda_graph.ctypes, "CDLL", lambda name: Libcuda(refuses=901))
    rows = benchmark_engine(manifest(), plan(), reference(), harness=QUICK, batch_sweep=False)
    assert [(row.profile, row.cuda_graph) for row in rows] == [("small", False), ("large", False)]


def test_an_engine_that_does_not_run_is_an_error(plan: Plan, reference: Reference) -> None:
    with pytest.raises(EngineRunError, match="failed to run"):
        benchmark_engine(manifest(), plan(enqueue="Error Code 1"), reference(), harness=QUICK)


def test_an_engine_in_a_process_of_its_own(plan: Plan) -> None:
    x = np.ones((2, 4), np.float32)
    remote = in_a_process("engine", RunRequest(plan=plan(), toolchain="tensorrt"))
    try:
        found = side_by_side([remote], {"x": x}, batch=2, harness=QUICK)[0]
        assert found.compute is not None
        np.testing.assert_array_equal(remote.outputs()["y"], 2 * x)
        with pytest.raises(EngineRunError, match="outside profile 0"):
            remote.bind({"x": np.ones((9, 4), np.float32)})
    finally:
        remote.close()


class Refused(Exception):
    """NVML's NotSupported."""


def no_temperature(handle: str, kind: int) -> float:
    raise Refused


NVML = SimpleNamespace(
    NVML_CLOCK_SM=1,
    NVML_CLOCK_MEM=2,
    NVML_TEMPERATURE_GPU=0,
    nvmlInit=lambda: None,
    nvmlDeviceGetHandleByIndex=lambda index: f"gpu{index}",
    nvmlDeviceGetEnforcedPowerLimit=lambda handle: {"gpu0": 400_000, "gpu1": 72_000}[handle],
    nvmlDeviceGetClockInfo=lambda handle, kind: {1: 1410, 2: 1215}[kind],
    nvmlDeviceGetPowerUsage=lambda handle: 250_500,
    nvmlDeviceGetTemperature=no_temperature,
    nvmlDeviceGetPerformanceState=lambda handle: 0,
    nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x4,
)


def test_the_gpus_state_meanwhile_and_none_for_what_it_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", NVML)  # type: ignore[arg-type]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with GpuSampler() as sampler:
        pass
    state = sampler.state()
    assert (state.sm_clock_mhz, state.memory_clock_mhz) == (1410, 1215)
    assert (state.power_w, state.power_limit_w) == (250.5, 400)
    assert state.temperature_c is None
    assert state.throttle_reasons == "software power cap"


def test_the_state_is_that_of_the_gpu_this_process_may_see(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", NVML)  # type: ignore[arg-type]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with GpuSampler() as sampler:
        pass
    assert sampler.state().power_limit_w == 72
