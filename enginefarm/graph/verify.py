"""Outputs against the FP32 reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm import progress
from enginefarm.child.call import Child
from enginefarm.documents.manifest import GraphVerification, OutputComparison
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import PrecisionError
from enginefarm.graph import emulate as emulation
from enginefarm.graph import onnx_files, ort
from enginefarm.graph.reference import ReferenceBatch, read_reference
from enginefarm.schema import Frozen

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Arrays = dict[str, Array]


CRASH = (
    "a valid graph that crashes ONNX Runtime is a defect of it; leave this precision out, or "
    "try another version"
)
METHOD = 2
"""How graphs are verified: raise it when the same graph may get other figures."""


@dataclass(frozen=True)
class Comparison:
    """samples: rows of the first axis of the first output."""

    samples: int
    outputs: tuple[OutputComparison, ...]
    over_budget: tuple[str, ...]


class Request(Frozen):
    """What `verify_graph` hands to its child process."""

    onnx: Path
    reference: Path
    budget: Budget
    class_scores: tuple[str, ...]


def verify_graph(
    onnx: Path, reference: Path, budget: Budget, class_scores: Sequence[str]
) -> GraphVerification:
    """Runs the graph with ONNX Runtime on the reference's inputs, in a child process.

    FP16 and BF16 are emulated (ONNX Runtime computes FP16 in FP32 on a CPU and has no BF16
    there), and `runtime` says so.
    Raises: PrecisionError when the graph cannot be run, or crashes ONNX Runtime;
    CalibrationError for the reference.
    """
    request = Request(
        onnx=onnx.resolve(),
        reference=reference.resolve(),
        budget=budget,
        class_scores=tuple(class_scores),
    )
    progress.report("verify", 0, 1)
    child = Child(what=f"verification of {onnx.name}", error=PrecisionError, fix=CRASH)
    verified = child.ask(f"{__name__}:verify_here", request, GraphVerification)
    progress.report("verify", 1, 1)
    return verified


def verify_here(request_json: str) -> str:
    """The child's part: a Request in, a GraphVerification out, both as JSON."""
    request = Request.model_validate_json(request_json)
    model = onnx_files.read(request.onnx, error=PrecisionError)
    runtime = f"{ort.version()} CPU"
    low = emulation.narrow(model)
    if low:
        runtime += f", {' and '.join(low)} emulated: computed in FP32, every result rounded"
        session = ort.session_of(
            emulation.emulate(model), error=PrecisionError, what="the emulated graph"
        )
    else:
        session = ort.session(request.onnx, error=PrecisionError, what="the graph")
    del model

    def run(batch: ReferenceBatch) -> Arrays:
        return ort.run(session, batch.inputs, error=PrecisionError, what="verification")

    batches = read_reference(request.reference)
    result = compare(batches, run, request.budget, request.class_scores)
    return GraphVerification(
        samples=result.samples,
        runtime=runtime,
        outputs=result.outputs,
        over_budget=result.over_budget,
    ).model_dump_json()


def compare(
    batches: Iterable[ReferenceBatch],
    run: Callable[[ReferenceBatch], Arrays],
    budget: Budget,
    class_scores: Sequence[str],
) -> Comparison:
    """Figures over all batches, one batch in memory at a time. Also for outputs of a GPU.

    run: gives the outputs to be judged, by name, for a batch's inputs.
    """
    sums: dict[str, _Sums] = {}
    samples = 0
    for index, batch in enumerate(batches):
        found = run(batch)
        for name, wanted in batch.outputs.items():
            labels = batch.labels if name in class_scores else None
            sums.setdefault(name, _Sums(name in class_scores)).add(wanted, found[name], labels)
        samples += next(iter(batch.outputs.values())).shape[0] if batch.outputs else 0
        progress.report("verify", index + 1, None)
    outputs = tuple(total.result(name) for name, total in sums.items())
    lines = [line for output in outputs for line in over_budget(output, budget)]
    if not outputs:
        lines = ["the reference holds no batch: nothing was compared"]
    return Comparison(samples, outputs, tuple(lines))


