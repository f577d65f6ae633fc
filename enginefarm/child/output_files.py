"""Reads what a child left in its folder. The child may be hostile: a file of any size, a pipe, a
link, or none may be in the place of each file."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

MOST_BYTES = 64 << 20
"""Of an answer, an error, or the end of a log."""


def text(file: Path, most_bytes: int = MOST_BYTES) -> str:
    """The end of a regular file; empty for anything else."""
    if not file.is_file():
        return ""
    # Without waiting: what outlived the child may put a pipe there meanwhile.
    with suppress(OSError), os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
        size_bytes = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size_bytes - most_bytes))
        return stream.read(min(size_bytes, most_bytes)).decode("utf-8", "replace")
    return ""


def is_own(file: Path, folder: Path) -> bool:
    """Whether it is a regular file in the child's folder, not behind a link that leads out."""
    return file.is_file() and file.resolve().is_relative_to(folder.resolve())
