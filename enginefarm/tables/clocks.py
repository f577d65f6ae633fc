"""When two measurements ran at different clocks."""

from __future__ import annotations

CLOCK_TOLERANCE = 0.05
"""Median SM clocks further apart than this are two power states."""


def clocks_differ(mine: float | None, theirs: float | None) -> str | None:
    if mine is None or theirs is None:
        return None
    if abs(mine - theirs) <= CLOCK_TOLERANCE * max(mine, theirs):
        return None
    return f"SM clock differs: {mine:.0f} and {theirs:.0f} MHz"
