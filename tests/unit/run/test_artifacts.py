"""Context models of ort-trt, opened and run. ONNX Runtime is real, on the CPU: its TensorRT
provider is not in it, so the session is swapped for one of the model that the artifact holds.
What the provider's errors look like is recorded from onnxruntime-gpu 1.17.1 and 1.31.1."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_onnx
from sample_manifest import make_manifest

from enginefarm.bench.engine import benchmark_engine
from enginefarm.bench.harness import Harness
from enginefarm.documents.spec import MinOptMax, ShapeProfile
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import (
    DriverTooOld,
    EngineRunError,
    HostError,
    OtherGpu,
    PluginMissing,
)
from enginefarm.host.detect import NvmlGpu
from enginefarm.run import ort_engine as ort_tensorrt
from enginefarm.run.artifacts import open_artifact
from enginefarm.run.running import OpenRequest
from enginefarm.run.verify import DeviceRequest, verified

QUICK = Harness(warmup_iterations=1, warmup_s=0, min_iterations=5, min_seconds=0)
PROFILE = ShapeProfile(name="p", shapes={"x": MinOptMax(min=(1, 4), opt=(2, 4), max=(4, 4))})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    card = NvmlGpu(name="NVIDIA A100", compute_capability="8.0", driver="580.1", driver_cuda=13000)
    monkeypatch.setattr(ort_tensorrt, "first_gpu", lambda: card)


def real_session(model: str, settings: Any, **_: Any) -> Any:
    ort = sys.modules["the_real_onnxruntime"]
    found = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    return SimpleNamespace(
        run=found.run,
        get_inputs=found.get_inputs,
        get_outputs=found.get_outputs,
        get_providers=lambda: [ort_tensorrt.PROVIDER, "CPUExecutionProvider"],
    )


@pytest.fixture
def provider(gpu: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """ONNX Runtime as it is with the provider: `session` opens its models."""
    import onnxruntime

    monkeypatch.setitem(sys.modules, "the_real_onnxruntime", onnxruntime)

    def with_session(session: Callable[..., Any]) -> None:
        made = SimpleNamespace(
            get_available_providers=lambda: [ort_tensorrt.PROVIDER, "CPUExecutionProvider"],
            SessionOptions=onnxruntime.SessionOptions,
            GraphOptimizationLevel=onnxruntime.GraphOptimizationLevel,
            InferenceSession=session,
        )
        monkeypatch.setitem(sys.modules, "onnxruntime", made)  # type: ignore[arg-type]

    return with_session


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return tiny_onnx.float_gemm(tmp_path / "engine.plan")


def reference(tmp_path: Path, plan: Path, factor: float = 1) -> Path:
    import onnxruntime

    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(plan), providers=["CPUExecutionProvider"])
    y = factor * session.run(None, {"x": x})[0]
    np.savez(tmp_path / "r.npz", **{"0000/input/x": x, "0000/output/y": y})
    return tmp_path / "r.npz"


def test_it_is_verified_like_any_engine(provider: Any, plan: Path, tmp_path: Path) -> None:
    against, wrong = reference(tmp_path, plan), tmp_path / "wrong"
    wrong.mkdir()
    doubled = reference(wrong, plan, 2)
    provider(real_session)
    asked = DeviceRequest(
        plan=plan, reference=against, toolchain="ort-trt", profiles=(PROFILE,), budget=Budget()
    )
    found = verified(asked)
    assert (found.status, found.gpu) == ("passed", "NVIDIA A100")
    refused = verified(asked.model_copy(update={"reference": doubled}))
    assert refused.status == "failed"
    assert "relative" in refused.reason


def test_it_is_measured_without_a_graph(provider: Any, plan: Path, tmp_path: Path) -> None:
    against = reference(tmp_path, plan)
    provider(real_session)
    made = make_manifest(toolchain="ort-trt", build="1.31.1+tensorrt.10.16.1.11")
    spec = made.spec.model_copy(update={"profiles": (PROFILE,)})
    rows = benchmark_engine(made.model_copy(update={"spec": spec}), plan, against, harness=QUICK)
    assert [(row.batch, row.cuda_graph) for row in rows] == [(2, False), (1, False), (4, False)]
    assert {row.runtime for row in rows} == {"onnxruntime-tensorrt"}
    assert all(row.latency_ms_median > 0 and row.compute_ms_median is None for row in rows)


def test_what_the_gpu_reports_while_it_runs_is_an_error(provider: Any, plan: Path) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 11 : EP_FAIL : TensorRT EP failed to run")

    def session(*arguments: Any, **options: Any) -> Any:
        opened = real_session(*arguments, **options)
        opened.run = fails
        return opened

    provider(session)
    running = open_artifact(OpenRequest(plan=plan, toolchain="ort-trt")).running("engine")
    running.bind({"x": np.ones((1, 4), np.float32)})
    with pytest.raises(EngineRunError, match="failed to run") as caught:
        running.iterate()
    assert "EP_FAIL" in caught.value.why


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("engine plan file is not compatible: expecting compute capability 8.6", OtherGpu),
        ("Cannot find plugin: X, version 1", PluginMissing),
        ("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF", EngineRunError),
    ],
)
def test_a_refusal_says_what_it_means(
    provider: Any, plan: Path, words: str, error: type[EngineRunError]
) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise RuntimeError(words)

    provider(refuses)
    with pytest.raises(error, match="cannot be loaded on NVIDIA A100") as caught:
        open_artifact(OpenRequest(plan=plan, toolchain="ort-trt"))
    assert words in caught.value.why
    assert type(caught.value) is error


def test_what_a_host_lacks_says_nothing_of_the_engine(
    provider: Any, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_libraries(*_: Any, **__: Any) -> None:
        raise RuntimeError("onnxruntime_pybind_state.cc:729 Please install TensorRT libraries as")

    def without_driver(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA failure 35: CUDA driver version is insufficient for CUDA runtime")

    def fell_back(*arguments: Any, **options: Any) -> Any:
        opened = real_session(*arguments, **options)
        opened.get_providers = lambda: ["CPUExecutionProvider"]
        return opened

    for session in (without_libraries, without_driver, fell_back):
        provider(session)
        with pytest.raises(HostError, match="does not start on this host"):
            open_artifact(OpenRequest(plan=plan, toolchain="ort-trt"))
    provider(real_session)
    with pytest.raises(DriverTooOld, match="needs CUDA 14"):
        open_artifact(OpenRequest(plan=plan, toolchain="ort-trt", cuda_major=14))
    monkeypatch.setattr(ort_tensorrt, "first_gpu", lambda: None)
    with pytest.raises(HostError, match="no NVIDIA driver"):
        open_artifact(OpenRequest(plan=plan, toolchain="ort-trt"))


@pytest.mark.usefixtures("gpu")
def test_the_onnx_runtime_of_this_machine_has_no_such_provider(plan: Path) -> None:
    with pytest.raises(HostError, match=f"no {ort_tensorrt.PROVIDER}") as caught:
        open_artifact(OpenRequest(plan=plan, toolchain="ort-trt"))
    assert "pip install onnxruntime-gpu" in caught.value.fix
    with pytest.raises(HostError, match="'nvcc' are not run here"):
        open_artifact(OpenRequest(plan=plan, toolchain="nvcc"))
