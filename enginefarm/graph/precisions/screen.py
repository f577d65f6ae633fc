"""Noise of a graph at its outputs, measured in this process on the reference's batches."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import ModelProto

from enginefarm.errors import PrecisionError
from enginefarm.graph.model import ort
from enginefarm.graph.model.arrays import Array
from enginefarm.graph.model.emulate import emulate
from enginefarm.graph.verification.reference import ReferenceBatch

BATCHES = 2
"""Batches of the reference for a first look; the verification takes all of them."""


def noise(model: ModelProto, batches: Iterable[ReferenceBatch]) -> float:
    """Power of the difference over power of the reference, at the float output where it is
    largest; infinite where an output is not finite. The model is changed: 16 bits are emulated.

    Raises: PrecisionError when the graph cannot be run.
    """
    ratios = [
        float(lost.sum() / max(signal.sum(), 1e-60)) for signal, lost in _powers(model, batches)
    ]
    return max(ratios, default=0.0)


def noise_of_slices(model: ModelProto, batches: Iterable[ReferenceBatch]) -> float:
    """As `noise`, but by channel, which is axis 1 of outputs of rank 3 and more, and there where a
    channel is at least half as large as its peak: a detector's boxes are large numbers and would
    hide its class scores, and places without an object would hide those with one."""
    worst = 0.0
    for signal, lost in _powers(model, batches, peaks=True):
        there = signal > 0
        if not np.isfinite(lost).all():
            return float("inf")
        if there.any():
            worst = max(worst, float(np.sqrt(lost[there] / signal[there]).mean()) ** 2)
    return worst


def _powers(
    model: ModelProto, batches: Iterable[ReferenceBatch], *, peaks: bool = False
) -> list[tuple[Array, Array]]:
    """For each float output the power of the reference and of the difference, by channel.

    peaks: where a channel is at least half as large as its peak in the batch.
    """
    session = ort.session_of(emulate(model), error=PrecisionError, what="a graph that was tried")
    sums: dict[str, tuple[Array, Array]] = {}
    for batch in batches:
        found = ort.run(session, batch.inputs, error=PrecisionError, what="a graph that was tried")
        for name, wanted in batch.outputs.items():
            if wanted.dtype.kind != "f":
                continue
            x, y = wanted.astype(np.float64), found[name].astype(np.float64)
            if x.shape != y.shape:
                raise PrecisionError(f"output {name!r} has another shape than in FP32")
            there = np.isfinite(x)  # infinities that FP32 has too are not damage
            others = tuple(axis for axis in range(x.ndim) if axis != 1) if x.ndim > 2 else None
            if peaks and others is not None and x.size:
                sizes = np.abs(np.where(there, x, 0.0))
                there &= sizes >= sizes.max(axis=others, keepdims=True) / 2
            x, y = np.where(there, x, 0.0), np.where(there, y, 0.0)
            with np.errstate(invalid="ignore", over="ignore"):
                signal = np.atleast_1d(np.square(x).sum(axis=others))
                lost = np.atleast_1d(np.square(x - y).sum(axis=others))
            lost = np.where(np.isfinite(lost), lost, np.inf)
            known = sums.get(name)
            if known is not None and known[0].shape == signal.shape:
                signal, lost = signal + known[0], lost + known[1]
            sums[name] = signal, lost
    return list(sums.values())
