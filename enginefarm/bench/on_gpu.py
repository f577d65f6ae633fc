"""A recipe on this machine's GPU, side by side in one run: PyTorch, ONNX Runtime with its CUDA
and its TensorRT provider, and the engines that the store has for this very GPU.

In turns on the same inputs, and compared with the first. Each has a separate process: a
crash takes it out of the table, and leaves the rest. What this machine lacks is left
out by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from enginefarm.bench.engine import Measurement, filled, side_by_side
from enginefarm.bench.harness import Harness
from enginefarm.bench.layer_times import record_layer_times
from enginefarm.bench.recipe import (
    BuiltRecipe,
    built_recipe,
    host_class,
    row_of,
    smallest_and_opt,
)
from enginefarm.bench.shapes import Point
from enginefarm.documents.gpus import by_nvml_name
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import ShapeProfile
from enginefarm.errors import EngineRunError, HostError, one_line
from enginefarm.graph.samples.feeds import shaped
from enginefarm.host.detect import NvmlGpu, first_gpu
from enginefarm.names import PrecisionName
from enginefarm.progress import report
from enginefarm.run.artifacts import in_a_process
from enginefarm.run.contenders import on_provider_in_a_process, torch_in_a_process
from enginefarm.run.remote import RemoteContender
from enginefarm.run.running import RunRequest
from enginefarm.store.site import Site, materialize, plugin_libraries
from enginefarm.tables.from_manifest import rows_from_manifest
from enginefarm.tables.rows import BenchmarkRow
from enginefarm.toolchains.ort_trt import COLON, PRECISION_OPTIONS, graph_options, unsayable

TORCH = "PyTorch eager fp32"

MakeRow = Callable[[Measurement, Point], BenchmarkRow]


@dataclass
class SideBySide:
    """left_out: the runtimes that could not take part, each with the reason."""

    rows: list[BenchmarkRow] = field(default_factory=list[BenchmarkRow])
    left_out: dict[str, str] = field(default_factory=dict[str, str])


class Entry(NamedTuple):
    """A runtime that may take part: made only when its turn comes."""

    name: str
    make: Callable[[], Any]
    row: MakeRow


def benchmark_gpu(site: Site, recipe: Recipe, *, harness: Harness | None = None) -> SideBySide:
    """Rows at the smallest and the opt shapes of each profile.

    Raises: HostError without a GPU of gpus.toml; StoreMissing when nothing of the recipe is
    built yet; EngineRunError when no runtime at all could take part.
    """
    label, gpu = gpu_here("time it on the CPU: --cpu")
    model = built_recipe(site, recipe)
    result = SideBySide()
    wanted = smallest_and_opt(model.profiles, [tensor.name for tensor in recipe.inputs])
    for index in range(len(model.profiles)):
        with site.scratch() as scratch, ExitStack() as stack:
            entries = _entries(site, recipe, model, index, (label, gpu), scratch)
            running = [*_start(entries, result, stack)]
            for point in (one for one in wanted if one.profile == index):
                report("benchmark", wanted.index(point), len(wanted), point.text)
                _measure(running, model, point, harness or Harness(), result)
    report("benchmark", len(wanted), len(wanted))
    return result


def gpu_here(instead: str) -> tuple[str, NvmlGpu]:
    """This machine's GPU and its label. instead: what to do on a machine without one.

    Raises: HostError.
    """
    gpu = first_gpu()
    row = by_nvml_name(gpu.name) if gpu else None
    if gpu is None or row is None:
        raise HostError(
            "bench: this machine has no GPU that gpus.toml lists",
            why=f"NVML calls it {gpu.name!r}" if gpu else "NVML is not installed, or finds no GPU",
            fix=instead,
        )
    return row.label, gpu


def profile_engines(site: Site, recipe: Recipe) -> dict[str, str]:
    """Times the layers of the recipe's engines for this GPU, and keeps that in the store.

    Returns what could not be profiled, and why.
    """
    left_out: dict[str, str] = {}
    for manifest in engines_here(site, recipe):
        report("profile", 0, None, manifest.spec.label)
        try:
            record_layer_times(site, manifest)
        except (EngineRunError, HostError) as error:
            name = f"layers of {manifest.spec.label}"
            left_out[name] = one_line(error.why or error.what)
    return left_out


def _entries(
    site: Site,
    recipe: Recipe,
    model: BuiltRecipe,
    profile: int,
    where: tuple[str, NvmlGpu],
    scratch: Path,
) -> Iterator[Entry]:
    label, gpu = where
    shapes = model.profiles[profile]
    on_gpu = {"gpu": label, "gpu_name": gpu.name, "driver": gpu.driver}
    if recipe.source.LOADS == "module":
        yield Entry(
            TORCH,
            partial(torch_in_a_process, TORCH, recipe, outputs=model.outputs, device="cuda"),
            partial(row_of, recipe.name, "fp32", **on_gpu),
        )
    for precision, graph in model.graphs.items():
        folder = scratch / precision
        folder.mkdir()
        onnx = materialize(site, graph, folder)
        row = partial(row_of, recipe.name, precision, **on_gpu)
        name = f"ONNX Runtime CUDA {precision}"
        on = partial(on_provider_in_a_process, name, onnx)
        yield Entry(name, partial(on, runtime="onnxruntime-cuda"), row)
        if precision in PRECISION_OPTIONS:
            name = f"ONNX Runtime TensorRT {precision}"
            yield Entry(name, partial(by_tensorrt_of_ort, name, onnx, precision, shapes), row)
    for manifest in engines_for(model, label):
        for graph_too in (False, True):
            yield _engine(site, manifest, profile, graph_too)


def engines_here(site: Site, recipe: Recipe) -> list[Manifest]:
    """engines_for() this machine's GPU; none without a GPU of gpus.toml."""
    gpu = first_gpu()
    row = by_nvml_name(gpu.name) if gpu else None
    return engines_for(built_recipe(site, recipe), row.label) if row else []


