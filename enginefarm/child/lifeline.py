"""A process that dies with its parent. Imports next to nothing: runs start with it."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """A killed worker must not leave processes behind that nobody waits for."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(1)


def die_with_parent_of() -> Callable[[], None]:
    """For a grandchild (trtexec): it dies with the process that calls this."""
    pid = os.getpid()
    return lambda: die_with_parent(pid)
