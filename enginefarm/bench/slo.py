"""The load that a limit allows: sessions of ONNX Runtime on this machine's CPU, or streams of an
engine on its GPU. What is offered, and how the rate is found: load.py."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from enginefarm.bench.engine import measured_here
from enginefarm.bench.load import LOAD, Curve, Load, Pass, highest_rate
from enginefarm.bench.on_gpu import engines_for, gpu_here
from enginefarm.bench.recipe import built_recipe, empty_row, host_class
from enginefarm.bench.shapes import OneProfile, Point, first_profile
from enginefarm.child.call import Child, Limits
from enginefarm.documents.recipe import Recipe
from enginefarm.errors import EngineRunError, StoreMissing
from enginefarm.graph.samples.feeds import shaped
from enginefarm.names import PrecisionName
from enginefarm.run.contenders import on_provider_in_a_process
from enginefarm.run.engine import Engine
from enginefarm.run.remote import RemoteContender
from enginefarm.run.session import Session
from enginefarm.schema import Frozen
from enginefarm.settings import build_limits
from enginefarm.store.site import Site, materialize
from enginefarm.tables.from_manifest import rows_from_manifest
from enginefarm.tables.rows import BenchmarkRow


class TimedCurve(Frozen):
    """seconds: of the whole search."""

    curve: Curve
    seconds: float


class LoadRequest(OneProfile):
    """streams: how many in parallel, ascending."""

    load: Load
    streams: tuple[int, ...]


class LoadAnswer(Frozen):
    """One for each number of streams."""

    curves: tuple[TimedCurve, ...]


def load_cpu(
    site: Site, recipe: Recipe, precision: PrecisionName, load: Load, streams: Sequence[int]
) -> tuple[BenchmarkRow, ...]:
    """A row for each number of streams: the highest rate at which p99 keeps the limit.

    Each stream is a session of ONNX Runtime in a separate process; a request is one pass at the
    opt shapes of the first profile. Raises: StoreMissing when nothing of the recipe, or not that
    precision, is built yet; EngineRunError.
    """
    model = built_recipe(site, recipe)
    if precision not in model.graphs:
        raise _none_of(recipe, "graph", precision, model.graphs)
    names = [tensor.name for tensor in recipe.inputs]
    profile = model.profiles[0]
    point = Point(0, profile.name, {name: profile.shapes[name].opt for name in names})
    rows: list[BenchmarkRow] = []
    with site.scratch() as scratch, ExitStack() as stack:
        graph = materialize(site, model.graphs[precision], scratch).absolute()
        sessions: list[RemoteContender] = []
        for count in sorted(set(streams)):
            while len(sessions) < count:
                one = on_provider_in_a_process(
                    f"ONNX Runtime {precision}, stream {len(sessions) + 1}",
                    graph,
                    runtime="onnxruntime-cpu",
                )
                stack.callback(one.close)
                one.bind(shaped(model.inputs, point.shapes))
                sessions.append(one)
            curve = timed_curve([session.iterate for session in sessions], load)
            row = empty_row(recipe.name, precision, "onnxruntime-cpu")
            rows.append(row.model_copy(update=load_columns(point, load, curve)))
    return tuple(rows)


def load_gpu(
    site: Site,
    recipe: Recipe,
    precision: PrecisionName,
    load: Load,
    streams: Sequence[int],
    *,
    cuda_graph: bool,
) -> tuple[BenchmarkRow, ...]:
    """load_cpu() of the newest engine for this machine's GPU. Its streams share a process, a copy
    of the weights and the GPU; each has its own execution context and buffers.

    Raises: StoreMissing when no engine in that precision is built for this GPU; EngineRunError;
    HostError.
    """
    label, _ = gpu_here("leave out --engine")
    engines = {one.precision: one for one in engines_for(built_recipe(site, recipe), label)}
    if precision not in engines:
        raise _none_of(recipe, "engine for this machine's GPU", precision, engines)
    manifest = engines[precision]
    point, fields = first_profile(site, manifest)
    request = LoadRequest(
        **fields, load=load, streams=tuple(sorted(set(streams))), cuda_graph=cuda_graph
    )
    seconds = build_limits().timeout_s * len(request.streams)
    child = Child(what="the engine under load", error=EngineRunError, limits=Limits(seconds))
    found = child.ask("enginefarm.bench.slo:measure", request, LoadAnswer)
    built = {one.profile: one for one in rows_from_manifest(manifest)}[point.profile_name]
    here = {**measured_here(point, host_class()), "cuda_graph": cuda_graph}
    return tuple(
        built.model_copy(update={**here, **load_columns(point, load, one)}) for one in found.curves
    )


def measure(request_json: str) -> str:
    """In the fresh process: a LoadRequest in, a LoadAnswer out, both as JSON.

    Raises: HostError; EngineRunError, also where a CUDA graph is wanted and cannot be captured.
    """
    request = LoadRequest.model_validate_json(request_json)
    feeds = request.feeds()
    curves: list[TimedCurve] = []
    with (
        Engine(request.plan, toolchain=request.toolchain, plugins=request.plugins) as engine,
        ExitStack() as stack,
    ):
        streams: list[Pass] = []
        for count in request.streams:
            while len(streams) < count:
                session = engine.session(request.profile, cuda_graph=request.cuda_graph)
                session = stack.enter_context(session)
                session.bind(feeds)
                streams.append(_pass(engine, session))
            curves.append(timed_curve(streams, request.load))
    return LoadAnswer(curves=tuple(curves)).model_dump_json()


def _pass(engine: Engine, session: Session) -> Pass:
    def one() -> None:
        with engine.current():
            session.enqueue()
            session.stream.synchronize()

    return one


def timed_curve(streams: Sequence[Pass], load: Load) -> TimedCurve:
    """highest_rate(), and how long the search took."""
    started = time.monotonic()
    curve = highest_rate(streams, load)
    return TimedCurve(curve=curve, seconds=time.monotonic() - started)


def load_columns(point: Point, load: Load, found: TimedCurve) -> dict[str, Any]:
    """What a search puts into a row."""
    curve = found.curve
    best = curve.best
    return {
        "profile": point.profile_name,
        "batch": point.batch,
        "shapes": point.text,
        "host": platform.node(),
        "host_class": host_class(),
        "harness": LOAD,
        "harness_flags": load.flags,
        "streams": curve.streams,
        "slo_p99_ms": load.slo_p99_ms,
        "capacity_per_s": curve.capacity.per_s,
        "iterations": sum(one.requests for one in curve.tried),
        "duration_s": found.seconds,
        "slo_rate_per_s": best.rate_per_s if best else None,
        "slo_reached_p99_ms": best.p99_ms if best else None,
        "reason": "" if best else _why_none(curve),
    }


def _why_none(curve: Curve) -> str:
    """Says how much of the delay the machine caused: an engine does not wake the threads late."""
    every = "p99 was above the limit at every rate that was tried"
    if not curve.tried:
        return every
    lowest = min(curve.tried, key=lambda one: one.rate_per_s)
    return (
        f"{every}, down to {lowest.rate_per_s:.4g}/s. There this machine woke a waiting stream "
        f"{lowest.woken_p99_ms:.2g} ms late (p99); at capacity a pass takes "
        f"{curve.capacity.median_ms:.2g} ms (median)"
    )


def _none_of(recipe: Recipe, what: str, precision: str, has: Iterable[str]) -> StoreMissing:
    return StoreMissing(
        f"bench slo: {recipe.name} has no {what} in {precision}",
        why=f"it has {', '.join(has) or 'none in any precision'}",
        fix="name one of these with --precision, or build it first",
    )
