"""Whether processes have ended: one that nobody has reaped has ended too, as in a container whose
first process reaps nobody."""

from __future__ import annotations

import time
from collections.abc import Iterable

import psutil


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def alive(processes: Iterable[psutil.Process], timeout_s: float = 5) -> list[psutil.Process]:
    """Those that still run after that time."""
    deadline = time.monotonic() + timeout_s
    left = list(processes)
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = [process for process in left if not gone(process)]
    return left