def by_tensorrt_of_ort(
    name: str, onnx: Path, precision: PrecisionName, shapes: ShapeProfile
) -> RemoteContender:
    """Raises: EngineRunError when it cannot be told the shapes, or does not take the model."""
    if told := unsayable(shapes):
        why = f"the input {told[0]!r} has a colon in its name: {COLON}"
        raise EngineRunError(f"{name} did not take the model", why=why)
    return on_provider_in_a_process(
        name,
        onnx,
        runtime="onnxruntime-tensorrt",
        options=graph_options(precision, shapes),
    )


def engines_for(model: BuiltRecipe, label: str) -> list[Manifest]:
    """The newest of each precision and toolchain that were built for this GPU, and not refused.

    Engines of an older recipe, with other profiles, do not take the same shapes.
    """
    newest = {
        (one.precision, one.spec.toolchain.name): one
        for one in model.manifests
        if one.gpu == label
        and one.spec.profiles == model.profiles
        and one.device_verification.status != "failed"
    }
    return [*newest.values()]


def _engine(site: Site, manifest: Manifest, profile: int, cuda_graph: bool) -> Entry:
    toolchain = manifest.spec.toolchain.name
    name = f"{toolchain} {manifest.precision}{' + CUDA graph' if cuda_graph else ''}"

    def make() -> RemoteContender:
        asked = RunRequest(
            plan=site.cache.ensure(site.store, manifest.engine),
            toolchain=toolchain,
            plugins=plugin_libraries(site, manifest.spec),
            profile=profile,
            cuda_graph=cuda_graph,
        )
        return in_a_process(name, asked)

    def row(found: Measurement, point: Point) -> BenchmarkRow:
        built = {one.profile: one for one in rows_from_manifest(manifest)}[point.profile_name]
        made = filled(built, found, point, host_class=host_class())
        return made.model_copy(update={"cuda_graph": cuda_graph})

    return Entry(name, make, row)


def _start(
    entries: Iterator[Entry], result: SideBySide, stack: ExitStack
) -> Iterator[tuple[Entry, Any]]:
    for entry in entries:
        try:
            contender = entry.make()
        except EngineRunError as error:
            result.left_out[entry.name] = one_line(error.why or error.what)
            continue
        if hasattr(contender, "close"):
            stack.callback(contender.close)
        yield entry, contender


def _measure(
    running: list[tuple[Entry, Any]],
    model: BuiltRecipe,
    point: Point,
    harness: Harness,
    result: SideBySide,
) -> None:
    feeds = shaped(model.inputs, point.shapes)
    able: list[tuple[Entry, Any]] = []
    for entry, contender in running:
        try:
            contender.bind(feeds)
            contender.iterate()
            able.append((entry, contender))
        except EngineRunError as error:
            result.left_out[f"{entry.name}, {point.text}"] = one_line(error.why or error.what)
    if not able:
        raise EngineRunError(
            "bench: no runtime could run on this GPU",
            why="; ".join(f"{name}: {why}" for name, why in result.left_out.items()),
        )
    contenders = [contender for _, contender in able]
    found = side_by_side(contenders, feeds, batch=point.batch, harness=harness)
    for (entry, _), one in zip(able, found, strict=True):
        result.rows.append(entry.row(one, point))
