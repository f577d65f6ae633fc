"""Blobs: bytes addressed by their sha256. Each is uploaded once, and checked at every download."""

from __future__ import annotations

import base64
import os
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from enginefarm.digest import sha256_bytes, sha256_file
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import CorruptBlob, StoreConflict, StoreMissing
from enginefarm.progress import SINK
from enginefarm.store import layout
from enginefarm.store.appearing import appearing
from enginefarm.store.disk import writing
from enginefarm.store.pieces import Journal, RangeSource

if TYPE_CHECKING:
    from enginefarm.store.object_info import ObjectInfo
    from enginefarm.store.s3 import ObjectStore

DIGEST_FIELD = "sha256"
TOUCH_AFTER = timedelta(hours=1)
"""A blob older than this that is used again gets a new date, which restarts gc's grace period."""


def put_file(objects: ObjectStore, path: Path) -> BlobRef:
    """Uploads a file unless the store has its bytes.

    Raises: StoreConflict when the file changes while it is being uploaded.
    """
    before = path.stat()
    ref = BlobRef(digest=sha256_file(path), size_bytes=before.st_size)
    if present(objects, ref):
        return ref
    sink, lock, sent = SINK.get(), threading.Lock(), 0

    def on_bytes(count: int) -> None:
        nonlocal sent
        with lock:
            sent += count
            sink("upload", sent, ref.size_bytes, path.name)

    key = layout.blob(ref)
    objects.upload_file(path, key, metadata={DIGEST_FIELD: ref.digest}, on_bytes=on_bytes)
    after = path.stat()
    if (after.st_mtime_ns, after.st_size) != (before.st_mtime_ns, before.st_size):
        objects.delete(key)
        raise StoreConflict(
            f"store: {path} changed while it was uploaded",
            fix="run it again when nothing writes to the file",
        )
    return ref


def put_bytes(objects: ObjectStore, data: bytes) -> BlobRef:
    ref = BlobRef(digest=sha256_bytes(data), size_bytes=len(data))
    if not present(objects, ref):
        objects.put(layout.blob(ref), data, Metadata={DIGEST_FIELD: ref.digest})
    return ref


def is_intact(info: ObjectInfo | None, ref: BlobRef) -> bool:
    """Whether the server's metadata of an object agrees with the digest. No bytes are read.

    An object that somebody overwrote has another size or checksum, or lacks our metadata. It is
    uploaded again.
    """
    if info is None or info.size_bytes != ref.size_bytes:
        return False
    if info.metadata.get(DIGEST_FIELD) != ref.digest:
        return False
    checksum = info.sha256_base64
    if checksum is None or "-" in checksum:  # a composite of the parts' checksums
        return True
    return base64.b64decode(checksum).hex() == ref.digest


def present(objects: ObjectStore, ref: BlobRef) -> bool:
    """Whether the blob exists and is intact. An old blob gets a new date, so that gc keeps it."""
    info = objects.head(layout.blob(ref))
    if info is None or not is_intact(info, ref):
        return False
    if info.age is not None and info.age > TOUCH_AFTER:
        try:
            objects.touch(info)
        except StoreMissing:  # gc deleted it: it is uploaded again
            return False
    return True


def fill(
    source: RangeSource, ref: BlobRef, fd: int, path: Path, journal: Journal | None = None
) -> None:
    """Fills an open file with the blob and checks its digest.

    path: the name of `fd` in messages. journal: the pieces that are already in the file.
    Raises: CorruptBlob, StoreMissing, DiskFull, StoreUnavailable.
    """
    from enginefarm.store.download import Download, require_size  # botocore's errors: see quick

    sink = SINK.get()
    require_size(source, ref)
    with writing(path):
        os.ftruncate(fd, ref.size_bytes)
    download = Download(source, ref, fd, path, journal)
    digest = download.run(lambda done: sink("download", done, ref.size_bytes, ref.digest[:12]))
    if digest != ref.digest:
        raise corrupt(ref, digest)


def fetch_file(source: RangeSource, ref: BlobRef, dest: Path) -> Path:
    """Downloads to `dest`, which appears complete or not at all."""
    with appearing(dest) as part, part.open("r+b") as stream:
        fill(source, ref, stream.fileno(), part)
    return dest


def read_bytes(objects: ObjectStore, ref: BlobRef, limit_bytes: int) -> bytes:
    """The bytes of a small blob, with their digest checked.

    Raises: CorruptBlob, also for a blob that is larger than the limit; StoreMissing.
    """
    if ref.size_bytes > limit_bytes:
        raise CorruptBlob(
            f"store: blob {ref.digest[:12]} has {ref.size_bytes:,} bytes; "
            f"at most {limit_bytes:,} are read into memory",
        )
    key = layout.blob(ref)
    found = objects.get(key)
    if found is None:
        raise missing(ref)
    data = found[0]
    if sha256_bytes(data) != ref.digest:
        raise corrupt(ref, sha256_bytes(data))
    return data


def missing(ref: BlobRef) -> StoreMissing:
    return StoreMissing(
        f"store: blob {ref.digest[:12]} is missing ({layout.blob(ref)})",
        fix="build the recipe again, which restores what is missing; `enginefarm fsck` lists it",
    )


def corrupt(ref: BlobRef, digest: str) -> CorruptBlob:
    return CorruptBlob(
        f"store: the bytes of blob {ref.digest[:12]} hash to {digest[:12]}; they are not used",
        why="the object was overwritten or damaged in the store",
        fix="enginefarm fsck --bytes --repair, then build the recipe again",
    )
