"""How the parent reads what a builder child left behind; no native library is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from specs import spec

from enginefarm import errors
from enginefarm.building import isolate
from enginefarm.child import process as child_process
from enginefarm.child.entry_point import ProgressPipe
from enginefarm.toolchains import BuildOutput, BuildRequest

SPEC = spec("tensorrt-rtx", "1", gpu=("t4", "7.5"), profiles=())


class Plays:
    """In place of a toolchain, in the child: does what the request's salt says."""

    def build(self, request: BuildRequest) -> BuildOutput:
        plan = request.work_dir / "engine.plan"
        plan.write_bytes(b"plan")
        exec(request.spec.salt, {"request": request, "plan": plan})
        return BuildOutput(plan=plan, tensors=(), seconds=1.0)


def build(work_dir: Path, script: str, **more: object) -> BuildOutput:
    spec = SPEC.model_copy(update={"salt": script})
    request = BuildRequest(spec=spec, onnx=work_dir / "model.onnx", work_dir=work_dir / "w", **more)
    return isolate.build(request, toolchain="played")


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A module for the child alone, that puts `Plays` into its table of toolchains."""
    (tmp_path / "sitecustomize.py").write_text(
        "from enginefarm.names import TOOLCHAINS, ToolchainRow\n"
        f"TOOLCHAINS['played'] = ToolchainRow('{__name__}:Plays', 'tensorrt')\n"
    )
    paths = [str(tmp_path), str(Path(__file__).parents[3])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def test_a_build_comes_back_with_its_log(tmp_path: Path) -> None:
    output = build(tmp_path, "print('a word')")
    assert output.plan.read_bytes() == b"plan"
    assert output.log is not None
    assert "a word" in output.log.read_text()
    assert output.peak_memory_bytes > 1 << 20


@pytest.mark.parametrize("allowed", [True, False])
def test_a_build_notes_whether_its_addresses_were_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    """Docker's default seccomp profile forbids `setarch -R`; plans may then differ."""
    tool = tmp_path / "setarch"
    tool.write_text(f'#!/bin/sh\n[ {int(allowed)} = 1 ] || exit 1\nshift 2\nexec "$@"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    child_process.randomization_off.cache_clear()
    try:
        assert build(tmp_path, "").details["address_space_randomization"] is not allowed
    finally:
        child_process.randomization_off.cache_clear()


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        ("from enginefarm.errors import *; raise ParseError('node a')", "ParseError", "node a"),
        ("import os; os.kill(os.getpid(), 11)", "BuildCrashed", "SIGSEGV"),
        ("print('[E] Assertion x failed'); import os; os.abort()", "BuildCrashed", "Assertion x"),
        ("import os; os.kill(os.getpid(), 9)", "BuildOutOfMemory", "killed from outside"),
        ("import os; os._exit(0)", "BuildError", "status 0 and no result"),
        ("plan.write_bytes(b'')", "BuildError", "no plan"),
        ("bytearray(1 << 60)", "BuildOutOfMemory", "MemoryError"),
    ],
)
def test_every_way_to_fail_is_one_error_and_leaves_no_plan(
    tmp_path: Path, script: str, kind: str, said: str
) -> None:
    with pytest.raises(errors.BuildError, match=said) as caught:
        build(tmp_path, script)
    assert type(caught.value).__name__ == kind
    assert not (tmp_path / "w" / "engine.plan").exists()


def test_a_crash_names_the_log_that_is_kept_and_not_one_that_is_gone(tmp_path: Path) -> None:
    """The work folder is removed when a build has failed."""
    with pytest.raises(errors.BuildCrashed) as caught:
        build(tmp_path, "import os; os.kill(os.getpid(), 11)")
    assert "`enginefarm log RECIPE --gpu " in caught.value.fix
    assert str(tmp_path) not in str(caught.value)


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
    assert lines[-1][1] == 1000


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
