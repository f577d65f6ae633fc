"""The same model on this machine's CPU: PyTorch and ONNX Runtime, in turns on the same inputs.

It needs no GPU, so the tables hold something real everywhere, and a night on a CPU machine
still sees a slower exporter, slimmer or ONNX Runtime.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from enginefarm.bench.engine import side_by_side
from enginefarm.bench.harness import Harness
from enginefarm.bench.recipe import (
    BuiltRecipe,
    built_recipe,
    row_of,
    smallest_and_opt,
)
from enginefarm.documents.recipe import Recipe
from enginefarm.graph.samples.feeds import shaped
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
                shaped(model.inputs, point.shapes),
                batch=point.batch,
                harness=harness or CPU_HARNESS,
            )
            for (precision, _), one in zip(contenders, found, strict=True):
                rows.append(row_of(recipe.name, precision, one, point))
    report("benchmark", len(wanted), len(wanted))
    return tuple(rows)


def _contenders(
    site: Site, recipe: Recipe, model: BuiltRecipe, scratch: Path, stack: ExitStack
) -> list[tuple[PrecisionName, Contender]]:
    """Each in a separate process: the recipe's code runs, and its graphs are read, there."""
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
        )
        stack.callback(one.close)
        found.append((precision, one))
    return [*found]
