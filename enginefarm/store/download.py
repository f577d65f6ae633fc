"""Downloads one blob to a file in parallel ranges, resumes it, and checks its digest."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from botocore.exceptions import ClientError

from enginefarm.documents.spec import BlobRef
from enginefarm.errors import CorruptBlob
from enginefarm.store.disk import writing
from enginefarm.store.failures import TRANSPORT, status_of
from enginefarm.store.pieces import PIECE_BYTES, Journal, RangeSource

CHUNK_BYTES = 256 << 10
HASH_BYTES = 256 << 10
THREADS = 4
TRIES_WITHOUT_PROGRESS = 5
PASSING_STATUS = (429, 500, 502, 503, 504)
"""Answers of a busy server. The range is requested again, as after a lost connection."""


def require_size(source: RangeSource, ref: BlobRef) -> None:
    """Asks for a large blob's real size before space is allocated for it, because anybody may have
    written the size in a manifest or a URL.

    Raises: CorruptBlob when the source reports another size or none; source.failure.
    """
    if ref.size_bytes <= PIECE_BYTES:
        return
    cause: Exception = ConnectionError()
    for tried in range(TRIES_WITHOUT_PROGRESS):
        try:
            body, total = source.range(0, 1)
        except (*TRANSPORT, ClientError) as error:
            if isinstance(error, ClientError):
                _raise_if_permanent(error, source, ref, "is empty")
            cause = error
            time.sleep(0.1 * 2**tried)
            continue
        body.close()
        if total != ref.size_bytes:
            size = f"has {total:,} bytes" if total >= 0 else "has a size that the server hides"
            raise wrong_size(source, ref, size)
        return
    raise source.failure(cause) from cause


def _raise_if_permanent(error: ClientError, source: RangeSource, ref: BlobRef, found: str) -> None:
    """Raises what a retry cannot fix: CorruptBlob for a range past the end, source.failure."""
    if status_of(error) == 416:
        raise wrong_size(source, ref, found) from error
    if status_of(error) not in PASSING_STATUS:
        raise source.failure(error) from error


def wrong_size(source: RangeSource, ref: BlobRef, found: str) -> CorruptBlob:
    return CorruptBlob(
        f"{source.name} {found}; {ref.size_bytes:,} bytes are expected",
        fix="build the recipe again, which restores the blob",
    )


class _Sha(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...


class _Stopped(Exception):
    """Another piece failed, or the caller was interrupted."""


def write_whole(fd: int, data: bytes, start: int) -> None:
    """Writes all bytes at an offset, because the kernel may write fewer at a time.

    Raises: OSError (ENOSPC) when it writes none.
    """
    rest = memoryview(data)
    while rest:
        count = os.pwrite(fd, rest, start)
        if count == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rest, start = rest[count:], start + count


class Download:
    """Fills `fd` with the bytes of one blob. `done` is the number of bytes that it holds."""

    def __init__(
        self,
        source: RangeSource,
        ref: BlobRef,
        fd: int,
        path: Path,
        journal: Journal | None = None,
    ) -> None:
        self._source = source
        self._ref = ref
        self._fd = fd
        self._path = path
        self._journal = journal
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._buffer = memoryview(bytearray(HASH_BYTES))
        self.done = 0

    def run(self, on_progress: Callable[[int], None]) -> str:
        """Downloads what is missing; returns the sha256 of the whole file.

        Pieces are hashed in order while later ones are still being downloaded.
        """
        ranges = list(self._ranges())
        finished = self._journal.finished if self._journal else set[int]()
        missing = [index for index in range(len(ranges)) if index not in finished]
        self.done = sum(
            end - start for index, (start, end) in enumerate(ranges) if index in finished
        )
        sha = hashlib.sha256()
        with ThreadPoolExecutor(min(THREADS, max(1, len(missing)))) as pool:
            pieces = {index: pool.submit(self._piece, index, *ranges[index]) for index in missing}
            try:
                for index, (start, end) in enumerate(ranges):
                    if index in pieces:
                        self._await(pieces[index], on_progress)
                    self._hash(sha, start, end)
                    on_progress(self.done)
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return sha.hexdigest()

    def _ranges(self) -> Iterable[tuple[int, int]]:
        size = self._ref.size_bytes
        return ((start, min(start + PIECE_BYTES, size)) for start in range(0, size, PIECE_BYTES))

    def _await(self, piece: Future[None], on_progress: Callable[[int], None]) -> None:
        while True:
            try:
                return piece.result(timeout=0.1)
            except TimeoutError:
                if piece.done():
                    raise
                on_progress(self.done)

    def _hash(self, sha: _Sha, start: int, end: int) -> None:
        while start < end:
            count = os.preadv(self._fd, [self._buffer[: end - start]], start)
            if count == 0:
                raise OSError(errno.EIO, f"{self._path} is shorter than what was written to it")
            sha.update(self._buffer[:count])
            start += count

    def _piece(self, index: int, start: int, end: int) -> None:
        tries = 0
        while start < end:
            before = start
            cause: Exception | None = None
            try:
                start = self._stream(start, end)
            except (*TRANSPORT, ClientError) as error:
                if isinstance(error, ClientError):
                    _raise_if_permanent(error, self._source, self._ref, "is too short")
                cause = error
            if start > before:
                tries = 0
            if start < end:
                tries += 1
                if tries >= TRIES_WITHOUT_PROGRESS:
                    raise self._source.failure(cause or ConnectionError()) from cause
                if self._stop.wait(0.1 * 2**tries):
                    raise _Stopped
        if self._journal is not None:
            self._journal.add(index)

    def _stream(self, start: int, end: int) -> int:
        """Writes the bytes of [start, end) that arrive; returns the offset that it reached."""
        body, total = self._source.range(start, end)
        try:
            if total not in (-1, self._ref.size_bytes):
                raise wrong_size(self._source, self._ref, f"has {total:,} bytes")
            while start < end:
                if self._stop.is_set():
                    raise _Stopped
                try:
                    chunk = body.read(min(CHUNK_BYTES, end - start))
                except TRANSPORT:
                    return start
                if not chunk:
                    return start
                with writing(self._path):
                    write_whole(self._fd, chunk, start)
                start += len(chunk)
                with self._lock:
                    self.done += len(chunk)
            return start
        finally:
            body.close()
