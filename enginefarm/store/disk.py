"""Translates errors of the disk into ours. Messages contain the path."""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from enginefarm.errors import NO_SPACE, UsageError, disk_full

UNWRITABLE = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.ENOENT,
        errno.EINVAL,
        errno.EBUSY,
    }
)
"""Errors that the user's choice of a path causes. Any other is a fault of the disk."""


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Runs writes to a path.

    Raises: DiskFull, which names the folder; UsageError for a path that cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise disk_full(path, error.strerror or "") from error
        if error.errno not in UNWRITABLE:
            raise
        raise _unwritable(path, error.strerror or "") from error
    except ValueError as error:
        if "\0" not in str(path):
            raise
        raise _unwritable(path, "a path cannot hold a null character") from error


def require_file(path: Path) -> None:
    """Raises: UsageError for a device, a pipe or a socket, or a link to one."""
    with writing(path):
        special = path.exists() and not (path.is_file() or path.is_dir())
    if special:
        raise _unwritable(
            path, "it is a device, a pipe or a socket, which enginefarm never replaces"
        )


def _unwritable(path: Path, why: str) -> UsageError:
    return UsageError(
        f"disk: cannot write {str(path)!r}",
        why=why,
        fix="choose a file or folder that you may write (--dest, ENGINEFARM_CACHE, TMPDIR)",
    )
