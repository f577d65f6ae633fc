"""BlobCache: blobs on the local disk, by digest. Shared by many processes."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from enginefarm.digest import sha256_file
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import CorruptBlob, DiskFull, StoreMissing
from enginefarm.store.blobs import fill
from enginefarm.store.download import Journal, RangeSource
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.failures import writing
from enginefarm.store.sources import BlobSource


def default_root() -> Path:
    """ENGINEFARM_CACHE, else ~/.cache/enginefarm (XDG_CACHE_HOME is honoured)."""
    root = os.environ.get("ENGINEFARM_CACHE")
    if root:
        return Path(root).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "enginefarm"


class BlobCache:
    """`blobs/sha256/ab/<digest>`: a file that is there is complete, and was checked."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()

    def path(self, ref: BlobRef) -> Path:
        """Where the blob is, or would be. The file exists only when it is complete."""
        return self.root / "blobs" / "sha256" / ref.digest[:2] / ref.digest

    def has(self, ref: BlobRef) -> bool:
        try:
            return self.path(ref).stat().st_size == ref.size_bytes
        except FileNotFoundError:
            return False

    def ensure(self, store: EngineStore, ref: BlobRef) -> Path:
        """The blob's path; downloaded first when it is not there.

        Of several processes that want one blob, one downloads and the others wait for it. A
        download that was cut is resumed, by whoever comes next.
        Raises: CorruptBlob, StoreMissing, StoreUnavailable, DiskFull.
        """
        return self.path(ref) if self.has(ref) else self.fill(BlobSource(store.objects, ref), ref)

    def fill(self, source: RangeSource, ref: BlobRef) -> Path:
        """ensure(), from any source."""
        with self._locked(ref):
            if not self.has(ref):
                self._download(source, ref)
        return self.path(ref)

    def _download(self, source: RangeSource, ref: BlobRef) -> None:
        path = self.path(ref)
        part = path.with_name(f"{path.name}.part")
        note = path.with_name(f"{path.name}.pieces")
        if not part.exists():
            note.unlink(missing_ok=True)
        journal = Journal(note)
        resumed = bool(journal.finished)
        with writing(part):
            fd = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fill(source, ref, fd, part, journal)
            part.replace(path)
            note.unlink(missing_ok=True)
        except (CorruptBlob, StoreMissing, DiskFull) as error:
            part.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
            if not (resumed and isinstance(error, CorruptBlob)):
                raise
            # What was resumed may be what was wrong: once more, from nothing.
            self._download(source, ref)
        finally:
            os.close(fd)

    def add(self, path: Path) -> BlobRef:
        """Puts a file in: a hard link where the disk allows, else a copy.

        Do not change the file afterwards: it may be the very same one.
        """
        ref = BlobRef(digest=sha256_file(path), size_bytes=path.stat().st_size)
        target = self.path(ref)
        if self.has(ref):
            return ref
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            fd, name = tempfile.mkstemp(prefix=f"{target.name}.", suffix=".new", dir=target.parent)
            os.close(fd)
            new = Path(name)
            try:
                new.unlink()
                try:
                    os.link(path, new)
                except OSError:
                    shutil.copyfile(path, new)
                new.replace(target)
            finally:
                new.unlink(missing_ok=True)
        return ref

    def link(self, name: str, ref: BlobRef) -> Path:
        """A name for people: `engines/<name>`, a link to the blob. Replaced atomically."""
        path = self.root / "engines" / name
        target = os.path.relpath(self.path(ref), path.parent)
        if path.is_symlink() and str(path.readlink()) == target:
            return path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{name}.{os.getpid()}.{threading.get_ident()}")
            new.unlink(missing_ok=True)
            new.symlink_to(target)
            new.replace(path)
        return path

    @contextmanager
    def _locked(self, ref: BlobRef) -> Generator[None]:
        """One downloader a digest. The kernel frees the lock of a process that dies."""
        path = self.path(ref)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.with_name(f"{path.name}.lock").open("a")
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield
