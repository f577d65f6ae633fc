"""A plan of TensorRT 8.6 in the runtime of another release: one error, and what to do.

Runs where the lean runtime of TensorRT 10 or 11 is what `tensorrt` resolves to.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from enginefarm.errors import OtherBuild
from enginefarm.run.engine import Engine

pytestmark = pytest.mark.gpu

LEAN = find_spec("tensorrt_lean_bindings") is not None


@pytest.mark.skipif(not LEAN, reason="needs tensorrt-lean 10 or 11; run.sh starts it apart")
@pytest.mark.parametrize("name", ["conv", "conv-notvc"])
def test_a_plan_of_another_release(plans: Path, name: str) -> None:
    with pytest.raises(OtherBuild, match="cannot be loaded on NVIDIA") as caught:
        Engine(plans / f"{name}.plan", toolchain="tensorrt")
    assert "another build of the toolchain" in caught.value.why
    assert "older TensorRT version" in caught.value.why
