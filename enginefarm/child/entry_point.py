"""The inside of a child process: one function is called, and its result or error is left in a file.

    python -P -m enginefarm.child.entry_point MODULE:FUNCTION FOLDER PROGRESS_FD PARENT_PID

`call.py` starts it and reads what it leaves.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from enginefarm.child import COLLECT
from enginefarm.child.lifeline import become_child, give_way
from enginefarm.errors import NO_SPACE, EnginefarmError, disk_full
from enginefarm.names import loaded
from enginefarm.progress import SINK

INTERVAL_S = 0.05
NO_SPACE_WORDS = os.strerror(errno.ENOSPC)
NO_ROOM = 74
"""The status of a child that could not even write down its answer or its error."""
REQUEST, RESULT, ERROR = "request.json", "result.json", "error.json"


class ProgressPipe:
    """Writes progress as JSON lines, at most twenty a second and never blocking the work."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last = 0.0
        self._note = ""
        os.set_blocking(fd, False)

    def __call__(self, step: str, done: float, total: float | None, note: str = "") -> None:
        now = time.monotonic()
        finished = total is not None and done >= total
        if note == self._note and not finished and now - self._last < INTERVAL_S:
            return
        self._last, self._note = now, note
        line = json.dumps([step, done, total, note[:500]]) + "\n"
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self._fd, line.encode())


def main(arguments: list[str]) -> None:
    function, folder, progress_fd, parent_pid = arguments
    gc.set_threshold(*COLLECT)
    become_child(int(parent_pid))
    SINK.set(ProgressPipe(int(progress_fd)))
    asked = json.loads((Path(folder) / REQUEST).read_text("utf-8"))
    sys.path[:] = asked["path"]
    if asked["gives_way"]:
        give_way()
    try:
        found, text = RESULT, str(loaded(function)(asked["request"]))
    except BaseException as cause:
        with suppress(OSError):  # the log's own disk may be full
            traceback.print_exc()
        found, text = ERROR, json.dumps(_fields(cause, Path(folder)))
    status = 0 if found == RESULT else 1
    partial = Path(folder) / f"{found}.partial"
    try:
        partial.write_text(text, "utf-8")
        partial.replace(Path(folder) / found)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        status = NO_ROOM
    with suppress(OSError):  # the log is on the same disk
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)  # libraries that crash on their way out have answered


@contextmanager
def room_in(folder: Path) -> Generator[None]:
    """Runs writes to that folder. Raises: DiskFull, which names it."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise disk_full(Path(error.filename or folder), error.strerror or "") from error


def _no_space(cause: BaseException | None) -> OSError | None:
    """The full disk behind an error, whatever it was called on the way up."""
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in NO_SPACE:
            return cause
        cause = cause.__cause__
    return None


def _fields(cause: BaseException, folder: Path) -> dict[str, str]:
    """folder: where the child works, which is the full one where the error names none."""
    full = _no_space(cause)
    if full is not None:
        cause = disk_full(Path(full.filename or folder), full.strerror or "")
    elif NO_SPACE_WORDS in str(cause):
        cause = disk_full(folder, str(cause)[:300])  # native libraries have no errno
    if isinstance(cause, EnginefarmError):
        return cause.fields()
    kind = MemoryError if isinstance(cause, MemoryError) else type(cause)
    return {"kind": kind.__name__, "why": f"{type(cause).__name__}: {cause}"[:600]}


if __name__ == "__main__":
    main(sys.argv[1:])
