"""sha256 of files and folders, streamed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

CHUNK_BYTES = 1 << 20


class Ref(Protocol):
    """Bytes by their content, as documents.spec.BlobRef."""

    @property
    def digest(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Digest of one file's bytes. Memory stays at one chunk, whatever the size."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_files(files: Iterable[tuple[str, Path]]) -> str:
    """One digest for several files, each under a name of the caller's choosing.

    The names take part, so that swapping two files' contents is seen; the paths do not,
    so that moving the folder is not.
    """
    outer = hashlib.sha256()
    for name, path in sorted(files, key=lambda item: item[0]):
        outer.update(f"{name}\0{sha256_file(path)}\n".encode())
    return outer.hexdigest()
