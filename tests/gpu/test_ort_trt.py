"""Toolchain ort-trt on a real GPU: built, loaded in a fresh process, held against the CPU.

Needs onnxruntime-gpu with its TensorRT (ort_trt86_toolchain.py): /opt/ort first on PYTHONPATH.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import builds
import numpy as np
import onnx
import pytest
from sample_manifest import make_manifest
from small_models import convolutions, data_dependent

from enginefarm.building import isolate
from enginefarm.documents.comparing import ComparisonRules
from enginefarm.documents.spec import MinOptMax, ShapeProfile
from enginefarm.documents.thresholds import DEFAULT_BUDGETS, Budget
from enginefarm.errors import (
    BuildError,
    DriverTooOld,
    EngineRunError,
    HostError,
    ToolchainError,
)
from enginefarm.graph.model import ort
from enginefarm.release import package
from enginefarm.run.artifacts import open_artifact
from enginefarm.run.contenders import on_provider
from enginefarm.run.ort_engine import PROVIDER
from enginefarm.run.running import OpenRequest
from enginefarm.run.verify import DeviceRequest, verify_on_device
from enginefarm.toolchains import BuildOutput, toolchain

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

NAME = "ort-trt"
TF32 = Budget(min_cosine=0.9999, max_relative_l2=5e-3)


@pytest.fixture(scope="module", autouse=True)
def provider() -> None:
    if PROVIDER not in import_module("onnxruntime").get_available_providers():
        pytest.skip("needs onnxruntime-gpu: put /opt/ort first on PYTHONPATH")


def build(onnx: Path, work_dir: Path, shapes: Any = builds.CONV, **more: Any) -> BuildOutput:
    asked = builds.request(onnx, work_dir, shapes, **{"optimization_level": 1, **more})
    spec = asked.spec.model_copy(update={"toolchain": toolchain(NAME).identity()})
    return isolate.build(asked.model_copy(update={"spec": spec}), toolchain=NAME)


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildOutput]:
    folder = tmp_path_factory.mktemp("conv")
    model = convolutions(folder / "conv.onnx")
    made = build(model, folder / "w")
    print(f"built in {made.seconds:.1f} s, {made.plan.stat().st_size} bytes", made.details)
    return model, made


def reference(model: Path, path: Path, batches: tuple[int, ...]) -> Path:
    """Inputs of these batches, and what ONNX Runtime's CPU provider makes of them."""
    cpu = on_provider("cpu", model, runtime="onnxruntime-cpu")
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for index, batch in enumerate(batches):
        x = rng.standard_normal((batch, 3, 16, 16)).astype(np.float32)
        cpu.bind({"x": x})
        cpu.iterate()
        arrays |= {f"{index:04d}/input/x": x, f"{index:04d}/output/y": cpu.outputs()["y"]}
    np.savez(path, **arrays)
    return path


def asked(plan: Path, against: Path, **more: Any) -> DeviceRequest:
    whole = ShapeProfile(name="default", shapes=builds.CONV)
    fields: dict[str, Any] = {"toolchain": NAME, "profiles": (whole,), "budget": TF32, **more}
    return DeviceRequest(plan=plan, reference=against, **fields)


def test_the_artifact_is_one_node_that_holds_the_engine(conv: tuple[Path, BuildOutput]) -> None:
    model = onnx.load(conv[1].plan)
    (node,) = model.graph.node
    assert (node.op_type, node.domain) == ("EPContext", "com.microsoft")
    values = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    print({name: value for name, value in values.items() if name != "ep_cache_context"})
    assert values["embed_mode"] == 1
    assert len(values["ep_cache_context"]) > 1000
    assert not list(conv[1].plan.parent.rglob("*.engine")), "a cache of ONNX Runtime's own"


def test_it_runs_in_a_fresh_process_at_every_shape_of_its_profile(
    conv: tuple[Path, BuildOutput], tmp_path: Path
) -> None:
    model, made = conv
    against = reference(model, tmp_path / "r.npz", (1, 2, 7, 64))
    found = verify_on_device(asked(made.plan, against), tmp_path / "w").verification
    print(found)
    assert found.status == "passed", found.reason
    assert found.gpu
    assert found.driver
    assert found.outputs[0].cosine > 0.9999


