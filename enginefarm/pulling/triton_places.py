"""The two places for a Triton model repository: a folder, or a prefix in a bucket."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from enginefarm.documents.spec import BlobRef
from enginefarm.errors import CorruptBlob, UsageError
from enginefarm.pulling.place import copy_out
from enginefarm.pulling.triton import RepositoryFile
from enginefarm.store import s3
from enginefarm.store.disk import require_digest, write_atomically, writing
from enginefarm.store.s3 import ObjectStore


class Place(Protocol):
    """Paths are relative to the repository, with slashes."""

    name: str

    def read(self, path: str) -> bytes | None:
        """The bytes of a small file; None if it does not exist."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Writes a small file, completely or not at all."""
        ...

    def copy(self, blob: Path, path: str, ref: BlobRef) -> None:
        """Copies a local file into the repository. Raises: CorruptBlob for bytes other than
        ref's."""
        ...

    def remove(self, folder: str) -> None:
        """Removes a folder with its contents, if it exists."""
        ...


class Folder:
    def __init__(self, root: Path) -> None:
        self.name = str(root)
        self._root = root

    def read(self, path: str) -> bytes | None:
        try:
            return (self._root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UsageError(
                f"triton-repo: cannot read {self._root / path}", why=error.strerror or str(error)
            ) from error

    def write(self, path: str, data: bytes) -> None:
        write_atomically(self._root / path, data)

    def copy(self, blob: Path, path: str, ref: BlobRef) -> None:
        if not (self._root / path).exists():  # its name contains its digest
            copy_out(blob, self._root / path, ref)

    def remove(self, folder: str) -> None:
        path = self._root / folder
        with writing(path):
            if path.exists():
                shutil.rmtree(path)


class Bucket:
    def __init__(self, objects: ObjectStore, name: str) -> None:
        self.name = name
        self._objects = objects

    def read(self, path: str) -> bytes | None:
        found = self._objects.get(path)
        return None if found is None else found[0]

    def write(self, path: str, data: bytes) -> None:
        self._objects.put(path, data)

    def copy(self, blob: Path, path: str, ref: BlobRef) -> None:
        self._objects.upload_file(blob, path, metadata={})
        try:
            require_digest(blob, ref, blob)
        except CorruptBlob:
            self._objects.delete(path)
            raise

    def remove(self, folder: str) -> None:
        for info in list(self._objects.list(f"{folder}/")):
            self._objects.delete(info.key)


def place(destination: str) -> Place:
    """The place for DIR or s3://BUCKET/PREFIX. The key for a bucket is in the environment."""
    if destination.startswith("s3://"):
        return Bucket(s3.connect(destination), destination)
    return Folder(Path(destination))


def write_files(place: Place, files: Iterable[RepositoryFile], blobs: Mapping[str, Path]) -> None:
    """Writes a repository, each model's config after the plans that it names.

    blobs: digest -> a local file of the blob.
    """
    for file in files:
        if isinstance(file.content, bytes):
            place.write(file.path, file.content)
        else:
            place.copy(blobs[file.content.digest], file.path, file.content)
