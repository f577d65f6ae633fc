"""Memory and events by a library that is not pycuda: PyTorch, else NVIDIA's cuda-bindings."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

try:
    import torch
except ImportError:
    torch = None
    from cuda.bindings import driver  # pyright: ignore[reportAttributeAccessIssue]

NAME = "cuda-bindings" if torch is None else f"torch {torch.__version__}"


def ones(count: int) -> Any:
    """That many float32 1.0 on the GPU."""
    if torch is not None:
        return torch.ones(count, device="cuda")
    address = _ok(driver.cuMemAlloc(4 * count))
    values = np.ones(count, np.float32)
    _ok(driver.cuMemcpyHtoD(address, values.ctypes.data, values.nbytes))
    return address, count


def total(held: Any) -> float:
    if torch is not None:
        return float(held.sum())
    address, count = held
    values = np.zeros(count, np.float32)
    _ok(driver.cuMemcpyDtoH(values.ctypes.data, address, values.nbytes))
    return float(values.sum())


class Stopwatch:
    """Two events on somebody's stream."""

    def __init__(self, stream: int) -> None:
        if torch is not None:
            self._stream = torch.cuda.ExternalStream(stream)
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        else:
            self._stream = driver.CUstream(stream)
            self._events = [_ok(driver.cuEventCreate(0)) for _ in range(2)]

    def record(self, which: int) -> None:
        if torch is not None:
            self._events[which].record(self._stream)
        else:
            _ok(driver.cuEventRecord(self._events[which], self._stream))

    def ms(self) -> float:
        if torch is not None:
            return float(self._events[0].elapsed_time(self._events[1]))
        return float(_ok(driver.cuEventElapsedTime(*self._events)))


def _ok(result: Any) -> Any:
    status, *values = result
    assert int(status) == 0, status
    return values[0] if values else ctypes.c_int(0)
