"""Errors of the system and of libraries for which no step has words, in words of ours."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from enginefarm.errors import (
    NO_SPACE,
    DiskFull,
    EnginefarmError,
    ToolchainError,
    UsageError,
    disk_full,
    one_line,
)
from enginefarm.settings import current


def extra_of(module: str) -> str | None:
    """The extra that installs a module which is missing; None when none of them does."""
    from importlib.metadata import PackageNotFoundError, requires  # slow, and rarely needed

    wanted = module.partition(".")[0].lower()
    try:
        found = requires("enginefarm") or []
    except PackageNotFoundError:  # run from its sources
        found = []
    rows = [re.match(r"([\w.-]+).*extra == ['\"](\w+)['\"]", line) for line in found]
    # If two extras have it, the first counts: they are in the order of how much they do.
    extras = {row[1].lower().replace("-", "_"): row[2] for row in reversed(rows) if row}
    if wanted in extras:
        return extras[wanted]
    starts = (
        extra for name, extra in extras.items() if name.startswith((f"{wanted}_", f"{wanted}."))
    )
    return next(starts, None)


def of_a_module(error: ModuleNotFoundError) -> ToolchainError:
    """Names the extra to install. Raises: the error itself if none of them has the module."""
    module = error.name or ""
    extra = extra_of(module)
    if extra is None:
        raise error
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "this command")
    return ToolchainError(
        f"enginefarm {command} needs the {extra!r} packages",
        why=f"{module} is not installed",
        fix=f"pip install 'enginefarm[{extra}]'",
    )


def is_of_prefects_settings(error: Exception) -> bool:
    """Prefect reads its settings when it is imported."""
    return str(getattr(error, "title", "")).endswith("Settings")


def of_prefects_settings(error: Exception) -> UsageError:
    why, fix = one_line(error), "correct or unset the PREFECT_* variable, or the profile"
    return UsageError("Prefect's settings cannot be used", why=why, fix=fix)


def of_the_disk(error: OSError) -> EnginefarmError:
    """The error for a file or folder that cannot be used, if no step has its own words for it."""
    why = error.strerror or str(error)
    if error.errno in NO_SPACE and error.filename:
        return disk_full(Path(error.filename), why)
    if error.errno in NO_SPACE:
        where = f"a file; the folder in use with the least room is {_fullest()}"
        return DiskFull(f"disk: no room to write {where}", why=why, fix="free space there")
    where = error.filename or "a file or folder"
    return UsageError(f"{where} cannot be used", why=why, fix=_another(where))


def _another(place: object) -> str:
    """What to do about a place that cannot be used: nobody named one of enginefarm's own."""
    settings = current()
    for name, folder in (("ENGINEFARM_CACHE", settings.cache), ("ENGINEFARM_HOME", settings.home)):
        if isinstance(place, str) and Path(place).is_relative_to(folder):
            return f"set {name} to a folder that you may write"
    return "name another file or folder"


def _fullest() -> str:
    """The folder with the least free space among those that commands write to. A failed write
    does not say which file it was writing."""
    import shutil
    import tempfile

    settings = current()
    written = (settings.cache, settings.home, Path(tempfile.gettempdir()), Path.cwd())
    there = [next(p for p in (one, *one.absolute().parents) if p.exists()) for one in written]
    return str(min(there, key=lambda folder: shutil.disk_usage(folder).free))