def test_another_models_artifact_fails_by_its_numbers(
    conv: tuple[Path, BuildOutput], tmp_path: Path
) -> None:
    other = build(convolutions(tmp_path / "other.onnx", layers=2), tmp_path / "other")
    against = reference(conv[0], tmp_path / "r.npz", (2,))
    found = verify_on_device(asked(other.plan, against), tmp_path / "w").verification
    assert found.status == "failed"
    assert "cosine" in found.reason


@pytest.mark.parametrize("precision", [pytest.param("fp32"), pytest.param("fp16")])
def test_a_real_model_and_its_precisions(precision: str, models: Path, tmp_path: Path) -> None:
    made = build(
        models / "efficientnet_lite0.onnx",
        tmp_path / "w",
        builds.PICTURES,
        precision=precision,
        optimization_level=0,
    )
    size = made.plan.stat().st_size
    print(f"{precision}: built in {made.seconds:.1f} s, {size} bytes")
    pictures = ShapeProfile(name="default", shapes=builds.PICTURES)
    request = asked(
        made.plan,
        models / "efficientnet_lite0.npz",
        profiles=(pictures,),
        budget=DEFAULT_BUDGETS["fp16"],
        comparing=ComparisonRules(class_scores=("scores",)),
    )
    found = verify_on_device(request, tmp_path / "v").verification
    print(precision, found.outputs)
    assert found.status == "passed", found.reason


def test_several_profiles_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    asked_for = builds.request(convolutions(tmp_path / "m.onnx"), tmp_path / "w", builds.CONV)
    twice = (*asked_for.spec.profiles, ShapeProfile(name="again", shapes=builds.CONV))
    spec = asked_for.spec.model_copy(
        update={"toolchain": toolchain(NAME).identity(), "profiles": twice}
    )
    with pytest.raises(ToolchainError, match="takes one"):
        isolate.build(asked_for.model_copy(update={"spec": spec}), toolchain=NAME)


def test_a_shape_outside_its_profile_is_an_error(conv: tuple[Path, BuildOutput]) -> None:
    with open_artifact(OpenRequest(plan=conv[1].plan, toolchain=NAME)) as artifact:
        running = artifact.running("conv")
        running.bind({"x": np.zeros((65, 3, 16, 16), np.float32)})
        with pytest.raises(EngineRunError, match="failed to run") as caught:
            running.iterate()
        print(caught.value)
        running.bind({"x": np.zeros((2, 3, 16, 16), np.float32)})
        running.iterate()
        running.close()


