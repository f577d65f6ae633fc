"""What verification costs and says, on the examples or on other recipes.

    python benchmarks/verification.py [RECIPE …]

For each recipe: seconds of the FP32 reference and of each precision's verification, and the
worst figures. Everything is computed again in a store of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import machine, scratch
from benchmarks.figures import Figure
from enginefarm.documents.recipe import Recipe
from enginefarm.planning import graphs, stages
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
    print(f"{'recipe':20} {'what':10} {'s':>7} {'cosine':>9} {'rel. L2':>8}  over budget")
    figures: list[Figure] = []
    with scratch.objects() as objects, tempfile.TemporaryDirectory() as folder:
        site = Site(store=EngineStore(objects, objects.where), cache=BlobCache(Path(folder)))
        for path in recipes:
            figures.append(one(site, recipe_file.load(path)))
    return figures


def one(site: Site, recipe: Recipe) -> Figure:
    exported = stages.export(site, recipe)
    slimmed = stages.slim(site, recipe, exported)
    reference = stages.reference(site, recipe, exported.outputs)
    total = reference.seconds
    print(f"{recipe.name:20} {'reference':10} {total:7.1f}", flush=True)
    for name in recipe.precisions:
        made = graphs.prepare(site, recipe, slimmed.model, reference, name)
        took = made.verification.seconds or 0.0  # without the conversion
        total += took
        outputs = made.verification.outputs
        print(
            f"{recipe.name:20} {name:10} {took:7.1f} "
            f"{min(output.cosine for output in outputs):9.6f} "
            f"{max(output.relative_l2 for output in outputs):8.4f}  "
            f"{'; '.join(made.verification.over_budget) or '-'}",
            flush=True,
        )
    return Figure(f"verification of {recipe.name}, s", total)


if __name__ == "__main__":
    main()
