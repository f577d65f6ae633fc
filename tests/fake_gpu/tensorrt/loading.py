"""From a plan to outputs."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from pycuda import driver

from .names import DataType, ILogger, TensorIOMode, TensorLocation


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def get_plugin_registry(self) -> Any:
        return self

    def load_library(self, library: str) -> object:
        driver.DIARY.append(f"plugin {library}")
        return library

    def deserialize_cuda_engine(self, data: bytes) -> ICudaEngine | None:
        try:
            plan = json.loads(data)
        except ValueError:
            refused = "Serialization assertion magicTag == rt::kMAGIC_TAG failed. Version tag"
        else:
            refused = plan["faults"].get("load", "")
        if refused:
            self._logger.log(ILogger.Severity.ERROR, refused)
            return None
        return ICudaEngine(plan, self._logger)

    def __del__(self) -> None:
        driver.DIARY.append("runtime freed")


class ICudaEngine:
    def __init__(self, plan: dict[str, Any], logger: ILogger) -> None:
        self._plan = plan
        self._logger = logger
        self._model = onnx.load_from_string(base64.b64decode(plan["onnx"]))
        graph = self._model.graph
        self._tensors = {tensor.name: tensor for tensor in [*graph.input, *graph.output]}
        self._inputs = {tensor.name for tensor in graph.input}
        self.num_optimization_profiles = len(plan["profiles"])
        self.num_io_tensors = len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self._tensors[name].type.tensor_type.elem_type)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        dims = self._tensors[name].type.tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        # The reshape's second input: its values are needed before the GPU starts.
        reshaped = {node.input[1] for node in self._model.graph.node if node.op_type == "Reshape"}
        return TensorLocation.HOST if name in reshaped else TensorLocation.DEVICE

    def is_shape_inference_io(self, name: str) -> bool:
        return self.get_tensor_location(name) is TensorLocation.HOST

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self._plan["profiles"][profile][name]]

    def serialize(self) -> bytes:
        plan = self._plan | {"onnx": base64.b64encode(self._model.SerializeToString()).decode()}
        if "unsteady" in plan["faults"]:
            plan["made"] = time.time()
        return json.dumps(plan).encode()

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)

    def __del__(self) -> None:
        driver.DIARY.append("engine freed")


class Weights:
    def __init__(self, values: Any) -> None:
        self.numpy = values


class Refitter:
    """Knows initializers by their names if the plan was built with REFIT."""

    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        if "REFIT" not in engine._plan["asked"]["flags"]:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._engine = engine
        self._set: dict[str, Weights] = {}

    def get_all_weights(self) -> list[str]:
        return [one.name for one in self._engine._model.graph.initializer]

    def set_named_weights(self, name: str, weights: Weights) -> bool:
        self._set[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        merged = self._engine._plan["faults"].get("merged", "").split()
        return sorted(set(merged) - self._set.keys()) if self._set.keys() & set(merged) else []

    def refit_cuda_engine(self) -> bool:
        for tensor in self._engine._model.graph.initializer:
            if tensor.name in self._set and "deaf" not in self._engine._plan["faults"]:
                new = onnx.numpy_helper.from_array(self._set[tensor.name].numpy, tensor.name)
                tensor.CopyFrom(new)
        return True


class EngineInspector:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine

    def get_engine_information(self, kind: Any) -> str:
        nodes = self._engine._model.graph.node
        return json.dumps({"Layers": [{"Name": n.name, "LayerType": n.op_type} for n in nodes]})


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self.active_optimization_profile = 0
        self.profiler: Any = None

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.active_optimization_profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)  # as 8.6 does, whatever the profile says
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self._allocators[name] = allocator
        return True

    def infer_shapes(self) -> list[str]:
        engine = self._engine
        return [
            name
            for name in engine._inputs
            if engine.get_tensor_location(name) is TensorLocation.DEVICE
            and name not in self._shapes
        ]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        sizes = {
            dim.dim_param: size
            for tensor, shape in self._shapes.items()
            for dim, size in zip(
                self._engine._tensors[tensor].type.tensor_type.shape.dim, shape, strict=True
            )
            if dim.dim_param
        }
        dims = self._engine._tensors[name].type.tensor_type.shape.dim
        return tuple(
            dim.dim_value if dim.HasField("dim_value") else sizes.get(dim.dim_param, -1)
            for dim in dims
        )

    def execute_async_v3(self, stream: int) -> bool:
        refused = self._engine._plan["faults"].get("enqueue")
        if refused:
            self._engine._logger.log(ILogger.Severity.ERROR, refused)
            return False
        driver.STREAMS[stream].put(self._compute)
        return True

    def _compute(self) -> None:
        plan, engine = self._engine._plan, self._engine
        if plan["faults"].get("gpu"):
            raise driver.Error(plan["faults"]["gpu"])
        time.sleep(plan["asked"]["seconds"])
        feeds = {name: self._value(name) for name in engine._inputs}
        found = ReferenceEvaluator(engine._model).run(None, feeds)
        for place, node in enumerate(engine._model.graph.node if self.profiler else ()):
            self.profiler.report_layer_time(node.name, 0.25 * (place + 1))
        for tensor, value in zip(engine._model.graph.output, found, strict=True):
            self._store(tensor.name, np.ascontiguousarray(value))

    def _value(self, name: str) -> Any:
        address = self._addresses[name]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self._engine.get_tensor_dtype(name).value)
        shape = self._shapes.get(name) or self._engine.get_tensor_shape(name)
        size = int(np.prod(shape)) * dtype.itemsize
        if address in driver.MEMORY:
            held = driver.MEMORY[address][:size]
        else:  # a shape tensor: host memory
            held = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * size).from_address(address))
        return held.view(dtype).reshape(shape).copy()

    def _store(self, name: str, value: Any) -> None:
        allocator = self._allocators.get(name)
        if allocator is None:
            address = self._addresses[name]
        else:
            address = allocator.reallocate_output_async(name, 0, value.nbytes, 256, 0)
            if not address:
                raise driver.Error(f"no memory for output {name}")
            allocator.notify_shape(name, value.shape)
        driver.MEMORY[address][: value.nbytes] = value.reshape(-1).view(np.uint8)

    def __del__(self) -> None:
        driver.DIARY.append("execution context freed")
