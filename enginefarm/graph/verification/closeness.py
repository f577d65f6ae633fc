"""Measures the difference between two results of one graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Array


ROUNDING = 1e-4
"""The difference that FP32 rounding in another order may cause, relative to an output's largest
value."""


def relative(wanted: Array, found: Array) -> float:
    """The largest difference, relative to the largest finite value of `wanted`.

    It is infinite if shapes differ, if numbers that are not floats differ, or if NaN and infinities
    are not in the same places.
    """
    import numpy as np

    if wanted.shape != found.shape:
        return float("inf")
    if wanted.dtype.kind != "f":
        return 0.0 if np.array_equal(wanted, found) else float("inf")
    before, after = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(before)
    if not np.array_equal(before[~finite], after[~finite], equal_nan=True):
        return float("inf")
    before, after = before[finite], after[finite]
    if not np.isfinite(after).all():
        return float("inf")
    if not before.size:
        return 0.0
    difference = float(np.abs(before - after).max())
    return difference / max(float(np.abs(before).max()), 1e-30) if difference else 0.0
