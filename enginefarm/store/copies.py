"""Copies files, as reflinks where the file system can. A copy never shares its inode."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

from enginefarm.digest import sha256_file
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import CorruptBlob
from enginefarm.store.disk import writing

FICLONE = 0x40049409
"""ioctl of <linux/fs.h>: the two files share blocks until one of them is written."""


def clone(source: Path, target: Path) -> None:
    """Copies a file, as a reflink where the file system can. Never as a hard link, because a write
    to one of the two must not change the other.

    Raises: DiskFull.
    """
    with writing(target), source.open("rb") as read, target.open("wb") as write:
        try:
            fcntl.ioctl(write.fileno(), FICLONE, read.fileno())
        except OSError:  # another disk, or a file system without reflinks
            shutil.copyfileobj(read, write, 1 << 20)


def clone_checked(source: Path, target: Path, ref: BlobRef) -> None:
    """clone(), then checks the digest of the copy. Raises: CorruptBlob, DiskFull."""
    clone(source, target)
    require_digest(target, ref, source)


def require_digest(path: Path, ref: BlobRef, source: Path) -> None:
    """source: what errors call it. Raises: CorruptBlob when the bytes are not the blob's."""
    digest = sha256_file(path)
    if digest != ref.digest:
        raise CorruptBlob(
            f"cache: the bytes of {source} hash to {digest[:12]}; they are not used",
            why="the file was changed or damaged while it was copied",
            fix=f"delete {source} if this happens again, and run the same command: it downloads "
            "the file again",
        )
