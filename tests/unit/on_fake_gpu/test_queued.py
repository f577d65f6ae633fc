"""An engine as trtexec 11 measures it by default; the GPU is made of numpy (tests/fake_gpu)."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enginefarm import cli
from enginefarm.bench.gpu_state import GpuState
from enginefarm.bench.queued import (
    QueuedAnswer,
    QueuedRequest,
    QueuedSettings,
    measure,
    row_columns,
)
from enginefarm.bench.shapes import Point
from enginefarm.errors import EngineRunError
from enginefarm.run.queue import Queue

Make = Callable[..., Path]


class Session:
    def __init__(self, diary: list[str]) -> None:
        self.stream = None
        self._diary = diary

    def compute(self) -> None:
        self._diary.append("pass")


class Event:
    def __init__(self, name: str, diary: list[str]) -> None:
        self.name, self._diary = name, diary

    def record(self, _: Any) -> None:
        self._diary.append(self.name)

    def synchronize(self) -> None:
        self._diary.append(f"wait {self.name}")

    def time_since(self, begin: Event) -> float:
        assert (begin.name[0], self.name[0]) == ("b", "e")
        return float(self.name[1:])


def test_one_pass_is_in_the_queue_while_the_host_waits_for_the_one_before() -> None:
    diary: list[str] = []
    names = (f"{kind}{index}" for index in itertools.count() for kind in "be")
    cuda = SimpleNamespace(Event=lambda: Event(next(names), diary))
    session: Any = Session(diary)
    taken = Queue(cuda, session).passes(lambda done: done < 3)
    assert diary == [
        *("b0", "pass", "e0"),
        *("b1", "pass", "e1", "wait e0"),
        *("b0", "pass", "e0", "wait e1"),
        *("b1", "pass", "e1", "wait e0"),
        "wait e1",
    ]
    assert taken == [0, 1, 0, 1], "every pass is counted once"


def request(plan: Make, reference: Make) -> str:
    return QueuedRequest(
        plan=plan(),
        reference=reference(),
        toolchain="tensorrt",
        profile=1,
        shapes={"x": (8, 4)},
        settings=QueuedSettings(seconds=0.01, warmup_s=0, min_passes=12),
    ).model_dump_json()


def test_a_captured_graph_is_launched_and_inputs_are_copied_once(
    cuda: Any, plan: Make, reference: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    libcuda = import_module("fake_libcuda").Libcuda()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libcuda)
    copies: list[int] = []
    real = cuda.memcpy_htod_async
    monkeypatch.setattr(cuda, "memcpy_htod_async", lambda *given: (copies.append(1), real(*given)))
    found = QueuedAnswer.model_validate_json(measure(request(plan, reference)))
    assert len(found.compute_ms) >= 12
    assert libcuda.launched >= len(found.compute_ms)
    assert len(copies) == 1
    assert all(one > 0 for one in found.compute_ms)


def test_an_engine_that_cannot_be_captured_is_refused_not_timed_without_a_graph(
    cuda: Any, plan: Make, reference: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    libcuda = import_module("fake_libcuda").Libcuda(refuses=900)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libcuda)
    with pytest.raises(EngineRunError, match="CUDA graph"):
        measure(request(plan, reference))


def test_the_row_tells_the_settings_and_has_no_latency_of_lone_passes() -> None:
    answer = QueuedAnswer(compute_ms=(1.0, 2.0, 3.0), seconds=0.01, gpu=GpuState())
    told = row_columns(answer, Point(0, "default", {"x": (8, 4)}), QueuedSettings())
    assert told["harness_flags"] == (
        "min_passes=10 queue=2 seconds=3.0 spin_wait=True transfers=False warmup_s=0.2"
    )
    assert told["cuda_graph"] is True
    assert told["compute_ms_median"] == 2.0
    assert told["throughput_samples_per_s"] == pytest.approx(3 * 8 / 0.01)
    assert not any(name.startswith("latency") for name in told)


def test_it_is_refused_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import tiny_recipe

    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path))
    monkeypatch.setenv("ENGINEFARM_STORE", "s3://nowhere")
    recipe = tiny_recipe.write(tmp_path / "tiny", gpus=["a100"], precisions=["fp16"])
    assert cli.run(["bench", "run", str(recipe), "--cpu", "--trtexec"]) == 2
    assert "bench run --trtexec: it measures an engine on a GPU" in capsys.readouterr().err
