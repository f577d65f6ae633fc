"""What every TensorRT binding has, to build with and to run with: data types, and a logger.

`trt` is the imported binding (`tensorrt` or `tensorrt_rtx_bindings`): both are native
modules without types, hence `Any`.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from enginefarm.documents import builder
from enginefarm.documents.builder import DType
from enginefarm.errors import HostError, PluginMissing
from enginefarm.run.refusals import not_started

DTYPES: dict[str, DType] = {row.tensorrt: name for name, row in builder.DTYPES.items()}
"""The name of a trt.DataType -> ours."""

_NOISE = re.compile(r"cudaError 35\b|CUDA initialization failure with error: 35\b")
"""'No driver', which a cross-build says on every machine without a GPU, to no effect."""


class Messages:
    """The errors that a builder logged. They hold causes that no return value does."""

    def __init__(self, *, echo: bool = True) -> None:
        self.errors: list[str] = []
        self._all: list[str] = []
        self._echo = echo

    def add(self, severity: str, text: str) -> None:
        if self._echo:
            print(f"[{severity[0]}] {text}", flush=True)
        if severity in {"ERROR", "INTERNAL_ERROR"}:
            self._all.append(" ".join(text.split()))
            if not _NOISE.search(text):
                self.errors.append(tidy(text))

    def cause(self) -> str:
        """The last three distinct errors, oldest first."""
        return "; ".join(list(dict.fromkeys(self.errors))[-3:])

    def everything(self) -> str:
        """All of them, those about a missing driver too."""
        return "; ".join(dict.fromkeys(self._all))


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


def create(what: str, factory: Callable[..., Any], *arguments: Any, messages: Messages) -> Any:
    """What a factory of the bindings makes: `trt.Builder`, `trt.Runtime`, `trt.OnnxParser` …

    They raise TypeError ("factory function returned nullptr") where the library returns nothing;
    its methods (`create_network` …) return None.
    Raises: HostError with the library's own words.
    """
    try:
        made = factory(*arguments)
    except (TypeError, RuntimeError, MemoryError) as error:
        raise not_started(f"{what} does not start", messages.everything() or str(error)) from None
    if made is None:
        raise not_started(f"{what} does not start", messages.everything())
    return made


def load_plugins(registry: Any, libraries: Iterable[Path], messages: Messages) -> None:
    """Loads plugin libraries into a registry of TensorRT's.

    Raises: PluginMissing for a file that is not a library, and for one without a plugin. The
    registry itself returns None for both and logs nothing.
    """
    for library in libraries:
        before = _creators(registry)
        if registry.load_library(str(library)) is not None:
            continue
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            raise PluginMissing(
                f"plugin library {library.name} cannot be loaded",
                why=str(error),
                fix="build it for this machine, and install what it links",
            ) from None
        # Libraries whose plugins register themselves as they load have no getCreators.
        if _creators(registry) == before:
            raise PluginMissing(
                f"plugin library {library.name} holds no TensorRT plugin",
                why=messages.cause()
                or "it exports neither getCreators nor getPluginCreators, and registers none",
                fix="build it for this major version of TensorRT",
            )


def started(
    trt: Any, what: str, factory: Any, plugins: Iterable[Path], messages: Messages
) -> tuple[Any, Any]:
    """TensorRT's logger, and its builder or runtime, with TensorRT's own plugins and these.

    what: as `create`'s. Raises: HostError, PluginMissing.
    """
    logger = make_logger(trt, messages)
    # They are in no registry until this call. The lean and dispatch runtimes and TensorRT-RTX have
    # none.
    if hasattr(trt, "init_libnvinfer_plugins") and not trt.init_libnvinfer_plugins(logger, ""):
        raise HostError(
            "TensorRT's own plugins cannot be loaded",
            why=messages.everything(),
            fix="install libnvinfer_plugin of the same TensorRT release",
        )
    made = create(what, factory, logger, messages=messages)
    if libraries := [*plugins]:
        load_plugins(made.get_plugin_registry(), libraries, messages)
    return logger, made


def _creators(registry: Any) -> int:
    # 10 and later list the newer kinds of creators too, under another name.
    for name in ("all_creators", "plugin_creator_list"):
        if hasattr(registry, name):
            return len(getattr(registry, name))
    return 0