def over_budget(output: OutputComparison, budget: Budget) -> list[str]:
    """One line for each figure of this output over budget, and by how much."""
    lines: list[str] = []
    if output.relative_l2 == UNUSABLE:
        return [f"{output.output}: it holds NaN or infinity, or has another shape"]
    _at_least(lines, output.output, "cosine", output.cosine, budget.min_cosine)
    _at_most(lines, output.output, "relative L2", output.relative_l2, budget.max_relative_l2)
    _at_most(lines, output.output, "max abs", output.max_abs, budget.max_abs)
    _at_least(
        lines, output.output, "top-1 agreement", output.top1_agreement, budget.min_top1_agreement
    )
    if output.top1_accuracy is not None and output.reference_top1_accuracy is not None:
        drop = (output.reference_top1_accuracy - output.top1_accuracy) * 100
        _at_most(lines, output.output, "top-1 drop in points", drop, budget.max_top1_drop_points)
    return lines


UNUSABLE = 1e30
"""Stands for infinity: JSON has none."""


class _Sums:
    """Running sums of one output."""

    def __init__(self, scores: bool) -> None:
        self.scores = scores
        self.dot = self.norm2 = self.wanted2 = self.difference2 = self.max_abs = 0.0
        self.usable = True
        self.rows = self.agree = self.right = self.reference_right = self.labelled = 0

    def add(self, wanted: Array, found: Array, labels: Array | None) -> None:
        import numpy as np

        if wanted.shape != found.shape or not np.isfinite(found.astype(np.float64)).all():
            self.usable = False
            return
        x, y = wanted.astype(np.float64).ravel(), found.astype(np.float64).ravel()
        difference = x - y
        self.dot += float(x @ y)
        self.wanted2 += float(x @ x)
        self.norm2 += float(y @ y)
        self.difference2 += float(difference @ difference)
        self.max_abs = max(self.max_abs, float(np.abs(difference).max(initial=0)))
        if self.scores:
            self._classes(wanted, found, labels)

    def _classes(self, wanted: Array, found: Array, labels: Array | None) -> None:
        ours, theirs = found.argmax(-1).ravel(), wanted.argmax(-1).ravel()
        self.rows += theirs.size
        self.agree += int((ours == theirs).sum())
        if labels is not None:
            self.labelled += labels.size
            self.right += int((ours == labels.ravel()).sum())
            self.reference_right += int((theirs == labels.ravel()).sum())

    def result(self, name: str) -> OutputComparison:
        if not self.usable:
            return OutputComparison(output=name, cosine=0.0, max_abs=UNUSABLE, relative_l2=UNUSABLE)
        norms = math.sqrt(self.wanted2) * math.sqrt(self.norm2)
        same = self.difference2 == 0
        return OutputComparison(
            output=name,
            cosine=1.0 if same else min(1.0, self.dot / norms) if norms else 0.0,
            max_abs=self.max_abs,
            relative_l2=0.0
            if same
            else min(UNUSABLE / 10, math.sqrt(self.difference2 / max(self.wanted2, 1e-60))),
            top1_agreement=self.agree / self.rows if self.rows else None,
            top1_accuracy=self.right / self.labelled if self.labelled else None,
            reference_top1_accuracy=self.reference_right / self.labelled if self.labelled else None,
        )


def _at_least(
    lines: list[str], output: str, what: str, value: float | None, limit: float | None
) -> None:
    if limit is not None and value is not None and not value >= limit:
        lines.append(f"{output}: {what} {value:.6g} is below {limit:.6g} by {limit - value:.3g}")


def _at_most(
    lines: list[str], output: str, what: str, value: float | None, limit: float | None
) -> None:
    if limit is not None and value is not None and not value <= limit:
        lines.append(f"{output}: {what} {value:.6g} is above {limit:.6g} by {value - limit:.3g}")
