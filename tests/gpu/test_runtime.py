"""Engines on a real GPU, against ONNX Runtime on the CPU and against numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import other_library
import pytest

from enginefarm.documents.manifest import TensorInfo
from enginefarm.errors import DeviceOutOfMemory, EngineRunError
from enginefarm.run import buffers as cuda_buffers
from enginefarm.run.engine import Engine

pytestmark = pytest.mark.gpu

Load = Callable[[str], Engine]


def random_images(batch: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((batch, 3, 16, 16)).astype(np.float32)}


def on_cpu(models: Path, name: str, feeds: dict[str, Any]) -> Any:
    session = onnxruntime.InferenceSession(
        str(models / f"{name}.onnx"), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def relative_l2(found: Any, wanted: Any) -> float:
    assert found.shape == wanted.shape
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_what_an_engine_says_of_itself(engine: Load) -> None:
    conv = engine("conv")
    assert [(t.name, t.role, t.dtype, t.shape) for t in conv.tensors] == [
        ("x", "input", "float32", (-1, 3, 16, 16)),
        ("y", "output", "float32", (-1, 16, 16, 16)),
    ]
    assert conv.profiles == 2
    assert conv.profile_shapes(1)["x"].max == (64, 3, 16, 16)


@pytest.mark.parametrize(("batch", "profile"), [(1, 0), (3, 0), (4, 0), (5, 1), (64, 1)])
def test_dynamic_shapes_on_several_profiles(
    engine: Load, models: Path, batch: int, profile: int
) -> None:
    feeds = random_images(batch)
    found = engine("conv").run(feeds, profile)["y"]
    assert relative_l2(found, on_cpu(models, "conv", feeds)) < 2e-3  # TF32 is on by default


def test_one_session_takes_many_shapes_in_turn(engine: Load, models: Path) -> None:
    with engine("conv").session(1) as session:
        for batch in (64, 5, 32, 64, 7):
            feeds = random_images(batch, seed=batch)
            session.bind(feeds)
            session.copy_in()
            session.compute()
            session.copy_out()
            found = session.outputs()["y"]
            assert relative_l2(found, on_cpu(models, "conv", feeds)) < 2e-3


def test_a_shape_outside_the_profile_names_the_bounds(engine: Load) -> None:
    with pytest.raises(EngineRunError, match="outside profile 0") as caught:
        engine("conv").run(random_images(9), 0)
    assert "(4, 3, 16, 16)" in caught.value.why


def test_a_wrong_input_name_and_a_wrong_type(engine: Load) -> None:
    conv = engine("conv")
    with pytest.raises(EngineRunError, match="its inputs are x"):
        conv.run({"image": np.zeros((1, 3, 16, 16), np.float32)})
    with pytest.raises(EngineRunError, match="int64"):
        conv.run({"x": np.zeros((1, 3, 16, 16), np.int64)})


def test_an_output_whose_size_depends_on_the_data(engine: Load) -> None:
    found = engine("nonzero")
    for seed, share in ((0, 0.0), (1, 0.3), (2, 1.0)):
        x = (np.random.default_rng(seed).random((64, 4)) < share).astype(np.float32)
        assert np.array_equal(found.run({"x": x})["y"], np.stack(np.nonzero(x)))


def test_a_shape_tensor_is_read_on_the_host(engine: Load) -> None:
    x = np.arange(8, dtype=np.float32)
    reshape = engine("reshape")
    dtype = next(t.dtype for t in reshape.tensors if t.name == "shape")  # int32 before 10
    for shape in ((2, 4), (8, 1), (1, 8)):
        found = reshape.run({"x": x, "shape": np.array(shape, dtype)})["y"]
        assert np.array_equal(found, x.reshape(shape))


def test_a_cuda_graph_gives_the_same(engine: Load) -> None:
    conv, feeds = engine("conv"), random_images(4)
    plain = conv.run(feeds)["y"]
    with conv.session(0, cuda_graph=True) as session:
        session.bind(feeds)
        for _ in range(3):
            session.copy_in()
            session.compute()
            session.copy_out()
        assert np.array_equal(session.outputs()["y"], plain)


def test_a_cuda_graph_of_a_data_dependent_engine_is_refused(engine: Load) -> None:
    with (
        engine("nonzero").session(cuda_graph=True) as session,
        pytest.raises(EngineRunError, match="no CUDA graph"),
    ):
        session.bind({"x": np.ones((4, 4), np.float32)})


def test_two_engines_and_another_library_share_the_gpu(engine: Load, models: Path) -> None:
    feeds = random_images(4)
    before = other_library.ones(1000)
    first, second = engine("conv"), engine("nonzero")
    assert relative_l2(first.run(feeds)["y"], on_cpu(models, "conv", feeds)) < 2e-3
    assert second.run({"x": np.eye(4, dtype=np.float32)})["y"].shape == (2, 4)
    assert other_library.total(before) == 1000


def test_the_inspector_lists_layers(engine: Load) -> None:
    assert "conv" in engine("conv").layers_json().lower()


def test_a_plan_cut_short(plans: Path, tmp_path: Path) -> None:
    whole = (plans / "conv.plan").read_bytes()
    (tmp_path / "cut.plan").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineRunError, match=r"cut\.plan cannot be loaded"):
        Engine(tmp_path / "cut.plan", toolchain="tensorrt")


def test_device_memory_too_small(engine: Load) -> None:
    conv = engine("conv")
    tensor = TensorInfo(name="huge", dtype="float32", shape=(-1,), role="input")
    with pytest.raises(DeviceOutOfMemory, match="'huge': the GPU has no room") as caught:
        cuda_buffers.Buffer(conv.cuda, tensor).reserve_bytes(1 << 42)
    assert "MiB are free" in caught.value.why
    assert conv.run(random_images(1))["y"].shape[0] == 1  # and the GPU is fine
