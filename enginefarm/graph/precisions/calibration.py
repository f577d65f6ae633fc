"""Activation ranges from representative data: entropy, minmax or percentile.

It makes one pass over the batches and keeps only a histogram of |x| for each tensor, so that memory
does not grow with the number of batches. docs/decisions/0111 explains why ONNX Runtime's own
calibrators are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper

from enginefarm import progress
from enginefarm.documents.data import Calibration
from enginefarm.errors import CalibrationError
from enginefarm.graph.model import ahead, ort
from enginefarm.graph.model.arrays import Array, Arrays
from enginefarm.graph.model.edit import FreeNames, copied
from enginefarm.graph.model.walk import bodies
from enginefarm.graph.precisions.use import BINS, LEVELS, STRIDE

PIECE = 1 << 17
MIN_VALUES = 8 * BINS
"""With fewer values most bins are empty by chance, and entropy would clip at random."""


class AbsHistogram:
    """Counts of |x| in BINS equal bins over [0, limit]. When the limit has to double, neighboring
    bins are merged, so that every count stays in a bin that it belongs to."""

    def __init__(self) -> None:
        self.counts: Array | None = None
        self.size = 0
        self.limit = 0.0
        self.amax = 0.0

    def add(self, values: Array) -> None:
        """values: any shape, finite.

        Raises: CalibrationError on NaN or infinity.
        """
        values = np.asarray(values, np.float32).ravel()
        self.size += values.size
        top = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
        if not np.isfinite(top):
            raise CalibrationError("NaN or infinity")
        self.amax = max(self.amax, top)
        if self.counts is None:
            if top == 0.0:
                return  # a bin width cannot be chosen without values
            self.counts = np.zeros(BINS, np.int64)
            self.limit = top
        while top > self.limit:
            self.counts[: BINS // 2] = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[BINS // 2 :] = 0
            self.limit *= 2
        scale = np.float32(BINS / self.limit)
        # In pieces that stay in the processor's cache: three times as fast as whole
        for start in range(0, values.size, PIECE):
            bins = np.abs(values[start : start + PIECE])
            bins *= scale
            np.minimum(bins, BINS - 1, out=bins)
            self.counts += np.bincount(bins.astype(np.intp), minlength=BINS)


def minmax(histogram: AbsHistogram, options: Calibration) -> float:
    return histogram.amax


def percentile(histogram: AbsHistogram, options: Calibration) -> float:
    """The smallest bin edge with at least `options.percentile` % of |x| below it."""
    if histogram.counts is None:
        return 0.0
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    bin_index = int(np.searchsorted(share, options.percentile / 100))
    return min((bin_index + 1) * histogram.limit / BINS, histogram.amax)


def entropy(histogram: AbsHistogram, options: Calibration) -> float:
    """The threshold whose 128-level quantization loses the least information.

    Kullback-Leibler divergence between the clipped distribution and its quantized self, as in
    S. Migacz, "8-bit Inference with TensorRT" (GTC 2017) and NVIDIA's pytorch-quantization.
    With fewer than MIN_VALUES numbers, it returns the largest.
    """
    if histogram.counts is None or histogram.counts.sum() < MIN_VALUES:
        return histogram.amax
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]  # zeros, mostly from ReLU, say nothing about the range
    total = np.cumsum(counts)
    best, best_divergence = BINS, np.inf
    for stop in range(LEVELS, BINS + 1, STRIDE):
        divergence = _divergence(counts[:stop], total[-1] - total[stop - 1])
        if divergence <= best_divergence:
            best, best_divergence = stop, divergence
    return min(best * histogram.limit / BINS, histogram.amax)


def _divergence(kept: Array, clipped: float) -> float:
    edges = np.linspace(0, kept.size, LEVELS + 1).astype(np.int64)[:-1]
    filled = (kept > 0).astype(np.float64)
    sums = np.add.reduceat(kept, edges)
    means = sums / np.maximum(np.add.reduceat(filled, edges), 1)
    widths = np.diff(edges, append=kept.size)
    quantized = np.repeat(means, widths) * filled
    wanted = kept.copy()
    wanted[-1] += clipped
    if quantized.sum() == 0 or (wanted[-1] > 0 and quantized[-1] == 0):
        quantized[-1] = max(quantized[-1], 1e-12)  # or the divergence would be infinite
    wanted, quantized = wanted / wanted.sum(), quantized / quantized.sum()
    used = wanted > 0
    return float(np.sum(wanted[used] * np.log(wanted[used] / quantized[used])))


METHODS: dict[str, Callable[[AbsHistogram, Calibration], float]] = {
    "entropy": entropy,
    "minmax": minmax,
    "percentile": percentile,
}


def chosen(found: Mapping[str, AbsHistogram], options: Calibration) -> dict[str, float]:
    """Tensor -> range by `options.method`. Tensors that no data reached, as in a branch that never
    ran, are left out."""
    method = METHODS[options.method]
    return {name: method(seen, options) for name, seen in found.items() if seen.size}


def histograms(
    model: ModelProto,
    names: Sequence[str],
    batches: Iterable[Mapping[str, Array]],
    options: Calibration,
) -> dict[str, AbsHistogram]:
    """A histogram of |x| for each named tensor, including those in the branches of an If.

    Raises: CalibrationError, naming the tensor, when there is no data, or the model returns NaN.
    """
    made, shown = exposed(model, names)
    session = ort.session_of(made, error=CalibrationError, what="the calibration graph")
    del made
    seen = {name: AbsHistogram() for name in names}

    def run(numbered: tuple[int, Mapping[str, Array]]) -> Arrays:
        number, batch = numbered
        inputs = {tensor.name: batch[tensor.name] for tensor in session.get_inputs()}
        what = f"calibration batch {number}"
        return ort.run(session, inputs, error=CalibrationError, what=what)

    count = 0
    for (_, batch), found in ahead.each(run, enumerate(batches), ahead.at_once(model)):
        for name in names:
            try:
                seen[name].add(found[shown[name]] if name in shown else batch[name])
            except CalibrationError as error:
                raise CalibrationError(
                    f"calibration batch {count}: tensor {name!r} holds {error.what}",
                    fix="the FP32 model overflows on this data: check its preprocessing",
                ) from None
        found.clear()  # the next batch is in memory already
        count += 1
        progress.report("calibrate", count, options.batches)
    if count == 0:
        raise CalibrationError(
            "calibration: the data has no batches", fix="provide representative samples"
        )
    return seen


def exposed(model: ModelProto, names: Sequence[str]) -> tuple[ModelProto, dict[str, str]]:
    """A copy whose outputs are these values alone, and the name of each there.

    A value of a branch that did not run is empty. Inputs of the model are left out.
    """
    made: ModelProto = copied(model)
    inputs = {value.name for value in made.graph.input}
    wanted = [name for name in names if name not in inputs]
    renamed = _through_branches(made.graph, set(wanted), FreeNames(made))
    found = {name: renamed.get(name, name) for name in wanted}
    if not found:  # a graph needs an output
        return made, found
    del made.graph.output[:]
    made.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in dict.fromkeys(found.values())
    )
    return made, found


def _through_branches(graph: GraphProto, wanted: set[str], free: FreeNames) -> dict[str, str]:
    """Passes wanted values of branches out of their If; returns their names in this graph."""
    renamed: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "If":
            continue
        branches = bodies(node)
        own = [_through_branches(branch, wanted, free) for branch in branches]
        for branch, deeper in zip(branches, own, strict=True):
            made_here = {name for inner in branch.node for name in inner.output}
            deeper.update((name, name) for name in sorted(wanted & made_here))
        for branch, values in zip(branches, own, strict=True):
            for name, inner in values.items():
                renamed[name] = free.make(f"{name}_seen")
                node.output.append(renamed[name])
                for other in branches:
                    shown = inner
                    if other is not branch:
                        shown = free.make(f"{name}_not_run")
                        other.initializer.append(
                            helper.make_tensor(shown, TensorProto.FLOAT, [0], [])
                        )
                    other.output.append(
                        helper.make_tensor_value_info(shown, TensorProto.FLOAT, None)
                    )
    return renamed
