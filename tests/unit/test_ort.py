"""Which ONNX Runtime is here, in whichever distribution it came."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import onnxruntime
import pytest

from enginefarm import ort
from enginefarm.errors import HostError


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(name: str) -> str:
        if name.replace("-", "_") not in versions:
            raise PackageNotFoundError(name)
        return versions[name.replace("-", "_")]

    monkeypatch.setattr(ort.metadata, "version", version)


def test_it_is_the_one_that_is_imported() -> None:
    assert ort.version() == f"onnxruntime {onnxruntime.__version__}"


def test_a_worker_with_the_one_for_gpus_needs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, onnxruntime_gpu="1.31.1")
    assert ort.version() == "onnxruntime 1.31.1"
    installed(monkeypatch)
    with pytest.raises(HostError, match="not installed"):
        ort.version()
