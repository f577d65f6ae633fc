"""BlobCache: blobs on the local disk, by digest. Many processes share it.

blobs/sha256/ab/<digest>          the bytes, read-only
blobs/sha256/ab/<digest>.seen     the file's inode, size, mtime and ctime when it was hashed; the
                                  date of this note is the blob's last use

A note counts only if nobody but this user and root can have written it and the bytes. Bytes that
another user can write are hashed at each use, and every copy that leaves the cache is hashed too.
docs/decisions/0285-whose-cache-is-believed.md
"""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from enginefarm.digest import Ref, sha256_file
from enginefarm.errors import CorruptBlob, DiskFull, StoreMissing
from enginefarm.settings import cache_limit_bytes, current
from enginefarm.store import untrusted_files
from enginefarm.store.disk import clone, settle, settle_folder, writing
from enginefarm.store.pieces import Journal, RangeSource
from enginefarm.store.prune import SEEN, keep_within

if TYPE_CHECKING:  # models, which a pull from the cache need not load
    from enginefarm.documents.spec import BlobRef
    from enginefarm.store.engine_store import EngineStore


class BlobCache:
    """Files by digest. Every file that it returns was hashed after its last change."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or current().cache

    def path(self, ref: Ref) -> Path:
        """The blob's path, whether it exists or not. Call intact() or ensure() before you read
        it."""
        return self.root / "blobs" / "sha256" / ref.digest[:2] / ref.digest

    def has(self, ref: Ref) -> bool:
        return self.intact(ref) is not None

    def intact(self, ref: Ref) -> Path | None:
        """The blob's path if its bytes have its digest; None if it is not in the cache.

        It is hashed unless its inode, size, mtime and ctime are the same as when it was hashed
        before. Whatever was changed, cut off or damaged, or is not a file, is removed.
        Raises: UsageError for a file that can neither be read nor removed.
        """
        path = self.path(ref)
        with writing(path):
            try:
                found = (
                    path.lstat()
                )  # a link is not the blob: the owner of its target can write there
            except FileNotFoundError:
                return None
            stamp = _stamp(path.name, found)
            seen = path.with_name(f"{path.name}{SEEN}")
            fits = stat.S_ISREG(found.st_mode) and found.st_size == ref.size_bytes
            if (
                fits
                and untrusted_files.is_ours(found)
                and untrusted_files.read_ours(seen) == stamp.encode()
            ):
                with suppress(OSError):  # a cache that cannot be written is used all the same
                    os.utime(seen)
                return path
            if fits and _hashes_to(path, ref):
                self._note(seen, stamp)
                return path
            path.unlink(missing_ok=True)
            seen.unlink(missing_ok=True)
            return None

    def ensure(self, store: EngineStore, ref: BlobRef) -> Path:
        """The blob's path, after a download if it is missing or damaged.

        If several processes want one blob, one downloads it and the others wait. The next call
        resumes a download that was interrupted.
        Raises: CorruptBlob, StoreMissing, StoreUnavailable, DiskFull.
        """
        return self.intact(ref) or self.fill(store.source(ref), ref)

    def fill(self, source: RangeSource, ref: BlobRef) -> Path:
        """ensure() from any source."""
        with self._locked(ref):
            if not self.has(ref):
                self._download(source, ref)
        return self.path(ref)

    def _download(self, source: RangeSource, ref: BlobRef) -> None:
        from enginefarm.store.blobs import fill

        path = self.path(ref)
        part = path.with_name(f"{path.name}.part")
        note = path.with_name(f"{path.name}.pieces")
        resumed = False
        fd = untrusted_files.open_to_go_on(part)
        try:
            if os.fstat(fd).st_size == 0:  # it is new
                with writing(note):
                    note.unlink(missing_ok=True)
            journal = Journal(note)
            resumed = bool(journal.finished)
            fill(source, ref, fd, part, journal)
            self._keep(part, path)
            note.unlink(missing_ok=True)
        except (CorruptBlob, StoreMissing, DiskFull) as error:
            part.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
            if not (resumed and isinstance(error, CorruptBlob)):
                raise
            # The resumed part may be the damaged one: download everything once more.
            self._download(source, ref)
        finally:
            os.close(fd)

    def add(self, path: Path) -> BlobRef:
        """Adds a copy of a file (a reflink where the file system can). The copy is hashed, not the
        file: a process that still has the file open cannot change the cache."""
        return self.add_written(partial(clone, path))

    def add_written(self, write: Callable[[Path], object]) -> BlobRef:
        """Adds what `write` puts into a new file of the cache."""
        from enginefarm.documents.spec import BlobRef

        scratch = self.root / "blobs" / "sha256"
        with writing(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
            fd, name = tempfile.mkstemp(prefix="adding.", suffix=".new", dir=scratch)
            os.close(fd)
        new = Path(name)
        try:
            write(new)
            ref = BlobRef(digest=sha256_file(new), size_bytes=new.stat().st_size)
            # If two processes add the same bytes, the first keeps its file: it may be uploading it.
            with self._locked(ref):
                if not self.has(ref):
                    self._keep(new, self.path(ref))
        finally:
            new.unlink(missing_ok=True)
        return ref

    def link(self, name: str, ref: Ref) -> Path:
        """Links `engines/<name>`, a name for people, to the blob. Replaces it atomically."""
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

    def _keep(self, hashed: Path, path: Path) -> None:
        """Makes a file whose digest was checked the blob: flushed to the disk, and read-only."""
        with writing(path):
            hashed.chmod(0o444)
            settle(hashed)
            hashed.replace(path)
            settle_folder(path.parent)
        self._note(path.with_name(f"{path.name}{SEEN}"), _stamp(path.name, path.lstat()))
        keep_within(self.root, cache_limit_bytes(self.root), spare=path)

    def _note(self, seen: Path, stamp: str) -> None:
        """Writes the note if it can; without a note, each use hashes the file."""
        with suppress(OSError):
            fd, name = tempfile.mkstemp(prefix=f"{seen.name}.", suffix=".new", dir=seen.parent)
            with os.fdopen(fd, "w") as stream:
                os.fchmod(fd, 0o644)
                stream.write(stamp)
            Path(name).replace(seen)

    @contextmanager
    def _locked(self, ref: BlobRef) -> Generator[None]:
        """Lets one process at a time write a digest. The kernel frees a dead process's lock."""
        from filelock import FileLock  # imported here because a cached blob needs no lock

        path = self.path(ref)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_name(f"{path.name}.lock"))
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _stamp(digest: str, found: os.stat_result) -> str:
    """Includes ctime, because no program can set it back as it can mtime."""
    return f"{digest} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _hashes_to(path: Path, ref: Ref) -> bool:
    """Whether the file has the digest; False for an unreadable file, which is downloaded again."""
    try:
        return sha256_file(path) == ref.digest
    except PermissionError:
        return False
