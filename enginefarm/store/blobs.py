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
from enginefarm.store.disk import appearing, writing
from enginefarm.store.pieces import Journal, RangeSource

if TYPE_CHECKING:
    from enginefarm.store.object_info import ObjectInfo
    from enginefarm.store.s3 import ObjectStore

DIGEST_FIELD = "sha256"
TOUCH_AFTER = timedelta(hours=1)
"""A blob older than this that is used again gets a new date, which restarts gc's grace period."""


class BlobStore:
    """The blobs of a bucket. Raises, from every method: StoreUnavailable, StoreDenied, StoreMissing
    (bucket)."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects

    def put_blob(self, path: Path) -> BlobRef:
        """Uploads a file unless the store has its bytes. Reports progress "upload".

        Raises: StoreConflict when the file changes while it is being uploaded.
        """
        before = path.stat()
        ref = BlobRef(digest=sha256_file(path), size_bytes=before.st_size)
        if self.present(ref):
            return ref
        sink, lock, sent = SINK.get(), threading.Lock(), 0

        def on_bytes(count: int) -> None:
            nonlocal sent
            with lock:
                sent += count
                sink("upload", sent, ref.size_bytes, path.name)

        key = layout.blob(ref)
        self.objects.upload_file(path, key, metadata={DIGEST_FIELD: ref.digest}, on_bytes=on_bytes)
        after = path.stat()
        if (after.st_mtime_ns, after.st_size) != (before.st_mtime_ns, before.st_size):
            self.objects.delete(key)
            raise StoreConflict(
                f"store: {path} changed while it was uploaded",
                fix="run it again when nothing writes to the file",
            )
        return ref

    def put_bytes(self, data: bytes) -> BlobRef:
        ref = BlobRef(digest=sha256_bytes(data), size_bytes=len(data))
        if not self.present(ref):
            self.objects.put(layout.blob(ref), data, Metadata={DIGEST_FIELD: ref.digest})
        return ref

    def has_blob(self, ref: BlobRef) -> bool:
        """Whether the store has the blob, by the server's metadata."""
        return is_intact(self.objects.head(layout.blob(ref)), ref)

    def present(self, ref: BlobRef) -> bool:
        """has_blob(); an old blob gets a new date, so that gc keeps it."""
        info = self.objects.head(layout.blob(ref))
        if info is None or not is_intact(info, ref):
            return False
        if info.age is not None and info.age > TOUCH_AFTER:
            try:
                self.objects.touch(info)
            except StoreMissing:  # gc deleted it: it is uploaded again
                return False
        return True

    def blob(self, digest: str) -> BlobRef:
        """The blob with this digest, with its size from the server's metadata.

        Raises: StoreMissing.
        """
        info = self.objects.head(layout.blob_of(digest))
        if info is None:
            raise missing(BlobRef(digest=digest, size_bytes=0))
        return BlobRef(digest=digest, size_bytes=info.size_bytes)

    def source(self, ref: BlobRef) -> RangeSource:
        """Where the ranges of a blob come from."""
        from enginefarm.store.sources import BlobSource  # botocore's errors

        return BlobSource(self.objects, ref)

    def fetch_blob(self, ref: BlobRef, dest: Path) -> Path:
        """Downloads to `dest`, whole or not at all. Reports progress "download".

        Raises: CorruptBlob, StoreMissing, DiskFull.
        """
        with appearing(dest) as part, part.open("r+b") as stream:
            fill(self.source(ref), ref, stream.fileno(), part)
        return dest

    def read_bytes(self, ref: BlobRef, limit_bytes: int = 64 << 20) -> bytes:
        """The bytes of a small blob, with their digest checked.

        Raises: CorruptBlob, also for a blob that is larger than the limit; StoreMissing.
        """
        if ref.size_bytes > limit_bytes:
            raise CorruptBlob(
                f"store: blob {ref.digest[:12]} has {ref.size_bytes:,} bytes; "
                f"at most {limit_bytes:,} are read into memory",
            )
        found = self.objects.get(layout.blob(ref))
        if found is None:
            raise missing(ref)
        if sha256_bytes(found[0]) != ref.digest:
            raise corrupt(ref, sha256_bytes(found[0]))
        return found[0]


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


def fill(
    source: RangeSource, ref: BlobRef, fd: int, path: Path, journal: Journal | None = None
) -> None:
    """Fills an open file with the blob and checks its digest.

    path: the name of `fd` in messages. journal: the pieces that are already in the file.
    Raises: CorruptBlob, StoreMissing, DiskFull, StoreUnavailable.
    """
    from enginefarm.store.download import Download, require_size  # botocore's errors

    sink = SINK.get()
    require_size(source, ref)
    with writing(path):
        os.ftruncate(fd, ref.size_bytes)
    download = Download(source, ref, fd, path, journal)
    digest = download.run(lambda done: sink("download", done, ref.size_bytes, ref.digest[:12]))
    if digest != ref.digest:
        raise corrupt(ref, digest)


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
