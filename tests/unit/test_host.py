from __future__ import annotations

import pytest

from enginefarm import host
from enginefarm.errors import GpuError, HostError
from enginefarm.host import NvmlGpu


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
