"""Bytes stored and time spent for one plan a GPU against one plan that its GPUs share.

    python -m benchmarks.plan_bytes [RECIPE ...] [--rounds 2]

Each way builds every precision of the recipe for its GPUs, from the same graphs, one build
after the other in child processes; the rounds alternate. Bytes are of distinct contents, as
the store keeps them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from benchmarks.figures import Figure
from enginefarm.building import isolate
from enginefarm.digest import sha256_file
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import BuildSpec
from enginefarm.planning import graphs, plan, stages, survey
from enginefarm.planning.graphs import PreparedGraph
from enginefarm.recipes import file as recipe_file
from enginefarm.store import open_store
from enginefarm.store.cache import BlobCache
from enginefarm.store.site import Site, materialize
from enginefarm.toolchains import BuildRequest

RECIPES = ("examples/01_efficientnet_lite0", "examples/02_minilm")


class Way(NamedTuple):
    """What one way came to."""

    plans: int
    stored_bytes: int
    seconds: float


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", type=Path, default=[Path(one) for one in RECIPES])
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args(arguments)
    print(machine.described("tensorrt-rtx-cu13-libs"), "\n")
    print("| recipe | precision | GPUs | way | plans | MB stored | s | bytes × one each |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        site = Site(store=open_store(), cache=BlobCache(Path(folder)))
        return [
            figure
            for path in chosen.recipes
            for figure in _measure(site, recipe_file.load(path), chosen.rounds)
        ]


def _measure(site: Site, recipe: Recipe, rounds: int) -> list[Figure]:
    exported = stages.export(site, recipe)
    slimmed = stages.slim(site, recipe, exported)
    reference = stages.reference(site, recipe, exported.outputs)
    targets = plan.targets(recipe, survey.local_offers()).wanted
    figures: list[Figure] = []
    for name in dict.fromkeys(target.precision for target in targets):
        prepared = graphs.prepare(site, recipe, slimmed.model, reference, name)
        shared = [
            plan.resolve(recipe, target, slimmed.model, prepared.use)
            for target in targets
            if target.precision == name
        ]
        each = [spec.model_copy(update={"compute_capabilities": ()}) for spec in shared]
        gpus = len(shared)
        found: dict[str, list[Way]] = {"one each": [], "shared": []}
        for _ in range(rounds):
            found["one each"].append(_build(site, prepared, each))
            found["shared"].append(_build(site, prepared, shared))
        base = found["one each"][0]
        for way, rows in found.items():
            row, seconds = rows[0], min(one.seconds for one in rows)
            print(
                f"| {recipe.name} | {name} | {gpus} | {way} | {row.plans} "
                f"| {row.stored_bytes / 1e6:.1f} | {seconds:.1f} "
                f"| {row.stored_bytes / base.stored_bytes:.3f} |",
                flush=True,
            )
        what = f"one plan for {gpus} GPUs over one each, {recipe.name} {name}"
        stored, base_s = found["shared"][0].stored_bytes, min(w.seconds for w in found["one each"])
        figures += [
            Figure(f"bytes of {what}", stored / base.stored_bytes, "×"),
            Figure(f"time of {what}", min(w.seconds for w in found["shared"]) / base_s, "×"),
        ]
    return figures


def _build(site: Site, prepared: PreparedGraph, specs: list[BuildSpec]) -> Way:
    sizes: dict[str, int] = {}
    started = time.monotonic()
    for spec in {spec.plan_key: spec for spec in specs}.values():
        with site.scratch() as scratch:
            request = BuildRequest(
                spec=spec,
                onnx=materialize(site, prepared.graph, scratch / "onnx"),
                work_dir=scratch / "build",
            )
            request.work_dir.mkdir()
            built = isolate.build(request, toolchain=spec.toolchain.name).plan
            sizes[sha256_file(built)] = built.stat().st_size
    return Way(len(sizes), sum(sizes.values()), time.monotonic() - started)


if __name__ == "__main__":
    main()
