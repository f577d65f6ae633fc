"""What a host can lack, each in a fresh process: one clear error and its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import builds
import numpy as np
import pytest
from small_models import with_plugin

from enginefarm.building import isolate
from enginefarm.documents.spec import MinOptMax
from enginefarm.errors import DeviceOutOfMemory, EngineRunError, HostError, PluginMissing
from enginefarm.run.engine import Engine

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(200)]

RUN = """
import sys
from pathlib import Path
from enginefarm.errors import EnginefarmError
from enginefarm.run.engine import Engine
try:
    with Engine(Path(sys.argv[1]), toolchain="tensorrt") as engine:
        engine.session().close()
except EnginefarmError as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(error.exit_code)
print("it ran")
"""
WITHOUT_PLUGINS = """
import tensorrt_bindings
tensorrt_bindings.init_libnvinfer_plugins = lambda *arguments: True
"""
FULL_GPU = """
import atexit
import pycuda.driver as cuda
cuda.init()
cuda.Device(0).retain_primary_context().push()
atexit.register(cuda.Context.pop)
held, size = [], 1 << 40
while size >= 1 << 16:
    try:
        held.append(cuda.mem_alloc(size))
    except cuda.MemoryError:
        size //= 2
print(f"free before: {cuda.mem_get_info()[0] >> 10} KiB")
"""
SHAPES = {
    "boxes": MinOptMax(min=(1, 6, 4), opt=(2, 6, 4), max=(4, 6, 4)),
    "scores": MinOptMax(min=(1, 6, 2), opt=(2, 6, 2), max=(4, 6, 2)),
}


def fresh(code: str, plan: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, str(plan)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def plugin_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    onnx = with_plugin(folder / "nms.onnx")
    request = builds.request(onnx, folder / "w", SHAPES, optimization_level=0)
    return isolate.build(request, toolchain="tensorrt").plan


def test_tensorrts_own_plugins_are_there(plugin_plan: Path) -> None:
    one = [[0, 0, 2, 2], [0, 0, 2, 2.1], [5, 5, 6, 6], [8, 8, 9, 9], [0, 0, 1, 1], [3, 3, 4, 4]]
    feeds: dict[str, Any] = {
        "boxes": np.array([one], np.float32),
        "scores": np.array(
            [[[0.9, 0], [0.8, 0], [0, 0.7], [0.1, 0.1], [0, 0], [0.2, 0]]], np.float32
        ),
    }
    with Engine(plugin_plan, toolchain="tensorrt") as engine:
        found = engine.run(feeds)
    assert found["count"].ravel().tolist() == [2]  # the second box lies on the first
    assert found["kept_classes"].ravel()[:2].tolist() == [0, 1]
    assert np.allclose(found["kept_scores"].ravel()[:2], [0.9, 0.7])


def test_a_plugin_that_is_missing(plugin_plan: Path) -> None:
    done = fresh(WITHOUT_PLUGINS + RUN, plugin_plan)
    print(done.stdout)
    assert done.returncode == PluginMissing.exit_code, done.stderr
    assert "it needs a plugin that is not loaded" in done.stdout
    assert "EfficientNMS_TRT" in done.stdout


def test_a_gpu_that_is_full(plans: Path) -> None:
    done = fresh(FULL_GPU + RUN, plans / "conv.plan")
    print(done.stdout)
    assert done.returncode == DeviceOutOfMemory.exit_code, done.stderr
    assert "the GPU has too little free memory" in done.stdout


def test_a_gpu_that_is_hidden(plans: Path) -> None:
    done = fresh(RUN, plans / "conv.plan", CUDA_VISIBLE_DEVICES="")
    print(done.stdout)
    assert done.returncode == HostError.exit_code, done.stderr
    assert "Traceback" not in done.stderr


def test_a_plan_of_another_build_and_one_cut_short(plans: Path, tmp_path: Path) -> None:
    whole = bytearray((plans / "conv-notvc.plan").read_bytes())
    (tmp_path / "cut.plan").write_bytes(whole[: len(whole) - 100])
    print("head of a plan:", bytes(whole[:48]).hex(" ", 4))
    done = fresh(RUN, tmp_path / "cut.plan")
    print(done.stdout)
    assert done.returncode == EngineRunError.exit_code, done.stderr
    assert "cannot be loaded" in done.stdout
