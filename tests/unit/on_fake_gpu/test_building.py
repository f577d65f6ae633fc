"""Builds by `tensorrt`: which wishes reach the builder, and what is made of its refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_onnx import spec
from tiny_plans import LARGE, SMALL, doubling

from enginefarm.documents.spec import BuildSpec, ToolchainId
from enginefarm.errors import (
    BuildCancelled,
    BuildError,
    BuildOutOfMemory,
    EnginefarmError,
    HostError,
    ParseError,
)
from enginefarm.host.detect import NvmlGpu
from enginefarm.progress import SINK
from enginefarm.run.engine import Engine
from enginefarm.toolchains import BuildOutput, BuildRequest, tensorrt
from enginefarm.toolchains.tensorrt import combine

Reference = Callable[..., Path]
BUILD = "10.16.1.11"
TOOLCHAIN = ToolchainId(name="tensorrt", build=BUILD, cuda="13", os="linux", arch="x86_64")
A100 = NvmlGpu(name="NVIDIA A100", compute_capability="8.0", driver="580.1")


@pytest.fixture(autouse=True)
def a100(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "first_gpu", lambda: A100)


def wanted(**options: Any) -> BuildSpec:
    return spec(TOOLCHAIN, **options).model_copy(update={"profiles": (SMALL, LARGE)})


def request(tmp_path: Path, made: BuildSpec, *, faults: Any = (), **more: Any) -> BuildRequest:
    work_dir = tmp_path / "w"
    work_dir.mkdir(exist_ok=True)
    onnx = doubling(tmp_path / "model.onnx", **dict(faults))
    return BuildRequest(spec=made, onnx=onnx, work_dir=work_dir, **more)


def built(asked: BuildRequest) -> tuple[BuildOutput, dict[str, Any]]:
    """The output, and what the builder was asked for."""
    output = tensorrt.TensorRT().build(asked)
    return output, json.loads(output.plan.read_bytes())["asked"]


def test_every_wish_of_the_recipe_reaches_the_builder(tmp_path: Path) -> None:
    made = wanted(
        optimization_level=5,
        workspace_mib=64,
        compatibility="ampere_plus",
        version_compatible=True,
        sparse_weights=True,
        tactic_sources=("CUBLAS", "CUDNN"),
    )
    plugin = tmp_path / "libmine.so"
    _, asked = built(request(tmp_path, made, plugins=(plugin,)))
    # Without TF32, which every builder starts with: FP32 is computed as FP32.
    assert asked["flags"] == ["SPARSE_WEIGHTS", "VERSION_COMPATIBLE"]
    assert asked["level"] == 5
    assert asked["pools"] == {"WORKSPACE": 64 << 20}
    assert asked["compatibility"] == "AMPERE_PLUS"
    assert asked["tactics"] == 0b101
    assert asked["plugins"] == [str(plugin)], "they travel inside a version-compatible plan"
    assert asked["network_flags"] == 0b10, "strongly typed"


def test_the_plan_runs_and_its_layers_lie_beside_it(tmp_path: Path) -> None:
    seen: list[tuple[float, str]] = []
    with _progress(seen):
        output, asked = built(request(tmp_path, wanted()))
    assert [(t.name, t.role, t.dtype) for t in output.tensors] == [
        ("x", "input", "float32"),
        ("y", "output", "float32"),
    ]
    assert output.layers is not None
    assert json.loads(output.layers.read_text())["Layers"][0]["Name"] == "add0"
    assert asked["tactics"] is None, "nothing is asked for that the recipe does not name"
    assert (100.0, "Building Engine") in seen
    x = np.ones((8, 4), np.float32)
    with Engine(output.plan, toolchain="tensorrt") as engine:
        np.testing.assert_array_equal(engine.run({"x": x}, 1)["y"], 2 * x)


@contextmanager
def _progress(seen: list[tuple[float, str]]) -> Iterator[None]:
    token = SINK.set(lambda step, done, total, note="": seen.append((done, note)))
    try:
        yield
    finally:
        SINK.reset(token)


def test_timings_are_taken_along_and_not_from_another_device(tmp_path: Path) -> None:
    first, asked = built(request(tmp_path, wanted()))
    assert asked["cached"] == []
    assert first.details["timing_cache_used"] is False
    assert first.timing_cache is not None
    again, asked = built(request(tmp_path, wanted(), timing_cache=first.timing_cache))
    assert asked["cached"] == ["add0"]
    assert again.details["timing_cache_used"] is True
    other = tmp_path / "other.cache"
    other.write_bytes(b"another device")
    third, asked = built(request(tmp_path, wanted(), timing_cache=other))
    assert asked["cached"] == []
    assert third.details["timing_cache_used"] is False


def test_two_caches_are_combined_in_a_process_of_their_own(cuda: Any) -> None:
    assert combine(b"conv1", b"conv2") == b"conv1\nconv2"
    assert combine(b"conv1", b"another device") is None


@pytest.mark.parametrize(
    ("faults", "kind", "words"),
    [
        ({"build": "Could not find any implementation for node add0"}, BuildError, "refused"),
        ({"build": "Requested amount of GPU memory (1 B)"}, BuildOutOfMemory, "out of memory"),
        ({"build": ""}, BuildCancelled, "cancelled"),
        ({"parse": "MyOp"}, ParseError, r"node 'MyOp_0' \(operator MyOp\): UNSUPPORTED_NODE"),
    ],
)
def test_refusals_of_the_builder_and_the_parser(
    tmp_path: Path, faults: dict[str, str], kind: type[EnginefarmError], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        tensorrt.TensorRT().build(request(tmp_path, wanted(), faults=faults))
    assert all(word in str(caught.value) for word in faults.values())


def test_an_empty_file_parses_and_is_no_model(tmp_path: Path) -> None:
    asked = request(tmp_path, wanted())
    asked.onnx.write_bytes(b"")
    with pytest.raises(ParseError, match="0 layers and 0 outputs"):
        tensorrt.TensorRT().build(asked)


def test_a_profile_that_does_not_fit_names_the_input(tmp_path: Path) -> None:
    made = wanted()
    bounds = SMALL.shapes["x"]
    for shapes, words in (
        ({"image": bounds}, "no input 'image'"),
        ({"x": bounds.model_copy(update={"max": (4, 4, 4)})}, "input 'x' refuses"),
        ({"x": bounds.model_copy(update={"min": (9, 4)})}, "is not valid for this network"),
    ):
        profile = SMALL.model_copy(update={"shapes": shapes})
        wrong = made.model_copy(update={"profiles": (profile,)})
        with pytest.raises(BuildError, match=words):
            tensorrt.TensorRT().build(request(tmp_path, wrong))


def test_another_gpu_or_none_builds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    t4 = A100._replace(name="Tesla T4", compute_capability="7.5")
    monkeypatch.setattr(tensorrt, "first_gpu", lambda: t4)
    with pytest.raises(HostError, match=r"this host's GPU is Tesla T4 .*not a100 \(8\.0\)"):
        tensorrt.TensorRT().build(request(tmp_path, wanted()))
    monkeypatch.setattr(tensorrt, "first_gpu", lambda: None)
    with pytest.raises(HostError, match="no NVIDIA GPU"):
        tensorrt.TensorRT().build(request(tmp_path, wanted()))
