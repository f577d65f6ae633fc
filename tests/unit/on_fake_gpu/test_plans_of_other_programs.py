"""trtexec and ONNX Runtime build, and TensorRT reads what they built before anybody believes it.

Both programs are stand-ins: what they leave behind is a plan of the fake TensorRT.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import tiny_onnx
from onnx import TensorProto, helper
from specs import spec
from tiny_plans import SMALL, doubling, plan_of

from enginefarm.documents.spec import MinOptMax, ShapeProfile
from enginefarm.errors import BuildError, ParseError, ToolchainError
from enginefarm.run.ort_engine import PROVIDER
from enginefarm.toolchains import BuildOutput, BuildRequest, ort_trt, trtexec

DATA = Path(__file__).parents[1] / "toolchains" / "data"
BUILD = "10.16.1.11"

SCRIPT = """#!/bin/sh
[ "$1" = --help ] && { echo '&&&& RUNNING TensorRT.trtexec [TensorRT v101600] [b72]'; exit 0; }
for word in "$@"; do
  case "$word" in
    --saveEngine=*) engine=${word#*=} ;;
    --timingCacheFile=*) echo conv2 >>"${word#*=}" ;;
  esac
done
cat "$LOG"
[ -n "$REFUSES" ] && exit 1
cp "$PLAN" "$engine"
"""

Build = Callable[..., BuildOutput]


@pytest.fixture
def by_trtexec(tmp_path: Path, cuda: Any, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A `trtexec` on PATH that prints a recorded log, and does to files what the real one does."""
    made = tmp_path / "bin" / "trtexec"
    made.parent.mkdir()
    made.write_text(SCRIPT)
    made.chmod(0o755)
    monkeypatch.setenv("PATH", f"{made.parent}:/usr/bin:/bin")
    monkeypatch.setattr(trtexec, "require_gpu", lambda spec: None)

    def build(plan: Path, log: str = "trtexec_10_inference.log", refuses: str = "") -> BuildOutput:
        for name, value in (("LOG", DATA / log), ("PLAN", plan), ("REFUSES", refuses)):
            monkeypatch.setenv(name, str(value))
        return trtexec.Trtexec().build(asked(tmp_path, "trtexec"))

    return build


@pytest.fixture
def by_ort(tmp_path: Path, cuda: Any, monkeypatch: pytest.MonkeyPatch) -> Build:
    """ONNX Runtime with its TensorRT provider, as far as it writes a context model."""

    def build(plan: Path, around: Path | None = None, *more: Any) -> BuildOutput:
        graph = onnx.load(around or plan.with_suffix(".onnx")).graph
        engine = {"embed_mode": 1, "ep_cache_context": plan.read_bytes()}
        names = [[value.name for value in values] for values in (graph.input, graph.output)]
        node = helper.make_node("EPContext", *names, domain="com.microsoft", **engine)
        made = helper.make_model(
            helper.make_graph([node, *more], "g", list(graph.input), list(graph.output))
        )

        def session(*_: Any, providers: Any, **__: Any) -> Any:
            ((_, options),) = providers
            Path(options["trt_ep_context_file_path"]).write_bytes(made.SerializeToString())
            return SimpleNamespace(get_providers=lambda: [PROVIDER])

        fake = SimpleNamespace(
            get_available_providers=lambda: [PROVIDER],
            SessionOptions=SimpleNamespace,
            InferenceSession=session,
        )
        monkeypatch.setitem(sys.modules, "onnxruntime", fake)  # type: ignore[arg-type]
        monkeypatch.setattr(ort_trt, "require_gpu", lambda spec: None)
        return ort_trt.OrtTensorRT().build(asked(tmp_path, "ort-trt"))

    return build


def asked(tmp_path: Path, toolchain: str) -> BuildRequest:
    work_dir = tmp_path / "w"
    work_dir.mkdir(exist_ok=True)
    build = BUILD if toolchain == "trtexec" else f"1.31.1+tensorrt.{BUILD}"
    made = spec(toolchain, build, precision="fp32", profiles=(dict(SMALL.shapes),))
    return BuildRequest(spec=made, onnx=doubling(tmp_path / "model.onnx"), work_dir=work_dir)


BOTH = pytest.mark.parametrize("toolchain", ["by_trtexec", "by_ort"])


@BOTH
def test_a_plan_of_the_whole_graph(
    toolchain: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    build: Build = request.getfixturevalue(toolchain)
    output = build(plan_of(doubling(tmp_path / "m.onnx"), SMALL))
    assert output.plan.is_file()
    assert [(t.name, t.role, t.dtype, t.shape) for t in output.tensors] == [
        ("x", "input", "float32", (-1, 4)),
        ("y", "output", "float32", (-1, 4)),
    ]


def other(path: Path, **change: Any) -> Path:
    """The graph of `doubling` with other names, type or shape, as a parser may have made it."""
    kind = change.get("kind", TensorProto.FLOAT)
    shape = change.get("shape", ["n", 4])
    names = [change.get("x", "x"), *change.get("outputs", ["y"])]
    values = [tiny_onnx.value(name, shape, kind) for name in names]
    nodes = [helper.make_node("Add", [names[0]] * 2, [name]) for name in names[1:]]
    return tiny_onnx.save(path, nodes, values[:1], values[1:], [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"outputs": ["y", "z"]}, r"only one of the two has output 'z'"),
        ({"x": "other"}, r"input 'other' .*input 'x'"),
        ({"kind": TensorProto.INT8}, r"\(int8\)"),
        ({"shape": ["n", 8]}, r"would be \(-1, 8\), and is \(-1, 4\) in the graph"),
    ],
)
def test_a_plan_of_another_graph_is_refused(
    change: dict[str, Any], said: str, tmp_path: Path, by_trtexec: Build
) -> None:
    shapes = {change.get("x", "x"): SMALL.shapes["x"]}
    profile = ShapeProfile(name="small", shapes=shapes)
    with pytest.raises(BuildError, match=said):
        by_trtexec(plan_of(other(tmp_path / "m.onnx", **change), profile))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"outputs": ["y", "z"]}, r"only one of the two has output 'z'"),
        ({"kind": TensorProto.INT8}, r"\(int8\)"),
    ],
)
def test_a_context_model_of_another_graph_is_refused(
    change: dict[str, Any], said: str, tmp_path: Path, by_ort: Build
) -> None:
    with pytest.raises(BuildError, match=said):
        by_ort(plan_of(other(tmp_path / "m.onnx", **change), SMALL))


