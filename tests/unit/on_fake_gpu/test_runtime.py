"""Engines: what goes in, what comes out, and what is said when it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_onnx
from onnx import TensorProto, helper
from tiny_plans import LARGE, SMALL, plan_of

from enginefarm.documents.spec import MinOptMax, ShapeProfile
from enginefarm.errors import (
    DeviceOutOfMemory,
    DriverTooOld,
    EngineRunError,
    HostError,
    OtherBuild,
    OtherGpu,
    PluginMissing,
)
from enginefarm.run import cuda_graph
from enginefarm.run.engine import Engine, load_bindings

Plan = Callable[..., Path]


def images(batch: int, dtype: Any = np.float32) -> dict[str, Any]:
    return {"x": np.arange(batch * 4, dtype=dtype).reshape(batch, 4)}


def opened(plan: Path, **more: Any) -> Engine:
    return Engine(plan, toolchain="tensorrt", **more)


def test_what_an_engine_says_of_itself(plan: Plan) -> None:
    with opened(plan()) as engine:
        assert [(t.name, t.role, t.dtype, t.shape) for t in engine.tensors] == [
            ("x", "input", "float32", (-1, 4)),
            ("y", "output", "float32", (-1, 4)),
        ]
        assert engine.profiles == 2
        assert engine.profile_shapes(1)["x"] == LARGE.shapes["x"]
        assert "add0" in engine.layers_json()


@pytest.mark.parametrize(("batch", "profile"), [(1, 0), (4, 0), (64, 1)])
def test_outputs_are_those_of_the_model(plan: Plan, batch: int, profile: int) -> None:
    feeds = images(batch)
    with opened(plan()) as engine:
        found = engine.run(feeds, profile)
    np.testing.assert_array_equal(found["y"], 2 * feeds["x"])


def test_one_session_takes_many_shapes_in_turn(plan: Plan) -> None:
    with opened(plan()) as engine, engine.session(1) as session:
        for batch in (64, 5, 32, 64):
            session.bind(images(batch))
            session.copy_in()
            session.compute()
            session.copy_out()
            np.testing.assert_array_equal(session.outputs()["y"], 2 * images(batch)["x"])


def test_everything_is_freed_before_what_it_lives_in(plan: Plan, cuda: Any) -> None:
    with opened(plan(), plugins=[Path("libmine.so")]) as engine:
        engine.run(images(2))
    assert cuda.DIARY == [
        "context entered",
        "plugin libmine.so",
        "execution context freed",
        "engine freed",
        "runtime freed",
        "context left",
    ]


def test_a_shape_outside_the_profile_names_the_bounds(plan: Plan) -> None:
    with opened(plan()) as engine:
        with pytest.raises(EngineRunError, match="outside profile 0") as caught:
            engine.run(images(5), 0)
        assert caught.value.why == "it takes (1, 4) to (4, 4)"
        with pytest.raises(EngineRunError, match="no profile 2; it has 2"):
            engine.run(images(1), 2)


def test_a_wrong_name_and_a_wrong_type_are_told(plan: Plan) -> None:
    with opened(plan()) as engine:
        with pytest.raises(EngineRunError, match="its inputs are x; given were image"):
            engine.run({"image": images(1)["x"]})
        with pytest.raises(EngineRunError, match="'x' is int64, and the engine takes float32"):
            engine.run(images(1, np.int64))
        found = engine.run(images(2, np.float64))["y"]
        assert found.dtype == np.float32, "floats are cast"


@pytest.mark.parametrize(
    ("log", "error", "why", "fix"),
    [
        ("generated on an incompatible device, expecting", OtherGpu, "another GPU", "--gpu"),
        ("Version tag does not match", OtherBuild, "another build", "the manifest names"),
        ("Cannot find plugin: MyOp", PluginMissing, "a plugin", "the manifest lists"),
        ("Requested: OutOfMemory", DeviceOutOfMemory, "too little free memory", "smaller max"),
        ("something new", EngineRunError, "something new", "rebuild it"),
    ],
)
def test_a_refusal_is_explained(
    plan: Plan, log: str, error: type[EngineRunError], why: str, fix: str
) -> None:
    with pytest.raises(error, match=r"m\.plan cannot be loaded on Fake A100") as caught:
        opened(plan(load=log))
    assert type(caught.value) is error, "each has an exit code of its own"
    assert why in caught.value.why
    assert log in caught.value.why
    assert fix in caught.value.fix


def test_rubbish_is_no_plan(plan: Plan, cuda: Any) -> None:
    path = plan()
    path.write_bytes(b"\x00rubbish")
    with pytest.raises(EngineRunError, match="cannot be loaded"):
        opened(path)
    assert cuda.DIARY[-1] == "context left", "a failed load leaves the GPU as it was"


def test_what_fails_on_the_gpu_is_one_error(plan: Plan) -> None:
    with (
        opened(plan(gpu="an illegal memory access was encountered")) as engine,
        engine.session() as session,
    ):
        session.bind(images(1))
        session.compute()
        with pytest.raises(EngineRunError, match="the GPU failed while running it") as caught:
            session.outputs()
        assert "illegal memory access" in caught.value.why
    with (
        opened(plan(enqueue="Error Code 1: Cuda Runtime")) as engine,
        pytest.raises(EngineRunError, match="failed to run on Fake A100"),
    ):
        engine.run(images(1))


def test_too_little_memory_says_how_much_there_is(
    plan: Plan, cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "TOTAL_BYTES", 0)
    with opened(plan()) as engine, pytest.raises(DeviceOutOfMemory, match="has no room for") as it:
        engine.run(images(1))
    assert it.value.why == "0 of 0 MiB are free"


def test_a_driver_that_is_too_old_or_does_not_start(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_GPU_CUDA", "12020")
    with pytest.raises(DriverTooOld, match=r"supports CUDA 12\.2, and .* needs CUDA 13"):
        opened(plan(), cuda_major=13)
    monkeypatch.setenv("FAKE_GPU", "dead")
    with pytest.raises(HostError, match="the CUDA driver does not start"):
        opened(plan())


def test_artifacts_of_onnx_runtime_are_not_run_here() -> None:
    with pytest.raises(HostError, match="ort-trt"):
        load_bindings("ort-trt")


def positive_columns(path: Path) -> Path:
    """x [n, 4] -> where [2, k]: the size is known once the values are."""
    node = helper.make_node("NonZero", ["x"], ["where"], "find0")
    return tiny_onnx.save(
        path,
        [node],
        [tiny_onnx.value("x", ["n", 4], TensorProto.FLOAT)],
        [tiny_onnx.value("where", [2, "k"], TensorProto.INT64)],
        [],
    )


def test_outputs_whose_size_the_data_decides(cuda: Any, tmp_path: Path) -> None:
    plan = plan_of(positive_columns(tmp_path / "m.onnx"), SMALL)
    x = np.zeros((2, 4), np.float32)
    with opened(plan) as engine, engine.session() as session:
        for ones in ([(0, 1)], [(0, 1), (1, 0), (1, 3)], [(1, 2)]):
            x[:] = 0
            for place in ones:
                x[place] = 1
            session.bind({"x": x})
            session.copy_in()
            session.compute()
            session.copy_out()
            assert [tuple(one) for one in session.outputs()["where"].T] == ones
    with (
        opened(plan) as engine,
        engine.session(cuda_graph=True) as session,
        pytest.raises(EngineRunError, match="no CUDA graph") as it,
    ):
        session.bind({"x": x})
    assert it.value.why == "the size of where depends on the data"


def test_shape_tensors_stay_on_the_host(cuda: Any, tmp_path: Path) -> None:
    eight = MinOptMax(min=(8,), opt=(8,), max=(8,))
    profile = ShapeProfile(name="default", shapes={"x": eight})
    plan = plan_of(tiny_onnx.reshape_by_input(tmp_path / "m.onnx"), profile)
    x = np.arange(8, dtype=np.float32)
    with opened(plan) as engine:
        assert set(engine.profile_shapes(0)) == {"x"}, "a shape tensor has values, no bounds"
        found = engine.run({"x": x, "shape": np.array([2, 4], np.int64)})
    np.testing.assert_array_equal(found["y"], x.reshape(2, 4))


def test_a_cuda_graph_gives_the_same_outputs(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    from fake_libcuda import Libcuda

    libcuda = Libcuda()
    monkeypatch.setattr(cuda_graph.ctypes, "CDLL", lambda name: libcuda)
    with opened(plan()) as engine, engine.session(cuda_graph=True) as session:
        for batch in (2, 3):
            session.bind(images(batch))
            session.copy_in()
            session.compute()
            session.copy_out()
            np.testing.assert_array_equal(session.outputs()["y"], 2 * images(batch)["x"])
            assert len(libcuda.alive) == 1, "another shape's graph is not kept"
    assert libcuda.launched == 2
    assert not libcuda.alive

    refusing = Libcuda(refuses=901)
    monkeypatch.setattr(cuda_graph.ctypes, "CDLL", lambda name: refusing)
    with (
        opened(plan()) as engine,
        engine.session(cuda_graph=True) as session,
        pytest.raises(EngineRunError, match="cuStreamEndCapture returned error 901"),
    ):
        session.bind(images(1))
