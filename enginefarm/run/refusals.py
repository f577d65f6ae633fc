"""What a runtime's refusal of a plan means, read from its own words."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from enginefarm.errors import (
    DeviceOutOfMemory,
    EngineRunError,
    OtherBuild,
    OtherGpu,
    PluginMissing,
)


class Cause(NamedTuple):
    """What the runtime's log says when it refuses a plan, and what that means."""

    mark: str
    error: type[EngineRunError]
    why: str
    fix: str


OUT_OF_MEMORY = ("out of memory", "outofmemory")
CAUSES: tuple[Cause, ...] = (
    Cause(
        "compute capability",
        OtherGpu,
        "it was built for another GPU",
        "pull the engine of this GPU: enginefarm pull NAME --gpu auto",
    ),
    Cause(
        "plugin",
        PluginMissing,
        "it needs a plugin that is not loaded",
        "pass the plugin library that the manifest lists",
    ),
    *(
        Cause(
            mark,
            DeviceOutOfMemory,
            "the GPU has too little free memory",
            "free the GPU, or build with smaller max shapes",
        )
        for mark in OUT_OF_MEMORY
    ),
    # Last: a plugin that is missing is named with its version, too.
    Cause(
        "version",
        OtherBuild,
        "it was built by another build of the toolchain",
        "install the build that the manifest names, or pull an engine of the one installed",
    ),
)
"""The first that matches explains a refusal."""

UNKNOWN = Cause("", EngineRunError, "", "pull the engine again; if it stays so, rebuild it")


def refused(plan: Path, what: str, device_name: str, said: str) -> EngineRunError:
    """The error of a plan that does not load or run, with the runtime's words and what they
    mean. Raised by the caller."""
    found = next((one for one in CAUSES if one.mark in said.lower()), UNKNOWN)
    return found.error(
        f"{plan.name} {what} on {device_name}",
        why="; ".join(part for part in (found.why, said) if part),
        fix=found.fix,
    )
