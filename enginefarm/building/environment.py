"""The machine that builds, as manifests record it."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

from enginefarm.documents.manifest import Environment

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
    """This machine, as it is recorded in manifests."""
    packages: dict[str, str] = {}
    for name in RECORDED_PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return Environment(
        host=platform.node(),
        os=platform.system().lower(),
        arch=platform.machine(),
        python=platform.python_version(),
        packages=packages,
    )
