"""What `import enginefarm` offers: a change here is a change for everybody who imports it."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

import enginefarm
from enginefarm.errors import GpuError, RecipeError, ToolchainError, UsageError


def test_the_public_surface_is_pinned() -> None:
    assert enginefarm.__all__ == ["__version__", "benchmarks", "build", "doctor", "list", "pull"]
    for name in enginefarm.__all__:
        assert getattr(enginefarm, name)


FUNCTIONS = ("benchmarks", "build", "doctor", "list", "pull")
FARM_ONLY = ("prefect", "pandas", "pyarrow", "numpy", "onnx", "onnxruntime", "torch", "ruamel")


def test_help_shows_the_surface_with_types_and_an_example_each() -> None:
    """On a host that has the pull client alone, too."""
    script = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({FARM_ONLY!r}))\n"
        "import enginefarm\n"
        "help(enginefarm)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in FUNCTIONS:
        # Python 3.13 writes a line for each parameter of a long signature.
        assert re.search(rf"^    {name}\((?s:.*?)\) -> '", done.stdout, re.MULTILINE), name
        assert f"enginefarm.{name}(" in done.stdout, name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_is_typed_and_has_an_example(name: str) -> None:
    function = getattr(enginefarm, name)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
    assert f"enginefarm.{name}(" in inspect.getdoc(function), "an example"
    assert "Raises: " in inspect.getdoc(function)


def test_build_without_the_farm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect", None)
    with pytest.raises(ToolchainError) as caught:
        enginefarm.build("model.onnx", gpus=["t4"])
    assert caught.value.fix == "pip install 'enginefarm[farm]'"


def test_build_raises_what_the_command_says(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(RecipeError) as caught:
        enginefarm.build(tmp_path / "recipe.yaml", gpus=["t4"])
    assert "recipe.yaml" in caught.value.what
    assert "source" in str(caught.value)


def test_a_build_dies_with_the_program_that_called_it(tmp_path: Path) -> None:
    """SIGKILL leaves that program no time to end it."""
    command, pid = tmp_path / "python", tmp_path / "pid"
    command.write_text(f"#!/bin/sh\necho $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 300\n")
    command.chmod(0o700)
    calls = f"import sys, enginefarm; sys.executable = {str(command)!r}; enginefarm.build('m')"
    with subprocess.Popen([sys.executable, "-c", calls]) as program:
        until(pid.exists)
        build = Path("/proc") / pid.read_text().strip()
        assert build.exists()
        program.kill()
    until(lambda: not build.exists() or "State:\tZ" in (build / "status").read_text())


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_doctor_says_what_this_host_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEFARM_CACHE", str(tmp_path))
    found = {one.subject: one.verdict for one in enginefarm.doctor(gpu="t4")}
    assert found["GPU"] == "ok"
    with pytest.raises(UsageError, match="No such file"):
        enginefarm.doctor(tmp_path / "model.plan")


def test_list_knows_the_gpus() -> None:
    with pytest.raises(GpuError, match="t44"):
        enginefarm.list(gpu="t44")


def test_the_packages_are_typed() -> None:
    for package in ("enginefarm", "flows", "tasks"):
        assert (files(package) / "py.typed").is_file()


def test_importing_costs_nothing() -> None:
    heavy = ("torch", "prefect", "onnx", "onnxruntime", "pandas", "numpy", "tensorrt", "boto3")
    script = f"import sys, enginefarm; print(sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
