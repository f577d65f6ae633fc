"""Runs the artifacts of toolchain ort-trt on the GPU: ONNX files whose one node, EPContext, holds
the engine, and which ONNX Runtime's TensorRT provider loads."""

from __future__ import annotations

from typing import Any

from enginefarm.errors import EngineRunError, HostError, one_line
from enginefarm.graph.model import ort
from enginefarm.host.detect import first_gpu
from enginefarm.names import runtime_of
from enginefarm.run.contenders import OrtContender
from enginefarm.run.engine import require_driver
from enginefarm.run.refusals import refused
from enginefarm.run.running import Closeable, OpenRequest

PROVIDER = "TensorrtExecutionProvider"


class OrtEngine(Closeable):
    """An artifact of ort-trt, loaded on the first GPU. Use it in a `with`."""

    def __init__(self, asked: OpenRequest) -> None:
        """Raises: HostError, DriverTooOld, EngineRunError."""
        plan, plugins, cuda_major = asked.plan, asked.plugins, asked.cuda_major
        self._runtime = runtime_of(asked.toolchain)[0]
        gpu = first_gpu()
        if gpu is None:
            raise HostError(
                "this host has no NVIDIA driver, or no GPU", fix="run this on a GPU host"
            )
        if cuda_major is not None and gpu.driver_cuda is not None:
            require_driver(gpu.driver_cuda, cuda_major)
        self._name = plan.name
        self.device_name = gpu.name
        options = {"trt_extra_plugin_lib_paths": ";".join(map(str, plugins))} if plugins else {}
        try:
            # Its graph is one node: there is nothing to optimize, and it loads sooner.
            self._session: Any = ort.on_provider(plan, PROVIDER, options, optimize=False)
        except HostError:
            raise
        except Exception as error:
            raise refused(plan, "cannot be loaded", gpu.name, one_line(error)) from error

    def running(self, name: str, *, profile: int = 0, cuda_graph: bool = False) -> OrtContender:
        """profile: it has one. Raises: EngineRunError where a CUDA graph is wanted."""
        if cuda_graph:
            raise EngineRunError(
                f"{self._name}: no CUDA graph of it can be captured",
                why="ONNX Runtime captures its own",
            )
        return OrtContender(name, self._session, runtime=self._runtime)

    def close(self) -> None:
        """Frees the engine."""
        self._session = None
