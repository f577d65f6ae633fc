"""Two builds at once: side by side where no GPU is needed, one after the other where one is."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_onnx

from enginefarm.building import build_locks
from enginefarm.documents.spec import ToolchainId
from enginefarm.errors import FarmError
from enginefarm.farm.worker import serve


def at_once(root: Path, toolchain: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether two builds hold their turns at the same time."""
    monkeypatch.setattr(build_locks, "_SLOTS", threading.BoundedSemaphore(2))
    site: Any = SimpleNamespace(cache=SimpleNamespace(root=root))
    build = ToolchainId(name=toolchain, build="11.4.0.106", cuda="13", os="linux", arch="x86_64")
    spec = tiny_onnx.spec(build)
    both = threading.Barrier(2)

    def one(_: int) -> bool:
        with build_locks.turn(site, spec):
            try:
                both.wait(1)
            except threading.BrokenBarrierError:
                return False
            return True

    with ThreadPoolExecutor(2) as pool:
        return all(pool.map(one, range(2)))


def test_builds_that_time_kernels_take_turns_on_their_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not at_once(tmp_path, "tensorrt", monkeypatch)


@pytest.mark.timeout(30)
def test_the_worker_of_a_gpu_builds_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own lock once had the name of the builds' lock, so that each build waited for it."""
    monkeypatch.setenv("ENGINEFARM_CACHE", str(tmp_path))
    with serve._exclusive_gpu("gpu"):
        assert not at_once(tmp_path, "tensorrt", monkeypatch)


def test_a_gpu_has_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEFARM_CACHE", str(tmp_path))
    with (
        serve._exclusive_gpu("gpu"),
        pytest.raises(FarmError, match="GPU 0 of this machine already has a worker"),
        serve._exclusive_gpu("gpu"),
    ):
        pass


def test_builds_that_need_no_gpu_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert at_once(tmp_path, "tensorrt-rtx", monkeypatch)
