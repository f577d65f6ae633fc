"""A precision's graph against the FP32 reference, on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from enginefarm import progress
from enginefarm.child.call import Child
from enginefarm.documents.comparing import ComparisonRules, OutputComparison, judge, with_rounding
from enginefarm.documents.manifest import GraphVerification
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import PrecisionError
from enginefarm.graph.model import ahead, onnx_files, ort, walk
from enginefarm.graph.verification import figures, rounding
from enginefarm.graph.verification.reference import (
    ReferenceBatch,
    read_reference,
    sizes_not_checked,
)
from enginefarm.schema import Frozen

if TYPE_CHECKING:
    from onnx import ModelProto

    from enginefarm.graph.model.arrays import Arrays


CRASH = (
    "a valid graph must not crash ONNX Runtime: this is its defect. Leave this precision out, or "
    "try another version of ONNX Runtime"
)
METHOD = 7
"""How graphs are verified: raise it when the same graph may get other figures."""


@dataclass(frozen=True)
class Comparison:
    """samples: rows of the data's batches. broken: the first batch with values that cannot be
    compared; None when there is none."""

    samples: int
    outputs: tuple[OutputComparison, ...]
    over_budget: tuple[str, ...]
    corners: tuple[str, ...] = ()
    broken: int | None = None


class VerificationRequest(Frozen):
    """What `verify_graph` hands to its child process."""

    onnx: Path
    reference: Path
    budget: Budget
    comparing: ComparisonRules


def verify_graph(
    onnx: Path, reference: Path, budget: Budget, comparing: ComparisonRules
) -> GraphVerification:
    """Runs the graph with ONNX Runtime on the reference's inputs, in a child process.

    FP16 and BF16 are emulated (ONNX Runtime computes FP16 in FP32 on a CPU and has no BF16
    there), and `runtime` says so.
    Raises: PrecisionError when the graph cannot be run, or crashes ONNX Runtime;
    CalibrationError for the reference.
    """
    request = VerificationRequest(
        onnx=onnx.resolve(), reference=reference.resolve(), budget=budget, comparing=comparing
    )
    progress.report("verify", 0, 1)
    started = time.monotonic()
    child = Child(
        what=f"verification of {onnx.name}", error=PrecisionError, fix=CRASH, gives_way=True
    )
    verified = child.ask(f"{__name__}:verify_here", request, GraphVerification)
    progress.report("verify", 1, 1)
    return verified.model_copy(update={"seconds": time.monotonic() - started})


def verify_here(request_json: str) -> str:
    """The child's part: a VerificationRequest in, a GraphVerification out, both as JSON."""
    return _verified(VerificationRequest.model_validate_json(request_json)).model_dump_json()


def passes(request: VerificationRequest) -> bool:
    """Whether the graph is within its budget, verified in this process.

    Raises: as `verify_graph` does.
    """
    return _verified(request).passed


def _verified(request: VerificationRequest) -> GraphVerification:
    from enginefarm.graph.model import emulate

    model = onnx_files.read(request.onnx, error=PrecisionError)
    runtime = f"{ort.version()} CPU"
    low = emulate.narrow(model)
    if low:
        runtime += f", {' and '.join(low)} emulated: computed in FP32, every result rounded"
        model = emulate.emulate(model)
    taken = BranchProbe(model)
    again = None if low else rounding.second_run(model)
    # The reference of an ONNX file is computed without optimizations too: what ONNX Runtime's
    # fusions cost is not a property of the graph.
    what = "the graph that is verified"
    session = ort.session_of(model, error=PrecisionError, what=what, plain=not low)
    at_once = ahead.at_once(model)
    del model

    def run(batch: ReferenceBatch) -> Arrays:
        where = batch.corner or "verification"
        return taken.note(ort.run(session, batch.inputs, error=PrecisionError, what=where))

    result = compare(
        read_reference(request.reference),
        run,
        request.budget,
        request.comparing,
        again,
        at_once=at_once,
    )
    outputs = result.outputs
    if result.broken is not None:
        del session
        outputs = _blamed(request, outputs, result.broken)
    return GraphVerification(
        samples=result.samples,
        runtime=runtime,
        outputs=outputs,
        comparing=request.comparing,
        corners=result.corners,
        not_checked=(*taken.not_run(), *sizes_not_checked(request.reference)),
        over_budget=judge(outputs, request.budget),
    )


