"""Model packages, opened by ONNX Runtime alone, in a Python that has nothing of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_recipe
from onnx import TensorProto, helper, numpy_helper
from sample_manifest import NOON, make_manifest

from enginefarm import cli
from enginefarm.documents.comparing import OutputComparison, Part
from enginefarm.documents.manifest import Manifest, TensorInfo
from enginefarm.documents.spec import BlobRef, OnnxRef
from enginefarm.errors import (
    AccuracyError,
    PrecisionError,
    SignatureRejected,
    StoreDenied,
    ToolchainError,
    UsageError,
)
from enginefarm.graph.model import ort
from enginefarm.release import package
from enginefarm.release.package_check import COMPONENT, CPU, open_package
from enginefarm.release.package_choice import choose
from enginefarm.store import signing
from enginefarm.store.engine_store import EngineStore

BATCH = 4
LATER = NOON + timedelta(hours=1)

STOCK = """
import sys
import numpy as np
import onnxruntime as ort

package, provider = sys.argv[1:]
context = ort.ModelPackageContext(package)
(component,) = context.get_component_names()
chosen = context.select_component(component, ort.ModelPackageOptions(ort.SessionOptions()))
print("chosen", chosen.get_selected_variant_name())
for name in context.get_variant_names(component):
    print("variant", name, context.get_variant_ep_name(component, name))
session = chosen.create_session()
with np.load(f"{package}/reference.npz") as reference:
    x = reference["0000/input/images"]
    expected = reference["0000/output/scores"]
(found,) = session.run(["scores"], {"images": x})
print("error", float(np.abs(found - expected).max()))
try:
    ort.InferenceSession(f"{package}/{provider}/model.onnx", providers=["CPUExecutionProvider"])
except Exception as error:
    print("refused", error)
assert "enginefarm" not in sys.modules
"""


def stock(folder: Path, provider: str) -> str:
    """Runs the package with onnxruntime and numpy; returns what the script printed."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", STOCK, str(folder), provider],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder.parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


Put = Callable[..., Manifest]


@pytest.fixture
def put(store_environment: EngineStore, tmp_path: Path) -> Put:
    """Publishes an engine of the tiny classifier whose bytes stand for a plan."""
    store = store_environment
    model = tmp_path / "tiny.onnx"
    onnx.save(tiny_recipe.classifier(), model)
    graph, reference = store.put_blob(model), store.put_blob(written(model, tmp_path / "r.npz"))

    def publish(
        engine: bytes = b"a plan",
        *,
        graph: BlobRef = graph,
        known: bool = True,
        reference: BlobRef | None = reference,
        rounding: float = 0.0,
        **changes: Any,
    ) -> Manifest:
        asked: dict[str, Any] = {"toolchain": "tensorrt-rtx", "build": "1.7.1.116", "label": "l4"}
        made = make_manifest("tiny", **(asked | changes))
        digest = model_digest if known else "1" * 64
        spec = made.spec.model_copy(update={"onnx_digest": digest})
        store.put_bytes(engine)
        manifest = made.model_copy(
            update={
                "spec": spec,
                "spec_digest": spec.digest,
                "engine": store.put_bytes(engine),
                "graph": OnnxRef(model=graph, opset=20),
                "reference": reference,
                "tensors": TENSORS,
                "verification": made.verification.model_copy(
                    update={"outputs": (measured(rounding),)}
                ),
            }
        )
        assert store.publish(manifest, signing.signer())
        return manifest

    model_digest = graph.digest
    return publish


TENSORS = (
    TensorInfo(
        name="images",
        dtype="float32",
        shape=(-1, 3, 16, 16),
        role="input",
        dims=("batch", None, None, None),
    ),
    TensorInfo(name="scores", dtype="float32", shape=(-1, 10), role="output", dims=("batch", None)),
)


def written(model: Path, dest: Path) -> Path:
    """A reference of one batch, as ONNX Runtime computes it."""
    x = np.random.default_rng(0).standard_normal((BATCH, 3, 16, 16)).astype(np.float32)
    session = ort.session(model, error=PrecisionError, what="the reference", plain=True)
    (scores,) = session.run(["scores"], {"images": x})
    arrays: dict[str, Any] = {"0000/input/images": x, "0000/output/scores": scores}
    np.savez(dest, **arrays)
    return dest


