"""Ways to turn ONNX into a plan, a file each behind one Protocol.

Importing this package imports no native library: each toolchain does so in the child
process that `isolate.py` starts.
"""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from pydantic import Field, JsonValue

from enginefarm.documents.manifest import TensorInfo
from enginefarm.documents.spec import BuildSpec, GpuTarget, ShapeProfile, ToolchainId
from enginefarm.errors import ToolchainError
from enginefarm.names import PRECISIONS, TOOLCHAINS, PrecisionName, ToolchainName, loaded
from enginefarm.schema import Frozen


class BuildRequest(Frozen):
    """One build, as it is handed to a toolchain (and, as JSON, to the child process)."""

    spec: BuildSpec
    onnx: Path = Field(description="model.onnx; its external data, if any, next to it.")
    work_dir: Path = Field(description="Empty; plan, log and layers are written here.")
    plugins: tuple[Path, ...] = ()
    timing_cache: Path | None = None
    timeout_s: float = 3600
    memory_limit_bytes: int | None = None


class BuildOutput(Frozen):
    """What a toolchain leaves in the request's work_dir."""

    plan: Path
    tensors: tuple[TensorInfo, ...]
    seconds: float
    peak_memory_bytes: int = 0
    log: Path | None = None
    layers: Path | None = None
    timing_cache: Path | None = None
    compute_capabilities: tuple[str, ...] = Field(
        default=(), description="What the plan carries in addition to its GPU's."
    )
    command: str | None = None
    details: dict[str, JsonValue] = Field(default_factory=dict)


class Toolchain(Protocol):
    """One way to build.

    cross: True where no GPU is needed to build for one.
    """

    name: str
    cross: bool

    def identity(self) -> ToolchainId:
        """The exact build installed here, from package metadata alone: no library is loaded.

        Raises: ToolchainError when it is not installed, with the command that installs it.
        """
        ...

    def check(self, spec: BuildSpec) -> None:
        """Refuses, before anything runs, options that this toolchain lacks (ToolchainError)."""
        ...

    def carries(self, gpu: GpuTarget, precision: PrecisionName) -> tuple[str, ...]:
        """Compute capabilities of the plan that this GPU shares with others.

        Empty where a plan is made for one GPU.
        """
        ...

    def build(self, request: BuildRequest) -> BuildOutput:
        """Builds in this very process; call it through `isolate.build`.

        Raises: ParseError (node and operator named), BuildError.
        """
        ...


def toolchain(name: str) -> Toolchain:
    """The toolchain of that name.

    Raises: ToolchainError for a name that is not in the table.
    """
    if name not in TOOLCHAINS:
        raise ToolchainError(
            f"no toolchain is called {name!r}",
            fix=f"use one of: {', '.join(TOOLCHAINS)}",
        )
    made: Toolchain = loaded(TOOLCHAINS[name].code)()
    return made


def check(spec: BuildSpec) -> None:
    """Refuses, before anything runs, options that the spec's toolchain lacks (ToolchainError)."""
    name, precision = spec.toolchain.name, spec.precision.name
    toolchain(name).check(spec)
    if not spec.builder.refit:
        return
    row = TOOLCHAINS[name]
    dense = (
        "new weights need not have zeros in the same places" if spec.builder.sparse_weights else ""
    )
    for what, why, fix in (
        (f"toolchain {name}", "" if row.refit else row.no_refit, "use toolchain `tensorrt`"),
        (precision, PRECISIONS[precision].no_refit, "build it by a recipe of its own"),
        ("sparse_weights", dense, "leave out `sparse_weights`"),
    ):
        if why:
            raise ToolchainError(
                f"builder.refit: it cannot be used with {what}",
                why=why,
                fix=f"{fix}, or leave out `refit`",
            )


def installed_build(name: str, libraries: str, bindings: str) -> str | None:
    """The version of two distributions that belong together; None when either is not installed.

    Raises: ToolchainError, in the name of the toolchain, when their versions differ.
    """
    try:
        build, other = version(libraries), version(bindings)
    except PackageNotFoundError:
        return None
    if build != other:
        raise ToolchainError(
            f"toolchain {name}: libraries {build} and bindings {other} do not match",
            fix=f"pip install {libraries}=={build} {bindings}=={build}",
        )
    return build


def built_here(name: ToolchainName, build: str, cuda: str) -> ToolchainId:
    """The identity of a toolchain that is installed on this machine."""
    return ToolchainId(
        name=name,
        build=build,
        cuda=cuda,
        os=platform.system().lower(),
        arch=platform.machine(),
    )


def shapes_option(profile: ShapeProfile, point: str) -> str:
    """`x:1x3x224x224,mask:1x1`, as trtexec and ONNX Runtime take the shapes of one point.

    point: min, opt or max.
    """
    return ",".join(
        f"{name}:{'x'.join(map(str, getattr(bounds, point)))}"
        for name, bounds in profile.shapes.items()
    )


def installed(*, cross_only: bool) -> tuple[ToolchainId, ...]:
    """The toolchains of the table that are installed here, in its order.

    cross_only: those that need no GPU.
    """
    found: list[ToolchainId] = []
    for name in TOOLCHAINS:
        with suppress(ToolchainError, ImportError):
            candidate = toolchain(name)
            if candidate.cross or not cross_only:
                found.append(candidate.identity())
    return tuple(found)
