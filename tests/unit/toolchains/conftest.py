"""The names of the real bindings: of TensorRT 10 and 11, and of TensorRT-RTX."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.toolchains import bindings

VERSIONS = {"10": "10.16.1.11", "11": "11.4.0.106"}


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, set[str]]]:
    cache = Path.home() / ".cache" / "enginefarm" / "test-wheels"
    found = {"rtx": bindings.listing("tensorrt_rtx_bindings")}
    for key, version in VERSIONS.items():
        folder = tmp_path_factory.mktemp(f"tensorrt{key}")
        stubs = bindings.unpack(bindings.fetch("tensorrt_cu13_bindings", version, cache), folder)
        found[key] = bindings.listing("tensorrt_bindings", folder, stubs)
    return found