def test_an_artifact_cut_short_and_one_of_other_bytes(
    conv: tuple[Path, BuildOutput], tmp_path: Path
) -> None:
    whole = conv[1].plan.read_bytes()
    (tmp_path / "cut.plan").write_bytes(whole[: len(whole) // 2])
    model = onnx.load(conv[1].plan)
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "ep_cache_context":
            attribute.s = b"not an engine" * 100
    onnx.save(model, tmp_path / "junk.plan")
    for name in ("cut", "junk"):
        # In a process of its own: TensorRT may crash on such bytes.
        script = (
            "import sys; from pathlib import Path\n"
            "from enginefarm.run.artifacts import open_artifact\n"
            "from enginefarm.run.running import OpenRequest\n"
            "from enginefarm.errors import EnginefarmError\n"
            "try: open_artifact(OpenRequest(plan=Path(sys.argv[1]), toolchain='ort-trt'))\n"
            "except EnginefarmError as e: print(type(e).__name__, e); sys.exit(e.exit_code)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / f"{name}.plan")],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        print(name, done.stdout)
        assert done.returncode == EngineRunError.exit_code, done.stderr
        assert "cannot be loaded" in done.stdout


def test_a_model_that_tensorrt_cannot_take_whole_is_no_artifact(tmp_path: Path) -> None:
    shapes = {"x": MinOptMax(min=(1, 4), opt=(2, 4), max=(8, 4))}
    with pytest.raises(BuildError) as caught:
        build(left_to_the_cpu(tmp_path / "m.onnx"), tmp_path / "w", shapes)
    print(caught.value)
    assert "TensorrtExecutionProvider" in caught.value.what


def renamed(path: Path, old: str, new: str) -> Path:
    model = onnx.load(convolutions(path))
    model.graph.input[0].name = new
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    onnx.save(model, path)
    return path


def test_a_name_is_read_up_to_its_first_colon(tmp_path: Path) -> None:
    """Why `unsayable` inputs are refused: where this fails, the provider has learned to read."""
    model, (shape,) = renamed(tmp_path / "m.onnx", "x", "x:0"), builds.CONV.values()
    options = {
        f"trt_profile_{point}_shapes": "x:0:" + "x".join(map(str, getattr(shape, point)))
        for point in ("min", "opt", "max")
    }
    with pytest.raises(Exception, match=r"no associated shape profiles provided: x:0"):
        ort.on_provider(model, PROVIDER, options)
    with pytest.raises(ToolchainError, match="has a colon"):
        build(model, tmp_path / "w", {"x:0": shape})


def test_a_name_with_a_colon_and_one_shape_is_built_and_run(tmp_path: Path) -> None:
    model = onnx.load(renamed(tmp_path / "m.onnx", "x", "x:0"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "m.onnx")
    sizes = (2, 3, 16, 16)
    shapes = {"x:0": MinOptMax(min=sizes, opt=sizes, max=sizes)}
    made = build(tmp_path / "m.onnx", tmp_path / "w", shapes)
    with open_artifact(OpenRequest(plan=made.plan, toolchain=NAME)) as artifact:
        running = artifact.running("conv")
        running.bind({"x:0": np.ones(sizes, np.float32)})
        running.iterate()
        assert running.outputs()["y"].shape == (2, 16, 16, 16)
        running.close()


def left_to_the_cpu(path: Path) -> Path:
    """Strings in the middle: no part of TensorRT knows them."""
    model = onnx.load(data_dependent(path))
    model.graph.node[0].op_type = "Cast"
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("to", onnx.TensorProto.STRING))
    model.graph.node[0].output[0] = "s"
    back = onnx.helper.make_node("Cast", ["s"], ["y"], "back", to=onnx.TensorProto.INT64)
    model.graph.node.append(back)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for size in ("n", 4):
        dim = model.graph.output[0].type.tensor_type.shape.dim.add()
        if isinstance(size, str):
            dim.dim_param = size
        else:
            dim.dim_value = size
    onnx.save(model, path)
    return path


def test_an_old_driver_and_a_hidden_gpu_are_the_hosts_fault(
    conv: tuple[Path, BuildOutput], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    against = reference(conv[0], tmp_path / "r.npz", (2,))
    with pytest.raises(DriverTooOld, match="CUDA 99"):
        verify_on_device(asked(conv[1].plan, against, cuda_major=99), tmp_path / "a")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(HostError):
        verify_on_device(asked(conv[1].plan, against), tmp_path / "b")


def test_the_file_alone_is_enough(conv: tuple[Path, BuildOutput], tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere" / "engine.plan"
    alone.parent.mkdir()
    shutil.copy(conv[1].plan, alone)
    with open_artifact(OpenRequest(plan=alone, toolchain=NAME)) as artifact:
        running = artifact.running("conv")
        running.bind({"x": np.ones((2, 3, 16, 16), np.float32)})
        running.iterate()
        assert running.outputs()["y"].shape == (2, 16, 16, 16)
        running.close()


def test_a_plan_that_a_model_package_names_is_run(tmp_path: Path) -> None:
    """The GPU variant of `enginefarm package`, as ONNX Runtime's TensorRT provider loads it."""
    model = convolutions(tmp_path / "conv.onnx")
    request = builds.request(model, tmp_path / "w", builds.CONV, optimization_level=1)
    made = isolate.build(request, toolchain="tensorrt")
    sample = make_manifest("conv", label=request.spec.gpu.label)
    manifest = sample.model_copy(update={"spec": request.spec, "tensors": made.tensors})
    variant = tmp_path / "variant"
    variant.mkdir()
    shutil.copy(made.plan, variant / "engine.plan")
    (variant / "model.onnx").write_bytes(package.context_model(manifest, PROVIDER))
    x = np.random.default_rng(0).standard_normal((7, 3, 16, 16)).astype(np.float32)
    found = ort.on_provider(variant / "model.onnx", PROVIDER, {}).run(None, {"x": x})[0]
    wanted = ort.session(model, error=EngineRunError, what="the CPU").run(None, {"x": x})[0]
    error = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    print(f"relative L2 {error:.2e}")
    assert error < 5e-3
