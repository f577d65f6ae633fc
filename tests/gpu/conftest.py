"""Engines for a machine with a GPU.

ENGINEFARM_GPU_PLANS names a folder of plans (build_with_trt86.py), ENGINEFARM_GPU_MODELS the
ONNX models and references that they came from (make_models.py). `tests/gpu/run.sh` makes both.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from enginefarm.run.engine import Engine

if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # run.sh starts one for each GPU
    cards = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = cards[int(worker.removeprefix("gw")) % len(cards)]


def folder(variable: str) -> Path:
    if variable not in os.environ:
        pytest.fail(f"{variable} is not set: start these tests with tests/gpu/run.sh")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def plans() -> Path:
    return folder("ENGINEFARM_GPU_PLANS")


@pytest.fixture(scope="session")
def models() -> Path:
    return folder("ENGINEFARM_GPU_MODELS")


@pytest.fixture(scope="session")
def torch_python() -> tuple[list[str], dict[str, str]]:
    """A Python that has PyTorch, and its environment: this one, unless told otherwise."""
    command = os.environ.get("ENGINEFARM_TORCH_PYTHON", sys.executable)
    path = os.environ.get("ENGINEFARM_TORCH_PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    return [command], {"PYTHONPATH": path, "LD_LIBRARY_PATH": ""}


@pytest.fixture
def engine(plans: Path) -> Iterator[Callable[[str], Engine]]:
    """Loads a plan by name; all are closed at the end, the last one first."""
    opened: list[Any] = []

    def load(name: str) -> Engine:
        if not (plans / f"{name}.plan").exists():
            pytest.skip(f"{name}.plan was not built: build_with_trt86.py MODELS PLANS {name}")
        opened.append(Engine(plans / f"{name}.plan", toolchain="tensorrt"))
        return opened[-1]

    yield load
    for one in reversed(opened):
        one.close()
