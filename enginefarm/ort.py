"""ONNX Runtime on CPU, set up once for every place that runs a graph."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm.errors import EnginefarmError, HostError
from enginefarm.onnx_files import one_line
from enginefarm.runtimes import ORT_PACKAGE

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from onnx import ModelProto

    Arrays = dict[str, np.ndarray[Any, Any]]
    InferenceSession = Any  # onnxruntime has no type stubs

DISABLED_OPTIMIZERS = ["WeightBiasQuantization"]
"""ONNX Runtime 1.32's CPU provider computes Q/DQ with FP16 scales wrongly with it."""


def session(
    model: Path,
    *,
    error: type[EnginefarmError],
    what: str,
    plain: bool = False,
    narrow: bool = False,
) -> InferenceSession:
    """A session on the CPU.

    plain: every graph optimization off. narrow: the graph has FP16 in it, for which ONNX
    Runtime 1.32's layout optimizations are not safe (it segfaults on a vision transformer).

    Raises: `error` when ONNX Runtime refuses the model.
    """
    ort: Any = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # fatal: errors come back as exceptions
    # Threads that wait by spinning take the cores from the stages that run beside this one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif narrow:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    try:
        return ort.InferenceSession(
            os.fspath(model),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=DISABLED_OPTIMIZERS,
        )
    except Exception as cause:
        raise error(f"{what}: ONNX Runtime cannot load the graph", why=one_line(cause)) from cause


def session_of(model: ModelProto, *, error: type[EnginefarmError], what: str) -> InferenceSession:
    """A session on a model in memory, of any size. The model's weights may be moved out of it.

    Raises: `error`, as `session` does.
    """
    import tempfile

    from enginefarm.onnx_files import write

    with tempfile.TemporaryDirectory(prefix="enginefarm-") as folder:
        return session(write(model, Path(folder)), error=error, what=what)


def run(
    session: InferenceSession,
    feeds: Mapping[str, np.ndarray[Any, Any]],
    *,
    error: type[EnginefarmError],
    what: str,
) -> Arrays:
    """Outputs by name.

    Raises: `error` when the run fails.
    """
    names = [output.name for output in session.get_outputs()]
    try:
        values = session.run(names, dict(feeds))
    except Exception as cause:
        raise error(f"{what}: ONNX Runtime cannot run the graph", why=one_line(cause)) from cause
    return dict(zip(names, values, strict=True))


def version() -> str:
    """`onnxruntime 1.32.0`, without importing it."""
    return f"onnxruntime {build()}"


def build() -> str:
    """Its version, whichever distribution it came in."""
    # With both installed, the later one's files are there: pip installs onnxruntime first, since
    # enginefarm needs it.
    for distribution in (ORT_PACKAGE, "onnxruntime"):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    raise HostError("ONNX Runtime is not installed", fix="pip install onnxruntime")
