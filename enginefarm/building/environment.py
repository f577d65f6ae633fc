"""The machine that builds, as manifests record it."""

from __future__ import annotations

import platform
from functools import cache

from enginefarm.documents.manifest import Environment
from enginefarm.host.runtimes import version_of

RECORDED_PACKAGES = (
    "enginefarm",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxslim",
    "torch",
    "tensorrt",
)


@cache
def environment() -> Environment:
    found = {name: version_of(name) for name in RECORDED_PACKAGES}
    return Environment(
        host=platform.node(),
        os=platform.system().lower(),
        arch=platform.machine(),
        python=platform.python_version(),
        packages={name: version for name, version in found.items() if version},
    )
