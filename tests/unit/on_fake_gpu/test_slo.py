"""The load that an engine takes; the GPU is made of numpy (tests/fake_gpu)."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from enginefarm.bench.load import Load
from enginefarm.bench.slo import LoadAnswer, LoadRequest, measure
from enginefarm.errors import EngineRunError

Make = Callable[..., Path]


def request(plan: Path, reference: Path, *, cuda_graph: bool = False) -> str:
    return LoadRequest(
        plan=plan,
        reference=reference,
        toolchain="tensorrt",
        profile=1,
        shapes={"x": (8, 4)},
        load=Load(slo_p99_ms=60_000, seconds=0.02, min_requests=100, step=0.4),
        streams=(1, 3),
        cuda_graph=cuda_graph,
    ).model_dump_json()


def test_streams_of_one_engine_pass_at_the_same_time_each_on_its_own_cuda_stream(
    cuda: Any, plan: Make, reference: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: dict[Any, set[int]] = {}
    real = cuda.Stream.synchronize

    def synchronize(stream: Any) -> None:
        waited.setdefault(stream, set()).add(threading.get_ident())
        real(stream)

    monkeypatch.setattr(cuda.Stream, "synchronize", synchronize)
    found = LoadAnswer.model_validate_json(measure(request(plan(), reference())))
    assert [one.curve.streams for one in found.curves] == [1, 3]
    for one in found.curves:
        assert one.curve.best is not None
        assert 0 < one.curve.best.rate_per_s < one.curve.capacity.per_s
        assert one.seconds > 0
    elsewhere = [threads - {threading.get_ident()} for threads in waited.values()]
    assert sum(map(bool, elsewhere)) == 3, "three streams, which three threads waited for"


def test_a_wanted_cuda_graph_is_launched_or_refused(
    cuda: Any, plan: Make, reference: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    libcuda = import_module("fake_libcuda").Libcuda()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libcuda)
    measure(request(plan(), reference(), cuda_graph=True))
    assert libcuda.launched > 200
    refusing = import_module("fake_libcuda").Libcuda(refuses=900)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: refusing)
    with pytest.raises(EngineRunError, match="CUDA graph"):
        measure(request(plan(), reference(), cuda_graph=True))
