"""The machine that a benchmark ran on, in the words that stand above its figures."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path


def described(*packages: str) -> str:
    """Processor, cores, load of the last minute, Python, and the versions of `packages`."""
    versions = "".join(f", {name} {version(name)}" for name in packages)
    return (
        f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}{versions}"
    )


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
