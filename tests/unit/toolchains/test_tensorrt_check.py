"""What TensorRT 10 and 11 refuse before anything runs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest
from specs import request, spec

from enginefarm.errors import HostError, ToolchainError
from enginefarm.toolchains import tensorrt_rtx
from enginefarm.toolchains.ort_trt import OrtTensorRT
from enginefarm.toolchains.tensorrt import TensorRT, require_gpu
from enginefarm.toolchains.trtexec import Trtexec


def test_tactic_sources_of_10_that_11_lacks() -> None:
    TensorRT().check(spec(tactic_sources=("CUDNN",)))
    with pytest.raises(ToolchainError, match="no CUDNN") as caught:
        TensorRT().check(spec(build="11.4.0.106", tactic_sources=("CUDNN",)))
    assert "JIT_CONVOLUTIONS" in caught.value.fix


NATIVE = (TensorRT(), Trtexec(), OrtTensorRT())


@pytest.mark.parametrize("toolchain", NATIVE, ids=lambda one: type(one).__name__)
def test_ampere_plus_on_turing(toolchain: TensorRT | Trtexec | OrtTensorRT) -> None:
    with pytest.raises(ToolchainError, match="older than Ampere"):
        toolchain.check(spec(gpu=("t4", "7.5"), compatibility="ampere_plus"))


@pytest.mark.parametrize("toolchain", NATIVE, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("capability", ["8.0", "9.0", "10.0", "12.0"])
def test_ampere_plus_from_ampere_on(
    toolchain: TensorRT | Trtexec | OrtTensorRT, capability: str
) -> None:
    toolchain.check(spec(gpu=("new", capability), compatibility="ampere_plus"))


def test_versions_that_nobody_tried() -> None:
    with pytest.raises(ToolchainError, match="version 9"):
        TensorRT().check(spec(build="9.3.0.1"))


def test_a_host_without_a_gpu_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enginefarm.toolchains.tensorrt.first_gpu", lambda: None)
    with pytest.raises(HostError, match="no NVIDIA GPU"):
        TensorRT().build(request(spec()))


def test_another_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from enginefarm.host.detect import NvmlGpu

    h100 = NvmlGpu(name="NVIDIA H100 80GB HBM3", compute_capability="9.0", driver="580.1")
    monkeypatch.setattr("enginefarm.toolchains.tensorrt.first_gpu", lambda: h100)
    with pytest.raises(HostError, match=r"H100.*not a100 \(8\.0\)"):
        require_gpu(spec())


def installed(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    """Package metadata as it is where exactly these distributions are installed."""

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr("enginefarm.toolchains.version", version)


def test_the_build_is_that_of_libraries_and_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"tensorrt-cu12-libs": "10.16.1.11", "tensorrt-cu12-bindings": "10.16.1.11"}
    installed(monkeypatch, both)
    found = TensorRT().identity()
    assert (found.build, found.cuda) == ("10.16.1.11", "12")
    installed(monkeypatch, {**both, "tensorrt-cu12-bindings": "10.13.3.9"})
    with pytest.raises(ToolchainError, match=r"10\.16\.1\.11 and bindings 10\.13\.3\.9") as caught:
        TensorRT().identity()
    assert caught.value.fix == (
        "pip install tensorrt-cu12-libs==10.16.1.11 tensorrt-cu12-bindings==10.16.1.11"
    )
    installed(monkeypatch, {})
    with pytest.raises(ToolchainError, match="not installed"):
        TensorRT().identity()


def test_the_same_of_tensorrt_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries, bindings = tensorrt_rtx.LIBRARIES, tensorrt_rtx.BINDINGS
    installed(monkeypatch, {libraries: "1.7.1.116", bindings: "1.6.0.1"})
    with pytest.raises(ToolchainError, match=r"1\.7\.1\.116 and bindings 1\.6\.0\.1"):
        tensorrt_rtx.TensorRTRTX().identity()
    installed(monkeypatch, {})
    with pytest.raises(ToolchainError, match="not installed") as caught:
        tensorrt_rtx.TensorRTRTX().identity()
    assert "enginefarm[farm]" in caught.value.fix
