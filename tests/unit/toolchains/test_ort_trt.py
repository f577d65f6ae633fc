"""The TensorRT provider's options against the list recorded from its binary."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_onnx
from published_options import recorded
from specs import IMAGES, TEXT, request, spec

from enginefarm.errors import BuildError, ToolchainError
from enginefarm.toolchains import BuildRequest, ort_trt

KNOWN = recorded("ort_trt_options.txt")
BUILD = "1.31.1+tensorrt.10.16.1.11"


@pytest.mark.parametrize("precision", sorted(ort_trt.PRECISION_OPTIONS))
def test_every_option_is_known(precision: str) -> None:
    made = spec(
        "ort-trt",
        BUILD,
        precision=precision,
        profiles=(TEXT, IMAGES),
        workspace_mib=512,
        compatibility="ampere_plus",
        sparse_weights=True,
        strip_plan=True,
        tactic_sources=("JIT_CONVOLUTIONS",),
    )
    asked = request(made, plugins=(Path("/p.so"),))
    used = ort_trt.provider_options(asked, Path("/w/out/engine.plan")).keys()
    assert used <= KNOWN.keys()
    assert "unconfirmed" not in {KNOWN[name] for name in used}


def test_profiles_are_listed_one_after_another() -> None:
    options = ort_trt.provider_options(
        request(spec("ort-trt", BUILD, profiles=(TEXT, TEXT))), Path("/p")
    )
    assert options["trt_profile_min_shapes"] == "ids:1x1,mask:1x1,ids:1x1,mask:1x1"


def test_its_own_cache_lives_and_dies_with_the_build() -> None:
    options = ort_trt.provider_options(request(spec("ort-trt", BUILD)), Path("/w/out/engine.plan"))
    assert str(options["trt_engine_cache_path"]).startswith("/w/out/")
    assert str(options["trt_timing_cache_path"]).startswith("/w/out/")


def test_an_artifact_says_what_it_is_valid_for() -> None:
    text = ort_trt.validity(spec("ort-trt", BUILD))
    assert BUILD in text
    assert "compute capability 8.0" in text


@pytest.mark.parametrize("option", ["refit", "version_compatible", "classic_int8"])
def test_what_the_provider_lacks_is_refused_by_name(option: str) -> None:
    with pytest.raises(ToolchainError, match=rf"builder\.{option}"):
        ort_trt.OrtTensorRT().check(spec("ort-trt", BUILD, **{option: True}))


def test_fp8_is_refused() -> None:
    with pytest.raises(ToolchainError, match="no fp8"):
        ort_trt.OrtTensorRT().check(spec("ort-trt", BUILD, precision="fp8"))


def test_without_the_package_the_error_says_what_to_install() -> None:
    with pytest.raises(ToolchainError, match="not installed"):
        ort_trt.OrtTensorRT().identity()


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(name: str) -> str:
        if name.replace("-", "_") not in versions:
            raise PackageNotFoundError(name)
        return versions[name.replace("-", "_")]

    monkeypatch.setattr(ort_trt, "version", version)


def test_it_is_known_by_both_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, onnxruntime_gpu="1.31.1", tensorrt_cu12_libs="10.16.1.11")
    found = ort_trt.OrtTensorRT().identity()
    assert (found.build, found.cuda) == (BUILD, "12")
    installed(monkeypatch, onnxruntime_gpu="1.31.1")
    with pytest.raises(ToolchainError, match=r"the TensorRT that onnxruntime-gpu 1\.31\.1 needs"):
        ort_trt.OrtTensorRT().identity()


class Session:
    """ONNX Runtime's, as far as the toolchain looks: `takes` decides who runs the model."""

    takes = True

    def __init__(self, model: str, settings: object, *, providers: Any, **_: object) -> None:
        ((self._provider, options),) = providers
        if self.takes:
            Path(options["trt_ep_context_file_path"]).write_bytes(b"an artifact")
            cache = Path(options["trt_timing_cache_path"])
            cache.mkdir()
            (cache / "gpu.timing").write_bytes(b"timings")

    def get_providers(self) -> list[str]:
        return [self._provider, "CPUExecutionProvider"] if self.takes else ["CPUExecutionProvider"]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(
        get_available_providers=lambda: [ort_trt.PROVIDER, "CPUExecutionProvider"],
        SessionOptions=SimpleNamespace,
        InferenceSession=Session,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", made)  # type: ignore[arg-type]
    monkeypatch.setattr(ort_trt, "require_gpu", lambda spec: None)
    return made


def asked(tmp_path: Path) -> BuildRequest:
    onnx = tiny_onnx.convolutions(tmp_path / "model.onnx")
    return BuildRequest(spec=spec("ort-trt", BUILD), onnx=onnx, work_dir=tmp_path)


def test_the_artifact_and_its_timings_come_back(tmp_path: Path, runtime: SimpleNamespace) -> None:
    output = ort_trt.OrtTensorRT().build(asked(tmp_path))
    assert output.plan.read_bytes() == b"an artifact"
    assert output.timing_cache is not None
    assert output.timing_cache.read_bytes() == b"timings"
    assert BUILD in str(output.details["valid_for"])
    assert [tensor.name for tensor in output.tensors] == ["x", "y"]


def test_a_model_that_is_left_to_the_cpu_is_no_artifact(
    tmp_path: Path, runtime: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "takes", False)
    with pytest.raises(BuildError, match="did not take the model") as caught:
        ort_trt.OrtTensorRT().build(asked(tmp_path))
    assert "CPUExecutionProvider" in caught.value.why
    runtime.get_available_providers = lambda: ["CPUExecutionProvider"]
    with pytest.raises(ToolchainError, match=f"has no {ort_trt.PROVIDER}"):
        ort_trt.OrtTensorRT().build(asked(tmp_path))
