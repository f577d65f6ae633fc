"""The child of `isolate.build`: one build, in this process, and then it ends.

    python -m enginefarm.build.child TOOLCHAIN REQUEST.json PROGRESS_FD PARENT_PID

Leaves output.json or error.json in the request's work_dir. Its standard output and error
are the build log.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path

from enginefarm.child.lifeline import die_with_parent
from enginefarm.errors import BuildError, EnginefarmError
from enginefarm.progress import SINK
from enginefarm.toolchains import BuildRequest, toolchain

MIN_INTERVAL_S = 0.05


def main(arguments: list[str]) -> int:
    name, request_path, progress_fd, parent_pid = arguments
    die_with_parent(int(parent_pid))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prefer_to_be_killed()
    SINK.set(ProgressPipe(int(progress_fd)))
    request = BuildRequest.model_validate_json(Path(request_path).read_bytes())
    work_dir = request.work_dir.resolve()
    try:
        output = toolchain(name).build(request)
    except EnginefarmError as error:
        _write_error(work_dir, error)
        return 1
    except MemoryError:
        _write_error(work_dir, _unexpected("out of memory", request))
        return 1
    except Exception as error:
        traceback.print_exc()
        _write_error(work_dir, _unexpected(f"{type(error).__name__}: {error}", request))
        return 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    output = output.model_copy(update={"peak_memory_bytes": max(peak, output.peak_memory_bytes)})
    _write(work_dir / "output.json", output.model_dump_json())
    return 0


class ProgressPipe:
    """Writes progress as JSON lines, at most twenty a second and never blocking the build."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last = 0.0
        self._note = ""
        os.set_blocking(fd, False)

    def __call__(self, step: str, done: float, total: float | None, note: str = "") -> None:
        now = time.monotonic()
        finished = total is not None and done >= total
        if note == self._note and not finished and now - self._last < MIN_INTERVAL_S:
            return
        self._last, self._note = now, note
        line = json.dumps({"done": done, "total": total, "note": note[:500]}) + "\n"
        try:
            os.write(self._fd, line.encode())
        except (BlockingIOError, BrokenPipeError):
            return


def _prefer_to_be_killed() -> None:
    """When the machine runs out of memory, the kernel takes this child, not the worker."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    except OSError:
        return


def _unexpected(cause: str, request: BuildRequest) -> BuildError:
    return BuildError(
        f"build {request.spec.label}: the builder failed",
        why=cause,
        fix=f"read {request.work_dir / 'build.log'}",
    )


def _write_error(work_dir: Path, error: EnginefarmError) -> None:
    _write(work_dir / "error.json", json.dumps(error.fields()))


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
