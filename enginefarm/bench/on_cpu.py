"""The same model on this machine's CPU: PyTorch and ONNX Runtime, in turns on the same inputs.

It needs no GPU, so the tables hold something real everywhere, and a night on a CPU machine
still sees a slower exporter, slimmer or ONNX Runtime.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from enginefarm.bench.engine import side_by_side
from enginefarm.bench.harness import Harness
from enginefarm.bench.load import LOAD, Curve, Load, highest_rate
from enginefarm.bench.recipe import (
    BuiltRecipe,
    built_recipe,
    empty_row,
    host_class,
    row_of,
    smallest_and_opt,
)
from enginefarm.bench.shapes import Point, sized
from enginefarm.documents.recipe import Recipe
from enginefarm.errors import StoreMissing
from enginefarm.names import PrecisionName
from enginefarm.progress import report
from enginefarm.run.contenders import on_provider_in_a_process, torch_in_a_process
from enginefarm.run.remote import RemoteContender
from enginefarm.run.running import Contender
from enginefarm.store.site import Site, materialize
from enginefarm.tables.rows import BenchmarkRow

CPU_HARNESS = Harness(warmup_iterations=3, warmup_s=0.3, min_iterations=20, max_seconds=10)
"""A CPU pass can take seconds: fewer of them."""


def benchmark_cpu(
    site: Site, recipe: Recipe, *, harness: Harness | None = None
) -> tuple[BenchmarkRow, ...]:
    """Rows of PyTorch (where the source is a module) and of ONNX Runtime with the FP32 graph
    and each precision's graph, at the smallest and the opt shapes of each profile.

    Outputs are compared with those of the first. Raises: StoreMissing when nothing of the
    recipe is built yet; EngineRunError.
    """
    model = built_recipe(site, recipe)
    rows: list[BenchmarkRow] = []
    with site.scratch() as scratch, ExitStack() as stack:
        contenders = _contenders(site, recipe, model, scratch, stack)
        wanted = smallest_and_opt(model.profiles, [tensor.name for tensor in recipe.inputs])
        for index, point in enumerate(wanted):
            report("benchmark", index, len(wanted), point.text)
            found = side_by_side(
                [contender for _, contender in contenders],
                sized(model.inputs, point.shapes),
                batch=point.batch,
                harness=harness or CPU_HARNESS,
            )
            for (precision, _), one in zip(contenders, found, strict=True):
                rows.append(row_of(recipe.name, precision, one, point))
    report("benchmark", len(wanted), len(wanted))
    return tuple(rows)


def load_cpu(
    site: Site, recipe: Recipe, precision: PrecisionName, load: Load, streams: Sequence[int]
) -> tuple[BenchmarkRow, ...]:
    """A row for each number of streams: the highest rate at which p99 keeps the limit.

    Each stream is a session of ONNX Runtime in a process of its own; a request is one pass at the
    opt shapes of the first profile. Raises: StoreMissing when nothing of the recipe, or not that
    precision, is built yet; EngineRunError.
    """
    model = built_recipe(site, recipe)
    if precision not in model.graphs:
        raise StoreMissing(
            f"bench slo: {recipe.name} has no graph in {precision}",
            why=f"it has {', '.join(model.graphs)}",
            fix="name one of these with --precision, or build it first",
        )
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
                    provider="CPUExecutionProvider",
                    options={},
                )
                stack.callback(one.close)
                one.bind(sized(model.inputs, point.shapes))
                sessions.append(one)
            started = time.monotonic()
            curve = highest_rate([session.iterate for session in sessions], load)
            rows.append(
                _load_row(recipe.name, precision, point, load, curve).model_copy(
                    update={"duration_s": time.monotonic() - started}
                )
            )
    return tuple(rows)


def _load_row(
    recipe: str, precision: PrecisionName, point: Point, load: Load, curve: Curve
) -> BenchmarkRow:
    best = curve.best
    found = {
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
        "slo_rate_per_s": best.rate_per_s if best else None,
        "slo_reached_p99_ms": best.p99_ms if best else None,
        "reason": "" if best else _no_rate(curve),
    }
    return empty_row(recipe, precision, "onnxruntime-cpu").model_copy(update=found)


def _no_rate(curve: Curve) -> str:
    lowest = min((one.rate_per_s for one in curve.tried), default=0.0)
    return f"p99 was above the limit at every rate that was tried, down to {lowest:.4g}/s"


def _contenders(
    site: Site, recipe: Recipe, model: BuiltRecipe, scratch: Path, stack: ExitStack
) -> list[tuple[PrecisionName, Contender]]:
    """Each in a process of its own: the recipe's code runs, and its graphs are read, there."""
    found: list[tuple[PrecisionName, RemoteContender]] = []
    if recipe.source.LOADS == "module":
        torch = torch_in_a_process("PyTorch", recipe, outputs=model.outputs, device="cpu")
        stack.callback(torch.close)
        found.append(("fp32", torch))
    for precision, graph in model.graphs.items():
        folder = scratch / precision
        folder.mkdir()
        one = on_provider_in_a_process(
            f"ONNX Runtime {precision}",
            materialize(site, graph, folder).absolute(),
            runtime="onnxruntime-cpu",
            provider="CPUExecutionProvider",
            options={},
        )
        stack.callback(one.close)
        found.append((precision, one))
    return [*found]
