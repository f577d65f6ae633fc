"""The TensorRT provider's options against the list recorded from its binary."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_onnx
from specs import IMAGES, TEXT, request, spec

from enginefarm.documents.spec import MinOptMax
from enginefarm.errors import BuildError, HostError, ToolchainError
from enginefarm.host import runtimes
from enginefarm.run.ort_engine import PROVIDER
from enginefarm.toolchains import BuildRequest, built_plan, ort_trt
from tests.unit.toolchains.published_options import recorded

Installed = Callable[..., None]
KNOWN = recorded("ort_trt_options.txt")
BUILD = "1.31.1+tensorrt.10.16.1.11"


@pytest.mark.parametrize("precision", sorted(ort_trt.PRECISION_OPTIONS))
def test_every_option_is_known(precision: str) -> None:
    made = spec(
        "ort-trt",
        BUILD,
        precision=precision,
        profiles=(TEXT,),
        workspace_mib=512,
        compatibility="ampere_plus",
        sparse_weights=True,
        tactic_sources=("JIT_CONVOLUTIONS",),
    )
    asked = request(made, plugins=(Path("/p.so"),))
    used = ort_trt.provider_options(asked, Path("/w/out/engine.plan")).keys()
    assert used <= KNOWN.keys()
    assert "unconfirmed" not in {KNOWN[name] for name in used}


def test_switches_are_true_in_python_s_word() -> None:
    """ "1" is refused by ONNX Runtime, which then falls back to the CPU (1.17.1 on an H100)."""
    made = spec("ort-trt", BUILD, precision="int8", sparse_weights=True)
    options = ort_trt.provider_options(request(made), Path("/p"))
    switches = {
        name: value
        for name, value in options.items()
        if name.endswith("_enable") or name.startswith("trt_dump")
    }
    assert len(switches) == 4
    assert set(switches.values()) == {"True"}


def test_the_profile_is_spelled_as_the_provider_reads_it() -> None:
    options = ort_trt.provider_options(
        request(spec("ort-trt", BUILD, profiles=(TEXT,))), Path("/p")
    )
    assert options["trt_profile_min_shapes"] == "ids:1x1,mask:1x1"


def test_a_range_of_shapes_of_a_name_with_a_colon_is_refused_by_the_input_s_name() -> None:
    """The provider would read `x:0:1x3x224x224` as the name x (1.17.1 on an H100)."""
    made = spec("ort-trt", BUILD, profiles=({"x:0": IMAGES["x"]},))
    with pytest.raises(ToolchainError, match="'x:0' has a colon") as caught:
        ort_trt.OrtTensorRT().check(made)
    assert "rename the input" in caught.value.fix


def test_one_shape_of_a_name_with_a_colon_needs_no_telling() -> None:
    fixed = MinOptMax(min=(1, 3), opt=(1, 3), max=(1, 3))
    made = spec("ort-trt", BUILD, profiles=({"x:0": fixed, **TEXT},))
    ort_trt.OrtTensorRT().check(made)
    options = ort_trt.provider_options(request(made), Path("/p"))
    assert options["trt_profile_opt_shapes"] == "ids:1x64,mask:1x64"
    alone = spec("ort-trt", BUILD, profiles=({"x:0": fixed},))
    assert "trt_profile_min_shapes" not in ort_trt.provider_options(request(alone), Path("/p"))


def test_several_profiles_are_refused_since_only_the_first_would_run() -> None:
    with pytest.raises(ToolchainError, match="takes one, and there are 2") as caught:
        ort_trt.OrtTensorRT().check(spec("ort-trt", BUILD, profiles=(TEXT, IMAGES)))
    assert "covers them" in caught.value.fix


def test_its_own_cache_is_never_on() -> None:
    options = ort_trt.provider_options(request(spec("ort-trt", BUILD)), Path("/w/out/engine.plan"))
    assert options["trt_ep_context_file_path"] == "/w/out/engine.plan"
    assert not [name for name in options if "engine_cache" in name]


def test_an_artifact_says_what_it_is_valid_for() -> None:
    text = ort_trt.validity(spec("ort-trt", BUILD))
    assert BUILD in text
    assert "compute capability 8.0" in text


@pytest.mark.parametrize("option", ["version_compatible"])
def test_what_the_provider_lacks_is_refused_by_name(option: str) -> None:
    with pytest.raises(ToolchainError, match=rf"builder\.{option}"):
        ort_trt.OrtTensorRT().check(spec("ort-trt", BUILD, **{option: True}))


def test_fp8_is_refused() -> None:
    with pytest.raises(ToolchainError, match="no fp8"):
        ort_trt.OrtTensorRT().check(spec("ort-trt", BUILD, precision="fp8"))


def test_without_the_package_the_error_says_what_to_install() -> None:
    with pytest.raises(ToolchainError, match="not installed"):
        ort_trt.OrtTensorRT().identity()


def test_it_is_known_by_both_builds(installed: Installed) -> None:
    installed(onnxruntime_gpu="1.31.1", tensorrt_cu12_libs="10.16.1.11")
    found = ort_trt.OrtTensorRT().identity()
    assert (found.build, found.cuda) == (BUILD, "12")
    installed(onnxruntime_gpu="1.31.1")
    with pytest.raises(ToolchainError, match=r"the TensorRT that onnxruntime-gpu 1\.31\.1 needs"):
        ort_trt.OrtTensorRT().identity()


def test_a_host_that_has_it_says_so(installed: Installed) -> None:
    installed(onnxruntime_gpu="1.31.1", tensorrt_cu12_libs="10.16.1.11")
    found = runtimes.installed_runtimes()
    assert found == {"tensorrt": "10.16.1.11", "onnxruntime-tensorrt": BUILD}


class Session:
    """ONNX Runtime's, as far as the toolchain looks. Its words are recorded from
    onnxruntime-gpu 1.17.1 and 1.31.1 on a machine without TensorRT's libraries."""

    refuses: Exception | None = None
    takes = True

    def __init__(self, model: str, settings: object, *, providers: Any, **_: object) -> None:
        ((self._provider, options),) = providers
        if self.refuses is not None:
            raise self.refuses
        if self.takes:
            Path(options["trt_ep_context_file_path"]).write_bytes(b"an artifact")

    def get_providers(self) -> list[str]:
        return [self._provider, "CPUExecutionProvider"]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(
        get_available_providers=lambda: [PROVIDER, "CPUExecutionProvider"],
        SessionOptions=SimpleNamespace,
        InferenceSession=Session,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", made)  # type: ignore[arg-type]
    monkeypatch.setattr(ort_trt, "require_gpu", lambda spec: None)
    monkeypatch.setattr(built_plan, "require_bindings", lambda toolchain: None)
    return made


def asked(tmp_path: Path) -> BuildRequest:
    onnx = tiny_onnx.convolutions(tmp_path / "model.onnx")
    return BuildRequest(spec=spec("ort-trt", BUILD), onnx=onnx, work_dir=tmp_path)


def test_a_model_that_is_left_to_the_cpu_is_no_artifact(
    tmp_path: Path, runtime: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "takes", False)
    with pytest.raises(BuildError, match="did not take the whole model"):
        ort_trt.OrtTensorRT().build(asked(tmp_path))


def test_what_tensorrt_says_of_a_model_is_the_reason(
    tmp_path: Path, runtime: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "refuses", RuntimeError("TensorRT EP failed to create engine"))
    with pytest.raises(BuildError, match="refused the model") as caught:
        ort_trt.OrtTensorRT().build(asked(tmp_path))
    assert "failed to create engine" in caught.value.why


def test_a_host_that_cannot_start_the_provider_says_nothing_of_the_model(
    tmp_path: Path, runtime: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "onnxruntime_pybind_state.cc:729 Please install TensorRT libraries as mentioned in"
    monkeypatch.setattr(Session, "refuses", RuntimeError(words))
    with pytest.raises(HostError, match="does not start on this host"):
        ort_trt.OrtTensorRT().build(asked(tmp_path))
    runtime.get_available_providers = lambda: ["CPUExecutionProvider"]
    with pytest.raises(HostError, match=f"has no {PROVIDER}"):
        ort_trt.OrtTensorRT().build(asked(tmp_path))
