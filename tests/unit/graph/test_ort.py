"""Which ONNX Runtime is here, in whichever distribution it came."""

from __future__ import annotations

from collections.abc import Callable

import onnxruntime
import pytest

from enginefarm.errors import HostError
from enginefarm.graph import ort

Installed = Callable[..., None]


def test_it_is_the_one_that_is_imported() -> None:
    assert ort.version() == f"onnxruntime {onnxruntime.__version__}"


def test_a_worker_with_the_one_for_gpus_needs_no_other(installed: Installed) -> None:
    installed(onnxruntime_gpu="1.31.1")
    assert ort.version() == "onnxruntime 1.31.1"
    installed()
    with pytest.raises(HostError, match="not installed"):
        ort.version()
