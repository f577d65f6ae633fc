"""What the environment decides, read once at the edge."""

from __future__ import annotations

import getpass
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from enginefarm.errors import UsageError

STORE_ROOT = "@store"
"""Stands among the recipe roots for recipes that are kept in the store."""


@dataclass(frozen=True)
class Settings:
    """Folders of this installation, as the environment names them.

    store: its URL; empty for the embedded one. home: enginefarm's own files: the embedded store,
    the farm's password. downloads: what other libraries download. cache: blobs.
    recipe_roots: folders that recipes and their code may come from; None if they are not set.
    recipes_in_store: whether they may come from the store; nobody's do unless the owner says so.
    """

    store: str
    home: Path
    downloads: Path
    cache: Path
    recipe_roots: tuple[Path, ...] | None
    recipes_in_store: bool

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Settings:
        """ENGINEFARM_STORE, _HOME, _CACHE (else in XDG_CACHE_HOME) and _RECIPE_ROOTS.

        A `~` is the user's home folder in each, also where no shell has expanded it.
        """
        user_home = Path.home()
        caches = _folder(environ.get("XDG_CACHE_HOME")) or user_home / ".cache"
        text = environ.get("ENGINEFARM_RECIPE_ROOTS") or ""
        parts = [part for part in text.split(os.pathsep) if part]
        folders = [_folder(part) for part in parts if part != STORE_ROOT]
        return cls(
            store=environ.get("ENGINEFARM_STORE") or "",
            home=_folder(environ.get("ENGINEFARM_HOME"))
            or user_home / ".local" / "share" / "enginefarm",
            downloads=caches,
            cache=_folder(environ.get("ENGINEFARM_CACHE")) or caches / "enginefarm",
            recipe_roots=tuple(one.resolve() for one in folders if one) if parts else None,
            recipes_in_store=STORE_ROOT in parts,
        )

    def absolute(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The variables that are set, with absolute folders, for another working folder."""
        roots = [str(one) for one in self.recipe_roots or ()]
        roots += [STORE_ROOT] * self.recipes_in_store
        found = {
            "ENGINEFARM_HOME": str(self.home),
            "ENGINEFARM_CACHE": str(self.cache),
            "ENGINEFARM_RECIPE_ROOTS": os.pathsep.join(roots),
        }
        return {name: text for name, text in found.items() if environ.get(name)}


def _folder(text: str | None) -> Path | None:
    return Path(text).expanduser().absolute() if text else None


def current() -> Settings:
    """The settings of this process's environment."""
    return Settings.read(os.environ)


def shown_gpu() -> str:
    """The GPU that CUDA_VISIBLE_DEVICES shows first, by number or UUID; empty if it hides all."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()


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


LARGEST = 10**9
"""Gigabytes, MiB or seconds that a setting may ask for: larger ones fail in the system."""


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
    return min([pages, *(limit for limit, _ in _containers())])


def memory_left_bytes() -> int:
    """What processes of this machine, or of the container, can take still; memory that only
    caches files counts as free."""
    left = [limit - used for limit, used in _containers()]
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text("ascii").partition("MemAvailable:")[2]
        left.append(int(text.split()[0]) * 1024)
    return max(0, min(left, default=memory_bytes()))


FILES = ("inactive_file", "active_file")
CONTAINERS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", FILES),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        tuple(f"total_{name}" for name in FILES),
    ),
)
"""Where the two versions of control groups say what a container may have, what it has, and how
much of that only caches files."""


def _containers() -> Iterator[tuple[int, int]]:
    """The limit and the use of memory in bytes, where a container has a limit."""
    for folder, limit, used, files in CONTAINERS:
        with suppress(OSError, ValueError, KeyError):  # no such control group, or "max"
            at = Path(folder)
            most = int((at / limit).read_text("ascii"))
            stat = dict(line.split() for line in (at / "memory.stat").read_text().splitlines())
            cached = sum(int(stat[name]) for name in files)
            yield most, int((at / used).read_text("ascii")) - cached


def _positive(name: str, default: float | None) -> float | None:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= LARGEST:
        raise UsageError(
            f"{name}: {text!r} is not a positive number of at most {LARGEST:,}",
            fix=f"set {name} to a number, or unset it",
        )
    return value
