"""One execution context of an engine, with its own stream and buffers."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from enginefarm.documents.manifest import TensorInfo
from enginefarm.errors import EngineRunError
from enginefarm.run import buffers as cuda_buffers
from enginefarm.run.running import Closeable

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Array, Arrays
    from enginefarm.run.engine import Engine


class Session(Closeable):
    """One execution context: bind, then copy_in, compute and copy_out as often as wanted."""

    def __init__(self, engine: Engine, profile: int, cuda_graph: bool) -> None:
        self._engine = engine
        self._cuda = engine.cuda
        self.stream: Any = engine.cuda.Stream()
        self.context: Any = engine.engine.create_execution_context()
        if self.context is None:
            raise engine.failure("has no room for an execution context")
        if not self.context.set_optimization_profile_async(profile, self.stream.handle):
            raise engine.failure(f"refuses profile {profile}")
        self.stream.synchronize()
        self._buffers: dict[str, cuda_buffers.Buffer] = {}
        self._allocators: dict[str, Any] = {}
        self._copied: dict[str, list[cuda_buffers.Buffer]] = {"input": [], "output": []}
        self._wants_graph = cuda_graph
        self._graph: Any = None

    def close(self) -> None:
        self.stream.synchronize()
        self._graph = None
        self.context = None
        self._allocators.clear()
        self._copied = {}
        for buffer in self._buffers.values():
            buffer.free()
        self._buffers.clear()

    def bind(self, feeds: Mapping[str, Array]) -> None:
        """Sets shapes, copies the inputs into pinned host memory, sizes the outputs.

        Raises: EngineRunError, which names the input and the profile's bounds.
        """
        tensors = self._engine.tensors
        wanted = {tensor.name for tensor in tensors if tensor.role == "input"}
        if wanted != set(feeds):
            raise EngineRunError(
                f"{self._engine.plan.name}: its inputs are {', '.join(sorted(wanted))}; "
                f"given were {', '.join(sorted(feeds))}"
            )
        self._graph = None
        for tensor in tensors:
            if tensor.role == "input":
                self._bind_input(tensor, feeds[tensor.name])
        missing = self.context.infer_shapes()
        if missing:
            raise self._engine.failure(f"lacks shapes of {', '.join(missing)}")
        for tensor in tensors:
            if tensor.role == "output":
                self._bind_output(tensor)
        # Asked once, and not in each pass: the engine's answers take longer than a small copy.
        self._copied = {
            role: [
                self._buffers[one.name]
                for one in tensors
                if one.role == role and not self._engine.on_host(one.name)
            ]
            for role in ("input", "output")
        }
        if self._wants_graph:
            self._capture()

    def _bind_input(self, tensor: TensorInfo, array: Array) -> None:
        name = tensor.name
        buffer = self._buffer(tensor)
        buffer.fill(cuda_buffers.as_dtype(array, tensor))
        on_host = self._engine.on_host(name)
        if not on_host and not self._takes(name, tuple(array.shape)):
            profile = int(self.context.active_optimization_profile)
            bounds = self._engine.profile_shapes(profile)[name]
            raise EngineRunError(
                f"input {name!r}: shape {tuple(array.shape)} is outside profile {profile}",
                why=f"it takes {bounds.min} to {bounds.max}",
                fix="use another profile, or rebuild with a wider one",
            )
        self.context.set_tensor_address(
            name, buffer.host_address if on_host else buffer.device_address
        )

    def _takes(self, name: str, shape: tuple[int, ...]) -> bool:
        # TensorRT 8.6 takes a shape outside the profile here, and crashes at the next call.
        profile = int(self.context.active_optimization_profile)
        bounds = self._engine.profile_shapes(profile)[name]
        inside = len(shape) == len(bounds.min) and all(
            low <= dim <= high for low, dim, high in zip(bounds.min, shape, bounds.max, strict=True)
        )
        return inside and bool(self.context.set_input_shape(name, shape))

    def _bind_output(self, tensor: TensorInfo) -> None:
        shape = tuple(self.context.get_tensor_shape(tensor.name))
        buffer = self._buffer(tensor)
        if any(dim < 0 for dim in shape):
            # Known only once it has run: the engine asks for memory as it goes.
            if tensor.name not in self._allocators:
                allocator = cuda_buffers.make_allocator(self._engine.trt, buffer)
                self._allocators[tensor.name] = allocator
            self.context.set_output_allocator(tensor.name, self._allocators[tensor.name])
            return
        buffer.reserve(shape)
        on_host = self._engine.on_host(tensor.name)
        self.context.set_tensor_address(
            tensor.name, buffer.host_address if on_host else buffer.device_address
        )

    def _buffer(self, tensor: TensorInfo) -> cuda_buffers.Buffer:
        if tensor.name not in self._buffers:
            self._buffers[tensor.name] = cuda_buffers.Buffer(self._cuda, tensor)
        return self._buffers[tensor.name]

    def copy_in(self) -> None:
        for buffer in self._copied["input"]:
            buffer.to_device(self.stream)

    def compute(self) -> None:
        """Enqueues the engine (or the captured CUDA graph) on `stream`.

        Raises: EngineRunError.
        """
        if self._graph is not None:
            self._graph.launch(self.stream.handle)
        elif not self.context.execute_async_v3(self.stream.handle):
            raise self._engine.failure("failed to run")

    def copy_out(self) -> None:
        if self._allocators:
            self.stream.synchronize()  # sizes are known only now
        for buffer in self._copied["output"]:
            buffer.to_host(self.stream)

    def enqueue(self) -> None:
        """A whole pass: copies in, computes and copies out. Raises: EngineRunError."""
        self.copy_in()
        self.compute()
        self.copy_out()

    def outputs(self) -> Arrays:
        """Waits, and returns copies of the outputs.

        Raises: EngineRunError for an error that the GPU reports only now.
        """
        try:
            self.stream.synchronize()
        except self._cuda.Error as error:
            raise EngineRunError(
                f"{self._engine.plan.name}: the GPU failed while running it", why=str(error)
            ) from None
        return {
            name: self._buffers[name].array()
            for name in self._engine.names
            if self._engine.role(name) == "output"
        }

    def _capture(self) -> None:
        if self._allocators:
            raise EngineRunError(
                f"{self._engine.plan.name}: no CUDA graph of it can be captured",
                why=f"the size of {', '.join(self._allocators)} depends on the data",
            )
        graph = import_module("enginefarm.run.cuda_graph")
        self.compute()  # the first run may allocate, which must not happen while capturing
        self.stream.synchronize()
        self._graph = graph.capture(self.stream.handle, self.compute)
