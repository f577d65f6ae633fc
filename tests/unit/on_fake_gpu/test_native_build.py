"""A native build with what surrounds it: the shared timing cache, and several attempts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_onnx
from tiny_plans import LARGE, SMALL, doubling

from enginefarm.building import isolate, timing_cache
from enginefarm.building import native as native_build
from enginefarm.documents.comparing import ComparisonRules
from enginefarm.documents.manifest import GraphVerification
from enginefarm.documents.spec import ToolchainId
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import AccuracyError
from enginefarm.host.detect import NvmlGpu
from enginefarm.store.engine_store import EngineStore
from enginefarm.toolchains import BuildOutput, BuildRequest, tensorrt

Reference = Callable[..., Path]
TOOLCHAIN = ToolchainId(name="tensorrt", build="10.16.1.11", cuda="13", os="linux", arch="x86_64")
A100 = NvmlGpu(name="NVIDIA A100", compute_capability="8.0", driver="580.1")


@pytest.fixture(autouse=True)
def a100(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds in this process: the child's own search for a GPU cannot be told of this one."""

    def build(request: BuildRequest, **_: Any) -> BuildOutput:
        return tensorrt.TensorRT().build(request)

    monkeypatch.setattr(isolate, "build", build)
    for module in (tensorrt, native_build):
        monkeypatch.setattr(module, "first_gpu", lambda: A100)


def request(tmp_path: Path, name: str, **options: Any) -> BuildRequest:
    work_dir = tmp_path / name
    work_dir.mkdir()
    spec = tiny_onnx.spec(TOOLCHAIN, **options).model_copy(update={"profiles": (SMALL, LARGE)})
    return BuildRequest(spec=spec, onnx=doubling(tmp_path / "model.onnx"), work_dir=work_dir)


def test_the_second_build_starts_from_the_firsts_timings(
    store: EngineStore, tmp_path: Path
) -> None:
    first = native_build.build(store, request(tmp_path, "one"))
    assert first.details["timing_cache_used"] is False
    second = native_build.build(store, request(tmp_path, "two"))
    assert second.details["timing_cache_used"] is True
    assert len(list(store.objects.list(timing_cache.PREFIX))) == 1


def test_of_several_attempts_the_fastest_is_kept(
    store: EngineStore, tmp_path: Path, reference: Reference
) -> None:
    output = native_build.build(
        store, request(tmp_path, "lottery", attempts=3), reference=reference()
    )
    lottery: Any = output.details["lottery"]
    times = [one["latency_ms"] for one in lottery["attempts"]]
    assert lottery["kept"] == times.index(min(times))
    asked = json.loads(output.plan.read_bytes())["asked"]
    assert asked["seconds"] == 0, "the fake's fastest"
    assert not list(store.objects.list(timing_cache.PREFIX)), "a cache would make them alike"


def test_no_accurate_attempt_is_an_error_with_the_reasons(
    store: EngineStore, tmp_path: Path, reference: Reference
) -> None:
    with pytest.raises(AccuracyError, match="none of 2 attempts is accurate") as caught:
        native_build.build(
            store,
            request(tmp_path, "wrong", attempts=2),
            reference=reference(3),
            budget=Budget(max_relative_l2=0.1),
        )
    assert "relative" in caught.value.why


def test_attempts_are_judged_by_what_the_recipe_says_of_its_outputs(
    store: EngineStore, tmp_path: Path, reference: Reference
) -> None:
    rules = ComparisonRules(near_zero=1e3)
    output = native_build.build(
        store,
        request(tmp_path, "near-zero", attempts=2),
        reference=reference(3),
        budget=Budget(max_relative_l2=0.1, min_cosine=-1),
        figures=GraphVerification(samples=10, runtime="onnxruntime", outputs=(), comparing=rules),
    )
    assert output.plan.is_file()
