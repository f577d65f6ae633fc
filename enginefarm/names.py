"""One row for each precision, runtime and toolchain: everything that other modules ask about it
by name. It imports nothing of enginefarm: the command line offers the names, and starts fast.

To add one, add a row here; CONTRIBUTING names the file of code that the row points to.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple


class PrecisionRow(NamedTuple):
    """One precision.

    code: its class, a `graph.precisions.Precision`. rank: the lowest is taken when nobody asks
    for a precision. calibrated: True where the recipe must bring calibration data. min_cosine,
    max_relative_l2, rounding, margin: the default accuracy budget. no_refit: why new weights
    cannot be set in its plans; empty where they can. bits: of the numbers that it computes with.
    """

    code: str
    rank: int
    min_cosine: float
    max_relative_l2: float
    calibrated: bool = False
    rounding: float = 0.0
    margin: float = 1.0
    no_refit: str = ""
    bits: int = 16


EIGHT_BITS = (0.99, 0.15, True, 0.0, 2 / 3, "new weights need a calibration, and so a build", 8)
"""Errors of 8 bits hang on the data: single batches of other data of the same kind lose two to
three times as much as the recipe's do (docs/decisions/0273)."""
PRECISIONS: dict[str, PrecisionRow] = {
    "fp32": PrecisionRow(
        *("enginefarm.graph.precisions.fp32:FP32", 90, 0.99999, 1e-4), rounding=4.0, bits=32
    ),
    # Rounding the weights alone costs MobileNetV2 a relative L2 of 0.013.
    "fp16": PrecisionRow("enginefarm.graph.precisions.sixteen_bits:FP16", 10, 0.999, 0.02),
    "bf16": PrecisionRow(
        *("enginefarm.graph.precisions.sixteen_bits:BF16", 20, 0.99, 0.05),
        no_refit="TensorRT takes weights from numpy, which has no bfloat16",
    ),
    "int8": PrecisionRow("enginefarm.graph.precisions.eight_bits:Int8", 40, *EIGHT_BITS),
    "fp8": PrecisionRow("enginefarm.graph.precisions.eight_bits:FP8", 30, *EIGHT_BITS),
}
"""In the order in which commands, forms and the report list them."""


class RuntimeRow(NamedTuple):
    """One program that runs models. The fields from `told_by` on are of those that load engines.

    title: its name in the report. packages: the distributions whose version is its build; the
    first that is installed counts. clock: where the times of a pass's parts are read.
    told_by: the environment variable that says which build a host has. opened_by: what opens an
    engine on the GPU, a function from `run.running.OpenRequest` to an `Artifact`. build_by: what
    tells its build, where no single package does. bindings: the Python modules that can run its
    plans, best first. install: what `pip install` takes to run its engines from Python. magic: the
    first bytes of its plans, where their header says what made them (host/plan_header.py); such
    plans are portable. triton: the platform that Triton calls it by. provider: ONNX Runtime's
    name of its execution provider that runs models, or loads engines, there. context_model: True
    where its engines are ONNX models that hold a plan.
    """

    title: str
    packages: tuple[str, ...]
    clock: str = ""
    told_by: str = ""
    opened_by: str = ""
    build_by: str = ""
    bindings: tuple[str, ...] = ()
    install: str = ""
    magic: bytes = b""
    triton: str = ""
    provider: str = ""
    context_model: bool = False

    @property
    def portable(self) -> bool:
        return bool(self.magic)


_ORT = ("onnxruntime-gpu", "onnxruntime")
"""With both installed, the files of the later one are there: pip installs onnxruntime first."""

