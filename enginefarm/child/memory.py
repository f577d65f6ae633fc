"""How much memory a child takes, and when that is too much."""

from __future__ import annotations

from typing import NamedTuple

from enginefarm.child.process import largest_child_bytes, resident_bytes
from enginefarm.settings import build_limits, memory_bytes, memory_left_bytes

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
