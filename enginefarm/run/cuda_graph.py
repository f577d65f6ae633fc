"""CUDA graphs through the driver API: pycuda has none.

One launch instead of one per kernel; the gain is the host's time between kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from enginefarm.errors import EngineRunError

THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


class CudaGraph:
    """A captured and instantiated graph."""

    def __init__(self, driver: Any, executable: ctypes.c_void_p) -> None:
        self._driver = driver
        self._executable = executable

    def launch(self, stream: int) -> None:
        _check(
            self._driver.cuGraphLaunch(self._executable, ctypes.c_void_p(stream)), "cuGraphLaunch"
        )

    def __del__(self) -> None:
        self._driver.cuGraphExecDestroy(self._executable)


def capture(stream: int, enqueue: Callable[[], None]) -> CudaGraph:
    """What `enqueue` puts on the stream, as a graph. Nothing runs.

    Raises: EngineRunError when the work cannot be captured.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    handle, graph, executable = ctypes.c_void_p(stream), ctypes.c_void_p(), ctypes.c_void_p()
    _check(driver.cuStreamBeginCapture_v2(handle, THREAD_LOCAL), "cuStreamBeginCapture")
    try:
        enqueue()
    finally:
        status = driver.cuStreamEndCapture(handle, ctypes.byref(graph))
    _check(status, "cuStreamEndCapture")
    try:
        made = driver.cuGraphInstantiateWithFlags(
            ctypes.byref(executable), graph, ctypes.c_ulonglong(0)
        )
        _check(made, "cuGraphInstantiate")
    finally:
        driver.cuGraphDestroy(graph)
    return CudaGraph(driver, executable)


def _check(status: int, call: str) -> None:
    if status != 0:
        raise EngineRunError(
            f"CUDA graph: {call} returned error {status}",
            why="the engine does something that cannot be captured, or the driver is too old",
            fix="measure and run it without a CUDA graph",
        )
