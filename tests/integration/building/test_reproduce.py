"""An engine built again by a real TensorRT-RTX, in a Python that has nothing of ours."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_onnx
from onnx import helper, numpy_helper
from sample_manifest import make_manifest, ref

from enginefarm import cli
from enginefarm.building import isolate
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import OnnxRef
from enginefarm.errors import StoreMissing, ToolchainError, UsageError
from enginefarm.store import layout, open_store
from enginefarm.store.engine_store import EngineStore
from enginefarm.toolchains import BuildRequest, toolchain

NEEDED = ("tensorrt_rtx_bindings", "tensorrt_rtx_libs", "numpy")
BARE = """
import runpy, sys
sys.path.append(sys.argv[1])
for name in ("enginefarm", "onnx", "pydantic", "torch"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported: this environment is not bare")
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def bare(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script where only TensorRT-RTX's bindings and numpy are."""
    site = tmp_path / "site"
    site.mkdir()
    for name in NEEDED:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        (site / name).symlink_to(folder)
        libraries = folder.with_name(f"{name}.libs")
        if libraries.exists():
            (site / libraries.name).symlink_to(libraries)

    def run(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", "-S", "-c", BARE, str(site), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin"},
        )

    return run


@pytest.fixture
def built(store_environment: EngineStore, tmp_path: Path) -> Manifest:
    """A quantized convolution, built by the farm's own code and published."""
    store = store_environment
    model = quantized(tiny_onnx.convolutions(tmp_path / "model.onnx"))
    reference = tmp_path / "reference.npz"
    x = np.ones((2, 3, 16, 16), np.float16)
    np.savez(
        reference, **{"0000/input/x": x, "0000/output/y": np.full((2, 8, 16, 16), 2, np.float32)}
    )
    spec = tiny_onnx.spec(toolchain("tensorrt-rtx").identity())
    (tmp_path / "work").mkdir()
    request = BuildRequest(spec=spec, onnx=model, work_dir=tmp_path / "work")
    output = isolate.build(request, toolchain="tensorrt-rtx")
    assert output.layers is not None
    sample = make_manifest()
    manifest = sample.model_copy(
        update={
            "spec": spec,
            "spec_digest": spec.digest,
            "engine": store.put_blob(output.plan),
            "graph": OnnxRef(model=store.put_blob(model), opset=tiny_onnx.OPSET),
            "reference": store.put_blob(reference),
            "tensors": output.tensors,
            "build": sample.build.model_copy(update={"layers": store.put_blob(output.layers)}),
        }
    )
    assert store.publish(manifest)
    return manifest


def quantized(path: Path) -> Path:
    """With a Q/DQ pair in front of it, in FP32 scales as ours are."""
    model = onnx.load(path)
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.float16(0.5), "scale"),
            numpy_helper.from_array(np.int8(0), "zero"),
        ]
    )
    pair = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "dequantize"),
    ]
    model.graph.node[0].input[0] = "d"
    for node in reversed(pair):
        model.graph.node.insert(0, node)
    model.opset_import[0].version = 19  # Q/DQ of FP16
    onnx.save(model, path)
    return path


def written(manifest: Manifest, folder: Path) -> Path:
    assert cli.run(["reproduce", manifest.spec_digest, str(folder)]) == 0
    return folder


def test_the_same_plan_comes_out_where_nothing_of_ours_is(
    built: Manifest, bare: Any, tmp_path: Path
) -> None:
    folder = written(built, tmp_path / "case")
    done = bare(folder / "reproduce.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "layers are the same" in done.stdout
    assert "SAME: every byte of the plan is the farm's" in done.stdout
    assert "not compared here: outputs, fusions and tactics" in done.stdout
    (one,) = json.loads((folder / "calibration.json").read_text())["quantized"]
    assert one == {"tensor": "x", "node": "quantize", "scales": [0.5]}
    assert (folder / "inputs" / "x.bin").stat().st_size == 2 * 3 * 16 * 16 * 2


def test_another_graph_is_told_from_the_farms(built: Manifest, bare: Any, tmp_path: Path) -> None:
    folder = written(built, tmp_path / "case")
    model = onnx.load(folder / "model.onnx")
    model.graph.node[-1].op_type = "Sigmoid"
    onnx.save(model, folder / "model.onnx")
    done = bare(folder / "reproduce.py")
    assert done.returncode == 1
    assert "DIFFERENT" in done.stdout


def test_outputs_that_trtexec_wrote_are_compared(
    built: Manifest, bare: Any, tmp_path: Path
) -> None:
    folder = written(built, tmp_path / "case")
    found = tmp_path / "outputs.json"
    dimensions, size = "2x8x16x16", 2 * 8 * 16 * 16
    found.write_text(json.dumps([{"name": "y", "dimensions": dimensions, "values": [2.5] * size}]))
    done = bare(folder / "reproduce.py", "--outputs", found)
    assert done.returncode == 0, done.stderr
    assert "y: relative L2 0.25, max abs 0.5" in done.stdout
    found.write_text("[]")
    assert bare(folder / "reproduce.py", "--outputs", found).returncode == 1


def test_a_native_engine_comes_with_its_trtexec_line(
    store_environment: EngineStore, built: Manifest, tmp_path: Path
) -> None:
    spec = make_manifest().spec
    native = built.model_copy(update={"spec": spec, "spec_digest": spec.digest})
    assert store_environment.publish(native)
    script = (written(native, tmp_path / "native") / "trtexec.sh").read_text()
    assert "trtexec --onnx=model.onnx --saveEngine=engine.plan --skipInference" in script
    assert "--loadInputs=x:inputs/x.bin --shapes=x:2x3x16x16" in script
    asked = json.loads((tmp_path / "native" / "build.json").read_text())
    assert asked["hardware_compatibility"] == "NONE"
    assert "through" not in asked["original"]["not_compared"]


def test_what_cannot_be_reproduced_is_refused(
    built: Manifest, tmp_path: Path, publish: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    asked = ["reproduce", built.spec_digest, str(tmp_path / "full")]
    assert cli.run(asked) == UsageError.exit_code
    other = publish(b"context", toolchain="ort-trt", salt="2")
    assert cli.run(["reproduce", other.spec_digest, str(tmp_path / "x")]) == (
        ToolchainError.exit_code
    )
    assert "reproduce an engine of tensorrt, trtexec, tensorrt-rtx" in capsys.readouterr().err


def test_a_folder_that_could_not_be_finished_is_not_in_the_way_of_the_next_try(
    tmp_path: Path, publish: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = publish(b"plan", salt="3").model_copy(update={"reference": ref(b"never uploaded")})
    open_store().objects.put(layout.manifest(lost.spec_digest), lost.canonical_json())
    asked = ["reproduce", lost.spec_digest, str(tmp_path / "out")]
    assert cli.run(asked) == StoreMissing.exit_code
    assert cli.run(asked) == StoreMissing.exit_code
    assert "is not empty" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
