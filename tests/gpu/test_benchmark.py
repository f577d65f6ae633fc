"""The benchmark on a real GPU: figures that hold together, and the same outputs for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from enginefarm.bench.engine import side_by_side
from enginefarm.bench.gpu_state import GpuSampler
from enginefarm.bench.harness import Harness
from enginefarm.graph.verification.reference import read_reference
from enginefarm.run.contenders import EngineContender, on_provider
from enginefarm.run.engine import Engine
from enginefarm.run.remote import RemoteContender

pytestmark = pytest.mark.gpu

QUICK = Harness(warmup_iterations=10, warmup_s=0.1, min_iterations=50, min_seconds=0.2)


def test_side_by_side(
    engine: Callable[[str], Engine],
    models: Path,
    torch_python: tuple[list[str], dict[str, str]],
) -> None:
    feeds = next(read_reference(models / "efficientnet_lite0.npz")).inputs
    contenders = [
        RemoteContender(
            "pytorch",
            runtime="pytorch",
            python=torch_python[0],
            factory="make_models:torch_contender",
            arguments=["efficientnet_lite0", "cuda"],
            environment=torch_python[1],
        ),
        on_provider(
            "ort cpu",
            models / "efficientnet_lite0.onnx",
            runtime="onnxruntime-cpu",
        ),
        *(
            EngineContender(name, engine(name), runtime="tensorrt", profile=0, cuda_graph=graph)
            for name in ("efficientnet_lite0-fp16",)
            for graph in (False, True)
        ),
    ]
    found = side_by_side(contenders, feeds, batch=8, harness=QUICK)
    for one in found:
        total = one.total
        assert total.samples >= 50
        assert total.ms_min <= total.ms_median <= total.ms_p90 <= total.ms_p95 <= total.ms_p99
        assert one.samples_per_s > 0
        assert one.against_first[0].cosine > 0.999
        if one.compute is not None and one.copy_in is not None and one.copy_out is not None:
            parts = one.copy_in.ms_median + one.compute.ms_median + one.copy_out.ms_median
            assert parts <= total.ms_median * 1.05
    assert found[0].gpu.sm_clock_mhz
    assert found[0].gpu.power_w


def test_nvml_tells_clocks_power_and_temperature() -> None:
    import time

    with GpuSampler() as sampler:
        time.sleep(0.2)
    state = sampler.state()
    assert 100 < (state.sm_clock_mhz or 0) < 4000
    assert 10 < (state.power_w or 0) < (state.power_limit_w or 0) + 50
    assert state.power_state.startswith("P")
