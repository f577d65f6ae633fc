"""Pinned host memory and device memory of one tensor, through pycuda."""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any

from enginefarm.documents.manifest import TensorInfo
from enginefarm.errors import DeviceOutOfMemory, EngineRunError

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Array


ALIGNMENT = 256


def numpy_dtype(tensor: TensorInfo) -> Any:
    """The numpy type of a tensor's elements; bfloat16 is ml_dtypes'."""
    import numpy as np

    if tensor.dtype == "bfloat16":
        return np.dtype(import_module("ml_dtypes").bfloat16)
    return np.dtype(tensor.dtype)


def as_dtype(array: Array, tensor: TensorInfo) -> Array:
    """The array in the tensor's type. Only conversions that lose no integer are made.

    Raises: EngineRunError, naming the input.
    """
    import numpy as np

    wanted = numpy_dtype(tensor)
    if array.dtype == wanted:
        return np.ascontiguousarray(array)
    floats = array.dtype.kind == "f" and tensor.dtype in {"float16", "float32", "bfloat16"}
    if not floats and not np.can_cast(array.dtype, wanted, casting="safe"):
        raise EngineRunError(
            f"input {tensor.name!r} is {array.dtype}, and the engine takes {tensor.dtype}",
            fix="convert it first",
        )
    return np.ascontiguousarray(array.astype(wanted))


class Buffer:
    """Grows as needed, never shrinks, so that addresses stay while shapes do."""

    def __init__(self, cuda: Any, tensor: TensorInfo) -> None:
        self._cuda = cuda
        self._dtype = numpy_dtype(tensor)
        self._name = tensor.name
        self._capacity = 0
        self._host: Any = None
        self._device: Any = None
        self.shape: tuple[int, ...] = ()

    @property
    def host_address(self) -> int:
        return int(self._host.ctypes.data)

    @property
    def device_address(self) -> int:
        return int(self._device)

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * int(self._dtype.itemsize)

    def reserve(self, shape: tuple[int, ...]) -> None:
        """Room for an array of this shape, on both sides."""
        self.shape = shape
        self.reserve_bytes(self.size_bytes)

    def reserve_bytes(self, size_bytes: int) -> None:
        """Raises: EngineRunError when the GPU has too little memory."""
        size_bytes = max(size_bytes, ALIGNMENT)
        if size_bytes <= self._capacity:
            return
        import numpy as np

        self._device = self._host = None
        try:
            self._device = self._cuda.mem_alloc(size_bytes)
            self._host = self._cuda.pagelocked_empty(size_bytes, np.uint8)
        except self._cuda.MemoryError:
            free, total = self._cuda.mem_get_info()
            raise DeviceOutOfMemory(
                f"tensor {self._name!r}: the GPU has no room for {size_bytes >> 20} MiB",
                why=f"{free >> 20} of {total >> 20} MiB are free",
                fix="run a smaller batch, or free GPU memory",
            ) from None
        self._capacity = size_bytes

    def free(self) -> None:
        """Now, though an output allocator or a traceback may refer to this buffer for longer."""
        self._device = self._host = None
        self._capacity = 0

    def fill(self, array: Array) -> None:
        import numpy as np

        self.reserve(tuple(array.shape))
        view = self._host[: self.size_bytes]
        view[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def to_device(self, stream: Any) -> None:
        if self.size_bytes:
            self._cuda.memcpy_htod_async(self._device, self._host[: self.size_bytes], stream)

    def to_host(self, stream: Any) -> None:
        if self.size_bytes:
            self._cuda.memcpy_dtoh_async(self._host[: self.size_bytes], self._device, stream)

    def array(self) -> Array:
        """A copy of the host side."""
        view = self._host[: self.size_bytes].view(self._dtype)
        return view.reshape(self.shape).copy()


def make_allocator(trt: Any, buffer: Buffer) -> Any:
    """An IOutputAllocator that keeps one data-dependent output in `buffer`."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        def reallocate_output_async(
            self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def reallocate_output(
            self, tensor_name: str, memory: int, size: int, alignment: int
        ) -> int:
            try:
                buffer.reserve_bytes(size)
            except EngineRunError:
                return 0  # the engine then fails, and says which output it was
            return buffer.device_address

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            buffer.shape = tuple(shape)

    return Allocator()
