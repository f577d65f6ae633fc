"""How the parent reads what a builder child left behind; no native library is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from enginefarm import errors
from enginefarm.build import isolate
from enginefarm.build.child import ProgressPipe
from enginefarm.child import process as child_process
from enginefarm.documents.recipe import BuilderOptions
from enginefarm.documents.spec import BuildSpec, GpuTarget, PrecisionUse, ToolchainId, ToolUse
from enginefarm.toolchains import BuildRequest

TOOL = ToolUse(name="none", version="0")
SPEC = BuildSpec(
    onnx_digest="0" * 64,
    exporter=TOOL,
    slimmer=TOOL,
    precision=PrecisionUse(name="fp16", tools=()),
    profiles=(),
    gpu=GpuTarget(label="t4", compute_capability="7.5"),
    toolchain=ToolchainId(name="tensorrt-rtx", build="1", cuda="13", os="linux", arch="x86_64"),
    builder=BuilderOptions(),
)


def outcome(work_dir: Path, code: int) -> object:
    request = BuildRequest(spec=SPEC, onnx=work_dir / "model.onnx", work_dir=work_dir)
    return isolate._outcome(code, work_dir, request, 1 << 30)


def test_an_error_of_the_child_arrives_as_itself(tmp_path: Path) -> None:
    fields = {"kind": "ParseError", "what": "node 'a'", "why": "because", "fix": "do this"}
    (tmp_path / "error.json").write_text(json.dumps(fields))
    with pytest.raises(errors.ParseError) as caught:
        outcome(tmp_path, 1)
    assert (caught.value.what, caught.value.why, caught.value.fix) == (
        "node 'a'",
        "because",
        "do this",
    )


@pytest.mark.parametrize("signal_name", ["SIGSEGV", "SIGABRT"])
def test_a_signal_is_a_crash_with_the_logs_last_words(tmp_path: Path, signal_name: str) -> None:
    import signal

    (tmp_path / "build.log").write_text("[I] fine\n[E] Assertion x failed\n[I] more\n")
    with pytest.raises(errors.BuildCrashed, match=signal_name) as caught:
        outcome(tmp_path, -getattr(signal, signal_name))
    assert caught.value.why == "[E] Assertion x failed"


def test_a_kill_from_outside_is_called_out_of_memory(tmp_path: Path) -> None:
    with pytest.raises(errors.BuildOutOfMemory, match="1024 MiB"):
        outcome(tmp_path, -9)


def test_no_result_is_an_error_even_with_status_zero(tmp_path: Path) -> None:
    (tmp_path / "build.log").write_text("")
    with pytest.raises(errors.BuildError, match="no result"):
        outcome(tmp_path, 0)


def test_an_empty_plan_is_an_error(tmp_path: Path) -> None:
    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"")
    output = {"plan": str(plan), "tensors": [], "seconds": 1.0}
    (tmp_path / "output.json").write_text(json.dumps(output))
    with pytest.raises(errors.BuildError, match="no plan"):
        outcome(tmp_path, 0)


def test_the_childs_environment_is_a_short_list(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "ENGINEFARM_STORE", "PREFECT_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    environment = child_process.child_environment(Path("/w"))
    assert "secret" not in environment.values()
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert environment["HOME"] == "/w"


def test_progress_is_thinned_but_never_loses_the_end() -> None:
    read_end, write_end = os.pipe()
    pipe = ProgressPipe(write_end)
    for step in range(1001):
        pipe("build", step, 1000, "same phase")
    os.close(write_end)
    with os.fdopen(read_end) as stream:
        lines = [json.loads(line) for line in stream]
    assert 1 < len(lines) < 100
    assert lines[-1]["done"] == 1000


def test_a_parent_that_does_not_read_never_blocks_the_build() -> None:
    read_end, write_end = os.pipe()
    pipe = ProgressPipe(write_end)
    for step in range(5000):
        pipe("build", step, None, f"phase {step} " + "x" * 200)
    os.close(read_end)
    pipe("build", 1, 1, "reader gone")
    os.close(write_end)


def test_memory_of_grandchildren_counts() -> None:
    script = "import subprocess, sys, time; b = bytearray(60 << 20); "
    nested = (
        script
        + "subprocess.Popen([sys.executable, '-c', "
        + repr(script + "print(1, flush=True); time.sleep(30)")
        + "]); time.sleep(30)"
    )
    with subprocess.Popen([sys.executable, "-c", nested], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = child_process.resident_bytes(child.pid)
        for grandchild in psutil.Process(child.pid).children():
            grandchild.kill()
        child.kill()
    assert 120 << 20 < found < 400 << 20
    assert child_process.resident_bytes(child.pid) == 0
