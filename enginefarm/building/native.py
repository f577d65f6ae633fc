"""A build with what surrounds it on a GPU: the shared timing cache, and several attempts."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

from enginefarm.bench.engine import side_by_side
from enginefarm.bench.harness import Harness
from enginefarm.bench.shapes import points
from enginefarm.building import isolate, lottery, timing_cache
from enginefarm.documents.comparing import ComparisonRules
from enginefarm.documents.manifest import GraphVerification
from enginefarm.documents.thresholds import DEFAULT_BUDGETS, Budget
from enginefarm.errors import ToolchainError
from enginefarm.graph.samples.feeds import shaped
from enginefarm.graph.verification.reference import read_reference
from enginefarm.host.detect import first_gpu
from enginefarm.names import TOOLCHAINS
from enginefarm.run.artifacts import in_a_process
from enginefarm.run.running import RunRequest
from enginefarm.run.verify import DeviceRequest, verify_on_device
from enginefarm.store.engine_store import EngineStore
from enginefarm.toolchains import BuildOutput, BuildRequest, toolchain
from enginefarm.toolchains.tensorrt import combine

QUICK = Harness(min_iterations=100, min_seconds=1)


def build(
    store: EngineStore,
    request: BuildRequest,
    *,
    reference: Path | None = None,
    budget: Budget | None = None,
    figures: GraphVerification | None = None,
    cancel: threading.Event | None = None,
) -> BuildOutput:
    """isolate.build, and on a GPU: with the timing cache of exactly this GPU, driver and
    toolchain build, or as often as `builder.attempts` says.

    reference, budget, figures: what the attempts are judged by, as the engine is when it is
    verified on the GPU; the reference is needed when there are several.
    Raises: as isolate.build; AccuracyError when no attempt is accurate; StoreError.
    """
    spec = request.spec
    name = spec.toolchain.name
    run = partial(isolate.build, toolchain=name, cancel=cancel)
    if toolchain(name).cross:
        return run(request)
    if spec.builder.attempts > 1:
        if reference is None:
            raise ToolchainError(
                "builder.attempts: attempts are compared with a reference, and this build has none"
            )
        judged = budget or DEFAULT_BUDGETS[spec.precision.name]
        return lottery.draw(
            request,
            build=run,
            refuse=lambda plan: refused(
                request, plan, reference, judged, figures, plan.parent / "verify"
            ),
            latency_ms=lambda plan: _latency_ms(plan, request, reference),
        )[0]
    found = first_gpu()
    if found is None or not TOOLCHAINS[name].timing_cache:
        return run(request)
    key = timing_cache.key_for(spec, gpu_name=found.name, driver=found.driver)
    loaded = timing_cache.fetch(store, key, request.work_dir / "timing.loaded")
    output = run(request.model_copy(update={"timing_cache": loaded}))
    if output.timing_cache is not None:
        timing_cache.merge(store, key, output.timing_cache, combine, loaded=loaded)
    return output


def refused(
    request: BuildRequest,
    plan: Path,
    reference: Path,
    budget: Budget,
    figures: GraphVerification | None,
    folder: Path,
) -> str:
    """Why a plan of the request is not accurate enough on this GPU; empty when it is.

    figures: of its graph. folder: where the check writes its log.
    """
    asked = DeviceRequest(
        plan=plan,
        reference=reference,
        toolchain=request.spec.toolchain.name,
        profiles=request.spec.profiles,
        budget=budget,
        comparing=figures.comparing if figures else ComparisonRules(),
        measured=figures.outputs if figures else (),
        plugins=request.plugins,
    )
    verdict = verify_on_device(asked, folder).verification
    return "" if verdict.status == "passed" else verdict.reason or verdict.status


def _latency_ms(plan: Path, request: BuildRequest, reference: Path) -> float:
    """Median at the first profile's opt shapes, in a separate process."""
    point = points(request.spec.profiles, batch_sweep=False)[0]
    asked = RunRequest(plan=plan, toolchain=request.spec.toolchain.name, plugins=request.plugins)
    contender = in_a_process(plan.parent.name, asked)
    try:
        feeds = shaped(next(read_reference(reference)).inputs, point.shapes)
        found = side_by_side([contender], feeds, batch=point.batch, harness=QUICK)
    finally:
        contender.close()
    return found[0].total.ms_median
