"""What the environment decides, read once at the edge."""

from __future__ import annotations

import getpass
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from enginefarm.errors import UsageError


def home() -> Path:
    """Where enginefarm keeps its own files: the embedded store and its credentials."""
    chosen = os.environ.get("ENGINEFARM_HOME")
    return Path(chosen) if chosen else Path.home() / ".local" / "share" / "enginefarm"


STORE_ROOT = "@store"
"""Stands among the recipe roots for recipes that are kept in the store."""


def recipe_roots() -> tuple[Path, ...]:
    """Folders besides a recipe's own that its code may come from: ENGINEFARM_RECIPE_ROOTS."""
    return tuple(Path(part).resolve() for part in _roots() if part != STORE_ROOT)


def store_is_a_root() -> bool:
    """Whether recipes may come from the store: nobody's do unless the farm's owner says so."""
    return STORE_ROOT in _roots()


def _roots() -> list[str]:
    parts = os.environ.get("ENGINEFARM_RECIPE_ROOTS", "").split(os.pathsep)
    return [part for part in parts if part]


def user() -> str:
    """Who does it, for logs that people read: ENGINEFARM_USER, else the system's user."""
    try:
        return os.environ.get("ENGINEFARM_USER") or getpass.getuser()
    except (OSError, KeyError):  # a container's uid that has no name
        return f"uid {os.getuid()}"


@dataclass(frozen=True)
class BuildLimits:
    """What one child process may take, a builder or a recipe's code. Plan for 3 to 4 times the
    weights in memory."""

    timeout_s: float
    memory_bytes: int


def build_limits() -> BuildLimits:
    """ENGINEFARM_BUILD_TIMEOUT_S (3600) and ENGINEFARM_BUILD_MEMORY_MIB (nine tenths of what
    the machine or the container has).

    Raises: UsageError for a value that is not a positive number.
    """
    memory_mib = _positive("ENGINEFARM_BUILD_MEMORY_MIB", None)
    return BuildLimits(
        timeout_s=_positive("ENGINEFARM_BUILD_TIMEOUT_S", 3600.0) or 3600.0,
        memory_bytes=int(memory_mib * (1 << 20)) if memory_mib else memory_bytes() * 9 // 10,
    )


def cache_limit_bytes(root: Path) -> int:
    """What the cache may hold: ENGINEFARM_CACHE_LIMIT_GB, else half of the disk it is on.

    Raises: UsageError for a value that is not a positive number.
    """
    limit_gb = _positive("ENGINEFARM_CACHE_LIMIT_GB", None)
    if limit_gb is not None:
        return int(limit_gb * 1e9)
    there = next(path for path in (root, *root.absolute().parents) if path.exists())
    return shutil.disk_usage(there).total // 2


def memory_bytes() -> int:
    """The memory of this machine, or of the container where that is less."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text("ascii"))
    except (OSError, ValueError):  # no cgroup of its own, or "max"
        return pages
    return min(pages, limit)


def _positive(name: str, default: float | None) -> float | None:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise UsageError(
            f"{name}: {text!r} is not a positive number", fix=f"set {name} to a number, or unset it"
        )
    return value
