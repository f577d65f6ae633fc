"""A user's file in S3: its version, and one copy of it in the cache. Not the engine store."""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from enginefarm.documents.spec import BlobRef
from enginefarm.errors import SourceError, StoreConflict, StoreMissing
from enginefarm.store import untrusted_files
from enginefarm.store.cache import BlobCache
from enginefarm.store.disk import clone_checked, write_atomically
from enginefarm.store.prune import SOURCES
from enginefarm.store.s3 import ObjectStore, connect


def version(url: str) -> str:
    """What changes when the object does: its sha256 where the server keeps one, else etag.

    Raises: SourceError when the object does not exist; StoreError.
    """
    objects, key = _open(url)
    info = objects.head(key)
    if info is None:
        raise SourceError(f"source.path: {url}: the object does not exist", fix="correct the path")
    return info.sha256_base64 or info.etag


def cached(url: str) -> tuple[Path, BlobRef]:
    """The object as a blob of the cache. Each version of it is downloaded once.

    A note in the cache says which blob a version is. It counts only if nobody but this user and
    root can have written it.
    Raises: SourceError when the object does not exist, or is replaced meanwhile; StoreError;
    DiskFull.
    """
    cache, now = BlobCache(), version(url)
    note = cache.root / SOURCES / sha256(f"{url}\0{now}".encode()).hexdigest()
    if (ref := _noted(note)) is not None and (path := cache.intact(ref)) is not None:
        return path, ref
    objects, key = _open(url)
    try:
        ref = cache.add_written(lambda file: objects.download_file(key, file))
        if version(url) != now:
            raise StoreConflict(f"store: somebody else replaced {url}")
    except (StoreMissing, StoreConflict) as error:
        raise SourceError(
            f"source.path: {url} was replaced while it was downloaded",
            why=error.what,
            fix="run the same command again",
        ) from error
    write_atomically(note, f"{ref.digest} {ref.size_bytes}".encode())
    return cache.path(ref), ref


def download(url: str, folder: Path) -> Path:
    """A copy of the cached object in the folder, under its own name. Raises: as `cached`."""
    path, ref = cached(url)
    file = folder / url.rpartition("/")[2]
    clone_checked(path, file, ref)
    return file


def _noted(note: Path) -> BlobRef | None:
    with suppress(OSError, ValueError):
        if untrusted_files.is_ours(note.lstat()):
            digest, size = (untrusted_files.read(note) or b"").decode().split()
            return BlobRef(digest=digest, size_bytes=int(size))
    return None


def _open(url: str) -> tuple[ObjectStore, str]:
    folder, _, key = url.rpartition("/")
    if not key or folder in ("s3:", "s3:/"):
        raise SourceError(
            f"source.path: {url} is not a file in S3", fix="write s3://bucket/path/model.onnx"
        )
    return connect(folder), key
