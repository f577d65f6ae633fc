"""What the zoo says of a published graph: figures on data that nobody has seen, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from enginefarm.documents.thresholds import Budget

Array = np.ndarray[Any, Any]
SLACK = 2.0
"""How much further than its budget a graph may stray on data that it was not verified on."""
KEPT = 0.9
"""Share of detections that a graph has to keep, and of those it finds that FP32 has too."""
SCORE, OVERLAP = 0.2, 0.45
"""A detection: its best score at least, and how far two boxes overlap that are one."""


class Figures:
    """Sums over batches: of each output, and of the worst sample."""

    def __init__(self, scores: Sequence[str] = (), found: str = "") -> None:
        self.scores, self.found = tuple(scores), found
        self.sums: dict[str, list[float]] = {}
        self.worst = 0.0
        self.faults: list[str] = []
        self.rows = self.agree = 0
        self.theirs = self.ours = self.common = 0

    def add(self, name: str, wanted: Array, made: Array, where: str) -> None:
        wanted, made = np.asarray(wanted), np.asarray(made)
        if wanted.shape != made.shape:
            self.faults.append(f"{name} {where}: shape {made.shape}, not {wanted.shape}")
            return
        if self.found == name:
            self._detections(wanted, made)
        if name in self.scores:
            axis = 1 if wanted.ndim > 2 else -1
            same = wanted.argmax(axis) == made.argmax(axis)
            self.rows, self.agree = self.rows + same.size, self.agree + int(same.sum())
        x, y = wanted.astype(np.float64), made.astype(np.float64)
        same = np.isinf(x) & (x == y)
        x, y = np.where(same, 0, x), np.where(same, 0, y)
        bad = ~np.isfinite(y) & np.isfinite(x)
        if bad.any():
            self.faults.append(f"{name} {where}: {int(bad.sum())} values are not finite")
            return
        sums = self.sums.setdefault(name, [0.0, 0.0, 0.0])
        for index, square in enumerate(((x - y) ** 2, x**2, y**2)):
            sums[index] += float(np.sum(square))
        # A sample counts against a tenth of the batch's size at least: see enginefarm/graph.
        size = float(np.sqrt(np.mean(x**2))) if x.size else 0.0
        for a, b in zip(x, y, strict=True) if x.ndim > 1 else ():
            least = max(float(np.linalg.norm(a)), 0.1 * size * a.size**0.5)
            if least:
                self.worst = max(self.worst, float(np.linalg.norm(a - b)) / least)

    def _detections(self, wanted: Array, made: Array) -> None:
        for one, other in zip(wanted, made, strict=True):
            theirs, ours = detections(one), detections(other)
            self.theirs, self.ours = self.theirs + len(theirs), self.ours + len(ours)
            self.common += matched(theirs, ours)

    @property
    def relative(self) -> float:
        """Relative L2 of the worst output."""
        return max((_ratio(*sums[:2]) for sums in self.sums.values()), default=math.inf)

    @property
    def cosine(self) -> float:
        """The lowest cosine of an output. Each output's cosine covers all comparisons so far."""
        found = [_cosine(*sums) for sums in self.sums.values()]
        return min(found, default=0.0)

    def verdict(
        self, budget: Budget, rounding: float = 0.0, sample_rounding: float = 0.0
    ) -> list[str]:
        """Why the graph disagrees with FP32; nothing where it agrees.

        rounding, sample_rounding: relative L2 that FP32 in another order may cost this model, as a
        whole and in its worst sample.
        """
        why = list(self.faults[:3])
        if not self.sums and not why:
            return ["nothing was compared"]
        for what, value, limit in (
            ("relative L2", self.relative, SLACK * max(budget.max_relative_l2, rounding)),
            (
                "relative L2 of the worst sample",
                self.worst,
                SLACK * max(budget.part_relative_l2, sample_rounding),
            ),
        ):
            if self.sums and not value <= limit:
                why.append(f"{what} {value:.3g}, above {limit:.3g}")
        if self.theirs and not self.common >= KEPT * max(self.theirs, self.ours):
            why.append(
                f"{self.common} of {self.theirs} detections are kept, and it has {self.ours}"
            )
        return why

    def shown(self) -> dict[str, Any]:
        """For the result file and the table."""
        made: dict[str, Any] = {"db": decibel(self.relative), "worst_db": decibel(self.worst)}
        made["cosine"] = self.cosine
        if self.rows:
            made["top1"] = self.agree / self.rows
        if self.theirs:
            made["kept"] = f"{self.common} of {self.theirs} detections, and it has {self.ours}"
        return made


def decibel(relative: float) -> float | None:
    """The SQNR of a relative L2: None if it is not a number, 999 if nothing differs."""
    if not math.isfinite(relative):
        return None
    return round(-20 * math.log10(relative), 1) if relative > 1e-49 else 999.0


def _ratio(error: float, signal: float) -> float:
    return math.sqrt(error / signal) if signal > 1e-18 else math.sqrt(error)


def _cosine(error: float, signal: float, made: float) -> float:
    """Of two vectors, from the squares of their difference and of both; 1 if both are zeros."""
    both = math.sqrt(signal * made)
    return (signal + made - error) / (2 * both) if both else float(signal == made)


def detections(output: Array) -> list[tuple[Array, int]]:
    """Boxes and classes of one picture: (4 + classes, anchors), center and size first, with the
    overlapping ones of a class taken out."""
    scores = output[4:]
    best = scores.max(0)
    found: list[tuple[Array, int]] = []
    for anchor in sorted(np.nonzero(best >= SCORE)[0], key=lambda i: -best[i]):
        box, kind = output[:4, anchor].astype(np.float64), int(scores[:, anchor].argmax())
        if not any(k == kind and overlap(box, b) > OVERLAP for b, k in found):
            found.append((box, kind))
    return found


def matched(theirs: list[tuple[Array, int]], ours: list[tuple[Array, int]]) -> int:
    """How many of theirs have one of ours of the same class, at the same place."""
    left, count = list(ours), 0
    for box, kind in theirs:
        near = [i for i, (b, k) in enumerate(left) if k == kind and overlap(box, b) > 0.5]
        if near:
            left.pop(max(near, key=lambda i: overlap(box, left[i][0])))
            count += 1
    return count


def overlap(one: Array, other: Array) -> float:
    """Intersection over union of two boxes, each center and size."""
    low = np.maximum(one[:2] - one[2:] / 2, other[:2] - other[2:] / 2)
    high = np.minimum(one[:2] + one[2:] / 2, other[:2] + other[2:] / 2)
    both = float(np.prod(np.maximum(high - low, 0)))
    union = float(np.prod(one[2:]) + np.prod(other[2:])) - both
    return both / union if union > 0 else 0.0
