"""Which ranges and which operators an 8-bit graph is made with: what is tried, what is kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from onnx import ModelProto, TensorProto

from enginefarm.documents.data import Calibration
from enginefarm.errors import CalibrationError, PrecisionError
from enginefarm.graph.model import walk
from enginefarm.graph.model.edit import copied
from enginefarm.graph.precisions import calibration, qdq, search, targets
from enginefarm.graph.precisions.evidence import Evidence
from enginefarm.graph.precisions.kept_wide import WideNode
from enginefarm.graph.precisions.mixed import cast
from enginefarm.graph.precisions.use import Storage

AUTO: dict[str, dict[str, object]] = {
    "minmax": {"method": "minmax"},
    "percentile 99.999": {"method": "percentile", "percentile": 99.999},
    "percentile": {"method": "percentile"},
    "entropy": {"method": "entropy"},
}
"""What `method: auto` tries, with the recipe's own percentile and a wider one; of two that are as
good, the first."""
WITHOUT_REFERENCE = "minmax"
"""What `auto` takes where nothing can be compared."""
WORSE = 1.12
"""A group of operators beside those with weights is quantized where the noise grows by no more
than this (0.5 dB)."""


@dataclass
class Quantizing:
    """Graphs of one model, quantized in one way or another. The model itself stays as it is."""

    model: ModelProto
    storage: Storage
    kept: Mapping[str, WideNode]
    evidence: Evidence | None

    def made(
        self, ranges: Mapping[str, float], chosen: Sequence[targets.Target]
    ) -> tuple[ModelProto, qdq.Counts]:
        model = copied(self.model)
        counts = qdq.insert(model, ranges, self.storage, chosen)
        return cast(model, TensorProto.FLOAT16, self.kept), counts

    def choose(
        self,
        seen: Mapping[str, calibration.AbsHistogram],
        options: Calibration,
        possible: Sequence[targets.Target],
    ) -> tuple[str, dict[str, float]]:
        """The method and its ranges; among several methods, the one with the least noise."""
        method = options.method
        if method != "auto":
            return method, calibration.chosen(seen, options)
        ranges = {
            name: calibration.chosen(seen, options.model_copy(update=change))
            for name, change in AUTO.items()
        }
        if self.evidence is None:
            return WITHOUT_REFERENCE, ranges[WITHOUT_REFERENCE]
        weights = [target for target in possible if target.group == targets.WEIGHTS]
        noise = {
            name: search.noise_of_slices(
                self.made(found, weights)[0], islice(self.evidence.batches(), search.BATCHES)
            )
            for name, found in ranges.items()
        }
        best = min(AUTO, key=lambda name: noise[name])
        return best, ranges[best]

    def groups(
        self, ranges: Mapping[str, float], possible: Sequence[targets.Target]
    ) -> list[targets.Target]:
        """Operators with weights, and each other group that costs next to nothing."""
        names = [targets.WEIGHTS]
        if self.evidence is None:
            return [target for target in possible if target.group in names]
        batches = list(islice(self.evidence.batches(), search.BATCHES))

        def noise(names: Collection[str]) -> float:
            chosen = [target for target in possible if target.group in names]
            return search.noise_of_slices(self.made(ranges, chosen)[0], batches)

        there = {target.group for target in possible}
        least = noise(names) if len(there) > 1 else 0.0
        for group in targets.GROUPS:
            if group in there and group not in names and noise([*names, group]) <= least * WORSE:
                names.append(group)
        return [target for target in possible if target.group in names]

    def searched(
        self, ranges: Mapping[str, float], chosen: Sequence[targets.Target]
    ) -> dict[str, WideNode]:
        """Operators that have to stay in FP16 for the budget: as many as the careful judge wants,
        or else the other one. Empty where that would leave none in 8 bits: the precision misses its
        budget then, and verification says by how much."""
        evidence = self.evidence
        if evidence is None or evidence.judge is None or not walk.is_small(self.model):
            return {}

        def made(wide: frozenset[str]) -> ModelProto:
            return self.made(ranges, [t for t in chosen if t.node not in wide])[0]

        for judging in filter(None, (evidence.by_careful(), evidence)):
            # Otherwise it is known that the graph is over its budget as it is.
            if evidence.always and search.accepted(made(frozenset()), judging):
                return {}
            kept = search.searched(made, [[target.node for target in chosen]], judging)
            left = [t for t in chosen if t.group == targets.WEIGHTS and t.node not in kept]
            if kept and left:
                return kept
        return {}


def reached(
    model: ModelProto,
    possible: Sequence[targets.Target],
    seen: Mapping[str, calibration.AbsHistogram],
) -> list[targets.Target]:
    """Without operators in a branch that no calibration batch took: their range is unknown."""
    found = [
        target
        for target in possible
        if all(seen[name].size for name in qdq.activations(model, [target]))
    ]
    if not any(target.group == targets.WEIGHTS for target in found):
        raise CalibrationError(
            "calibration: the data reaches no operator that could be quantized",
            fix="give data that takes the branches with Conv, Gemm or MatMul in them",
        )
    return found


def in_range(
    model: ModelProto,
    possible: Sequence[targets.Target],
    seen: Mapping[str, calibration.AbsHistogram],
    storage: Storage,
) -> list[targets.Target]:
    """Without operators whose weights or inputs are all too small for a scale in FP16: they stay in
    FP16. An input that is always 0 says nothing of its range."""
    least = qdq.least_range(storage)
    largest = qdq.largest_weights(model, possible)
    found = [
        target
        for target in possible
        if largest.get(target.node, least) >= least
        and all(seen[name].amax >= least for name in qdq.activations(model, [target]))
    ]
    if not any(target.group == targets.WEIGHTS for target in found):
        raise PrecisionError(
            "there is nothing to quantize: weights or inputs of every Conv, Gemm and MatMul are "
            f"below {least:.2g}",
            why="FP16 does not hold their scales",
            fix="drop int8/fp8 from the recipe's precisions, or scale the model's inputs",
        )
    return found
