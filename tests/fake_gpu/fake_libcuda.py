"""CUDA graphs of the driver API, over the fake pycuda's streams: for `ctypes.CDLL`."""

from __future__ import annotations

import itertools
from typing import Any

from pycuda import driver


class Libcuda:
    """refuses: the status that ending a capture gives."""

    def __init__(self, refuses: int = 0) -> None:
        self.launched = 0
        self.alive: set[int] = set()
        self._refuses = refuses
        self._numbers = itertools.count(1)
        self._work: list[Any] = []

    def cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> int:
        assert not driver.STREAMS[stream.value].take(), "work was waiting when the capture began"
        return 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:
        self._work = driver.STREAMS[stream.value].take()
        graph._obj.value = next(self._numbers)
        return self._refuses

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> int:
        executable._obj.value = next(self._numbers)
        self.alive.add(executable._obj.value)
        return 0

    def cuGraphDestroy(self, graph: Any) -> int:
        return 0

    def cuGraphExecDestroy(self, executable: Any) -> int:
        self.alive.remove(executable.value)
        return 0

    def cuGraphLaunch(self, executable: Any, stream: Any) -> int:
        assert executable.value in self.alive
        self.launched += 1
        for work in self._work:
            driver.STREAMS[stream.value].put(work)
        return 0
