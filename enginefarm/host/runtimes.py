"""Which runtimes a host has, by package metadata: no library is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from enginefarm.errors import HostError
from enginefarm.names import RUNTIMES, loaded

ORT_PACKAGE = "onnxruntime-gpu"
ORT_TENSORRT_LIBRARIES = {"tensorrt-cu13-libs": "13", "tensorrt-cu12-libs": "12"}
"""Distribution of the TensorRT that ONNX Runtime's provider loads -> its CUDA."""

LOADERS = {name: row for name, row in RUNTIMES.items() if row.told_by}
"""The runtimes that load engines."""


class OrtPair(NamedTuple):
    """ONNX Runtime with its TensorRT provider. tensorrt, cuda: None where no package says."""

    onnxruntime: str
    tensorrt: str | None
    cuda: str | None

    @property
    def build(self) -> str | None:
        """Both versions in one: a plan of one pair is never given to another."""
        return f"{self.onnxruntime}+tensorrt.{self.tensorrt}" if self.tensorrt else None


def ort_tensorrt() -> OrtPair | None:
    """What is installed of it; None without ONNX Runtime for GPUs."""
    onnxruntime = version_of(ORT_PACKAGE)
    if onnxruntime is None:
        return None
    for distribution, cuda in ORT_TENSORRT_LIBRARIES.items():
        tensorrt = version_of(distribution)
        if tensorrt is not None:
            return OrtPair(onnxruntime, tensorrt, cuda)
    return OrtPair(onnxruntime, None, None)


def ort_tensorrt_build() -> str | None:
    """Both versions in one; None where either is not installed."""
    pair = ort_tensorrt()
    return pair.build if pair else None


def installed_runtimes() -> dict[str, str]:
    """Runtime -> its build, of those that load engines and are installed."""
    found: dict[str, str] = {}
    for name, row in LOADERS.items():
        version = loaded(row.build_by)() if row.build_by else first_version(row.packages)
        if version is not None:
            found[name] = version
    return found


def build_of(runtime: str) -> str:
    """The version of a runtime that runs graphs. Raises: HostError when it is not installed."""
    row = RUNTIMES[runtime]
    found = first_version(row.packages)
    if found is None:
        raise HostError(f"{row.title} is not installed", fix=f"pip install {row.packages[-1]}")
    return found


def first_version(distributions: Iterable[str]) -> str | None:
    """The version of the first of them that is installed."""
    return next(filter(None, map(version_of, distributions)), None)


def version_of(distribution: str) -> str | None:
    """None when it is not installed."""
    from importlib import metadata  # takes longer to import than the rest of this room

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
