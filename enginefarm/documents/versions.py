"""Versions and compute capabilities, compared as numbers: 10.0 is newer than 8.9."""

from __future__ import annotations

import re

AMPERE = (8, 0)


def version_tuple(version: str) -> tuple[int, ...]:
    """Its numbers; a number of more than 18 digits, which nobody's version has, is cut up."""
    return tuple(int(part) for part in re.findall(r"[0-9]{1,18}", version))
