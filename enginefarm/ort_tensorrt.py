"""ONNX Runtime with its TensorRT provider, on the GPU: opens models, and runs the artifacts of
toolchain ort-trt (ONNX files whose one node, EPContext, holds the engine)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from enginefarm.closing import Closing
from enginefarm.errors import HostError
from enginefarm.host import first_gpu
from enginefarm.onnx_files import one_line
from enginefarm.ort import DISABLED_OPTIMIZERS
from enginefarm.refusals import refused
from enginefarm.runtime import require_driver
from enginefarm.runtimes import ORT_PACKAGE

PROVIDER = "TensorrtExecutionProvider"
DOES_NOT_START = ("Please install TensorRT libraries", "CUDA failure 35", "CUDA failure 100")
"""What ONNX Runtime 1.17 to 1.32 says where libraries are missing, the driver is too old, or
there is no GPU."""

EVERYTHING, NOTHING = 1, 4
"""ONNX Runtime's log_severity_level: all but its verbose words, or fatal ones alone."""


def open_session(
    model: Path, options: Mapping[str, Any], *, log_severity: int = NOTHING, optimise: bool = True
) -> Any:
    """An InferenceSession whose first provider is TensorRT's, never one that fell back.

    Raises: HostError when this host cannot start the provider; ONNX Runtime's own exceptions
    when the provider, or TensorRT behind it, refuses the model.
    """
    try:
        ort = import_module("onnxruntime")
    except ImportError as error:
        raise HostError("ONNX Runtime is not installed", why=str(error), fix=_install()) from None
    if PROVIDER not in ort.get_available_providers():
        raise HostError(
            f"this ONNX Runtime has no {PROVIDER}",
            why=f"it has {', '.join(ort.get_available_providers())}",
            fix=f"{_install()}, in place of onnxruntime",
        )
    settings = ort.SessionOptions()
    settings.log_severity_level = log_severity
    if not optimise:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            str(model),
            settings,
            providers=[(PROVIDER, dict(options))],
            disabled_optimizers=DISABLED_OPTIMIZERS,
            enable_fallback=0,
        )
    except RuntimeError as error:
        if any(words in str(error) for words in DOES_NOT_START):
            raise _does_not_start(one_line(error)) from None
        raise
    if session.get_providers()[0] != PROVIDER:
        raise _does_not_start(f"the session runs on {', '.join(session.get_providers())}")
    return session


def _does_not_start(why: str) -> HostError:
    return HostError(
        f"ONNX Runtime's {PROVIDER} does not start on this host",
        why=why,
        fix="install the TensorRT, CUDA and cuDNN that this ONNX Runtime was built for",
    )


def _install() -> str:
    return f"pip install {ORT_PACKAGE} tensorrt-cu12"


class OrtEngine(Closing):
    """An artifact of ort-trt, loaded on the first GPU. Use it in a `with`."""

    def __init__(
        self, plan: Path, *, plugins: Sequence[Path] = (), cuda_major: int | None = None
    ) -> None:
        """Raises: HostError, DriverTooOld, EngineRunError."""
        gpu = first_gpu()
        if gpu is None:
            raise HostError(
                "this host has no NVIDIA driver, or no GPU", fix="run this on a GPU host"
            )
        if cuda_major is not None and gpu.driver_cuda is not None:
            require_driver(gpu.driver_cuda, cuda_major)
        self.device_name = gpu.name
        options = {"trt_extra_plugin_lib_paths": ";".join(map(str, plugins))} if plugins else {}
        try:
            # Its graph is one node: there is nothing to optimise, and it loads sooner.
            self.session: Any = open_session(plan, options, optimise=False)
        except HostError:
            raise
        except Exception as error:
            raise refused(plan, "cannot be loaded", gpu.name, one_line(error)) from error

    def close(self) -> None:
        """Frees the engine."""
        self.session = None
