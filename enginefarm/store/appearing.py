"""Writes files atomically: they are complete or absent, even after a power cut."""

from __future__ import annotations

import fcntl
import glob
import os
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from enginefarm.store.disk import require_file, writing

PART = ".part"
YOUNG_S = 60.0
"""A partial file that was written to within this time is left alone, whoever wrote it."""


@contextmanager
def appearing(dest: Path, mode: int = 0o644) -> Generator[Path]:
    """Yields an empty file beside `dest` to fill. It becomes `dest` when the block succeeds, and
    is removed when it does not.

    Raises: DiskFull; UsageError for a path that cannot be written, or that is a device, a pipe or
    a socket: a device that root replaces is gone from the machine.
    """
    require_file(dest)
    prefix = f".{dest.name[:100]}."
    with writing(dest):
        dest.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(dest.parent, prefix)
        fd, name = tempfile.mkstemp(prefix=prefix, suffix=PART, dir=dest.parent)
    part = Path(name)
    try:
        _lock(fd, fcntl.LOCK_SH)
        yield part
        with writing(dest):
            part.chmod(mode)
            settle(part)
            part.replace(dest)
            settle_folder(dest.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


@contextmanager
def one_at_a_time(folder: Path) -> Generator[None]:
    """Several files of a folder are replaced by one process at a time, so that they fit together.

    A file system without such locks (some network ones) has each process write when it likes; every
    file is whole there too.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Removes what processes that were killed have half written of the same file. The kernel frees
    a dead process's lock; one that was just made may not be locked yet."""
    for path in folder.glob(f"{glob.escape(prefix)}{'?' * 8}{PART}"):
        with suppress(OSError):
            if path.lstat().st_mtime > time.time() - YOUNG_S:
                continue
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(fd)


def _lock(fd: int, how: int) -> None:
    with suppress(OSError):
        fcntl.flock(fd, how)


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Writes a small file atomically. mode: 0o600 for a secret, which nobody else ever reads."""
    with appearing(path, mode) as part, writing(path):
        part.write_bytes(data)


def settle(path: Path) -> None:
    """Flushes the file's bytes to the disk."""
    _fsync(path, os.O_RDONLY)


def settle_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk."""
    _fsync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
