"""TensorRT 10, as far as enginefarm calls it. A plan is JSON: the ONNX model, and what the
builder was asked for. Engines compute with ONNX's reference evaluator.

Every name here is one of the real bindings': tests/unit/toolchains/test_fake_gpu.py compares.
A model's metadata may name a fault, as `FAULTS` of names.py lists them.
"""

from .building import (
    Builder,
    IBuilderConfig,
    INetworkDefinition,
    IOptimizationProfile,
    ITimingCache,
    OnnxParser,
)
from .loading import (
    EngineInspector,
    ICudaEngine,
    IExecutionContext,
    Refitter,
    Runtime,
    Weights,
)
from .names import (
    BuilderFlag,
    DataType,
    HardwareCompatibilityLevel,
    ILogger,
    IOutputAllocator,
    IProfiler,
    IProgressMonitor,
    LayerInformationFormat,
    Logger,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    ProfilingVerbosity,
    TacticSource,
    TensorIOMode,
    TensorLocation,
    init_libnvinfer_plugins,
)

__version__ = "10.16.1.11"

__all__ = [
    "Builder",
    "BuilderFlag",
    "DataType",
    "EngineInspector",
    "HardwareCompatibilityLevel",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IOutputAllocator",
    "IProfiler",
    "IProgressMonitor",
    "ITimingCache",
    "LayerInformationFormat",
    "Logger",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ProfilingVerbosity",
    "Refitter",
    "Runtime",
    "TacticSource",
    "TensorIOMode",
    "TensorLocation",
    "Weights",
    "init_libnvinfer_plugins",
]
