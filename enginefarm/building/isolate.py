"""Runs one build in a child process, so that every failure there is one error here.

Address-space randomization is off for it: without that, plans differ from run to run.
"""

from __future__ import annotations

import resource
import threading

from enginefarm import errors
from enginefarm.child import output_files
from enginefarm.child.call import Child, Kinds, Limits
from enginefarm.child.process import randomization_off
from enginefarm.progress import report
from enginefarm.toolchains import BuildOutput, BuildRequest
from enginefarm.toolchains import toolchain as toolchain_named
from enginefarm.toolchains.onnx_io import with_dims

LOG_NAME = "build.log"
KINDS = Kinds(
    failed=errors.BuildError,
    crashed=errors.BuildCrashed,
    too_long=errors.BuildTimeout,
    too_large=errors.BuildOutOfMemory,
)


class _Order(BuildRequest):
    """What the child is told."""

    toolchain: str


def build(
    request: BuildRequest, *, toolchain: str, cancel: threading.Event | None = None
) -> BuildOutput:
    """One build of `toolchain` in a child process.

    Progress goes to `progress.report("build", …)`; the builder's log is
    `request.work_dir/build.log`, whatever the outcome. Setting `cancel` kills the child
    within a tenth of a second. A failed build leaves no plan behind.

    Raises: ParseError, BuildError, ToolchainError as the toolchain raised them;
    BuildCrashed (a signal), BuildTimeout, BuildOutOfMemory, BuildCancelled.
    """
    work_dir = request.work_dir.resolve()
    label = f"{request.spec.label} ({toolchain})"

    def relay(step: str, done: float, total: float | None, note: str = "") -> None:
        report("build", done, total, f"{toolchain}: {note}")

    child = Child(
        what=f"build {label}",
        error=KINDS,
        # The work folder is gone by the time that anybody reads this; the store keeps its log.
        fix=f"run `onnx.checker.check_model` with full_check on {request.onnx.name} and read what "
        f"the builder printed: `enginefarm log RECIPE --gpu {request.spec.gpu.label} --precision "
        f"{request.spec.precision.name} --failed`; a valid model that crashes the builder is a bug "
        "of the toolchain",
        limits=Limits(request.timeout_s, request.memory_limit_bytes),
        folder=work_dir,
        log_name=LOG_NAME,
        fixed_addresses=True,
        beats=True,
        gives_way=True,
        progress=relay,
        cancel=cancel or threading.Event(),
    )
    order = _Order(toolchain=toolchain, **dict(request))
    try:
        output = child.ask(f"{__name__}:build_here", order, BuildOutput)
        made = (output.plan, output.layers, output.timing_cache)
        if not all(output_files.is_own(path, work_dir) for path in made if path is not None) or (
            output.plan.stat().st_size == 0
        ):
            raise errors.BuildError(
                f"build {label}: the builder ended without an error, but wrote no plan"
            )
    except BaseException:
        (work_dir / "engine.plan").unlink(missing_ok=True)
        raise
    details = output.details | {"address_space_randomization": not randomization_off()}
    return output.model_copy(update={"log": work_dir / LOG_NAME, "details": details})


def build_here(order_json: str) -> str:
    """The child's part: an order in, a BuildOutput out, both as JSON."""
    order = _Order.model_validate_json(order_json)
    output = toolchain_named(order.toolchain).build(order)
    used = max(
        resource.getrusage(who).ru_maxrss * 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    peak = max(used, output.peak_memory_bytes)
    tensors = with_dims(output.tensors, order.onnx)
    return output.model_copy(
        update={"peak_memory_bytes": peak, "tensors": tensors}
    ).model_dump_json()
