"""How long each layer of an engine takes, by TensorRT's own profiler, in a fresh process.

The profiler waits after every pass, so the sum is more than a pass takes: these figures say
where the time goes, and never how fast an engine is.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from statistics import median
from typing import Any

from pydantic import Field

from enginefarm.bench.shapes import OneProfile, first_profile
from enginefarm.child.call import Child, Limits
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import EngineRunError
from enginefarm.run.engine import Engine
from enginefarm.schema import Frozen
from enginefarm.store.site import Site
from enginefarm.tables.layers import LayerTimes, remember

PROFILING_S = 600


class LayerTimesRequest(OneProfile):
    passes: int = Field(default=50, ge=1)
    warmup: int = Field(default=10, ge=0)


class LayerTimesAnswer(Frozen):
    """Medians in milliseconds, by the layer's name as the inspector has it too."""

    gpu_name: str
    passes: int
    ms: dict[str, float]


def record_layer_times(site: Site, manifest: Manifest) -> LayerTimes:
    """Profiles an engine at its first profile's opt shapes, and keeps the figures in the store.

    Raises: HostError, EngineRunError, and what the store raises.
    """
    point, fields = first_profile(site, manifest)
    answer = profile_layers(LayerTimesRequest(**fields))
    times = LayerTimes(
        engine=manifest.engine.digest[:16],
        gpu_name=answer.gpu_name,
        shapes=point.text,
        passes=answer.passes,
        ms=answer.ms,
        measured_at=datetime.now(UTC),
    )
    remember(site.store, manifest, times)
    return times


def profile_layers(request: LayerTimesRequest) -> LayerTimesAnswer:
    """Raises: HostError, EngineRunError."""
    child = Child(what="the engine's profile", error=EngineRunError, limits=Limits(PROFILING_S))
    return child.ask("enginefarm.bench.layer_times:measure", request, LayerTimesAnswer)


def measure(request_json: str) -> str:
    """In the fresh process: a LayerTimesRequest in, a LayerTimesAnswer out, both as JSON."""
    request = LayerTimesRequest.model_validate_json(request_json)
    with (
        Engine(request.plan, toolchain=request.toolchain, plugins=request.plugins) as engine,
        engine.session(request.profile) as session,
    ):
        session.bind(request.feeds())
        session.copy_in()
        for _ in range(request.warmup):
            session.compute()
        session.stream.synchronize()
        seen: defaultdict[str, list[float]] = defaultdict(list)
        profiler = _profiler(engine.trt, seen)
        session.context.profiler = profiler
        for _ in range(request.passes):
            session.compute()
            session.stream.synchronize()
        name = engine.device_name
    if not seen:
        raise EngineRunError(
            f"{request.plan.name}: the profiler reported no layer",
            why="this runtime has no profiler for this engine",
        )
    ms = {layer: median(values) for layer, values in seen.items()}
    return LayerTimesAnswer(gpu_name=name, passes=request.passes, ms=ms).model_dump_json()


def _profiler(trt: Any, seen: defaultdict[str, list[float]]) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            seen[layer_name].append(ms)

    return Profiler()
