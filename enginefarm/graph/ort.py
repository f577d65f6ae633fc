"""ONNX Runtime, set up once for every place that runs a graph: on the CPU, or on a provider."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm.errors import EnginefarmError, HostError
from enginefarm.graph import onnx_files, onnx_shapes
from enginefarm.graph.onnx_files import one_line
from enginefarm.host.runtimes import ORT_PACKAGE, build_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from onnx import ModelProto

    Arrays = dict[str, np.ndarray[Any, Any]]
    InferenceSession = Any  # onnxruntime has no type stubs

DISABLED_OPTIMIZERS = ["WeightBiasQuantization", "ReluQuantRewrite", "ClipQuantRewrite"]
"""ONNX Runtime 1.32's CPU provider computes Q/DQ with FP16 scales wrongly with the first. The
others take a Relu or a Clip away before a QuantizeLinear as if its type were an integer: in FP8,
negative numbers then pass a Relu, and some graphs do not load."""


NOT_THERE = "NOT_IMPLEMENTED"
"""ONNX Runtime's status for an operator that it has, but not for these types."""
DOES_NOT_START = ("Please install TensorRT libraries", "CUDA failure 35", "CUDA failure 100")
"""What ONNX Runtime 1.17 to 1.32 says where libraries are missing, the driver is too old, or
there is no GPU."""

EVERYTHING, ERRORS, NOTHING = 1, 3, 4
"""ONNX Runtime's log_severity_level: all but its verbose words, errors, or fatal ones alone."""


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
        if NOT_THERE in str(cause) and (node := _in_bfloat16(model)):
            raise error(
                f"{what}: it computes in bfloat16 (node {node!r}), which ONNX Runtime cannot "
                "run on a CPU",
                why=one_line(cause),
                fix="call `.float()` on the model, which keeps its weights exactly, or export it "
                "in FP32; `precisions: [bf16]` makes the engine compute in bfloat16",
            ) from cause
        raise error(f"{what}: ONNX Runtime cannot load the graph", why=one_line(cause)) from cause


def _in_bfloat16(path: Path) -> str:
    """The first node that returns bfloat16 or has a bfloat16 weight; empty if no node does."""
    import onnx

    model = onnx_files.graph_only(path)
    inferred = onnx.shape_inference.infer_shapes(onnx_shapes.without_weights(model))
    low = onnx.TensorProto.BFLOAT16
    for graph, known in zip(
        onnx_files.graphs(model.graph), onnx_files.graphs(inferred.graph), strict=True
    ):
        names = {tensor.name for tensor in graph.initializer if tensor.data_type == low}
        values = (*known.value_info, *known.input, *known.output)
        names |= {value.name for value in values if value.type.tensor_type.elem_type == low}
        for node in graph.node:
            if not names.isdisjoint((*node.input, *node.output)):
                return str(node.name or next(iter(node.output), ""))
    return ""


def on_provider(
    model: Path,
    provider: str,
    options: Mapping[str, Any],
    *,
    log_severity: int = NOTHING,
    optimise: bool = True,
) -> InferenceSession:
    """A session whose first provider is this one, never one that fell back to another.

    Raises: HostError when this host cannot start the provider; ONNX Runtime's own exceptions
    when the provider, or what is behind it, refuses the model.
    """
    try:
        ort: Any = import_module("onnxruntime")
    except ImportError as error:
        raise HostError("ONNX Runtime is not installed", why=str(error), fix=_install()) from None
    if provider not in ort.get_available_providers():
        raise HostError(
            f"this ONNX Runtime has no {provider}",
            why=f"it has {', '.join(ort.get_available_providers())}",
            fix=f"{_install()}, in place of onnxruntime",
        )
    settings = ort.SessionOptions()
    settings.log_severity_level = log_severity
    if not optimise:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            os.fspath(model),
            settings,
            providers=[(provider, dict(options))],
            disabled_optimizers=DISABLED_OPTIMIZERS,
            enable_fallback=0,
        )
    except RuntimeError as error:
        if any(words in str(error) for words in DOES_NOT_START):
            raise _does_not_start(provider, one_line(error)) from None
        raise
    if session.get_providers()[0] != provider:
        raise _does_not_start(provider, f"the session runs on {', '.join(session.get_providers())}")
    return session


def _does_not_start(provider: str, why: str) -> HostError:
    return HostError(
        f"ONNX Runtime's {provider} does not start on this host",
        why=why,
        fix="install the TensorRT, CUDA and cuDNN that this ONNX Runtime was built for",
    )


def _install() -> str:
    return f"pip install {ORT_PACKAGE} tensorrt-cu12"


def session_of(model: ModelProto, *, error: type[EnginefarmError], what: str) -> InferenceSession:
    """A session on a model in memory, of any size. The model's weights may be moved out of it.

    Raises: `error`, as `session` does.
    """
    import tempfile

    from enginefarm.graph.onnx_files import write

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
    return f"onnxruntime {build_of('onnxruntime-cpu')}"
