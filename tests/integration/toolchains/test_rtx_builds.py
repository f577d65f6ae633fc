"""Real TensorRT-RTX builds in real child processes: what comes out, and every way to fail."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import psutil
import pytest
import tiny_onnx
import toy_graphs

from enginefarm.building import isolate
from enginefarm.child import call
from enginefarm.child import process as child_process
from enginefarm.digest import sha256_file
from enginefarm.documents.spec import BuildSpec
from enginefarm.errors import (
    BuildCancelled,
    BuildCrashed,
    BuildError,
    BuildOutOfMemory,
    BuildTimeout,
    ParseError,
    ToolchainError,
)
from enginefarm.graph.reading import written_out
from enginefarm.host.plan_header import read_plan_header
from enginefarm.progress import SINK
from enginefarm.toolchains import BuildOutput, BuildRequest, toolchain
from tests.processes import alive

NAME = "tensorrt-rtx"
IDENTITY = toolchain(NAME).identity()


def request(onnx: Path, work_dir: Path, **more: Any) -> BuildRequest:
    spec = more.pop("spec", None) or tiny_onnx.spec(IDENTITY)
    return BuildRequest(spec=spec, onnx=onnx, work_dir=work_dir, **more)


def run(onnx: Path, work_dir: Path, **more: Any) -> BuildOutput:
    return isolate.build(request(onnx, work_dir, **more), toolchain=NAME)


def with_shapes(low: tuple[int, ...], opt: tuple[int, ...], high: tuple[int, ...]) -> BuildSpec:
    return tiny_onnx.spec(IDENTITY, shapes={"x": (low, opt, high)})


class Recorder:
    """A progress sink that remembers, and can do something at its first call."""

    def __init__(self, action: Any = None) -> None:
        self.calls: list[tuple[float, float | None, str]] = []
        self._action = action

    def __call__(self, step: str, done: float, total: float | None, note: str = "") -> None:
        assert step == "build"
        if not self.calls and self._action is not None:
            self._action()
        self.calls.append((done, total, note))


@pytest.fixture
def watch() -> Iterator[Any]:
    tokens = []

    def start(recorder: Recorder) -> Recorder:
        tokens.append(SINK.set(recorder))
        return recorder

    yield start
    for token in reversed(tokens):
        SINK.reset(token)


def test_a_plan_its_tensors_and_its_log(tmp_path: Path) -> None:
    output = run(tiny_onnx.convolutions(tmp_path / "model.onnx"), tmp_path / "w")
    header = read_plan_header(output.plan)
    assert header.version == IDENTITY.build
    assert header.compute_capabilities == ("8.0",)
    assert [(t.name, t.role, t.dtype, t.shape) for t in output.tensors] == [
        ("x", "input", "float16", (-1, 3, 16, 16)),
        ("y", "output", "float16", (-1, 8, 16, 16)),
    ]
    assert output.seconds > 0
    assert output.peak_memory_bytes > 50 << 20
    assert output.log is not None
    assert "Engine generation completed" in output.log.read_text()


TF32 = """
import tensorrt_rtx_bindings as trt, tiny_onnx
from enginefarm.toolchains import tensorrt_rtx, toolchain
builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
assert builder.create_builder_config().get_flag(trt.BuilderFlag.TF32), "it is on by default"
config = tensorrt_rtx._config(trt, builder, tiny_onnx.spec(toolchain("tensorrt-rtx").identity()))
print("TF32" if config.get_flag(trt.BuilderFlag.TF32) else "FP32")
"""


def test_float32_is_not_computed_in_tf32() -> None:
    line = [sys.executable, "-c", TF32]
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(
        line, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split()[-1:] == ["FP32"], done.stderr


@pytest.mark.skipif(not child_process.randomization_off(), reason="setarch -R is forbidden here")
def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    onnx = tiny_onnx.convolutions(tmp_path / "model.onnx", layers=6)
    digests = {sha256_file(run(onnx, tmp_path / f"w{n}").plan) for n in range(3)}
    assert len(digests) == 1


@pytest.mark.parametrize("gpu", ["t4", "a100", "l4"])
def test_builds_for_gpus_that_are_not_here(tmp_path: Path, gpu: str) -> None:
    onnx = tiny_onnx.convolutions(tmp_path / "model.onnx")
    spec = tiny_onnx.spec(IDENTITY, gpu=gpu)
    assert run(onnx, tmp_path / "w", spec=spec).plan.stat().st_size > 1000


def test_builds_run_at_the_same_time(tmp_path: Path) -> None:
    onnx = tiny_onnx.convolutions(tmp_path / "model.onnx")
    with ThreadPoolExecutor(3) as pool:
        outputs = list(pool.map(lambda n: run(onnx, tmp_path / f"w{n}"), range(3)))
    assert all(output.plan.is_file() for output in outputs)


def test_progress_arrives_and_ends_at_the_total(tmp_path: Path, watch: Any) -> None:
    seen = watch(Recorder())
    run(tiny_onnx.convolutions(tmp_path / "model.onnx", layers=8), tmp_path / "w")
    measured = [done for done, total, _ in seen.calls if total == 100]
    assert len(measured) > 5
    assert measured == sorted(measured)
    assert measured[-1] == 100
    assert any("Optimizing graph" in note for _, _, note in seen.calls)
    assert all(note.startswith("tensorrt-rtx: ") for _, _, note in seen.calls)


def test_a_silent_builder_is_shown_as_running(
    tmp_path: Path, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call, "QUIET_S", 0.0)
    seen = watch(Recorder())
    run(tiny_onnx.convolutions(tmp_path / "model.onnx"), tmp_path / "w")
    assert any(total is None for _, total, _ in seen.calls)


def test_an_operator_that_the_parser_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParseError, match=r"'find_nonzero' \(operator NonZero\)") as caught:
        run(tiny_onnx.nonzero(tmp_path / "model.onnx"), tmp_path / "w")
    assert "plugin creator" in caught.value.why


def test_a_node_without_a_name_is_named_by_what_it_makes(tmp_path: Path) -> None:
    path = tiny_onnx.nonzero(tmp_path / "model.onnx")
    model = onnx.load(path)
    (node,) = (node for node in model.graph.node if node.op_type == "NonZero")
    node.name = ""
    onnx.save(model, path)
    with pytest.raises(ParseError, match=rf"node '{node.output[0]}' \(operator NonZero\)"):
        run(path, tmp_path / "w")


def test_a_parser_segfault_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(BuildCrashed, match="SIGSEGV") as caught:
        run(tiny_onnx.topk_of_float_k(tmp_path / "model.onnx"), tmp_path / "w")
    assert caught.value.why
    run(tiny_onnx.convolutions(tmp_path / "good.onnx"), tmp_path / "w2")  # the farm lives on


@pytest.mark.parametrize("content", [b"", b"this is no model\n"])
def test_files_that_parse_as_true_and_hold_nothing(tmp_path: Path, content: bytes) -> None:
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(content)
    with pytest.raises(ParseError, match=r"model\.onnx"):
        run(onnx, tmp_path / "w")


def test_a_truncated_model(tmp_path: Path) -> None:
    onnx = tiny_onnx.convolutions(tmp_path / "model.onnx", layers=4)
    onnx.write_bytes(onnx.read_bytes()[:-200])
    with pytest.raises(ParseError, match="MODEL_DESERIALIZE_FAILED"):
        run(onnx, tmp_path / "w")


def test_min_over_max_is_seen(tmp_path: Path) -> None:
    onnx = tiny_onnx.convolutions(tmp_path / "model.onnx")
    spec = with_shapes((4, 3, 16, 16), (4, 3, 16, 16), (2, 3, 16, 16))
    with pytest.raises(BuildError, match="profile 'default'"):
        run(onnx, tmp_path / "w", spec=spec)


def test_a_profile_for_an_input_that_is_not_there(tmp_path: Path) -> None:
    onnx = tiny_onnx.convolutions(tmp_path / "model.onnx")
    spec = tiny_onnx.spec(IDENTITY, shapes={"picture": ((1,), (1,), (1,))})
    with pytest.raises(BuildError, match="no input 'picture'"):
        run(onnx, tmp_path / "w", spec=spec)


def test_a_refusal_of_the_builder_has_the_logs_cause(tmp_path: Path) -> None:
    onnx = tiny_onnx.float_gemm(tmp_path / "model.onnx")
    spec = tiny_onnx.spec(IDENTITY, shapes={"x": ((1, 4), (2, 4), (4, 4))}, gpu="t4")
    with pytest.raises(BuildError) as caught:
        run(onnx, tmp_path / "w", spec=spec)
    assert "FP32 GEMM" in caught.value.why
    assert "cudaError 35" not in str(caught.value)


def test_too_much_memory(tmp_path: Path) -> None:
    onnx = tiny_onnx.convolutions(tmp_path / "model.onnx", layers=30, channels=64)
    with pytest.raises(BuildOutOfMemory, match="limit of 80 MiB"):
        run(onnx, tmp_path / "w", memory_limit_bytes=80 << 20)
    assert not (tmp_path / "w" / "engine.plan").exists()


def test_too_much_time(tmp_path: Path) -> None:
    onnx = tiny_onnx.convolutions(tmp_path / "model.onnx", layers=30, channels=64)
    started = time.monotonic()
    with pytest.raises(BuildTimeout, match=r"limit of 0\.2 s"):
        run(onnx, tmp_path / "w", timeout_s=0.2)
    assert time.monotonic() - started < 2


def test_cancelling_kills_the_child_at_once(tmp_path: Path, watch: Any) -> None:
    onnx = tiny_onnx.convolutions(tmp_path / "model.onnx", layers=30, channels=64)
    cancel = threading.Event()
    watch(Recorder(cancel.set))
    with pytest.raises(BuildCancelled):
        isolate.build(request(onnx, tmp_path / "w"), toolchain=NAME, cancel=cancel)
    assert not builders()
    assert not (tmp_path / "w" / "engine.plan").exists()


def test_no_credentials_in_the_child(
    tmp_path: Path, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-the-child")
    monkeypatch.setenv("PREFECT_API_KEY", "not-for-the-child")
    environments: list[bytes] = []

    def look() -> None:
        environments.extend(Path(f"/proc/{child.pid}/environ").read_bytes() for child in builders())

    watch(Recorder(look))
    run(tiny_onnx.convolutions(tmp_path / "model.onnx"), tmp_path / "w")
    assert environments
    assert not any(b"not-for-the-child" in environment for environment in environments)
    assert all(f"HOME={tmp_path}/w".encode() in environment for environment in environments)


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    onnx = tiny_onnx.convolutions(tmp_path / "model.onnx", layers=60, channels=128)
    (tmp_path / "request.json").write_text(request(onnx, tmp_path / "w").model_dump_json())
    script = (
        "import sys; from pathlib import Path; from enginefarm.building import isolate; "
        "from enginefarm.toolchains import BuildRequest; "
        "isolate.build(BuildRequest.model_validate_json(Path(sys.argv[1]).read_text()), "
        f"toolchain={NAME!r})"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "request.json")], stderr=subprocess.DEVNULL
    )
    children = wait_for(lambda: builders(parent.pid))
    assert children
    wait_for(lambda: b"Optimizing" in log_of(tmp_path) or b"Detected" in log_of(tmp_path))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert not alive(children)


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("compatibility", "ampere_plus", r"builder\.compatibility"),
        ("attempts", 3, r"builder\.attempts"),
        ("tactic_sources", ("CUDNN",), r"builder\.tactic_sources"),
    ],
)
def test_options_that_it_lacks_are_refused_by_name(option: str, value: Any, named: str) -> None:
    with pytest.raises(ToolchainError, match=named):
        toolchain(NAME).check(tiny_onnx.spec(IDENTITY, **{option: value}))


def test_options_that_it_has_are_kept(tmp_path: Path) -> None:
    onnx = tiny_onnx.convolutions(tmp_path / "model.onnx")
    spec = tiny_onnx.spec(
        IDENTITY,
        optimization_level=2,
        workspace_mib=64,
        sparse_weights=True,
        version_compatible=True,
    )
    assert run(onnx, tmp_path / "w", spec=spec).plan.is_file()


def test_hopper_is_refused_before_anything_runs() -> None:
    with pytest.raises(ToolchainError, match=r"h100 \(compute capability 9\.0\)") as caught:
        toolchain(NAME).check(tiny_onnx.spec(IDENTITY, gpu="h100"))
    assert "7.5" in caught.value.why


def builders(pid: int | None = None) -> list[psutil.Process]:
    children = psutil.Process(pid).children(recursive=True)
    return [
        c for c in children if "enginefarm.building.isolate:build_here" in " ".join(safe_cmdline(c))
    ]


def safe_cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def log_of(tmp_path: Path) -> bytes:
    log = tmp_path / "w" / "build.log"
    return log.read_bytes() if log.is_file() else b""


def wait_for(condition: Any, seconds: float = 10) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    return condition()


def built_from(text: str, folder: Path, **weights: Any) -> BuildOutput:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> agraph {text}')
    arrays = ((np.asarray(value), name) for name, value in weights.items())
    model.graph.initializer.extend(onnx.numpy_helper.from_array(*one) for one in arrays)
    onnx.save(model, folder / "m.onnx")
    return run(
        folder / "m.onnx",
        folder / "w",
        spec=tiny_onnx.spec(IDENTITY, shapes={"x": ((1, 6),) * 3, "s": ((1,),) * 3}),
    )


def test_an_input_whose_values_are_sizes_is_never_fixed_to_its_shape(tmp_path: Path) -> None:
    """The builder took the shape of `s`, (1,), for the only value that `s` may have."""
    with pytest.raises(BuildError, match="the values of 's' decide a shape") as caught:
        built_from(
            """(float[1, 6] x, int64[1] s) => (float[a, b] y) {
                squared = Pow (s, two) sizes = Concat <axis = 0> (squared, six)
                e = Expand (x, sizes) y = Relu (e)
            }""",
            tmp_path,
            two=np.int64(2),
            six=np.int64([6]),
        )
    assert "constant" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            """(float[1, 6] x, int64[1] s) => (uint8[1, 6] y, int64[1] t) {
                y = QuantizeLinear (x, scale, zero) t = Identity (s)
            }""",
            "output 'y' \\(int8\\), output 'y' \\(uint8\\)",
        ),
    ],
)
def test_an_engine_has_the_inputs_and_outputs_of_its_graph(
    tmp_path: Path, text: str, named: str
) -> None:
    """TensorRT's parser takes uint8 for int8."""
    with pytest.raises(
        BuildError, match="inputs and outputs would differ from the graph's"
    ) as caught:
        built_from(text, tmp_path, scale=np.float32(0.1), zero=np.uint8(0))
    assert re.search(named, caught.value.why)


