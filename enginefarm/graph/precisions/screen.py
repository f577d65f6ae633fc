"""Noise of a graph at its outputs, measured in this process on the reference's batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from enginefarm.errors import PrecisionError
from enginefarm.graph import ort

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

    from enginefarm.graph.reference import ReferenceBatch

    Array = np.ndarray[Any, Any]


def noise(model: ModelProto, batches: Iterable[ReferenceBatch]) -> float:
    """Power of the difference over power of the reference, at the float output where it is
    largest; infinite where an output is not finite. The model is changed: 16 bits are emulated.

    Raises: PrecisionError when the graph cannot be run.
    """
    import numpy as np

    from enginefarm.graph.emulate import emulate

    session = ort.session_of(emulate(model), error=PrecisionError, what="a graph of the search")
    sums: dict[str, list[float]] = {}
    for batch in batches:
        found = ort.run(session, batch.inputs, error=PrecisionError, what="a graph of the search")
        for name, wanted in batch.outputs.items():
            if wanted.dtype.kind != "f":
                continue
            x, y = wanted.astype(np.float64), found[name].astype(np.float64)
            there = np.isfinite(x)
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += float(np.square(x[there]).sum())
            if x.shape != y.shape or not np.isfinite(y[there]).all():
                return float("inf")
            total[1] += float(np.square(x[there] - y[there]).sum())
    return max((lost / max(signal, 1e-60) for signal, lost in sums.values()), default=0.0)
