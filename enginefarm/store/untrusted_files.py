"""Small files and partial downloads of the cache, opened so that what somebody planted under their
names is neither waited for, nor written through, nor believed."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from enginefarm.store.disk import writing

FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def read(path: Path) -> bytes | None:
    """The bytes of a regular file; None for everything else: nothing, a folder, a link, a pipe
    that nobody writes to, a file of another user that may not be read."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | FLAGS)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            with os.fdopen(fd, "rb") as stream:
                return stream.read()
        os.close(fd)
    return None


def read_ours(path: Path) -> bytes | None:
    """read(), of a file that only this user and root can have written; None for any other."""
    with suppress(OSError):
        if is_ours(path.lstat()):
            return read(path)
    return None


def is_ours(found: os.stat_result) -> bool:
    """Whether only this user and root can have written a regular file."""
    return (
        stat.S_ISREG(found.st_mode)
        and found.st_uid in (0, os.geteuid())
        and not found.st_mode & WRITABLE_BY_OTHERS
    )


def open_to_go_on(path: Path) -> int:
    """A file descriptor, to read and write a file of ours that is there, or else a new one.

    A link, or a file with a second name, is replaced: what is written here would be written there.
    Raises: DiskFull; UsageError for what cannot be replaced, as a folder.
    """
    with writing(path):
        with suppress(OSError):
            fd = os.open(path, os.O_RDWR | FLAGS)
            found = os.fstat(fd)
            if is_ours(found) and found.st_nlink == 1:
                return fd
            os.close(fd)
        return new(path)


def new(path: Path) -> int:
    """A file descriptor of a new, empty file in place of what is there."""
    with writing(path):
        path.unlink(missing_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | FLAGS, 0o644)
