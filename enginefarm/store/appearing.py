"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from enginefarm.store.failures import writing


@contextmanager
def appearing(dest: Path) -> Generator[Path]:
    """An empty file to fill, beside `dest`: it becomes `dest` when the block ends well, and is
    removed when it does not.

    Raises: DiskFull.
    """
    with writing(dest):
        dest.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=f".{dest.name}.", suffix=".part", dir=dest.parent)
    os.close(fd)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        part.replace(dest)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """A small file that appears, or is replaced, whole or not at all."""
    with appearing(path) as part, writing(path):
        part.write_bytes(data)
