"""A machine with TensorRT, pycuda and a GPU, all made of numpy (tests/fake_gpu).

What is tested with it is our side: what we ask for, in which order, what we make of the
answers. That the real ones answer so is for `make test-gpu`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_plans import LARGE, SMALL, doubling, plan_of

FAKES = Path(__file__).parents[2] / "fake_gpu"
MODULES = ("pycuda", "tensorrt", "fake_libcuda")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The fake pycuda's driver; processes that are started now find the fakes too."""
    inherited = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(filter(None, (str(FAKES), inherited)))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(FAKES)
    _forget()
    driver = import_module("pycuda.driver")
    yield driver
    assert not driver.MEMORY, "memory of the GPU was not freed"
    _forget()


def _forget() -> None:
    for name in [one for one in sys.modules if one.partition(".")[0] in MODULES]:
        del sys.modules[name]


@pytest.fixture
def plan(cuda: Any, tmp_path: Path) -> Callable[..., Path]:
    """A plan that doubles its input, on two profiles."""
    return lambda **faults: plan_of(doubling(tmp_path / "m.onnx", **faults), SMALL, LARGE)


@pytest.fixture
def reference(tmp_path: Path) -> Callable[[float], Path]:
    """Two batches, of which `factor` times the input is what the FP32 model said."""

    def make(factor: float = 2) -> Path:
        rng = np.random.default_rng(0)
        arrays: dict[str, Any] = {}
        for index, batch in enumerate((2, 8)):
            x = rng.standard_normal((batch, 4)).astype(np.float32)
            arrays |= {f"{index:04d}/input/x": x, f"{index:04d}/output/y": factor * x}
        np.savez(tmp_path / "reference.npz", **arrays)
        return tmp_path / "reference.npz"

    return make
