"""One blob from the store to a file: parallel ranges, resumed after a cut, digest checked."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from botocore.exceptions import ClientError

from enginefarm.errors import CorruptBlob, EnginefarmError
from enginefarm.spec import BlobRef
from enginefarm.store.failures import TRANSPORT, status_of, translate, writing
from enginefarm.store.s3 import ObjectStore

PIECE_BYTES = 32 << 20
CHUNK_BYTES = 256 << 10
HASH_BYTES = 256 << 10
THREADS = 4
TRIES_WITHOUT_PROGRESS = 5


class _Sha(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...


class _Stopped(Exception):
    """Another piece failed, or the caller was interrupted."""


class Download:
    """Fills `fd` with the bytes of one blob. `done` is the number of bytes written."""

    def __init__(self, objects: ObjectStore, key: str, ref: BlobRef, fd: int, path: Path) -> None:
        self._objects = objects
        self._key = key
        self._ref = ref
        self._fd = fd
        self._path = path
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._buffer = memoryview(bytearray(HASH_BYTES))
        self.done = 0

    def run(self, on_progress: Callable[[int], None]) -> str:
        """Downloads everything; gives the sha256 of what was written, read back in order.

        Hashing runs here while later pieces are still on their way.
        """
        size = self._ref.size_bytes
        starts = range(0, size, PIECE_BYTES)
        sha = hashlib.sha256()
        with ThreadPoolExecutor(min(THREADS, max(1, len(starts)))) as pool:
            pieces: list[Future[None]] = [
                pool.submit(self._piece, start, min(start + PIECE_BYTES, size)) for start in starts
            ]
            try:
                for start, piece in zip(starts, pieces, strict=True):
                    while True:
                        try:
                            piece.result(timeout=0.1)
                            break
                        except TimeoutError:
                            if piece.done():
                                raise
                            on_progress(self.done)
                    self._hash(sha, start, min(start + PIECE_BYTES, size))
                    on_progress(self.done)
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return sha.hexdigest()

    def _hash(self, sha: _Sha, start: int, end: int) -> None:
        while start < end:
            count = os.preadv(self._fd, [self._buffer[: end - start]], start)
            sha.update(self._buffer[:count])
            start += count

    def _piece(self, start: int, end: int) -> None:
        tries = 0
        while start < end:
            before = start
            try:
                start = self._stream(start, end)
                cause: Exception | None = None
            except TRANSPORT as error:
                cause = error
            except ClientError as error:
                if status_of(error) == 416:
                    raise self._wrong_size("shorter than that") from error
                raise self._translated(error) from error
            if start > before:
                tries = 0
            if start < end:
                tries += 1
                if tries >= TRIES_WITHOUT_PROGRESS:
                    raise self._translated(cause or TimeoutError()) from cause
                self._stop.wait(0.1 * 2**tries)

    def _stream(self, start: int, end: int) -> int:
        """Writes what arrives of [start, end); gives the offset reached."""
        body, total = self._objects.range(self._key, start, end)
        try:
            if total not in (-1, self._ref.size_bytes):
                raise self._wrong_size(f"{total:,} bytes")
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
                    os.pwrite(self._fd, chunk, start)
                start += len(chunk)
                with self._lock:
                    self.done += len(chunk)
            return start
        finally:
            body.close()

    def _wrong_size(self, has: str) -> CorruptBlob:
        return CorruptBlob(
            f"store: {self._objects.full(self._key)} is {has}; {self._ref.size_bytes:,} expected",
            fix="rebuild the engine, which uploads it again",
        )

    def _translated(self, error: Exception) -> EnginefarmError:
        return translate(
            error,
            bucket=self._objects.bucket,
            where=self._objects.where,
            key=self._objects.full(self._key),
        )
