"""The benchmark on a machine without a GPU: PyTorch and ONNX Runtime on the CPU."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_onnx

from enginefarm.bench.engine import side_by_side
from enginefarm.bench.harness import Harness, Iteration, interleave
from enginefarm.documents.manifest import (
    BuildRecord,
    DeviceVerification,
    Environment,
    GraphVerification,
    Manifest,
)
from enginefarm.documents.spec import BlobRef, OnnxRef, ToolchainId
from enginefarm.errors import EngineRunError, HostError
from enginefarm.run.contenders import TorchContender, on_provider
from enginefarm.run.engine import load_bindings, load_cuda
from enginefarm.run.remote import RemoteContender
from enginefarm.run.running import Contender

QUICK = Harness(warmup_iterations=1, warmup_s=0, min_iterations=12, min_seconds=0)


class Scripted(Contender):
    """A contender that writes down when it was its turn."""

    runtime = "onnxruntime-cpu"

    def __init__(self, name: str, diary: list[str], value: float) -> None:
        self.name = name
        self._diary = diary
        self._value = value

    def bind(self, feeds: Mapping[str, Any]) -> None:
        self._diary.append(f"bind {self.name}")

    def iterate(self) -> Iteration:
        self._diary.append(self.name)
        return Iteration(total=2.0, copy_in=0.25, compute=1.5, copy_out=0.25)

    def outputs(self) -> dict[str, Any]:
        return {"y": np.full((1, 4), self._value, np.float32)}


def test_contenders_take_turns() -> None:
    diary: list[str] = []
    harness = QUICK.model_copy(update={"round_iterations": 3, "min_iterations": 6})
    interleave([Scripted("a", diary, 1), Scripted("b", diary, 1)], harness)
    assert "".join(diary[2:]) == "aaabbbaaabbb"  # after one pass each to warm up


def test_outputs_are_compared_with_the_first() -> None:
    found = side_by_side([Scripted("a", [], 1), Scripted("b", [], -1)], {}, batch=4, harness=QUICK)
    assert found[0].against_first[0].cosine == 1
    assert found[1].against_first[0].cosine == pytest.approx(-1)
    assert found[1].compute is not None
    assert found[1].compute.ms_p99 == 1.5


def test_a_slow_model_stops_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    quarters = (count / 4 for count in itertools.count())
    monkeypatch.setattr(
        "enginefarm.bench.harness.time", SimpleNamespace(perf_counter=lambda: next(quarters))
    )
    harness = Harness(
        warmup_iterations=0,
        warmup_s=0,
        round_iterations=3,
        min_iterations=10**9,
        min_seconds=0,
        max_seconds=2,
    )
    samples, _ = interleave([Scripted("a", [], 1)], harness)
    assert samples[0].seconds == 2
    assert len(samples[0].iterations) == 8 * 3  # each turn takes a quarter of a second


def test_pytorch_and_onnx_runtime_on_the_cpu_agree(tmp_path: Path) -> None:
    import onnx
    import torch
    from onnx import numpy_helper

    path = tiny_onnx.float_gemm(tmp_path / "model.onnx")
    weight = numpy_helper.to_array(onnx.load(path).graph.initializer[0]).copy()
    linear = torch.nn.Linear(4, 4, bias=False)
    linear.weight.data = torch.from_numpy(weight.T.copy())
    feeds = {"x": np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)}
    found = side_by_side(
        [
            TorchContender("pytorch", linear, outputs=["y"], device="cpu"),
            on_provider("ort", path, runtime="onnxruntime-cpu"),
        ],
        feeds,
        batch=8,
        harness=QUICK,
    )
    assert [one.runtime for one in found] == ["pytorch", "onnxruntime-cpu"]
    assert found[1].against_first[0].cosine > 0.999999
    assert all(one.total.samples >= 12 for one in found)
    assert all(one.compute is None for one in found)  # the CPU has no such clock
    assert all(one.samples_per_s > 0 for one in found)


def scripted(value: str) -> Scripted:
    return Scripted(os.environ.get("AWS_SECRET_ACCESS_KEY", "remote"), [], float(value))


def test_a_contender_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-the-child")
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    remote = RemoteContender(
        "remote",
        runtime="pytorch",
        python=[sys.executable],
        factory="test_engine:scripted",
        arguments=["2.5"],
        environment={"PYTHONPATH": f"{Path(__file__).parents[3]}{os.pathsep}{path}"},
    )
    found = side_by_side([Scripted("here", [], 2.5), remote], {}, batch=1, harness=QUICK)
    assert found[1].against_first[0].cosine == 1
    assert found[1].compute is not None
    assert found[1].compute.ms_median == 1.5
    remote.close()


def greedy() -> None:
    held = bytearray(600 << 20)
    time.sleep(60)
    del held


def test_a_contender_has_the_memory_of_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEFARM_BUILD_MEMORY_MIB", "400")
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    with pytest.raises(EngineRunError, match=r"greedy: used .* over its limit of 400 MiB"):
        RemoteContender(
            "greedy",
            runtime="pytorch",
            python=[sys.executable],
            factory="test_engine:greedy",
            environment={"PYTHONPATH": f"{Path(__file__).parents[3]}{os.pathsep}{path}"},
        )


def test_a_contender_that_cannot_start_says_why() -> None:
    with pytest.raises(EngineRunError, match="gone: failed in its process") as caught:
        RemoteContender(
            "gone", runtime="pytorch", python=[sys.executable], factory="no_such_module:x"
        )
    assert "no_such_module" in caught.value.why


def test_a_python_that_dies_at_once_is_an_error_and_no_wait() -> None:
    with pytest.raises(EngineRunError, match="its process ended"):
        RemoteContender("dead", runtime="pytorch", python=["/bin/false"], factory="a:b")


def test_a_provider_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tiny_onnx.float_gemm(tmp_path / "model.onnx")
    with pytest.raises(EngineRunError, match="no CUDAExecutionProvider"):
        on_provider("ort", path, runtime="onnxruntime-cuda")


def test_settings_are_part_of_the_flags() -> None:
    assert "min_iterations=200" in Harness().flags
    assert Harness().flags != Harness(min_iterations=300).flags


def test_no_driver_and_no_runtime_are_the_hosts_errors() -> None:
    with pytest.raises(HostError, match=r"pycuda is not installed|no NVIDIA driver"):
        load_cuda()
    with pytest.raises(HostError, match="no runtime for tensorrt"):
        load_bindings("tensorrt")
    with pytest.raises(HostError, match="'ort-trt' are not TensorRT's own"):
        load_bindings("ort-trt")


def test_rows_of_an_engine_and_none_for_a_graph_that_cannot_be_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is a stand-in (no GPU here); the rows, shapes and figures are the real ones."""
    from enginefarm.bench import engine as benchmark

    class StandIn(Scripted):
        def __init__(self, name: str, *_: object, cuda_graph: bool, **__: object) -> None:
            if cuda_graph:
                raise EngineRunError("no CUDA graph of it can be captured")
            super().__init__(name, [], 1.0)

        def close(self) -> None:
            pass

    opened = SimpleNamespace(running=StandIn)
    monkeypatch.setattr(benchmark, "open_artifact", lambda *_, **__: nullcontext(opened))
    x = np.ones((2, 3, 16, 16), np.float16)
    np.savez(tmp_path / "r.npz", **{"0000/input/x": x, "0000/output/y": x})
    rows = benchmark.benchmark_engine(
        manifest(), tmp_path / "engine.plan", tmp_path / "r.npz", harness=QUICK
    )
    assert [row.batch for row in rows] == [2, 1, 4]
    assert {row.outcome for row in rows} == {"measured"}
    assert {row.cuda_graph for row in rows} == {False}
    assert rows[0].shapes == "x:2x3x16x16"
    assert rows[0].compute_ms_p99 == 1.5
    assert rows[0].h2d_ms_median == 0.25
    assert rows[0].cov_verdict == "stable"
    assert rows[0].harness_flags == QUICK.flags


def manifest() -> Manifest:
    spec = tiny_onnx.spec(
        ToolchainId(name="tensorrt", build="11.4.0.106", cuda="13", os="linux", arch="x86_64")
    )
    blob = BlobRef(digest="1" * 64, size_bytes=10)
    return Manifest(
        recipe="tiny",
        spec=spec,
        spec_digest=spec.digest,
        engine=blob,
        graph=OnnxRef(model=blob, opset=17),
        tensors=(),
        verification=GraphVerification(samples=1, runtime="ort", outputs=()),
        device_verification=DeviceVerification(status="passed"),
        build=BuildRecord(seconds=1, peak_memory_bytes=1),
        environment=Environment(host="h", os="linux", arch="x86_64", python="3", packages={}),
        created_at=datetime.now(UTC),
    )
