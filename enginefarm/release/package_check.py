"""Checks a written model package by opening it with ONNX Runtime alone, in a child process."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm.child.call import Child
from enginefarm.documents.comparing import ComparisonRules, OutputComparison
from enginefarm.documents.manifest import TensorInfo
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import PrecisionError, ToolchainError, one_line
from enginefarm.graph.model import ort
from enginefarm.graph.verification.reference import ReferenceBatch, read_reference
from enginefarm.graph.verification.verify import CRASH, compare
from enginefarm.schema import Frozen

if TYPE_CHECKING:
    from enginefarm.graph.model.ort import Arrays

COMPONENT = "model"
CPU = "cpu"
ORT_TYPES = {"float32": "float", "float64": "double"}
"""Names of ONNX Runtime's element types, where they differ from ours."""


class CheckRequest(Frozen):
    """tensors: the engine's, with which the CPU variant must agree. measured: figures of the CPU
    variant's graph, which say what FP32 rounding costs; empty where there are none."""

    package: Path
    reference: Path
    tensors: tuple[TensorInfo, ...]
    budget: Budget
    comparing: ComparisonRules
    measured: tuple[OutputComparison, ...] = ()


class CheckResult(Frozen):
    runtime: str
    samples: int
    outputs: tuple[OutputComparison, ...]
    over_budget: tuple[str, ...]


def check_package(request: CheckRequest) -> CheckResult:
    """Opens the package and runs its CPU variant on the reference's inputs, in a child process.

    Raises: PrecisionError where ONNX Runtime cannot open or run it; ToolchainError where it takes
    another variant on a CPU, or the variants disagree.
    """
    child = Child(what="package: the CPU variant", error=PrecisionError, fix=CRASH)
    return child.ask(f"{__name__}:check_here", request, CheckResult)


def check_here(request_json: str) -> str:
    """The child's part: a CheckRequest in, a Checked out, both as JSON."""
    request = CheckRequest.model_validate_json(request_json)
    session = open_package(request.package)
    _require_alike(session, request.tensors)

    def run(batch: ReferenceBatch) -> Arrays:
        what = batch.corner or "the CPU variant"
        return ort.run(session, batch.inputs, error=PrecisionError, what=what)

    found = compare(
        read_reference(request.reference),
        run,
        request.budget,
        request.comparing,
        measured=request.measured,
    )
    return CheckResult(
        runtime=f"{ort.version()} CPU",
        samples=found.samples,
        outputs=found.outputs,
        over_budget=found.over_budget,
    ).model_dump_json()


def open_package(package: Path) -> Any:
    """ONNX Runtime's own session of the package's CPU variant."""
    onnxruntime: Any = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ort.NOTHING
    cpu = [one for one in onnxruntime.get_ep_devices() if one.ep_name == "CPUExecutionProvider"]
    options.add_provider_for_devices(cpu[:1], {})
    try:
        onnxruntime.ModelPackage.open(str(package)).close()  # strict: no field that it lacks
        context = onnxruntime.ModelPackageContext(str(package))
        chosen = context.select_component(COMPONENT, onnxruntime.ModelPackageOptions(options))
        name = chosen.get_selected_variant_name()
        session = chosen.create_session()
    except Exception as cause:
        raise PrecisionError(
            "package: ONNX Runtime cannot open it on the CPU", why=one_line(cause)
        ) from cause
    if name != CPU:
        raise ToolchainError(f"package: on a CPU ONNX Runtime takes the variant {name!r}")
    return session


def _require_alike(session: Any, tensors: tuple[TensorInfo, ...]) -> None:
    """Variants take each other's place. Raises: ToolchainError."""
    engine = {(one.role, one.name, ORT_TYPES.get(one.dtype, one.dtype)) for one in tensors}
    graph = {
        (role, one.name, one.type.removeprefix("tensor(").removesuffix(")"))
        for role, values in (("input", session.get_inputs()), ("output", session.get_outputs()))
        for one in values
    }
    if engine != graph:
        differ = ", ".join(f"{role} {name} {kind}" for role, name, kind in sorted(engine ^ graph))
        raise ToolchainError(
            "package: the engine and the graph for the CPU have different inputs or outputs",
            why=f"only one of them has: {differ}",
            fix="build the recipe again, so that both come from one graph",
        )
