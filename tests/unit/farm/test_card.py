"""What a worker is refused for, and what the planner makes of the workers it finds."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sample_manifest import make_spec

from enginefarm import toolchains
from enginefarm.documents.spec import ToolchainId
from enginefarm.errors import GpuError, HostError, ToolchainError, WorkerMismatch
from enginefarm.farm.worker import card as workers
from enginefarm.farm.worker.card import Card, ListedWorker, Role
from enginefarm.host.detect import NvmlGpu
from enginefarm.planning.plan import CROSS_POOL

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def rtx(build: str = "1.7.1.116") -> ToolchainId:
    return ToolchainId(name="tensorrt-rtx", build=build, cuda="13.0", os="linux", arch="x86_64")


def listed(name: str, role: Role, gpu: str | None = None, *, online: bool = True) -> ListedWorker:
    card = Card(
        name=name,
        role=role,
        pool=f"gpu-{gpu}" if gpu else CROSS_POOL,
        gpu=gpu,
        toolchains=() if role == "control" else (rtx(),),
        host="h",
        pid=1,
        started_at=NOW,
    )
    return ListedWorker(card=card, seen_at=NOW, online=online)


def nvml(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    """NVML as it would answer on a machine with that GPU, or with none."""
    found = name and NvmlGpu(name=name, compute_capability="8.9", driver="580.1")
    monkeypatch.setattr(workers, "first_gpu", lambda: found or None)


def test_the_gpu_of_its_label_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(monkeypatch, "NVIDIA L4")
    assert workers.check_device("l4", cross=False) == ("NVIDIA L4", "580.1")


def test_another_gpu_is_refused_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(monkeypatch, "NVIDIA L4")
    with pytest.raises(WorkerMismatch) as refused:
        workers.check_device("t4", cross=False)
    assert refused.value.exit_code == 71
    assert "'NVIDIA L4'" in refused.value.what
    assert "--gpu l4" in refused.value.fix


def test_a_gpu_that_no_row_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(monkeypatch, "NVIDIA Imaginary 9000")
    with pytest.raises(WorkerMismatch, match="Imaginary") as refused:
        workers.check_device("t4", cross=False)
    assert "gpus.toml" in refused.value.fix


def test_no_gpu_is_refused_unless_it_cross_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(monkeypatch, None)
    with pytest.raises(HostError, match="no NVIDIA GPU") as refused:
        workers.check_device("t4", cross=False)
    assert "--cross" in refused.value.fix
    assert workers.check_device("t4", cross=True) == (None, None)


def test_an_unknown_label_is_refused_even_to_cross_build() -> None:
    with pytest.raises(GpuError, match="gtx480"):
        workers.check_device("gtx480", cross=True)


def test_the_gpu_itself_is_offered_before_a_stand_in_and_the_shared_pool() -> None:
    rows = [
        listed("a", "cpu"),
        listed("b", "cross", "t4"),
        listed("c", "gpu", "t4"),
        listed("d", "control"),
        listed("e", "gpu", "l4", online=False),
    ]
    assert [(offer.gpu, offer.pool) for offer in workers.offers(rows)] == [
        ("t4", "gpu-t4"),
        ("t4", "gpu-t4"),
        (None, "cpu"),
    ]


def test_a_worker_that_builds_has_something_to_build_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert workers.check_toolchains("control") == ()
    assert [one.name for one in workers.check_toolchains("cross")] == ["tensorrt-rtx"]
    monkeypatch.setattr(toolchains, "TOOLCHAINS", {})
    with pytest.raises(ToolchainError, match="no toolchain that can build here") as refused:
        workers.check_toolchains("cpu")
    assert "enginefarm[farm]" in refused.value.fix


def test_a_spec_of_another_build_is_refused() -> None:
    (here,) = workers.check_toolchains("cross")
    spec = make_spec(toolchain="tensorrt-rtx")
    workers.check_spec(spec.model_copy(update={"toolchain": here}))
    other = here.model_copy(update={"build": "1.6.0.1"})
    with pytest.raises(ToolchainError, match=r"tensorrt-rtx 1\.6\.0\.1 .*this worker has"):
        workers.check_spec(spec.model_copy(update={"toolchain": other}))
