"""What `import enginefarm` offers: a change here is a change for everybody who imports it."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import enginefarm


def test_the_public_surface_is_pinned() -> None:
    assert enginefarm.__all__ == ["__version__", "benchmarks", "pull"]
    for name in enginefarm.__all__:
        assert getattr(enginefarm, name)


def test_the_packages_are_typed() -> None:
    for package in ("enginefarm", "flows", "tasks"):
        assert (files(package) / "py.typed").is_file()


def test_importing_costs_nothing() -> None:
    heavy = ("torch", "prefect", "onnx", "onnxruntime", "pandas", "numpy", "tensorrt", "boto3")
    script = f"import sys, enginefarm; print(sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
