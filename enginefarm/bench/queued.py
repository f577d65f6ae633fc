"""An engine as trtexec 11 measures it by default: one CUDA graph, no copies, the next pass always
in the queue, and a host that spins for the end of the one before.

The GPU's clock times each pass, and the host's clock the whole run, for the throughput. The
rows have no `latency_ms_*`: those are of lone passes with their copies. docs/decisions/0247.
"""

from __future__ import annotations

import time
from typing import Any

from pydantic import Field

from enginefarm.bench.engine import compute_columns, measured_here
from enginefarm.bench.gpu_state import GpuSampler, GpuState
from enginefarm.bench.harness import figures
from enginefarm.bench.on_gpu import SideBySide, engines_here
from enginefarm.bench.recipe import host_class
from enginefarm.bench.shapes import OneProfile, Point, first_profile
from enginefarm.child.call import Child, Limits
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.recipe import Recipe
from enginefarm.errors import EngineRunError, HostError, one_line
from enginefarm.progress import report
from enginefarm.run.engine import Engine
from enginefarm.run.queue import DEPTH, Queue
from enginefarm.schema import Frozen
from enginefarm.store.site import Site
from enginefarm.tables.from_manifest import rows_from_manifest
from enginefarm.tables.rows import BenchmarkRow

QUEUED = "enginefarm-queued/1"
QUEUED_CLOCK = "GPU, queued passes"


class QueuedSettings(Frozen):
    """Settings: trtexec's own defaults (its --duration, --warmUp and --iterations)."""

    seconds: float = Field(default=3.0, gt=0)
    warmup_s: float = Field(default=0.2, ge=0)
    min_passes: int = Field(default=10, ge=1)

    @property
    def flags(self) -> str:
        fixed = {"queue": DEPTH, "spin_wait": True, "transfers": False}
        values = {**fixed, **self.model_dump(mode="json")}
        return " ".join(f"{name}={value}" for name, value in sorted(values.items()))


class QueuedRequest(OneProfile):
    settings: QueuedSettings = QueuedSettings()


class QueuedAnswer(Frozen):
    """compute_ms: of each pass. seconds: of all of them, on the host's clock."""

    compute_ms: tuple[float, ...]
    seconds: float = Field(gt=0)
    gpu: GpuState


def benchmark_queued(site: Site, recipe: Recipe, settings: QueuedSettings) -> SideBySide:
    """A row of each of the recipe's engines for this GPU, at its first profile's opt shapes.

    Raises: StoreMissing when nothing of the recipe is built yet.
    """
    result = SideBySide()
    for manifest in engines_here(site, recipe):
        report("queued", len(result.rows), None, manifest.spec.label)
        try:
            result.rows.append(_row(site, manifest, settings))
        except (EngineRunError, HostError) as error:
            name = f"{manifest.spec.label} as trtexec measures"
            result.left_out[name] = one_line(error.why or error.what)
    return result


def _row(site: Site, manifest: Manifest, settings: QueuedSettings) -> BenchmarkRow:
    point, fields = first_profile(site, manifest)
    request = QueuedRequest(**fields, settings=settings)
    child = Child(
        what="the engine's benchmark", error=EngineRunError, limits=Limits(600 + settings.seconds)
    )
    found = child.ask("enginefarm.bench.queued:measure", request, QueuedAnswer)
    built = {one.profile: one for one in rows_from_manifest(manifest)}[point.profile_name]
    return built.model_copy(update=row_columns(found, point, settings))


def row_columns(found: QueuedAnswer, point: Point, settings: QueuedSettings) -> dict[str, Any]:
    """What a measurement puts into the row of a built engine."""
    return {
        **measured_here(point, host_class()),
        "harness": QUEUED,
        "harness_flags": settings.flags,
        "parts_clock": QUEUED_CLOCK,
        "cuda_graph": True,
        "iterations": len(found.compute_ms),
        "duration_s": found.seconds,
        **compute_columns(figures(found.compute_ms)),
        "throughput_samples_per_s": len(found.compute_ms) * point.batch / found.seconds,
        **found.gpu.model_dump(),
    }


def measure(request_json: str) -> str:
    """In the fresh process: a QueuedRequest in, a QueuedAnswer out, both as JSON.

    Raises: HostError; EngineRunError, also where no CUDA graph can be captured.
    """
    request = QueuedRequest.model_validate_json(request_json)
    with (
        Engine(request.plan, toolchain=request.toolchain, plugins=request.plugins) as engine,
        engine.session(request.profile, cuda_graph=True) as session,
    ):
        session.bind(request.feeds())
        session.copy_in()
        session.stream.synchronize()
        queue = Queue(engine.cuda, session)
        settings = request.settings
        _passes(queue, settings.warmup_s, 1)
        with GpuSampler() as sampler:
            taken, seconds = _passes(queue, settings.seconds, settings.min_passes)
        state = sampler.state()
    answer = QueuedAnswer(compute_ms=tuple(taken), seconds=seconds, gpu=state)
    return answer.model_dump_json()


def _passes(queue: Queue, seconds: float, least: int) -> tuple[list[float], float]:
    """What each pass took in ms, and what all took in s."""
    started = time.perf_counter()
    taken = queue.passes(lambda done: done < least or time.perf_counter() - started < seconds)
    return taken, time.perf_counter() - started
