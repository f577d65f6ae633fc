"""What a process asks of the kernel: to die with its parent, to keep its secrets, to see no
other's. Imports next to nothing: runs start with it."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Callable
from contextlib import suppress

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446
"""System calls, of the same number on every architecture."""
LANDLOCK_MAKE_BLOCK = 1 << 11

PR_CAPBSET_DROP = 24
CAPABILITIES = struct.Struct("=6I")
CAPABILITY_HEADER = struct.pack("=Ii", 0x20080522, 0)
"""Version 3, of this process."""
SEES_OTHERS = (19, 21, 38)
"""CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON: root reads other processes' memory by them."""

LESS = 5
"""The niceness of what gives way: a third of the share of what does not."""

GOES_FIRST = 1000
"""The kernel's oom_score_adj of a process that is the first to be ended without memory."""


def become_child(parent_pid: int) -> None:
    """What every child process of ours does first: it dies with its parent, sees no other
    process, leaves no core, and is the first that goes when the machine is out of memory."""
    die_with_parent(parent_pid)
    see_no_other_process()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123
        score.write(str(GOES_FIRST))


def die_with_parent(parent_pid: int) -> None:
    """A killed worker must not leave processes behind that nobody waits for."""
    _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(1)


def die_with_parent_of() -> Callable[[], None]:
    """For a grandchild (trtexec): it dies with the process that calls this."""
    pid = os.getpid()
    return lambda: die_with_parent(pid)


def give_way() -> None:
    """This process takes less of the processor while another of a build wants it."""
    os.nice(LESS)
    # Where the kernel groups processes by session, that counts inside a session alone.
    with suppress(OSError), open("/proc/self/autogroup", "w") as group:  # noqa: PTH123
        group.write(str(LESS))


def keep_environment_private() -> None:
    """Other processes of the same user can no longer read this one's environment and memory.

    root can, and so can processes that may trace others; `see_no_other_process` is for those.
    """
    _libc().prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def see_no_other_process() -> bool:
    """This process and its descendants can no longer trace, nor read the environment of, any
    process outside: not even as root. False where the kernel has no Landlock (before 5.13).

    A Landlock domain brings that with it, whatever it restricts; this one forbids only to make
    block devices.
    """
    libc = _libc()
    _drop(libc, SEES_OTHERS)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    handled = struct.pack("=Q", LANDLOCK_MAKE_BLOCK)
    rules = libc.syscall(LANDLOCK_CREATE_RULESET, handled, len(handled), 0)
    if rules < 0:
        return False
    try:
        return bool(libc.syscall(LANDLOCK_RESTRICT_SELF, rules, 0) == 0)
    finally:
        os.close(rules)


def _drop(libc: ctypes.CDLL, capabilities: tuple[int, ...]) -> None:
    """Gives up capabilities, for programs that it starts too. A process without any loses none."""
    held = ctypes.create_string_buffer(CAPABILITIES.size)
    if libc.capget(CAPABILITY_HEADER, held) != 0:
        return
    sets = [*CAPABILITIES.unpack(held.raw)]  # effective, permitted, inheritable: low, then high
    for number in capabilities:
        libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
        for index in range(3):
            sets[number // 32 * 3 + index] &= ~(1 << number % 32)
    libc.capset(CAPABILITY_HEADER, CAPABILITIES.pack(*sets))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
