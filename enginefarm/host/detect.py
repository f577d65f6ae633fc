"""Host: what an engine must fit. Detected by NVML and package metadata, or told."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from enginefarm.digest import sha256_file
from enginefarm.documents.gpus import by_nvml_name, gpu
from enginefarm.errors import HostError
from enginefarm.host.runtimes import LOADERS, installed_runtimes
from enginefarm.settings import shown_gpu

if TYPE_CHECKING:
    from enginefarm.documents.host import Host

DEVICE_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvgpu", "/proc/driver/nvidia")
"""Without any of these a Linux host (WSL, Jetson) has no GPU: NVML need not be loaded."""

ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


class NvmlGpu(NamedTuple):
    """driver_cuda: the newest CUDA of the driver: 13010 is 13.1."""

    name: str
    compute_capability: str
    driver: str
    driver_cuda: int | None = None


def detect(label: str = "auto", environ: Mapping[str, str] = os.environ) -> Host:
    """The host to pull for.

    label: `auto` is this machine; a GPU's label that is not this machine's GPU means another
        host, and only its GPU is known.
    environ: ENGINEFARM_GPU, _DRIVER, _OS, _ARCH, _TENSORRT, _TENSORRT_RTX, _ORT_TENSORRT and
        _PLUGINS (paths, separated as in PATH) overrule what is detected.
    Raises: HostError when no GPU is found and none is named; GpuError for an unknown label.
    """
    from enginefarm.documents.host import Host  # loads pydantic

    return Host.model_validate(facts(label, environ))


def facts(label: str, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The fields of what detect() returns. Raises: as detect()."""
    found = first_gpu()
    overrides = _overrides(environ)
    if label == "auto":
        label = environ.get("ENGINEFARM_GPU", "auto")
    if label == "auto" and found is None:
        raise HostError(
            "host: this machine has no NVIDIA GPU",
            why="NVML is not installed, or finds no GPU",
            fix="name the GPU to pull for: --gpu t4 (or set ENGINEFARM_GPU)",
        )
    detected = by_nvml_name(found.name) if found else None
    if label == "auto" and found is not None:
        card: dict[str, Any] = {"gpu": detected.label if detected else None}
        capability = found.compute_capability
    else:
        row = gpu(label)
        card = {"gpu": row.label}
        capability = row.compute_capability
        if detected is None or detected.label != row.label:
            return {**card, "compute_capability": capability, **overrides}
    here: dict[str, Any] = {
        "gpu_name": found.name if found else None,
        "compute_capability": capability,
        "driver": found.driver if found else None,
        "os": platform.system().lower(),
        "arch": architecture(platform.machine()),
        "runtimes": installed_runtimes(),
    }
    return {**here, **card, **overrides}


def _overrides(environ: Mapping[str, str]) -> dict[str, Any]:
    runtimes = {
        name: environ[row.told_by] for name, row in LOADERS.items() if environ.get(row.told_by)
    }
    overrides: dict[str, Any] = {
        field: environ[variable].lower()
        for field, variable in (
            ("driver", "ENGINEFARM_DRIVER"),
            ("os", "ENGINEFARM_OS"),
            ("arch", "ENGINEFARM_ARCH"),
        )
        if environ.get(variable)
    }
    if "arch" in overrides:
        overrides["arch"] = architecture(overrides["arch"])
    if runtimes:
        overrides["runtimes"] = runtimes
    if "ENGINEFARM_PLUGINS" in environ:
        overrides["plugins"] = _plugin_digests(environ["ENGINEFARM_PLUGINS"])
    return overrides


def _plugin_digests(paths: str) -> frozenset[str]:
    digests: set[str] = set()
    for path in filter(None, paths.split(os.pathsep)):
        try:
            digests.add(sha256_file(Path(path)))
        except OSError as error:
            raise HostError(
                f"host: ENGINEFARM_PLUGINS names {path}, which cannot be read",
                why=error.strerror or "",
            ) from error
    return frozenset(digests)


def architecture(machine: str) -> str:
    """One word for one architecture, whatever the system calls it."""
    return ARCHITECTURES.get(machine.lower(), machine.lower())


def first_gpu() -> NvmlGpu | None:
    """The first GPU that NVML and CUDA_VISIBLE_DEVICES show; None without driver or GPU."""
    if sys.platform == "linux" and not any(Path(file).exists() for file in DEVICE_FILES):
        return None
    nvml: Any = import_module("pynvml")  # it has no types
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        handle = visible_gpu(nvml)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        return NvmlGpu(
            name=_text(nvml.nvmlDeviceGetName(handle)),
            compute_capability=f"{major}.{minor}",
            driver=_text(nvml.nvmlSystemGetDriverVersion()),
            driver_cuda=int(nvml.nvmlSystemGetCudaDriverVersion()),
        )
    except (nvml.NVMLError, ValueError):
        return None
    finally:
        nvml.nvmlShutdown()


def visible_gpu(nvml: Any) -> Any:
    """NVML's handle of the first GPU that CUDA_VISIBLE_DEVICES shows.

    nvml: pynvml, initialized. Raises: nvml.NVMLError, ValueError when there is none.
    """
    visible = shown_gpu()
    if visible.startswith(("GPU-", "MIG-")):
        return nvml.nvmlDeviceGetHandleByUUID(visible)
    return nvml.nvmlDeviceGetHandleByIndex(int(visible or "-1"))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