def test_attention_without_a_kernel_of_its_own_is_built_of_several(tmp_path: Path) -> None:
    """With 5 queries of 8 numbers the builder refuses it, unless it may be decomposed."""
    model = onnx.parser.parse_model(
        """<ir_version: 11, opset_import: ["" : 23]>
        agraph (float[1, 2, 5, 8] x, float[1, 2, 5, 8] s) => (float[1, 2, 5, 8] y) {
            y = Attention (x, s, s)
        }"""
    )
    onnx.save(model, tmp_path / "m.onnx")
    shape = ((1, 2, 5, 8),) * 3
    spec = tiny_onnx.spec(IDENTITY, shapes={"x": shape, "s": shape})
    output = run(tmp_path / "m.onnx", tmp_path / "w", spec=spec)
    assert output.tensors[-1].shape == (1, 2, 5, 8)


def test_a_refusal_without_a_name_names_the_node(tmp_path: Path) -> None:
    """The parser says only where in the model the node is."""
    with pytest.raises(ParseError, match=r"node 'y' \(operator ScatterElements\)"):
        built_from(
            """(float[1, 6] x, int64[1] s) => (float[1, 6] y, int64[1] t) {
                y = ScatterElements <axis = 1, reduction = "add"> (x, at, by) t = Identity (s)
            }""",
            tmp_path,
            at=np.int64([[1, 1]]),
            by=np.float32([[2, 3]]),
        )


def test_a_gru_of_few_units_is_built_with_more(tmp_path: Path) -> None:
    """Its builder never ends with 5 units."""
    model = toy_graphs.gru(5)
    assert written_out.write_out(model) == ("GRU",)
    onnx.save(model, tmp_path / "m.onnx")
    run(tmp_path / "m.onnx", tmp_path / "w", spec=with_shapes(*[(7, 1, 3)] * 3), timeout_s=60)
