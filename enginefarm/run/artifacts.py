"""Opens what a toolchain built on this machine's GPU, behind one interface.

with open_artifact(plan, toolchain="ort-trt") as artifact:
    running = artifact.running("int8")
    running.bind(feeds)
    running.iterate()
    outputs = running.outputs()
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from enginefarm.errors import HostError
from enginefarm.names import TOOLCHAINS, loaded, runtime_of
from enginefarm.run.contenders import EngineContender
from enginefarm.run.engine import Engine
from enginefarm.run.remote import RemoteContender, this_python
from enginefarm.run.running import Closeable, Contender


class RunningArtifact(Contender, Protocol):
    """An artifact on one profile, with buffers of its own. Close it before the artifact."""

    def close(self) -> None: ...


class Artifact(AbstractContextManager["Artifact"], Protocol):
    """A plan or model that is loaded."""

    device_name: str

    def running(self, name: str, *, profile: int = 0, cuda_graph: bool = False) -> RunningArtifact:
        """Raises: EngineRunError when there is no such profile."""
        ...


class OpenRequest(NamedTuple):
    """What to open, and how; see `open_artifact`."""

    plan: Path
    toolchain: str
    plugins: Sequence[Path]
    cuda_major: int | None


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


def open_artifact(
    plan: Path,
    *,
    toolchain: str,
    plugins: Sequence[Path] = (),
    cuda_major: int | None = None,
) -> Artifact:
    """Loads it on the GPU. Use it in a `with`.

    cuda_major: what the driver must be able to run.
    Raises: HostError, DriverTooOld, EngineRunError.
    """
    if toolchain not in TOOLCHAINS:
        raise HostError(f"plans of toolchain {toolchain!r} are not run here")
    asked = OpenRequest(plan, toolchain, plugins, cuda_major)
    opened: Artifact = loaded(runtime_of(toolchain)[1].opened_by)(asked)
    return opened


def in_a_process(
    name: str,
    plan: Path,
    *,
    toolchain: str,
    plugins: Sequence[Path] = (),
    profile: int = 0,
    cuda_graph: bool = False,
) -> RemoteContender:
    """One artifact on one profile, in a fresh process that ends with it.

    Raises: EngineRunError when it does not load.
    """
    asked = {
        "plan": str(plan),
        "toolchain": toolchain,
        "plugins": [*map(str, plugins)],
        "profile": profile,
        "cuda_graph": cuda_graph,
    }
    return RemoteContender(
        name,
        runtime=runtime_of(toolchain)[0],
        python=this_python(),
        factory="enginefarm.run.artifacts:run_asked",
        arguments=[json.dumps(asked)],
    )


def run_asked(asked: str) -> RunningArtifact:
    """The other side of `in_a_process`."""
    fields = json.loads(asked)
    artifact = open_artifact(
        Path(fields["plan"]),
        toolchain=fields["toolchain"],
        plugins=[*map(Path, fields["plugins"])],
    )
    return artifact.running(
        fields["plan"], profile=fields["profile"], cuda_graph=fields["cuda_graph"]
    )
