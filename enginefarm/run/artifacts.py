"""Opens what a toolchain built on this machine's GPU, behind one interface.

with open_artifact(OpenRequest(plan=plan, toolchain="ort-trt")) as artifact:
    running = artifact.running("int8")
    running.bind(feeds)
    running.iterate()
    outputs = running.outputs()
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from enginefarm.errors import HostError
from enginefarm.names import TOOLCHAINS, loaded, runtime_of
from enginefarm.run.contenders import EngineContender
from enginefarm.run.engine import Engine
from enginefarm.run.remote import RemoteContender
from enginefarm.run.running import Closeable, Contender, OpenRequest, RunRequest


class RunningArtifact(Contender, Protocol):
    """An artifact on one profile, with its own buffers. Close it before the artifact."""

    def close(self) -> None: ...


class Artifact(AbstractContextManager["Artifact"], Protocol):
    """A plan or model that is loaded."""

    device_name: str

    def running(self, name: str, *, profile: int = 0, cuda_graph: bool = False) -> RunningArtifact:
        """Raises: EngineRunError when there is no such profile."""
        ...


class Plan(Closeable):
    """A plan of TensorRT or TensorRT-RTX."""

    def __init__(self, asked: OpenRequest) -> None:
        self._runtime = runtime_of(asked.toolchain)[0]
        self._engine = Engine(
            asked.plan,
            toolchain=asked.toolchain,
            plugins=asked.plugins,
            cuda_major=asked.cuda_major,
        )
        self.device_name = self._engine.device_name

    def running(self, name: str, *, profile: int = 0, cuda_graph: bool = False) -> RunningArtifact:
        return EngineContender(
            name, self._engine, runtime=self._runtime, profile=profile, cuda_graph=cuda_graph
        )

    def close(self) -> None:
        self._engine.close()


def open_artifact(asked: OpenRequest) -> Artifact:
    """Loads it on the GPU. Use it in a `with`.

    Raises: HostError, DriverTooOld, EngineRunError.
    """
    if asked.toolchain not in TOOLCHAINS:
        raise HostError(f"plans of toolchain {asked.toolchain!r} are not run here")
    opened: Artifact = loaded(runtime_of(asked.toolchain)[1].opened_by)(asked)
    return opened


def in_a_process(name: str, asked: RunRequest) -> RemoteContender:
    """One artifact on one profile, in a fresh process that ends with it.

    Raises: EngineRunError when it does not load.
    """
    return RemoteContender(
        name,
        runtime=runtime_of(asked.toolchain)[0],
        factory="enginefarm.run.artifacts:run_asked",
        arguments=[asked.model_dump_json()],
    )


def run_asked(request: str) -> RunningArtifact:
    """The other side of `in_a_process`."""
    asked = RunRequest.model_validate_json(request)
    artifact = open_artifact(asked)
    return artifact.running(str(asked.plan), profile=asked.profile, cuda_graph=asked.cuda_graph)
