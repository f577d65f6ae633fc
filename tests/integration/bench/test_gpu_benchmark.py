"""`enginefarm bench run` on a machine with a GPU, which is made of numpy here (tests/fake_gpu):
a real store, recipe and ONNX Runtime, processes of their own, and what is missing left out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tiny_plans import plan_of

from enginefarm import cli
from enginefarm.bench import on_gpu as gpu_benchmark
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import MinOptMax, ShapeProfile, ToolchainId
from enginefarm.errors import EngineRunError
from enginefarm.host import detect as host
from enginefarm.host.detect import NvmlGpu
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.site import Site
from enginefarm.tables.tables import BenchmarkTables
from tests import tiny_recipe
from tests.fake_builds import jobs, made

Out = pytest.CaptureFixture[str]
FAKES = Path(__file__).parents[2] / "fake_gpu"
TENSORRT = ToolchainId(name="tensorrt", build="10.16.1.11", cuda="13", os="linux", arch="x86_64")


@pytest.fixture
def a100(monkeypatch: pytest.MonkeyPatch) -> None:
    card = NvmlGpu(name="NVIDIA A100-SXM4-40GB", compute_capability="8.0", driver="580.1")
    for module in (host, gpu_benchmark):
        monkeypatch.setattr(module, "first_gpu", lambda: card)
    path = os.pathsep.join(filter(None, (str(FAKES), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)


@pytest.fixture
def recipe(store_environment: EngineStore, tmp_path: Path) -> Path:
    path = tiny_recipe.write(tmp_path / "tiny", gpus=["a100"], precisions=["fp16"])
    site = Site(store_environment, BlobCache(tmp_path / "farm"))
    for job in jobs(site, path):
        made(site, job)
    return path


def native(store: EngineStore, recipe: Path) -> Manifest:
    """The engine that a worker with the GPU would have published beside the cross-built one."""
    (cross,) = store.manifests("tiny")
    plan = plan_of(recipe.parent / "model.onnx", *cross.spec.profiles)
    spec = cross.spec.model_copy(update={"toolchain": TENSORRT, "compute_capabilities": ()})
    manifest = cross.model_copy(
        update={"spec": spec, "spec_digest": spec.digest, "engine": store.put_blob(plan)}
    )
    assert store.publish(manifest)
    return manifest


@pytest.mark.usefixtures("a100")
def test_runtimes_side_by_side_and_what_is_missing_left_out_by_name(
    store_environment: EngineStore, recipe: Path, capsys: Out
) -> None:
    # The store holds a cross-built engine alone, and this machine has nothing that runs it.
    run = ["bench", "run", str(recipe), "--seconds", "0.05", "--trtexec", "--json"]
    assert cli.run(run) == EngineRunError.exit_code
    error = capsys.readouterr().err
    assert "no runtime could run" in error
    assert "ONNX Runtime CUDA fp16: " in error
    assert "tensorrt-rtx fp16: " in error
    assert "Traceback" not in error

    engine = native(store_environment, recipe)
    assert cli.run(run) == 0
    said = capsys.readouterr()
    rows = json.loads(said.out)
    assert [(row["runtime"], row["precision"], row["batch"]) for row in rows] == [
        ("tensorrt", "fp16", 1),
        ("tensorrt", "fp16", 4),
    ]
    for row in rows:
        assert row["gpu"] == "a100"
        assert row["engine_digest"] == engine.engine.digest
        assert row["compute_ms_median"] is not None
        assert row["cuda_graph"] is False
        assert row["outcome"] == "measured"
    left_out = [line for line in said.err.splitlines() if line.startswith("left out: ")]
    for name in (
        "ONNX Runtime CUDA fp32: ",
        "ONNX Runtime CUDA fp16: ",
        "ONNX Runtime TensorRT fp16: ",
        "tensorrt-rtx fp16: ",
        "tensorrt fp16 + CUDA graph, images:1x3x16x16: ",
        "a100/fp16 as trtexec measures: ",
    ):
        assert any(line.startswith(f"left out: {name}") for line in left_out), (name, left_out)
    assert any("no CUDAExecutionProvider" in line for line in left_out)
    stored = BenchmarkTables(store_environment.objects).rows()
    assert len([row for row in stored if row.outcome == "measured"]) == 2

    run.remove("--trtexec")
    assert cli.run([*run, "--cpu"]) == 0
    on_cpu = json.loads(capsys.readouterr().out)
    assert {(row["runtime"], row["gpu"]) for row in on_cpu} == {("onnxruntime-cpu", None)}


def test_onnx_runtime_s_tensorrt_is_left_out_of_a_model_whose_shapes_it_cannot_be_told() -> None:
    images = MinOptMax(min=(1, 3), opt=(2, 3), max=(4, 3))
    shapes = ShapeProfile(name="default", shapes={"audio": images, "x:0": images})
    with pytest.raises(EngineRunError) as caught:
        gpu_benchmark.by_tensorrt_of_ort("it", Path("model.onnx"), "fp16", shapes)
    assert "the input 'x:0' has a colon in its name" in caught.value.why
