"""What verification costs and says, on the examples or on other recipes.

    python benchmarks/verification.py [RECIPE …]

For each recipe: seconds and processor seconds of the FP32 reference and of each precision's
verification, and the worst figures. Everything is worked out anew in a store of its own.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import machine, scratch
from benchmarks.figures import Figure
from enginefarm.documents.recipe import Recipe
from enginefarm.planning import stages
from enginefarm.recipes import file as recipe_file
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.site import Site

EXAMPLES = Path(__file__).parents[1] / "examples"


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", type=Path)
    options = parser.parse_args(arguments)
    recipes = options.recipes or sorted(path for path in EXAMPLES.iterdir() if path.is_dir())
    print(machine.described("torch", "onnxruntime"))
    print(
        f"{'recipe':20} {'what':10} {'s':>7} {'CPU s':>7} {'cosine':>9} {'rel. L2':>8}  over budget"
    )
    figures: list[Figure] = []
    with scratch.objects() as objects, tempfile.TemporaryDirectory() as folder:
        site = Site(store=EngineStore(objects, objects.where), cache=BlobCache(Path(folder)))
        for path in recipes:
            figures.append(one(site, recipe_file.load(path)))
    return figures


def one(site: Site, recipe: Recipe) -> Figure:
    exported = stages.export(site, recipe)
    slimmed = stages.slim(site, recipe, exported)
    reference, *spent = timed(lambda: stages.reference(site, recipe, exported.outputs))
    total = spent[0]
    print(f"{recipe.name:20} {'reference':10} {spent[0]:7.1f} {spent[1]:7.1f}", flush=True)
    for name in recipe.precisions:
        stages.convert(site, recipe, slimmed.model, name)  # its time is not verification's
        made, *spent = timed(
            lambda name=name: stages.prepare(site, recipe, slimmed.model, reference, name)
        )
        total += spent[0]
        outputs = made.verification.outputs
        print(
            f"{recipe.name:20} {name:10} {spent[0]:7.1f} {spent[1]:7.1f} "
            f"{min(output.cosine for output in outputs):9.6f} "
            f"{max(output.relative_l2 for output in outputs):8.4f}  "
            f"{'; '.join(made.verification.over_budget) or '-'}",
            flush=True,
        )
    return Figure(f"verification of {recipe.name}, s", total)


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What work returns, its seconds, and its processor seconds, children included."""
    started, before = time.monotonic(), _processor()
    made = work()
    return made, time.monotonic() - started, _processor() - before


def _processor() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


if __name__ == "__main__":
    main()
