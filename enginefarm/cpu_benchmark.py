"""The same model on this machine's CPU: PyTorch and ONNX Runtime, in turns on the same inputs.

It needs no GPU, so the tables hold something real everywhere, and a night on a CPU machine
still sees a slower exporter, slimmer or ONNX Runtime.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from enginefarm import ort, stages
from enginefarm.benchmark import Measured, filled, side_by_side
from enginefarm.errors import StoreMissing
from enginefarm.manifest import Manifest
from enginefarm.manifest_rows import verification_columns, writer_name
from enginefarm.measure.contenders import TorchContender, on_provider
from enginefarm.measure.harness import Contender, Harness
from enginefarm.measure.shapes import Point, sized
from enginefarm.progress import report
from enginefarm.recipe import PrecisionName, Recipe
from enginefarm.reference import read_reference
from enginefarm.rows import BenchmarkRow, Runtime
from enginefarm.site import Site, materialise
from enginefarm.sources import source
from enginefarm.spec import OnnxRef

CPU_HARNESS = Harness(warmup_iterations=3, warmup_s=0.3, min_iterations=20, max_seconds=10)
"""A CPU pass can take seconds: fewer of them."""

BUILDS: dict[Runtime, Callable[[], str]] = {
    "pytorch": lambda: version("torch"),
    "onnxruntime-cpu": ort.build,
}
TOOLCHAINS: dict[Runtime, str] = {"pytorch": "torch", "onnxruntime-cpu": "onnxruntime"}


def benchmark_cpu(
    site: Site, recipe: Recipe, *, harness: Harness | None = None
) -> tuple[BenchmarkRow, ...]:
    """Rows of PyTorch (where the source is a module) and of ONNX Runtime with the FP32 graph
    and each precision's graph, at the smallest and the opt shapes of each profile.

    Outputs are compared with those of the first. Raises: StoreMissing when nothing of the
    recipe is built yet; EngineRunError.
    """
    graphs, manifest = _graphs(site, recipe)
    if manifest is None or manifest.reference is None:
        raise StoreMissing(
            f"bench: nothing of {recipe.name} is in the store yet",
            fix="build it first: enginefarm build RECIPE",
        )
    inputs = next(read_reference(site.cache.ensure(site.store, manifest.reference))).inputs
    names = [tensor.name for tensor in manifest.tensors if tensor.role == "output"]
    rows: list[BenchmarkRow] = []
    with site.scratch() as scratch:
        contenders = _contenders(site, recipe, graphs, names, scratch)
        wanted = _points(manifest, [tensor.name for tensor in recipe.inputs])
        for index, point in enumerate(wanted):
            report("benchmark", index, len(wanted), point.text)
            found = side_by_side(
                [contender for _, contender in contenders],
                sized(inputs, point.shapes),
                batch=point.batch,
                harness=harness or CPU_HARNESS,
            )
            for (precision, _), one in zip(contenders, found, strict=True):
                rows.append(_row(recipe.name, precision, one, point))
    report("benchmark", len(wanted), len(wanted))
    return tuple(rows)


def _graphs(site: Site, recipe: Recipe) -> tuple[dict[PrecisionName, OnnxRef], Manifest | None]:
    """Graphs by precision, and the newest manifest."""
    manifests = sorted(site.store.manifests(recipe.name), key=lambda one: one.created_at)
    model = stages.known_model(site, recipe)
    graphs: dict[PrecisionName, OnnxRef] = {"fp32": model.onnx} if model else {}
    for manifest in manifests:
        graphs[manifest.precision] = manifest.graph
    return graphs, manifests[-1] if manifests else None


def _contenders(
    site: Site,
    recipe: Recipe,
    graphs: dict[PrecisionName, OnnxRef],
    outputs: Sequence[str],
    scratch: Path,
) -> list[tuple[PrecisionName, Contender]]:
    found: list[tuple[PrecisionName, Contender]] = []
    if recipe.source.kind in ("torch", "lightning"):
        work = scratch / "source"
        work.mkdir()
        module: Any = source(recipe.source.kind).load(recipe.source, recipe.root, work)
        found.append(("fp32", TorchContender("PyTorch", module, outputs=outputs, device="cpu")))
    for precision, graph in graphs.items():
        folder = scratch / precision
        folder.mkdir()
        found.append(
            (
                precision,
                on_provider(
                    f"ONNX Runtime {precision}",
                    materialise(site, graph, folder),
                    runtime="onnxruntime-cpu",
                    provider="CPUExecutionProvider",
                ),
            )
        )
    return found


def _points(manifest: Manifest, order: Sequence[str]) -> list[Point]:
    """Each profile's smallest and opt shapes.

    order: the recipe's inputs. A stored spec is sorted by name, and PyTorch takes inputs by
    place.
    """
    found: list[Point] = []
    for index, profile in enumerate(manifest.spec.profiles):
        for end in ("min", "opt"):
            shapes = {name: getattr(profile.shapes[name], end) for name in order}
            point = Point(index, profile.name, shapes)
            if point not in found:
                found.append(point)
    return found


def _row(recipe: str, precision: PrecisionName, found: Measured, point: Point) -> BenchmarkRow:
    now = dt.datetime.now(dt.UTC)
    row = BenchmarkRow(
        date=now.date(),
        measured_at=now,
        writer=writer_name(platform.node()),
        recipe=recipe,
        outcome="measured",
        runtime=found.runtime,
        precision=precision,
        toolchain=TOOLCHAINS[found.runtime],
        toolchain_build=BUILDS[found.runtime](),
    ).model_copy(update=verification_columns(found.against_first))
    return filled(row, found, point, host_class=host_class())


def host_class() -> str:
    """This CPU, as a kind of machine: `AMD EPYC, 2 CPUs`."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} CPUs"
