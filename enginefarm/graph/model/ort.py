"""Sessions of ONNX Runtime, configured in one place, on the CPU or on a provider."""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from enginefarm.errors import EnginefarmError, HostError, one_line
from enginefarm.graph.model import onnx_files, walk
from enginefarm.host.runtimes import ORT_PACKAGE, build_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import ModelProto

    from enginefarm.graph.model.arrays import Array, Arrays

    InferenceSession = Any  # onnxruntime has no type stubs

DISABLED_OPTIMIZERS = [
    "WeightBiasQuantization",
    "ReluQuantRewrite",
    "ClipQuantRewrite",
    "MatmulTransposeFusion",
]
"""ONNX Runtime 1.32's CPU provider computes Q/DQ with FP16 scales wrongly with the first. The next
two take a Relu or a Clip away before a QuantizeLinear as if its type were an integer: in FP8,
negative numbers then pass a Relu, and some graphs do not load. With the last it crashes on a
MatMul in FP16 whose batch axis was moved by a Transpose."""


NO_MEMORY = re.compile(r"Failed to allocate memory|bad_alloc|which exceeds the supported maximum")
"""What ONNX Runtime says about a tensor that is too large."""
NOT_THERE = "NOT_IMPLEMENTED"
"""ONNX Runtime's status for an operator that it has, but not for these types."""
TYPES_ONLY = 22
"""This opset gave bfloat16 to 48 operators and changed nothing else."""
BFLOAT16 = "tensor(bfloat16)"
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
) -> InferenceSession:
    """A session on the CPU.

    plain: turns every graph optimization off.
    A graph that an optimization makes invalid (a QuantizeLinear of opset 21 that is moved gets
    another zero point) is computed without any.
    A graph of bfloat16, which ONNX Runtime does not compute on a CPU, is computed in FP32, with
    FP32 inputs and outputs: numpy has no bfloat16.

    Raises: `error` when ONNX Runtime refuses the model.
    """
    ort: Any = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # fatal: errors come back as exceptions
    # Threads that wait by spinning take the cores from the stages that run in parallel.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Q/DQ are computed as they are written. Kernels of ONNX Runtime's own in their place round
    # otherwise, and one of them (MatMulIntegerToFloat) does not run with a scale for each row.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    unchanged = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if plain:
        options.graph_optimization_level = unchanged

    def load(path: Path) -> InferenceSession:
        return ort.InferenceSession(
            os.fspath(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=DISABLED_OPTIMIZERS,
        )

    def start(path: Path) -> InferenceSession:
        try:
            return load(path)
        except Exception as cause:
            with TemporaryDirectory(prefix="enginefarm-") as folder:
                other: Path | None = path
                if NOT_THERE in str(cause):
                    other = _before_types(path, Path(folder), error)
                elif options.graph_optimization_level == unchanged:
                    raise
                else:
                    options.graph_optimization_level = unchanged
                if other is None:
                    raise
                try:
                    return load(other)
                except Exception:
                    raise cause from None

    try:
        try:
            made = start(model)
        except Exception as cause:
            if NOT_THERE not in str(cause) or not _in_bfloat16(model):
                raise
        else:
            if BFLOAT16 not in {value.type for value in (*made.get_inputs(), *made.get_outputs())}:
                return made
        with TemporaryDirectory(prefix="enginefarm-") as folder:
            return start(_in_fp32(model, Path(folder), error))
    except error:
        raise
    except Exception as cause:
        raise error(f"{what}: ONNX Runtime cannot load the graph", why=one_line(cause)) from cause


def _before_types(path: Path, folder: Path, error: type[EnginefarmError]) -> Path | None:
    """The same graph at the opset before TYPES_ONLY, whose operators compute the same; None where
    it has a later operator. ONNX Runtime 1.32 has RoiAlign until there, for one."""
    from onnx import defs

    model = onnx_files.graph_only(path)
    opset = walk.opset(model)
    if opset < TYPES_ONLY:
        return None
    for node in walk.nodes(model.graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        try:
            since = defs.get_schema(node.op_type, opset, "").since_version
        except defs.SchemaError:
            return None
        if since > TYPES_ONLY:
            return None
    model = onnx_files.read(path, error=error)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = TYPES_ONLY - 1
    return onnx_files.write(model, folder)


def _in_bfloat16(path: Path) -> bool:
    from enginefarm.graph.model.emulate import narrow

    return "BFLOAT16" in narrow(onnx_files.graph_only(path))


def _in_fp32(path: Path, folder: Path, error: type[EnginefarmError]) -> Path:
    """The same graph with FP32 in place of 16 bits: weights keep their values, and only what it
    returns is rounded to the type that it declares."""
    from enginefarm.graph.model.emulate import emulate

    model = emulate(onnx_files.read(path, error=error), rounded=False)
    return onnx_files.write(model, folder)


def on_provider(
    model: Path,
    provider: str,
    options: Mapping[str, Any],
    *,
    log_severity: int = NOTHING,
    optimize: bool = True,
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
    if not optimize:
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


def session_of(
    model: ModelProto,
    *,
    error: type[EnginefarmError],
    what: str,
    plain: bool = False,
    weights: ModelProto | None = None,
) -> InferenceSession:
    """A session on a model in memory, of any size. The model's weights may be moved out of it.

    weights: as in `onnx_files.write`.

    Raises: `error`, as `session` does.
    """
    with TemporaryDirectory(prefix="enginefarm-") as folder:
        path = onnx_files.write(model, Path(folder), weights)
        return session(path, error=error, what=what, plain=plain)


def run(
    session: InferenceSession,
    feeds: Mapping[str, Array],
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
        why = one_line(cause)
        if NO_MEMORY.search(why):
            raise error(
                f"{what}: a tensor of the graph is larger than ONNX Runtime can allocate",
                why=why,
                fix="the node named above asks for that size: make it smaller, or use a machine "
                "with more memory",
            ) from cause
        raise error(f"{what}: ONNX Runtime cannot run the graph", why=why) from cause
    return dict(zip(names, values, strict=True))


def version() -> str:
    """`onnxruntime 1.32.0`, without importing it."""
    return f"onnxruntime {build_of('onnxruntime-cpu')}"
