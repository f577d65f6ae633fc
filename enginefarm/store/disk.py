"""Translates errors of the disk into ours. Messages name the path."""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from enginefarm.errors import DiskFull, EnginefarmError, UsageError

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
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
"""What the user's choice of a place causes; anything else is a fault of the disk."""


def disk_error(error: OSError, path: Path) -> EnginefarmError | None:
    """DiskFull for a full disk; None for every other OSError."""
    if error.errno not in NO_SPACE:
        return None
    return DiskFull(
        f"disk: the folder {path.parent} has no room to write {path}",
        why=error.strerror or "",
        fix="free space there (enginefarm cache prune), or choose another folder (--dest, "
        "ENGINEFARM_CACHE, TMPDIR)",
    )


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Runs writes to the disk.

    Raises: DiskFull, which names the folder; UsageError for a place that cannot be written.
    """
    try:
        yield
    except OSError as error:
        full = disk_error(error, path)
        if full is not None:
            raise full from error
        if error.errno not in UNWRITABLE:
            raise
        raise _unwritable(path, error.strerror or "") from error
    except ValueError as error:
        if "\0" not in str(path):
            raise
        raise _unwritable(path, "no path holds a null character") from error


def require_file(path: Path) -> None:
    """Raises: UsageError for a device, a pipe or a socket, also behind a link."""
    with writing(path):
        special = path.exists() and not (path.is_file() or path.is_dir())
    if special:
        raise _unwritable(path, "a device, a pipe or a socket is there, which is never replaced")


def _unwritable(path: Path, why: str) -> UsageError:
    return UsageError(
        f"disk: cannot write {str(path)!r}",
        why=why,
        fix="choose a file or folder that you may write (--dest, ENGINEFARM_CACHE, TMPDIR)",
    )
