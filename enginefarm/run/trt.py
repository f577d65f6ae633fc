"""What every TensorRT binding has, to build with and to run with: data types, and a logger.

`trt` is the imported binding (`tensorrt` or `tensorrt_rtx_bindings`): both are native
modules without types, hence `Any`.
"""

from __future__ import annotations

import re
from typing import Any

from enginefarm.documents.recipe import DType

DTYPES: dict[str, DType] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""trt.DataType by name -> ours."""

_NOISE = re.compile(r"cudaError 35\b|CUDA initialization failure with error: 35\b")
"""'No driver', which a cross-build says on every machine without a GPU, to no effect."""

_OUT_OF_MEMORY = re.compile(
    r"std::bad_alloc|out of memory|OutOfMemory|Requested amount of GPU memory", re.IGNORECASE
)


class Messages:
    """The errors that a builder logged. They hold causes that no return value does."""

    def __init__(self, *, echo: bool = True) -> None:
        self.errors: list[str] = []
        self._echo = echo

    def add(self, severity: str, text: str) -> None:
        if self._echo:
            print(f"[{severity[0]}] {text}", flush=True)
        if severity in {"ERROR", "INTERNAL_ERROR"} and not _NOISE.search(text):
            self.errors.append(tidy(text))

    def cause(self, lines: int = 3) -> str:
        """The last distinct errors, oldest first."""
        return "; ".join(list(dict.fromkeys(self.errors))[-lines:])

    def out_of_memory(self) -> bool:
        return any(_OUT_OF_MEMORY.search(text) for text in self.errors)


def tidy(text: str) -> str:
    """A native message without the noise about the missing driver, on one line."""
    kept = [line.strip() for line in text.splitlines() if not _NOISE.search(line)]
    return " ".join(line for line in kept if line)


_LOGGERS: list[Any] = []
"""Kept for as long as the process lives. TensorRT has a bare pointer to the first of them, and
what is destroyed after it may still write there: one build on an H100 died of SIGSEGV as its
locals were freed, its plan already written, and none since."""


def make_logger(trt: Any, messages: Messages) -> Any:
    """An ILogger that prints everything from INFO up and remembers errors.

    The first logger of a process wins, inside TensorRT: make one, and only one.
    """
    severity_info = trt.ILogger.Severity.INFO

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity <= severity_info:
                messages.add(severity.name, msg)

    made = Logger()
    _LOGGERS.append(made)
    return made
