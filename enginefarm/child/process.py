"""What every child process of ours gets, how much it takes, and how it is ended."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

import enginefarm
from enginefarm.child.lifeline import GOES_FIRST, keep_environment_private
from enginefarm.settings import build_limits, memory_bytes, memory_left_bytes

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

ENVIRONMENT = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUDA_MODULE_LOADING",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "TENSORRT_HOME",
    "ENGINEFARM_RECIPE_ROOTS",
    "ENGINEFARM_BUILD_MEMORY_MIB",
    "ENGINEFARM_BUILD_TIMEOUT_S",
)
"""All that a child inherits. No AWS_*, no PREFECT_*, no tokens."""


def child_environment(work_dir: Path) -> dict[str, str]:
    """The allowed variables, a separate home, and where to import enginefarm from."""
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    package_parent = str(Path(enginefarm.__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH", "")
    return kept | {
        "HOME": str(work_dir),
        "TMPDIR": str(work_dir),
        "PYTHONPATH": os.pathsep.join(filter(None, (package_parent, inherited))),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }


@cache
def randomization_off() -> tuple[str, ...]:
    """What stands before a command so that its addresses are fixed: `setarch -R`, where it
    works, so that plans repeat. Docker's default seccomp profile forbids it."""
    tool = shutil.which("setarch")
    if tool is None:
        return ()
    prefix = (tool, platform.machine(), "-R")
    probe = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return prefix if probe.returncode == 0 else ()


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants; 0 for one that has gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * PAGE_BYTES + sum(resident_bytes(child) for child in _children(pid))


def largest_child_bytes() -> int:
    """Resident memory of the largest single process on this machine that is a child of ours or of
    another enginefarm: it is marked to go first (`lifeline.become_child`)."""
    found = [0]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):  # it has gone
            if int((process / "oom_score_adj").read_text("ascii")) == GOES_FIRST:
                pages = int((process / "statm").read_text("ascii").split()[1])
                found.append(pages * PAGE_BYTES)
    return max(found)


def _children(pid: int) -> list[int]:
    # Asking for every process of the machine instead (psutil) took 20 ms, twenty times a second.
    try:
        return [
            int(child)
            for thread in Path(f"/proc/{pid}/task").iterdir()
            for child in (thread / "children").read_text("ascii").split()
        ]
    except OSError:  # it has gone, or the kernel lacks this file: then the leader alone counts
        return []


def start(
    command: Sequence[str],
    work_dir: Path,
    *,
    stdout: IO[bytes] | int,
    pass_fds: Sequence[int],
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a child in its own session, which `kill_group` ends with all that it started.

    environment: on top of `child_environment`. From here on this process's own environment
    cannot be read by others of the same user; the child calls `lifeline.become_child`.
    """
    keep_environment_private()
    return subprocess.Popen(
        [*command],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env={**child_environment(work_dir), **(environment or {})},
        pass_fds=pass_fds,
        start_new_session=True,
    )


def kill_group(child: subprocess.Popen[bytes]) -> None:
    # The group outlives its leader when a helper (trtexec) does: always sweep it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


LOW = 20
"""The machine is out of memory when less than one part in so many is left. The kernel would end
the child then, after it has thrown out the files that all other processes read."""


class TooMuch(NamedTuple):
    """What a child did, to follow its name in an error."""

    words: str
    fix: str


class MemoryWatch:
    """A child's memory with that of all it starts. peak_bytes: the most that was seen."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        """limit_bytes None: that of a build. Raises: UsageError for a setting."""
        self._limit_bytes = limit_bytes or build_limits().memory_bytes
        self._low_bytes = memory_bytes() // LOW
        self.peak_bytes = 0

    def too_much(self, pid: int) -> TooMuch | None:
        """Why that child has to end now: it is over its limit, or it is the largest of all on a
        machine that has no memory left."""
        resident = resident_bytes(pid)
        self.peak_bytes = max(self.peak_bytes, resident)
        if resident > self._limit_bytes:
            return TooMuch(
                f"used {mib(resident)} of memory, over its limit of {mib(self._limit_bytes)}, "
                "and was killed",
                "raise ENGINEFARM_BUILD_MEMORY_MIB (plan for 4× the weights), or run fewer at a "
                "time",
            )
        left = memory_left_bytes()
        if left < self._low_bytes and resident >= largest_child_bytes():
            return TooMuch(
                f"used {mib(resident)} of memory when the machine had {mib(left)} left, and was "
                "killed",
                "give the machine or container more memory, or run fewer at a time; "
                "ENGINEFARM_BUILD_MEMORY_MIB sets a limit below that",
            )
        return None


def mib(size_bytes: int) -> str:
    """`600 MiB`."""
    return f"{size_bytes / (1 << 20):.0f} MiB"
