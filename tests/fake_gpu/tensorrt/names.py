"""Enumerations, and the classes that callers derive from."""

from __future__ import annotations

import enum
from typing import Any

from onnx import TensorProto

FAULTS = ("load", "enqueue", "gpu", "build", "parse", "lost_option", "merged", "unsteady", "deaf")
"""load, enqueue, build: what the log says when that step refuses. gpu: what CUDA says later.
parse: the operator that the parser does not know. lost_option: a setting that does not stick.
merged: names of weights, of which all must be set. unsteady: each serialization makes other bytes.
deaf: a refit that sets nothing."""


class DataType(enum.Enum):
    FLOAT = TensorProto.FLOAT
    HALF = TensorProto.FLOAT16
    BF16 = TensorProto.BFLOAT16
    INT64 = TensorProto.INT64
    INT32 = TensorProto.INT32
    INT8 = TensorProto.INT8
    UINT8 = TensorProto.UINT8
    BOOL = TensorProto.BOOL
    FP8 = TensorProto.FLOAT8E4M3FN


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class LayerInformationFormat(enum.Enum):
    JSON = 1


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY = 0
    DETAILED = 2


class HardwareCompatibilityLevel(enum.Enum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class BuilderFlag(enum.IntEnum):
    FP16 = 0
    INT8 = 1
    REFIT = 4
    TF32 = 6
    SPARSE_WEIGHTS = 7
    VERSION_COMPATIBLE = 13
    STRIP_PLAN = 17


class TacticSource(enum.IntEnum):
    CUBLAS = 0
    CUDNN = 2
    JIT_CONVOLUTIONS = 4


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def log(self, severity: Any, msg: str) -> None: ...


class Logger(ILogger): ...


class IProgressMonitor: ...


class IOutputAllocator: ...


class IProfiler: ...


def init_libnvinfer_plugins(logger: ILogger, namespace: str) -> bool:
    return True
