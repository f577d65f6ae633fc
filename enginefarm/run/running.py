"""One protocol to run an engine, a provider of ONNX Runtime or a PyTorch model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from enginefarm.names import RuntimeName
from enginefarm.schema import Frozen

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Arrays


class Iteration(NamedTuple):
    """In milliseconds. total: a lone pass on the host's clock, from before the copy in to after
    the copy out. The parts: on the GPU's clock, None where the runtime does not tell; engines
    take them from a pass that is queued behind another one, so they need not add up to total."""

    total: float
    copy_in: float | None = None
    compute: float | None = None
    copy_out: float | None = None


class Contender(Protocol):
    """One of the runtimes that are compared on the same inputs."""

    name: str
    runtime: RuntimeName

    def bind(self, feeds: Mapping[str, Any]) -> None:
        """Takes the inputs; whatever depends on shapes is done here, not in iterate."""
        ...

    def iterate(self) -> Iteration:
        """One pass, timed."""
        ...

    def turn(self, passes: int) -> list[Iteration]:
        """So many passes, timed, one after another."""
        return [self.iterate() for _ in range(passes)]

    def outputs(self) -> Arrays:
        """The outputs of the last pass."""
        ...


class OpenRequest(Frozen):
    """What to open on the GPU. cuda_major: what the driver must be able to run."""

    plan: Path
    toolchain: str
    plugins: tuple[Path, ...] = ()
    cuda_major: int | None = None


class RunRequest(OpenRequest):
    """An engine on one of its profiles."""

    profile: int = 0
    cuda_graph: bool = False


class Closeable(ABC):
    """What a `with` block closes at its end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None: ...
