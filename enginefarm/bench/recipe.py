"""What the benchmarks of a recipe share: its graphs, inputs, shapes and rows."""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginefarm.bench.engine import Measurement, filled
from enginefarm.bench.shapes import Point
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import OnnxRef, ShapeProfile
from enginefarm.errors import StoreMissing
from enginefarm.graph.verification.reference import read_reference
from enginefarm.host.runtimes import build_of
from enginefarm.names import RUNTIMES, PrecisionName, RuntimeName
from enginefarm.planning import stages
from enginefarm.store.site import Site
from enginefarm.tables.from_manifest import verification_columns, writer_name
from enginefarm.tables.rows import BenchmarkRow


@dataclass(frozen=True)
class BuiltRecipe:
    """A recipe as far as it is built.

    graphs: the newest of each precision. inputs: of the reference, by name. outputs: in order.
    """

    manifests: tuple[Manifest, ...]
    graphs: dict[PrecisionName, OnnxRef]
    inputs: dict[str, Any]
    outputs: tuple[str, ...]

    @property
    def profiles(self) -> tuple[ShapeProfile, ...]:
        return self.manifests[-1].spec.profiles


def built_recipe(site: Site, recipe: Recipe) -> BuiltRecipe:
    """Raises: StoreMissing when nothing of the recipe is built yet."""
    manifests = sorted(site.store.manifests(recipe.name), key=lambda one: one.created_at)
    if not manifests or manifests[-1].reference is None:
        raise StoreMissing(
            f"bench: the store has no engine of {recipe.name} yet",
            fix="build it first: enginefarm build RECIPE",
        )
    model = stages.known_model(site, recipe)
    graphs: dict[PrecisionName, OnnxRef] = {"fp32": model.onnx} if model else {}
    for manifest in manifests:
        graphs[manifest.precision] = manifest.graph
    reference = site.cache.ensure(site.store, manifests[-1].reference)
    return BuiltRecipe(
        manifests=tuple(manifests),
        graphs=graphs,
        inputs=next(read_reference(reference)).inputs,
        outputs=tuple(t.name for t in manifests[-1].tensors if t.role == "output"),
    )


def smallest_and_opt(profiles: Sequence[ShapeProfile], order: Sequence[str]) -> list[Point]:
    """Each profile's smallest and opt shapes.

    order: the recipe's inputs. A stored spec is sorted by name, and PyTorch takes inputs by
    place.
    """
    found: list[Point] = []
    for index, profile in enumerate(profiles):
        for end in ("min", "opt"):
            shapes = {name: getattr(profile.shapes[name], end) for name in order}
            point = Point(index, profile.name, shapes)
            if point not in found:
                found.append(point)
    return found


def row_of(
    recipe: str, precision: PrecisionName, found: Measurement, point: Point, **where: Any
) -> BenchmarkRow:
    """The row of a runtime that ran a graph. where: columns that tell the GPU, if any."""
    row = empty_row(recipe, precision, found.runtime, **where).model_copy(
        update=verification_columns(found.against_first)
    )
    return filled(row, found, point, host_class=host_class())


def empty_row(
    recipe: str, precision: PrecisionName, runtime: RuntimeName, **where: Any
) -> BenchmarkRow:
    """The row of a measurement of now, with no figures in it yet."""
    now = dt.datetime.now(dt.UTC)
    return BenchmarkRow(
        date=now.date(),
        measured_at=now,
        writer=writer_name(platform.node()),
        recipe=recipe,
        outcome="measured",
        runtime=runtime,
        precision=precision,
        toolchain=RUNTIMES[runtime].packages[-1],
        toolchain_build=build_of(runtime),
        **where,
    )


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
