"""The inside of a child process: one function is called, and its result or error is left in a file.

    python -P -m enginefarm.child.inside MODULE:FUNCTION FOLDER PROGRESS_FD PARENT_PID

`call.py` starts it and reads what it leaves.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

from enginefarm.child.lifeline import become_child
from enginefarm.errors import DiskFull, EnginefarmError
from enginefarm.names import loaded
from enginefarm.progress import SINK

INTERVAL_S = 0.05
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
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
    become_child(int(parent_pid))
    SINK.set(ProgressPipe(int(progress_fd)))
    asked = json.loads((Path(folder) / REQUEST).read_text("utf-8"))
    sys.path[:] = asked["path"]
    try:
        found, text = RESULT, str(loaded(function)(asked["request"]))
    except BaseException as cause:
        traceback.print_exc()
        found, text = ERROR, json.dumps(_fields(cause))
    partial = Path(folder) / f"{found}.partial"
    partial.write_text(text, "utf-8")
    partial.replace(Path(folder) / found)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if found == RESULT else 1)  # libraries that crash on their way out have answered


def _fields(cause: BaseException) -> dict[str, str]:
    if isinstance(cause, OSError) and cause.errno in NO_SPACE:
        cause = DiskFull(
            f"disk: no room to write {cause.filename or Path.cwd()}",
            why=cause.strerror or "",
            fix="free space there, or choose another folder (ENGINEFARM_CACHE, TMPDIR)",
        )
    if isinstance(cause, EnginefarmError):
        return cause.fields()
    kind = MemoryError if isinstance(cause, MemoryError) else type(cause)
    return {"kind": kind.__name__, "why": f"{type(cause).__name__}: {cause}"[:600]}


if __name__ == "__main__":
    main(sys.argv[1:])