def test_an_engine_that_has_other_outputs_than_the_model_around_it_is_refused(
    tmp_path: Path, by_ort: Build
) -> None:
    plan = plan_of(other(tmp_path / "m.onnx", outputs=["y", "z"]), SMALL)
    with pytest.raises(BuildError, match="than the context model around it"):
        by_ort(plan, doubling(tmp_path / "around.onnx"))


def test_a_model_of_which_a_part_is_left_to_the_cpu_is_refused(
    tmp_path: Path, by_ort: Build
) -> None:
    plan = plan_of(doubling(tmp_path / "m.onnx"), SMALL)
    with pytest.raises(BuildError, match="did not take the whole model") as caught:
        by_ort(plan, None, helper.make_node("NonZero", ["x"], ["places"]))
    assert "EPContext, NonZero" in caught.value.why


@BOTH
def test_an_input_whose_values_are_sizes_is_refused(
    toolchain: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The program was told its shape, and fixed its values to that."""
    build: Build = request.getfixturevalue(toolchain)
    model = tiny_onnx.reshape_by_input(tmp_path / "m.onnx")
    sizes = ShapeProfile(
        name="sizes",
        shapes={
            name: MinOptMax(min=(size,), opt=(size,), max=(size,))
            for name, size in (("x", 8), ("shape", 2))
        },
    )
    around = [doubling(tmp_path / "around.onnx")] if toolchain == "by_ort" else []
    with pytest.raises(BuildError, match="the values of 'shape' decide a shape"):
        build(plan_of(model, sizes), *around)


@BOTH
def test_a_plan_with_other_profiles_is_refused(
    toolchain: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    build: Build = request.getfixturevalue(toolchain)
    narrow = MinOptMax(min=(1, 4), opt=(2, 4), max=(2, 4))
    model = doubling(tmp_path / "m.onnx")
    with pytest.raises(BuildError, match=r"another range of shapes for 'x'") as caught:
        build(plan_of(model, ShapeProfile(name="narrow", shapes={"x": narrow})))
    assert "(1, 4)/(2, 4)/(2, 4)" in caught.value.why
    with pytest.raises(BuildError, match=r"another range") as caught:
        build(plan_of(model))
    assert "it has none" in caught.value.why


@BOTH
def test_a_plan_that_cannot_be_read_is_refused(
    toolchain: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    build: Build = request.getfixturevalue(toolchain)
    said = "The engine plan file is not compatible with this version of TensorRT"
    with pytest.raises(BuildError, match=r"cannot load the plan") as caught:
        build(plan_of(doubling(tmp_path / "m.onnx", load=said), SMALL))
    assert said in caught.value.why


@pytest.mark.parametrize("toolchain", ["trtexec", "ort-trt"])
def test_without_bindings_nothing_is_built(
    toolchain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trtexec.Trtexec() if toolchain == "trtexec" else ort_trt.OrtTensorRT()
    for module in (trtexec, ort_trt):
        monkeypatch.setattr(module, "require_gpu", lambda spec: None)
    with pytest.raises(ToolchainError, match="Python bindings are not installed"):
        made.build(asked(tmp_path, toolchain))


def test_trtexec_is_told_its_version_and_adds_to_the_timings_that_are_there(
    tmp_path: Path, by_trtexec: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trtexec.Trtexec().identity().build == "10.16.0.72"
    (tmp_path / "stored").write_text("conv1\n")
    built = trtexec.Trtexec.build
    monkeypatch.setattr(
        trtexec.Trtexec,
        "build",
        lambda self, request: built(
            self, request.model_copy(update={"timing_cache": tmp_path / "stored"})
        ),
    )
    output = by_trtexec(plan_of(doubling(tmp_path / "m.onnx"), SMALL))
    assert output.timing_cache is not None
    assert output.timing_cache.read_text() == "conv1\nconv2\n"
    assert (tmp_path / "stored").read_text() == "conv1\n"
    assert output.seconds == 33.4821
    assert "--saveEngine=" in (output.command or "")


def test_a_trtexec_that_fails_gives_its_own_cause(tmp_path: Path, by_trtexec: Build) -> None:
    with pytest.raises(ParseError, match="cannot parse"):
        by_trtexec(tmp_path / "none", "trtexec_10_failed.log", "yes")


def test_what_an_artifact_is_valid_for_is_recorded(tmp_path: Path, by_ort: Build) -> None:
    output = by_ort(plan_of(doubling(tmp_path / "m.onnx"), SMALL))
    assert BUILD in str(output.details["valid_for"])
    assert not (tmp_path / "w" / "embedded.plan").exists()
