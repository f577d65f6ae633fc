"""A GPU made of numpy. As on a real one, work put on a stream happens later: at the earliest
when somebody waits for it. So outputs that are read too soon are wrong here too.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

DIARY: list[str] = []
"""What was made and freed, in order."""

STREAMS: dict[int, Stream] = {}
MEMORY: dict[int, Any] = {}
TOTAL_BYTES = 1 << 30

_addresses = itertools.count(1 << 20, 1 << 32)
_handles = itertools.count(1)
_current: list[Context] = []


class Error(Exception):
    """What CUDA reports, mostly when one waits."""


class MemoryError(Error):
    """No room on the GPU."""


def init() -> None:
    if os.environ.get("FAKE_GPU") == "dead":
        raise Error("cuInit failed: unknown error")


def get_driver_version() -> int:
    return int(os.environ.get("FAKE_GPU_CUDA", "13000"))


class Context:
    def push(self) -> None:
        _current.append(self)
        DIARY.append("context entered")

    @staticmethod
    def pop() -> None:
        _current.pop()
        DIARY.append("context left")


class Device:
    def __init__(self, index: int) -> None:
        self.index = index

    def name(self) -> str:
        return "Fake A100"

    def retain_primary_context(self) -> Context:
        return Context()


class Allocation:
    def __init__(self, size: int) -> None:
        assert _current, "no context is current"
        self._address = next(_addresses)
        MEMORY[self._address] = np.zeros(size, np.uint8)

    def __int__(self) -> int:
        return self._address

    def __del__(self) -> None:
        MEMORY.pop(self._address, None)


def mem_get_info() -> tuple[int, int]:
    return TOTAL_BYTES - sum(one.nbytes for one in MEMORY.values()), TOTAL_BYTES


def mem_alloc(size: int) -> Allocation:
    if size > mem_get_info()[0]:
        raise MemoryError("cuMemAlloc failed: out of memory")
    return Allocation(size)


def to_device(array: Any) -> Allocation:
    made = mem_alloc(array.nbytes)
    MEMORY[int(made)][:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return made


def pagelocked_empty(size: int, dtype: Any) -> Any:
    return np.full(size, 0xAB, dtype)


class Stream:
    def __init__(self) -> None:
        self.handle = next(_handles)
        self._queue: list[Callable[[], None]] = []
        STREAMS[self.handle] = self

    def put(self, work: Callable[[], None]) -> None:
        self._queue.append(work)

    def take(self) -> list[Callable[[], None]]:
        """What was put on it since the last wait, not done: for a capture."""
        taken, self._queue = self._queue, []
        return taken

    def synchronize(self) -> None:
        for work in self.take():
            work()


class Event:
    def record(self, stream: Stream) -> None:
        self._stream = stream
        stream.put(self._mark)

    def _mark(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        self._stream.synchronize()

    def time_since(self, earlier: Event) -> float:
        return 1000 * (self.at - earlier.at)


def memcpy_htod_async(dest: Allocation, source: Any, stream: Stream) -> None:
    def copy() -> None:
        MEMORY[int(dest)][: source.nbytes] = source

    stream.put(copy)


def memcpy_dtoh(dest: Any, source: Allocation) -> None:
    dest.reshape(-1).view(np.uint8)[:] = MEMORY[int(source)][: dest.nbytes]


def memcpy_dtoh_async(dest: Any, source: Allocation, stream: Stream) -> None:
    def copy() -> None:
        dest[:] = MEMORY[int(source)][: dest.nbytes]

    stream.put(copy)
