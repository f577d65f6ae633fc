"""A second opinion on what the zoo published: unseen data, every size, no optimization."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import nodes
from benchmarks.steps import LOWS, NotRun, Steps
from benchmarks.zoo_judge import Figures
from enginefarm.documents.recipe import Recipe
from enginefarm.graph.exporting.export import load
from enginefarm.graph.samples import data, feeds
from enginefarm.planning.stages import here
from enginefarm.recipes import file as recipe_file
from enginefarm.store.site import materialize

onnx: Any = import_module("onnx")  # typed in part
Row = dict[str, Any]
Runner = Callable[[dict[str, Any]], list[Any]]
UNSEEN = (1009, 2003)
"""Seeds that no recipe uses."""
SAMPLES = 32
"""So many of each seed, as far as the recipe's own verification has as many batches: errors of
single batches differ by a factor of four."""


def published(engines: dict[str, Row]) -> Iterator[tuple[str, Row]]:
    """Each distinct graph that was published, by its digest, and an engine made of it."""
    seen: set[str] = set()
    for engine in engines.values():
        if not engine.get("engine_digest"):
            continue
        manifest = here().store.manifest(engine["spec_digest"])
        assert manifest is not None, "the build says that it is published"
        engine["graph"] = manifest.graph.model.digest
        engine["operators"] = manifest.verification.operators
        engine["not_checked"] = list(manifest.verification.not_checked)
        if engine["graph"] not in seen:
            seen.add(engine["graph"])
            yield engine["graph"], engine


def checked(folder: Path, row: Row, engine: Row) -> Row:
    """Figures of the graph, and why it disagrees with the model as it came: nothing where it
    agrees; `not_judged` where nobody here can run it."""
    recipe = recipe_file.load(folder / "recipe.yaml")
    precision = engine["precision"]
    with tempfile.TemporaryDirectory(prefix="zoo-") as name:
        site = here()
        manifest = site.store.manifest(engine["spec_digest"])
        assert manifest is not None, "the build says that it is published"
        path = materialize(site, manifest.graph, Path(name) / "graph")
        reference = as_it_came(recipe, folder, Path(name))
        graph = _graph(path, precision)
        figures = Figures(row.get("class_scores", ()), row.get("found", ""))
        names = [output.name for output in onnx.load(path, load_external_data=False).graph.output]
        try:
            for where, inputs in unseen(recipe):
                wanted, made = reference(inputs), graph(inputs)
                for output, one, other in zip(names, wanted, made, strict=True):
                    figures.add(output, one, other, where)
        except NotRun as why:
            return {"precision": precision, "not_judged": str(why)}
        except Exception as why:  # ONNX Runtime's own kinds
            return {"precision": precision, "not_judged": f"{type(why).__name__}: {why}"[:400]}
    why = figures.verdict(recipe.budget(precision))
    return {"precision": precision, **figures.shown(), "disagrees": why}


def bare(folder: Path, label: str) -> str:
    """What TensorRT-RTX says to the file as it came."""
    recipe = recipe_file.load(folder / "recipe.yaml")
    with tempfile.TemporaryDirectory(prefix="zoo-") as name:
        return nodes.built(folder / "model.onnx", recipe, Path(name) / "bare", label)


def unseen(recipe: Recipe) -> Iterator[tuple[str, dict[str, Any]]]:
    """Unseen data at its own sizes; the first seed's at min, opt and max of each profile too."""
    use = recipe.verification
    for seed in UNSEEN:
        found = data.batches(
            recipe.verification_data,
            root=recipe.root,
            inputs=recipe.inputs,
            batches=max(1, min(use.batches, SAMPLES // use.batch_size)),
            batch_size=use.batch_size,
            seed=seed,
        )
        for index, batch in enumerate(found):
            if feeds.misfit(batch, recipe) is None:
                yield f"seed {seed}, batch {index}", batch
            for where, dims in feeds.corners(recipe) if (seed, index) == (UNSEEN[0], 0) else ():
                yield f"seed {seed}, {where}", feeds.sized(batch, recipe, dims)


def as_it_came(recipe: Recipe, folder: Path, work: Path) -> Runner:
    """The model as it came: a PyTorch module, or an ONNX file computed in FP32."""
    if recipe.source.kind == "onnx":
        return _graph(folder / "model.onnx", "fp32")
    torch: Any = import_module("torch")
    module: Any = load(recipe, work / "source").model
    order = [tensor.name for tensor in recipe.inputs]

    def run(inputs: dict[str, Any]) -> list[Any]:
        with torch.no_grad():
            made = module(*(torch.from_numpy(np.array(inputs[name])) for name in order))
        return [one.numpy() for one in torch.utils._pytree.tree_leaves(made) if one is not None]

    return run


def _graph(path: Path, precision: str) -> Runner:
    model = onnx.load(os.fspath(path), load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in weights]
    lows = {tensor.data_type for tensor in model.graph.initializer} & LOWS.keys()
    if precision == "fp32" and not lows:
        session = nodes.plain(path)
        return lambda inputs: session.run(None, {name: inputs[name] for name in names})
    steps = Steps(path, rounded=precision != "fp32")
    return lambda inputs: list(steps.run({name: inputs[name] for name in names}).values())