def _blamed(
    request: VerificationRequest, outputs: tuple[OutputComparison, ...], broken: int
) -> tuple[OutputComparison, ...]:
    """The same, with the node that made the first value that is not a number."""
    from enginefarm.graph.verification import blame

    batch = next(b for i, b in enumerate(read_reference(request.reference)) if i == broken)
    node = blame.first_node(request.onnx, batch.inputs)
    if not node:
        return outputs
    return tuple(
        output.model_copy(update={"fault": f"{output.fault}; {node}"}) if output.fault else output
        for output in outputs
    )


def compare(
    batches: Iterable[ReferenceBatch],
    run: Callable[[ReferenceBatch], Arrays],
    budget: Budget,
    comparing: ComparisonRules,
    again: Callable[[ReferenceBatch], Arrays] | None = None,
    measured: Sequence[OutputComparison] = (),
    at_once: int = 1,
) -> Comparison:
    """Figures over all batches. Also for outputs of a GPU.

    run: returns the outputs to be compared, by name, for a batch's inputs. again: runs the same
    in FP32 in another way, which shows what rounding costs. measured: figures of the graph
    that say so, where `run` cannot run again. at_once: how many batches `run` may compute side by
    side, and are in memory.
    Raises: CalibrationError where labels do not fit their output.
    """
    outputs: dict[str, figures.Output] = {}
    corners: list[str] = []
    samples = 0
    broken: int | None = None
    for index, (batch, found) in enumerate(ahead.each(run, batches, at_once)):
        others = {} if again is None else again(batch)
        for name in batch.outputs:
            output = outputs.setdefault(name, figures.Output(name, comparing))
            if not output.add(batch, found[name], samples, others.get(name)) and broken is None:
                broken = index
        if batch.corner:
            corners.append(batch.corner)
        else:
            samples += batch.samples
        progress.report("verify", index + 1, None, batch.corner)
    made = tuple(output.result() for output in outputs.values())
    if measured:
        made = with_rounding(made, measured)
    return Comparison(samples, made, judge(made, budget), tuple(corners), broken)


class BranchProbe:
    """Adds the conditions of the main graph's Ifs to its outputs, and records their values.

    Ifs inside other bodies are reported as unknown, because their conditions cannot be read from
    outside.
    """

    def __init__(self, model: ModelProto) -> None:
        from onnx import TensorProto, helper

        graph = model.graph
        self._seen: dict[str, set[bool]] = {}
        self._nodes = [
            (walk.label(node), node.input[0]) for node in graph.node if node.op_type == "If"
        ]
        self._inner = [
            walk.label(node)
            for outer in graph.node
            for body in walk.bodies(outer)
            for node in walk.nodes(body)
            if node.op_type == "If"
        ]
        have = {output.name for output in graph.output}
        self._added = {name for _, name in self._nodes} - have
        for name in sorted(self._added):
            graph.output.append(helper.make_tensor_value_info(name, TensorProto.BOOL, None))

    def note(self, outputs: Arrays) -> Arrays:
        """Records the conditions among one run's outputs, and returns the other outputs."""
        for _, name in self._nodes:
            self._seen.setdefault(name, set()).add(bool(outputs[name].all()))
        return {name: array for name, array in outputs.items() if name not in self._added}

    def not_run(self) -> list[str]:
        """One line for each branch that no batch took."""
        lines = [
            f"the {branch} branch of {node!r} (If): no data took it"
            for node, name in self._nodes
            for branch, value in (("then", True), ("else", False))
            if value not in self._seen.get(name, set())
        ]
        return lines + [
            f"both branches of {node!r} (If inside another body): which ran is not known"
            for node in self._inner
        ]
