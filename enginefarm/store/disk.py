"""Writes files whole, copies them, and translates errors of the disk into ours, with the path."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from enginefarm.digest import Ref, sha256_file
from enginefarm.errors import NO_SPACE, CorruptBlob, UsageError, disk_full

UNWRITABLE = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.ENOENT,
        errno.EINVAL,
        errno.EBUSY,
    }
)
"""Errors that the user's choice of a path causes. Any other is a fault of the disk."""


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Runs writes to a path.

    Raises: DiskFull, which names the folder; UsageError for a path that cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise disk_full(path, error.strerror or "") from error
        if error.errno not in UNWRITABLE:
            raise
        raise _unwritable(path, error.strerror or "") from error
    except ValueError as error:
        if "\0" not in str(path):
            raise
        raise _unwritable(path, "a path cannot hold a null character") from error


def require_file(path: Path) -> None:
    """Raises: UsageError for a device, a pipe or a socket, or a link to one."""
    with writing(path):
        special = path.exists() and not (path.is_file() or path.is_dir())
    if special:
        raise _unwritable(
            path, "it is a device, a pipe or a socket, which enginefarm never replaces"
        )


def _unwritable(path: Path, why: str) -> UsageError:
    return UsageError(
        f"disk: cannot write {str(path)!r}",
        why=why,
        fix="choose a file or folder that you may write (--dest, ENGINEFARM_CACHE, TMPDIR)",
    )


PART = ".part"
YOUNG_S = 60.0
"""A partial file that was written to within this time is left alone, whoever wrote it."""


@contextmanager
def appearing(dest: Path, mode: int = 0o644) -> Generator[Path]:
    """Yields an empty file next to `dest` to fill. It becomes `dest` when the block succeeds, and
    is removed when it does not.

    Raises: DiskFull; UsageError for a path that cannot be written, or that is a device, a pipe or
    a socket: a device that root replaces is gone from the machine.
    """
    require_file(dest)
    prefix = f".{dest.name[:100]}."
    with writing(dest):
        dest.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(dest.parent, prefix)
        fd, name = tempfile.mkstemp(prefix=prefix, suffix=PART, dir=dest.parent)
    part = Path(name)
    try:
        _lock(fd, fcntl.LOCK_SH)
        yield part
        with writing(dest):
            part.chmod(mode)
            settle(part)
            part.replace(dest)
            settle_folder(dest.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


@contextmanager
def one_at_a_time(folder: Path) -> Generator[None]:
    """Several files of a folder are replaced by one process at a time, so that they fit together.

    A file system without such locks (some network ones) has each process write when it likes; every
    file is whole there too.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Removes what processes that were killed have half written of the same file. The kernel frees
    a dead process's lock; one that was just made may not be locked yet."""
    for path in folder.glob(f"{glob.escape(prefix)}{'?' * 8}{PART}"):
        with suppress(OSError):
            if path.lstat().st_mtime > time.time() - YOUNG_S:
                continue
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(fd)


def _lock(fd: int, how: int) -> None:
    with suppress(OSError):
        fcntl.flock(fd, how)


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Writes a small file atomically. mode: 0o600 for a secret, which nobody else ever reads."""
    with appearing(path, mode) as part, writing(path):
        part.write_bytes(data)


def settle(path: Path) -> None:
    """Flushes the file's bytes to the disk."""
    _fsync(path, os.O_RDONLY)


def settle_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk."""
    _fsync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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


def clone_checked(source: Path, target: Path, ref: Ref) -> None:
    """clone(), then checks the digest of the copy. Raises: CorruptBlob, DiskFull."""
    clone(source, target)
    require_digest(target, ref, source)


def require_digest(path: Path, ref: Ref, source: Path) -> None:
    """source: what errors call it. Raises: CorruptBlob when the bytes are not the blob's."""
    digest = sha256_file(path)
    if digest != ref.digest:
        raise CorruptBlob(
            f"cache: the bytes of {source} hash to {digest[:12]}; they are not used",
            why="the file was changed or damaged while it was copied",
            fix=f"delete {source} if this happens again, and run the same command: it downloads "
            "the file again",
        )
