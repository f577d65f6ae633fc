"""What is known of an inference host: by NVML, and by what it is told."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from enginefarm.digest import sha256_bytes
from enginefarm.errors import GpuError, HostError
from enginefarm.host import detect as host
from enginefarm.host.detect import NvmlGpu


@pytest.fixture
def a10g(monkeypatch: pytest.MonkeyPatch) -> None:
    card = NvmlGpu(name="NVIDIA A10G", compute_capability="8.6", driver="580.95.05")
    monkeypatch.setattr(host, "first_gpu", lambda: card)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "first_gpu", lambda: None)


@pytest.mark.usefixtures("no_gpu")
def test_no_gpu_and_none_named_says_what_to_do() -> None:
    with pytest.raises(HostError, match="no NVIDIA GPU") as caught:
        host.detect(environ={})
    assert "--gpu" in caught.value.fix


@pytest.mark.usefixtures("no_gpu")
def test_naming_a_gpu_pulls_for_another_host_of_which_the_rest_is_unknown() -> None:
    told = host.detect("t4", environ={})
    assert (told.gpu, told.compute_capability) == ("t4", "7.5")
    assert (told.os, told.driver, told.runtimes) == (None, None, {})


@pytest.mark.usefixtures("no_gpu")
def test_the_environment_can_say_everything() -> None:
    told = host.detect(
        environ={
            "ENGINEFARM_GPU": "l4",
            "ENGINEFARM_DRIVER": "580.1",
            "ENGINEFARM_OS": "Linux",
            "ENGINEFARM_ARCH": "amd64",
            "ENGINEFARM_TENSORRT": "10.16.1.11",
        }
    )
    assert (told.gpu, told.driver, told.os, told.arch) == ("l4", "580.1", "linux", "x86_64")
    assert told.runtimes == {"tensorrt": "10.16.1.11"}


@pytest.mark.usefixtures("a10g")
def test_this_machine_is_found_by_nvml() -> None:
    here = host.detect(environ={})
    assert (here.gpu, here.compute_capability, here.driver) == ("a10g", "8.6", "580.95.05")
    assert here.os is not None


@pytest.mark.usefixtures("a10g")
def test_naming_the_gpu_that_is_here_keeps_what_is_known_of_this_machine() -> None:
    assert host.detect("a10g", environ={}) == host.detect(environ={})


def test_an_unknown_label_lists_the_labels() -> None:
    with pytest.raises(GpuError, match="quadro") as caught:
        host.detect("quadro", environ={})
    assert "t4" in caught.value.fix


class NvmlError(Exception):
    """As pynvml's."""


def nvml(monkeypatch: pytest.MonkeyPatch, **changes: object) -> list[str]:
    """NVML as it answers on a machine with one card; gives what it is asked for."""
    asked: list[str] = []

    def by_index(index: int) -> str:
        asked.append(f"index {index}")
        return "card"

    def by_uuid(uuid: str) -> str:
        asked.append(uuid)
        return "card"

    answers = {
        "NVMLError": NvmlError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: asked.append("shut down"),
        "nvmlDeviceGetHandleByIndex": by_index,
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceGetCudaComputeCapability": lambda card: (8, 6),
        "nvmlDeviceGetName": lambda card: b"NVIDIA A10G",
        "nvmlSystemGetDriverVersion": lambda: "580.95.05",
        "nvmlSystemGetCudaDriverVersion": lambda: 13010,
        **changes,
    }
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**answers))  # type: ignore[arg-type]
    monkeypatch.setattr(host, "DEVICE_FILES", ("/",))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return asked


def test_the_first_card_as_nvml_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = nvml(monkeypatch)
    assert host.first_gpu() == NvmlGpu(
        name="NVIDIA A10G", compute_capability="8.6", driver="580.95.05", driver_cuda=13010
    )
    assert asked == ["index 0", "shut down"]


@pytest.mark.parametrize(
    ("visible", "asked"), [("2,3", "index 2"), ("GPU-1a2b", "GPU-1a2b"), ("MIG-3c", "MIG-3c")]
)
def test_the_first_card_that_cuda_may_see(
    monkeypatch: pytest.MonkeyPatch, visible: str, asked: str
) -> None:
    seen = nvml(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert host.first_gpu() is not None
    assert seen[0] == asked


def test_no_driver_and_no_visible_card_are_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise NvmlError

    nvml(monkeypatch, nvmlInit=fails)
    assert host.first_gpu() is None
    nvml(monkeypatch, nvmlDeviceGetHandleByIndex=fails)
    assert host.first_gpu() is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "nonsense")
    assert host.first_gpu() is None


def test_plugins_are_known_by_their_bytes(tmp_path: Path) -> None:
    library = tmp_path / "libmine.so"
    library.write_bytes(b"mine")
    told = host.detect("t4", environ={"ENGINEFARM_PLUGINS": f"{library}:"})
    assert told.plugins == {sha256_bytes(b"mine")}
    with pytest.raises(HostError, match=r"ENGINEFARM_PLUGINS names .*gone"):
        host.detect("t4", environ={"ENGINEFARM_PLUGINS": str(tmp_path / "gone")})