def measured(rounding: float) -> OutputComparison:
    figures = {"cosine": 1.0, "max_abs": 0.0, "relative_l2": 0.0, "rounding": rounding}
    part = Part(kind="sample", where="sample 0", **figures)
    return OutputComparison(output="scores", parts=(part,), **figures)


def scaled(path: Path, factor: float) -> Path:
    """The classifier with its weights times that."""
    model = tiny_recipe.classifier()
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        times = factor if values.dtype == np.float32 else 1
        made = (values * times).astype(values.dtype)
        weight.CopyFrom(numpy_helper.from_array(made, weight.name))
    onnx.save(model, path)
    return path


def halved(path: Path) -> Path:
    """Within no budget."""
    return scaled(path, 0.5)


def test_a_stock_onnx_runtime_opens_it_and_computes_the_reference(
    put: Put, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = put()
    folder = tmp_path / "tiny.ortpackage"
    assert cli.run(["package", "tiny", str(folder)]) == 0
    said = stock(folder, "tensorrt-rtx").splitlines()
    assert said[:3] == [
        "chosen cpu",
        "variant tensorrt-rtx NvTensorRTRTXExecutionProvider",
        "variant cpu CPUExecutionProvider",
    ]
    assert float(said[3].removeprefix("error ")) < 1e-5
    assert "NvTensorRTRTXExecutionProvider" in said[4], "it is not run by another provider"
    assert (folder / "tensorrt-rtx" / "engine.plan").read_bytes() == b"a plan"
    kept = Manifest.read((folder / "tensorrt-rtx" / "engine.json").read_bytes())
    assert kept == made
    (node,) = onnx.load(folder / "tensorrt-rtx" / "model.onnx").graph.node
    values = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    assert values["ep_cache_context"] == b"engine.plan"
    assert values["hardware_architecture"] == b"89"
    assert "not run here" in capsys.readouterr().out


def test_the_program_of_the_docs_opens_it(put: Put, tmp_path: Path) -> None:
    put()
    assert cli.run(["package", "tiny", str(tmp_path / "model.ortpackage")]) == 0
    page = (Path(__file__).parents[3] / "docs" / "packages.md").read_text("utf-8")
    program = page.partition("```python\n")[2].partition("```")[0]
    shown = program + "print(session.get_providers())"
    ran = [sys.executable, "-I", "-c", shown]
    said = subprocess.run(ran, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "['CPUExecutionProvider']"


def test_the_cpu_variant_is_fp32_even_where_the_engine_is_not(
    put: Put, tmp_path: Path, store_environment: EngineStore
) -> None:
    wrong = store_environment.put_blob(halved(tmp_path / "int8.onnx"))
    put(graph=wrong, precision="int8")
    folder = tmp_path / "p"
    assert cli.run(["package", "tiny", str(folder)]) == 0
    assert float(stock(folder, "tensorrt-rtx").splitlines()[3].removeprefix("error ")) < 1e-5


def test_nothing_is_written_where_no_graph_is_right_on_the_cpu(
    put: Put, tmp_path: Path, store_environment: EngineStore, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = store_environment.put_blob(halved(tmp_path / "other.onnx"))
    put(graph=wrong, known=False)
    folder = tmp_path / "out" / "p"
    assert cli.run(["package", "tiny", str(folder)]) == AccuracyError.exit_code
    assert "scores: " in capsys.readouterr().err
    assert list(folder.parent.iterdir()) == []


@pytest.mark.parametrize(("rounding", "code"), [(1e-3, 0), (0.0, AccuracyError.exit_code)])
def test_an_fp32_graph_is_allowed_the_rounding_that_it_was_published_with(
    put: Put, tmp_path: Path, store_environment: EngineStore, rounding: float, code: int
) -> None:
    near = store_environment.put_blob(scaled(tmp_path / "near.onnx", 1.0005))
    put(graph=near, known=False, precision="fp32", rounding=rounding)
    assert cli.run(["package", "tiny", str(tmp_path / "p")]) == code


def test_an_engine_with_other_inputs_than_the_graph_is_refused(
    put: Put, tmp_path: Path, store_environment: EngineStore, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_recipe.classifier()
    model.graph.output[0].name = model.graph.node[-1].output[0] = "classes"
    onnx.save(model, tmp_path / "other.onnx")
    put(graph=store_environment.put_blob(tmp_path / "other.onnx"), known=False)
    assert cli.run(["package", "tiny", str(tmp_path / "p")]) == ToolchainError.exit_code
    said = capsys.readouterr().err
    assert "output classes float" in said
    assert "output scores float" in said


def test_an_engine_of_ort_trt_is_a_context_model_already(put: Put, tmp_path: Path) -> None:
    held = package.context_model(put(label="t4", toolchain="tensorrt"), "TensorrtExecutionProvider")
    put(held, label="a100", toolchain="ort-trt", build="1.31.1+tensorrt.10.16.1.11")
    folder = tmp_path / "p"
    assert cli.run(["package", "tiny", str(folder), "--gpu", "a100"]) == 0
    assert (folder / "onnxruntime-tensorrt" / "model.onnx").read_bytes() == held
    said = stock(folder, "onnxruntime-tensorrt")
    assert "variant onnxruntime-tensorrt TensorrtExecutionProvider" in said


def test_one_plan_for_several_gpus_and_what_the_provider_does_not_start_on(
    put: Put, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("l4", "rtx5090", "a100"):
        put(label=label)
    put(b"another plan", label="t4")
    assert cli.run(["package", "tiny", str(tmp_path / "p"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["variants"][0]["gpus"] == "l4, rtx5090"
    assert [line.split()[0] for line in said["left_out"]] == ["a100/fp16", "t4/fp16"]
    assert "starts only on compute capability 8.6, 8.9" in said["left_out"][0]


def test_two_plans_that_onnx_runtime_cannot_tell_apart_are_refused(
    put: Put, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(toolchain="tensorrt", label="l4")
    put(b"another plan", toolchain="tensorrt", label="a100")
    assert cli.run(["package", "tiny", str(tmp_path / "p")]) == UsageError.exit_code
    assert "2 different engines for TensorrtExecutionProvider" in capsys.readouterr().err
    assert cli.run(["package", "tiny", str(tmp_path / "p"), "--gpu", "a100"]) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plugins": ("5" * 64,), "toolchain": "tensorrt"}, "plugin libraries"),
        ({"reference": None}, "no reference outputs"),
        ({"on_device": "failed"}, "failed verification on the device"),
        ({"over_budget": ("scores: cosine 0.5 is below 0.9",)}, "over the accuracy budget"),
        ({"label": "t4"}, "starts only on compute capability"),
    ],
)
def test_what_cannot_be_packaged_is_refused_with_the_reason(
    put: Put,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    words: str,
) -> None:
    put(**changes)
    assert cli.run(["package", "tiny", str(tmp_path / "p")]) == ToolchainError.exit_code
    said = capsys.readouterr().err
    assert "no engine that ONNX Runtime can load" in said
    assert words in said


def test_a_precision_that_has_no_engine_is_answered_with_those_that_have_one(
    put: Put, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put()
    asked = ["package", "tiny", str(tmp_path / "p"), "--gpu", "l4", "--precision", "bf16"]
    assert cli.run(asked) == ToolchainError.exit_code
    said = capsys.readouterr().err
    assert "tiny for l4 in bf16 has no engine" in said
    assert "its engines are: l4/fp16" in said


def test_several_profiles_are_refused(put: Put) -> None:
    made = put()
    twice = made.spec.model_copy(update={"profiles": made.spec.profiles * 2})
    with pytest.raises(ToolchainError) as caught:
        choose([made.model_copy(update={"spec": twice})], "tiny")
    assert "2 profiles" in caught.value.why


def test_a_folder_that_holds_something_is_left_alone(put: Put, tmp_path: Path) -> None:
    put()
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "mine").touch()
    assert cli.run(["package", "tiny", str(tmp_path / "p")]) == UsageError.exit_code
    assert [one.name for one in (tmp_path / "p").iterdir()] == ["mine"]


def test_an_unsigned_engine_is_refused_where_a_key_is_trusted(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    public, _ = signing.generate(tmp_path / "farm.pem")
    monkeypatch.setenv("ENGINEFARM_TRUST", str(public))
    assert cli.run(["package", "tiny", str(tmp_path / "p")]) == SignatureRejected.exit_code
    assert not (tmp_path / "p").exists()


def test_an_onnx_runtime_without_packages_is_named(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put()
    monkeypatch.delattr("onnxruntime.ModelPackage")
    assert cli.run(["package", "tiny", str(tmp_path / "p")]) == ToolchainError.exit_code
    assert "onnxruntime>=1.32" in capsys.readouterr().err


def test_a_quantized_graph_is_computed_as_it_was_verified(tmp_path: Path) -> None:
    """With FP16 scales ONNX Runtime's own optimizers are wrong: the package turns them off."""
    random = np.random.default_rng(0)
    weights = {
        "scale": np.float16(0.02),
        "zero": np.int8(0),
        "kernel": random.integers(-127, 127, (8, 3, 3, 3)).astype(np.int8),
        "scales": (random.random(8) * 0.01).astype(np.float16),
        "zeros": np.zeros(8, np.int8),
        "bias": (random.standard_normal(8) * 3).astype(np.float16),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["kernel", "scales", "zeros"], ["w"], axis=0),
        helper.make_node("Conv", ["d", "w", "bias"], ["y"], pads=[1] * 4),
    ]
    half = TensorProto.FLOAT16
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("x", half, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", half, ["n", 8, 16, 16])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    writer = onnxruntime.ModelPackage()
    component = {"variants": package.variants_json(())}
    writer.set_component_inline(COMPONENT, json.dumps(component))
    writer.commit(str(tmp_path / "p"))
    (tmp_path / "p" / CPU).mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, tmp_path / "p" / CPU / "model.onnx")
    plain = ort.session(
        tmp_path / "p" / CPU / "model.onnx", error=PrecisionError, what="plain", plain=True
    )
    x = random.standard_normal((2, 3, 16, 16)).astype(np.float16)
    (found,) = open_package(tmp_path / "p").run(None, {"x": x})
    (wanted,) = plain.run(None, {"x": x})
    np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-2)


def test_weights_in_a_file_of_their_own_travel_with_the_graph(
    put: Put, tmp_path: Path, store_environment: EngineStore
) -> None:
    onnx.save(
        tiny_recipe.classifier(),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    made = put(graph=store_environment.put_blob(tmp_path / "model.onnx"), known=False)
    data = store_environment.put_blob(tmp_path / "model.onnx.data")
    spec = made.spec.model_copy(update={"salt": "external"})
    whole = made.graph.model_copy(update={"data": data})
    other = made.model_copy(update={"graph": whole, "spec": spec, "spec_digest": spec.digest})
    assert store_environment.publish(other.model_copy(update={"created_at": LATER}))
    folder = tmp_path / "p"
    assert cli.run(["package", "tiny", str(folder)]) == 0
    assert (folder / "cpu" / "model.onnx.data").stat().st_size == data.size_bytes
    assert float(stock(folder, "tensorrt-rtx").splitlines()[3].removeprefix("error ")) < 1e-5


def test_a_key_that_may_only_pull_packages_what_it_can_read(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: EngineStore, digest: str) -> BlobRef:
        raise StoreDenied(f"store: blobs/{digest}: Forbidden")

    put(known=False)
    monkeypatch.setattr(EngineStore, "blob", denied)
    assert cli.run(["package", "tiny", str(tmp_path / "p")]) == 0


def test_variants_are_of_one_model(put: Put) -> None:
    earlier = put(toolchain="tensorrt", minutes=1, known=False)
    later = put(b"another plan", minutes=2)
    choice = choose([later, earlier], "tiny")
    assert [one.manifest for one in choice.variants] == [later]
    assert choice.notes == (
        f"l4/fp16 {earlier.spec_digest[:12]} is left out: it is of an earlier graph",
    )
