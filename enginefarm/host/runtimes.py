"""Which runtimes a host has, by package metadata: no library is loaded."""

from __future__ import annotations

from importlib import metadata
from typing import NamedTuple

from enginefarm.names import RuntimeName

PACKAGES: dict[RuntimeName, tuple[str, ...]] = {
    "tensorrt": (
        "tensorrt",
        "tensorrt-cu13",
        "tensorrt-cu12",
        "tensorrt-lean",
        "tensorrt-cu13-libs",
        "tensorrt-cu12-libs",
    ),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu12-libs", "tensorrt-rtx"),
}
"""Runtime -> distributions whose version is its build; the first that is installed counts."""

ORT_PACKAGE = "onnxruntime-gpu"
ORT_TENSORRT_LIBRARIES = {"tensorrt-cu13-libs": "13", "tensorrt-cu12-libs": "12"}
"""Distribution of the TensorRT that ONNX Runtime's provider loads -> its CUDA."""

TOLD_BY: dict[RuntimeName, str] = {
    "tensorrt": "ENGINEFARM_TENSORRT",
    "tensorrt-rtx": "ENGINEFARM_TENSORRT_RTX",
    "onnxruntime-tensorrt": "ENGINEFARM_ORT_TENSORRT",
}
"""Runtime -> the environment variable that says which build of it a host has."""


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


def installed_runtimes() -> dict[str, str]:
    """Runtime -> its build, of those that are installed."""
    found: dict[str, str] = {}
    for runtime, distributions in PACKAGES.items():
        version = next(filter(None, map(version_of, distributions)), None)
        if version is not None:
            found[runtime] = version
    pair = ort_tensorrt()
    if pair is not None and pair.build is not None:
        found["onnxruntime-tensorrt"] = pair.build
    return found


def version_of(distribution: str) -> str | None:
    """None when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
