"""The pieces of a download: where they come from, and which of them are complete."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from enginefarm.errors import EnginefarmError
from enginefarm.store import untrusted_files
from enginefarm.store.disk import writing

PIECE_BYTES = 32 << 20


class RangeSource(Protocol):
    """Where ranges of one blob come from.

    name: for messages; it never contains a secret.
    """

    name: str

    def range(self, start: int, end: int) -> tuple[Any, int]:
        """A stream with read(n) and close() over [start, end), and the size of the whole blob (-1:
        unknown). Raises: the errors of failures.TRANSPORT, ClientError."""
        ...

    def failure(self, error: Exception) -> EnginefarmError:
        """Our error for one of those."""
        ...


class Journal:
    """Notes which pieces of a partial file are complete, so that another process can continue.

    One line for each piece, appended after its bytes. If a power cut leaves the journal ahead of
    the file, the digest shows it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header = f"pieces of {PIECE_BYTES}"
        self.finished: set[int] = set()
        with suppress(ValueError):
            header, *lines = (untrusted_files.read(path) or b"").decode().splitlines() or [""]
            if header == self._header:
                self.finished = {int(line) for line in lines}
        if not self.finished:
            self._write(untrusted_files.new(path), self._header)

    def add(self, index: int) -> None:
        with writing(self.path):
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | untrusted_files.FLAGS)
        self._write(fd, str(index))

    def _write(self, fd: int, line: str) -> None:
        with writing(self.path), os.fdopen(fd, "w", encoding="utf-8") as stream:
            stream.write(f"{line}\n")