RUNTIMES: dict[str, RuntimeRow] = {
    "pytorch": RuntimeRow("PyTorch", ("torch",), clock="GPU, lone passes"),
    "onnxruntime-cpu": RuntimeRow("ONNX Runtime", _ORT, provider="CPUExecutionProvider"),
    "onnxruntime-cuda": RuntimeRow("ONNX Runtime CUDA", _ORT, provider="CUDAExecutionProvider"),
    "onnxruntime-tensorrt": RuntimeRow(
        "ONNX Runtime TensorRT",
        _ORT,
        told_by="ENGINEFARM_ORT_TENSORRT",
        opened_by="enginefarm.run.ort_engine:OrtEngine",
        build_by="enginefarm.host.runtimes:ort_tensorrt_build",
        install="onnxruntime-gpu tensorrt-cu12",
        provider="TensorrtExecutionProvider",
        context_model=True,
    ),
    "tensorrt": RuntimeRow(
        "TensorRT",
        (
            *("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-lean"),
            *("tensorrt-cu13-libs", "tensorrt-cu12-libs"),
        ),
        clock="GPU, queued passes",
        told_by="ENGINEFARM_TENSORRT",
        opened_by="enginefarm.run.artifacts:Plan",
        # The lean and dispatch runtimes run version-compatible plans only.
        bindings=(
            *("tensorrt", "tensorrt_bindings", "tensorrt_lean", "tensorrt_lean_bindings"),
            "tensorrt_dispatch_bindings",
        ),
        install="numpy pycuda tensorrt",
        triton="tensorrt_plan",
        provider="TensorrtExecutionProvider",
    ),
    "tensorrt-rtx": RuntimeRow(
        "TensorRT-RTX",
        ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu12-libs", "tensorrt-rtx"),
        clock="GPU, queued passes",
        told_by="ENGINEFARM_TENSORRT_RTX",
        opened_by="enginefarm.run.artifacts:Plan",
        bindings=("tensorrt_rtx", "tensorrt_rtx_bindings"),
        install="numpy pycuda tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs",
        magic=b"vtrt",
        provider="NvTensorRTRTXExecutionProvider",
    ),
}
"""In the order in which the report lists them."""


class ToolchainRow(NamedTuple):
    """One way to build.

    code: its class, a `toolchains.Toolchain`. runtime: what loads its plans on a host.
    timing_cache: True where it reads and writes TensorRT's own timing cache. refit: what sets new
    weights in its plans, a function for a child process (`pulling.refit`). no_refit: why nothing
    does.
    """

    code: str
    runtime: str
    timing_cache: bool = False
    refit: str = ""
    no_refit: str = "nothing sets new weights in its plans"


TOOLCHAINS: dict[str, ToolchainRow] = {
    "tensorrt": ToolchainRow(
        *("enginefarm.toolchains.tensorrt:TensorRT", "tensorrt", True),
        refit="enginefarm.run.refit:by_names",
    ),
    "trtexec": ToolchainRow(
        *("enginefarm.toolchains.trtexec:Trtexec", "tensorrt", True),
        no_refit="its option for refittable plans was never tried here",
    ),
    "ort-trt": ToolchainRow(
        *("enginefarm.toolchains.ort_trt:OrtTensorRT", "onnxruntime-tensorrt"),
        no_refit="ONNX Runtime's provider builds no refittable plans into its context models",
    ),
    "tensorrt-rtx": ToolchainRow(
        *("enginefarm.toolchains.tensorrt_rtx:TensorRTRTX", "tensorrt-rtx"),
        no_refit="TensorRT-RTX builds refittable plans only on a machine with a GPU, and "
        "cross-builds have none",
    ),
}
"""In the order in which `toolchain: auto` tries them: those that need the GPU come first."""

if TYPE_CHECKING:
    PrecisionName = RuntimeName = ToolchainName = ToolchainWish = str
else:
    # Models are checked against the tables; a type checker cannot read a Literal of a table.
    PrecisionName = Literal[tuple(PRECISIONS)]
    RuntimeName = Literal[tuple(RUNTIMES)]
    ToolchainName = Literal[tuple(TOOLCHAINS)]
    ToolchainWish = Literal["auto", ToolchainName]

PRECISION_NAMES = tuple(PRECISIONS)

PRECISION_ORDER = tuple(sorted(PRECISIONS, key=lambda name: PRECISIONS[name].rank))
"""What is taken when nobody asks for a precision: the least lossy fast one first."""


def runtime_of(toolchain: str) -> tuple[str, RuntimeRow]:
    """What loads the plans of a toolchain, and its row. Raises: KeyError."""
    name = TOOLCHAINS[toolchain].runtime
    return name, RUNTIMES[name]


def loaded(code: str) -> Any:
    """What `module:name` names; the module is imported."""
    module, _, name = code.partition(":")
    return getattr(import_module(module), name)
