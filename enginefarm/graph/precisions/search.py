"""The smallest set of nodes to keep wide so that a graph meets its budget.

Roundings of different nodes are nearly independent: the noise that they make at the output adds
up. So a segment of the graph is measured alone, as the only one in low precision, and split in two
where it is noisy, until single nodes stand out. The noisiest are then kept wide, as few as the
budget allows: how many is found by bisection, with the full verification as the judge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
from onnx import ModelProto

from enginefarm import progress
from enginefarm.errors import PrecisionError
from enginefarm.graph.model import onnx_files, ort
from enginefarm.graph.model.arrays import Array
from enginefarm.graph.model.emulate import emulate
from enginefarm.graph.precisions.evidence import Evidence
from enginefarm.graph.precisions.kept_wide import WideNode
from enginefarm.graph.precisions.use import BY_SEARCH
from enginefarm.graph.verification.reference import ReferenceBatch

SHARE_OF_RANKING = 0.7
"""The share of the tries that goes into ranking; the others go into bisection."""
BATCHES = 2
"""Batches of the reference for a first look; the verification takes all of them."""


@dataclass
class Search:
    """One search.

    noise: wide nodes -> noise power at the output that is hurt most, over its signal power.
    accepted: wide nodes -> whether the whole verification passes.
    limit: how many graphs are tried at most. memory: a file of what has been measured, so that a
    interrupted search continues where it was. judge: what `accepted` is called there.
    tries: how many graphs were run or judged.
    """

    noise: Callable[[frozenset[str]], float]
    accepted: Callable[[frozenset[str]], bool]
    limit: int
    memory: Path | None = None
    judge: str = "accepted"
    tries: int = 0
    _known: dict[str, float] = field(default_factory=dict[str, float])

    def run(self, candidates: Sequence[str]) -> dict[str, float | None]:
        """Nodes to keep wide in the order of their noise -> what they gain in dB, None where the
        output is not finite without. Empty where the budget is missed even with all of them wide.

        candidates: nodes of low precision, in the graph's order.
        """
        self._recall()
        everything = frozenset(candidates)
        if not candidates or not self._accepted(everything):
            return {}
        ranked = self._rank(tuple(candidates))
        few, many = 0, len(ranked)  # none is too few, all are enough
        while many - few > 1:
            middle = (few + many) // 2
            if self._accepted(_nodes(ranked[:middle])):
                many = middle
            else:
                few = middle
        chosen = self._trim(ranked[:many])
        rest = self._noise(_nodes(chosen))
        return {
            node: _gain(rest, noise / len(segment)) for segment, noise in chosen for node in segment
        }

    def _rank(self, candidates: tuple[str, ...]) -> list[tuple[tuple[str, ...], float]]:
        """Segments and the noise of each, the noisiest per node first."""
        everything = frozenset(candidates)
        segments = [(candidates, self._noise(frozenset()))]
        while self.tries + 2 <= self.limit * SHARE_OF_RANKING:
            worst = max(
                (item for item in segments if len(item[0]) > 1),
                key=lambda item: (item[1], len(item[0])),
                default=None,
            )
            if worst is None:
                break
            segments.remove(worst)
            middle = len(worst[0]) // 2
            for half in (worst[0][:middle], worst[0][middle:]):
                segments.append((half, self._noise(everything - set(half))))
        order = {node: index for index, node in enumerate(candidates)}
        return sorted(segments, key=lambda item: (-item[1] / len(item[0]), order[item[0][0]]))

    def _trim(
        self, chosen: list[tuple[tuple[str, ...], float]]
    ) -> list[tuple[tuple[str, ...], float]]:
        """Takes half of a segment away where the rest is enough, the last ones first."""
        kept = list(chosen)
        for index in reversed(range(len(kept))):
            while len(kept[index][0]) > 1 and self.tries + 2 <= self.limit:
                nodes, noise = kept[index]
                middle = len(nodes) // 2
                halves = [(half, noise / 2) for half in (nodes[:middle], nodes[middle:])]
                fitting = next(
                    (
                        half
                        for half in halves
                        if self._accepted(_nodes([*kept[:index], half, *kept[index + 1 :]]))
                    ),
                    None,
                )
                if fitting is None:
                    break
                kept[index] = fitting
        return kept

    def _noise(self, wide: frozenset[str]) -> float:
        return self._measured("noise", wide, self.noise)

    def _accepted(self, wide: frozenset[str]) -> bool:
        return bool(self._measured(self.judge, wide, self.accepted))

    def _measured(
        self, what: str, wide: frozenset[str], measure: Callable[[frozenset[str]], float]
    ) -> float:
        key = sha256("\n".join([what, *sorted(wide)]).encode()).hexdigest()
        if key not in self._known:
            self._known[key] = _rounded(float(measure(wide)))
            if self.memory is not None:
                with self.memory.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([key, self._known[key]]) + "\n")
        self.tries += 1
        progress.report("search", self.tries, self.limit, what)
        return self._known[key]

    def _recall(self) -> None:
        if self.memory is None or not self.memory.exists():
            return
        for line in self.memory.read_text(encoding="utf-8").splitlines():
            try:
                key, value = cast("tuple[str, float]", json.loads(line))
            except ValueError:
                continue  # the line that an interruption cut short
            self._known[key] = value


def _nodes(segments: Sequence[tuple[tuple[str, ...], float]]) -> frozenset[str]:
    return frozenset(node for nodes, _ in segments for node in nodes)


def _gain(rest: float, own: float) -> float | None:
    """dB that the output gains when this noise is taken off it."""
    if not math.isfinite(own):
        return None
    return round(10 * math.log10(1 + own / max(rest, 1e-30)), 1)


def _rounded(value: float) -> float:
    """To three digits, so that the order of additions on another machine decides nothing."""
    return float(f"{value:.3g}")


def searched(
    made: Callable[[frozenset[str]], ModelProto],
    groups: Sequence[Sequence[str]],
    evidence: Evidence,
) -> dict[str, WideNode]:
    """The nodes that a search keeps wide; empty where it finds none.

    made: the graph with these nodes wide, in addition to those that always are; it may be changed.

    groups: candidates; each is tried only where those before it are not enough.
    """
    if evidence.tries == 0:
        return {}
    batches = list(islice(evidence.batches(), BATCHES))

    def fits(wide: frozenset[str]) -> bool:
        return accepted(made(wide), evidence)

    def noisy(wide: frozenset[str]) -> float:
        return noise(made(wide), batches)

    for candidates in groups:
        named = evidence.judged_as
        found = Search(noisy, fits, evidence.tries, evidence.memory, named).run(candidates)
        if found:
            return {node: WideNode(BY_SEARCH, gain) for node, gain in found.items()}
    return {}


def accepted(model: ModelProto, evidence: Evidence) -> bool:
    """Whether the judge accepts the graph."""
    assert evidence.judge is not None, "a search needs a function that judges the graph"
    with TemporaryDirectory(prefix="enginefarm-") as folder:
        return evidence.judge(onnx_files.write(model, Path(folder)))


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
