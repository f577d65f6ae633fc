"""Writes files atomically, so that they are complete or absent, also after a power cut."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from enginefarm.store.disk import require_file, writing


@contextmanager
def appearing(dest: Path) -> Generator[Path]:
    """An empty file to fill, beside `dest`: it becomes `dest` when the block ends well, and is
    removed when it does not.

    Raises: DiskFull; UsageError for a place that cannot be written, and for what is there and is
    not a file: a device that root replaces is gone from the machine.
    """
    require_file(dest)
    with writing(dest):
        dest.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=f".{dest.name[:100]}.", suffix=".part", dir=dest.parent)
    os.close(fd)
    part = Path(name)
    try:
        yield part
        with writing(dest):
            part.chmod(0o644)
            settle(part)
            part.replace(dest)
            settle_folder(dest.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a small file atomically."""
    with appearing(path) as part, writing(path):
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
