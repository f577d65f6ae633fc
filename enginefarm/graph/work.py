"""A recipe's stages, each as a function for a child process.

The recipe's own code runs there, and files that may be hostile are opened there: never in the
process that has credentials (docs/decisions/0151).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import JsonValue

from enginefarm.child import output_files
from enginefarm.child.call import Child
from enginefarm.child.fork import forked
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.stage import StageOutput
from enginefarm.errors import EnginefarmError
from enginefarm.graph.order import Order
from enginefarm.names import PRECISIONS
from enginefarm.settings import current
from enginefarm.store.site import onnx_files_of

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Arrays
    from enginefarm.graph.sources import LoadedModel

CODE_ENVIRONMENT = ("HF_HOME", "HF_HUB_OFFLINE", "TORCH_HOME", "PYTHONHASHSEED")
"""Variables that a recipe's code gets in addition to those of every child."""

PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""OpenMP's threads, PyTorch's among them, sleep while they wait. By default they spin, and take the
cores from what runs in parallel (docs/decisions/0290)."""

MALLOC = {-3: 256 << 20, -1: 512 << 20}
"""glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD: smaller pieces, and as much in all, are kept."""

AHEAD_BYTES = 256 << 20
"""Slimming a graph of that size takes about as much memory as importing torch."""


def run(function: str, order: Order, *, what: str, error: type[EnginefarmError]) -> StageOutput:
    """`function` of this module in a child process, within the limits of a build.

    Raises: what the stage raises; `error` when its code ends, crashes or goes over a limit.
    """
    child = Child(
        f"{what} of {order.recipe.name}",
        error=error,
        fix="correct the code or the file that this recipe names; it has no credentials, and "
        "must return instead of ending its process",
        environment={"XDG_CACHE_HOME": str(current().downloads)}
        | PATIENT
        | {name: os.environ[name] for name in CODE_ENVIRONMENT if name in os.environ},
    )
    made = child.ask(f"{__name__}:{function}", order, StageOutput)
    for name, path in made.files.items():
        if not output_files.is_own(path, order.folder):
            raise error(f"{what} of {order.recipe.name}: {name} is not a file in its folder")
    return made


def export(request: str) -> str:
    """The graph, and in the same process, with torch and the model loaded, the reference; of a
    small graph also the slimmed one, and its ranges.

    Of these, what cannot be made is left out: its own stage says why.
    """
    from enginefarm.graph.exporting.export import export_onnx
    from enginefarm.graph.verification import faithful

    order = Order.model_validate_json(request)
    recipe = order.placed
    early: Future[Path | None] | None = None
    with _beside(recipe) as process:

        def loaded(model: LoadedModel) -> None:
            nonlocal early
            if _reuses_memory(model) and process is not None:
                early = process.submit(_early_reference, request)

        done = export_onnx(recipe, order.folder, loaded)
        files = onnx_files_of(done.path)
        values: dict[str, Any] = {
            "opset": done.opset,
            "outputs": list(done.outputs),
            "notes": list(done.notes),
        }
        # The model is in memory beside it: a large graph is slimmed when this process has ended.
        small = "data" not in files and done.path.stat().st_size <= AHEAD_BYTES
        with ThreadPoolExecutor(1) as pool:
            slimming = small and pool.submit(
                copy_context().run, _slimmed, recipe, done.path, order.folder, done.sample
            )
            try:
                npz = (early and _result(early)) or _reference(
                    recipe, done.model, order.folder, done.outputs
                )
            except EnginefarmError as error:
                print(f"the reference: {error}", flush=True)
            else:
                files["reference"] = npz
                if not isinstance(done.model, Path):
                    faithful.require(done.path, npz, recipe, done.model)
        if slimming:
            try:
                slimmed = slimming.result()
                files |= {f"slim-{name}": path for name, path in slimmed.files.items()}
                values["slim"] = slimmed.values
                if "reference" in files:
                    values["largest"] = _largest(recipe, files["slim-model"], files["reference"])
            except EnginefarmError as error:
                print(f"the slimmed graph: {error}", flush=True)
    return StageOutput(files=files, values=values).model_dump_json()


@contextmanager
def _beside(recipe: Recipe) -> Generator[ProcessPoolExecutor | None]:
    """A process that can compute the reference while PyTorch's exporter, which has one thread,
    works; None where the names of its outputs are only known from the graph, and where PyTorch was
    loaded before: its threads would be missing in the fork, which would wait for them for ever."""
    if recipe.source.LOADS == "file" or not recipe.outputs or "torch" in sys.modules:
        yield None
        return
    import_module("torch")  # once for both
    with forked() as process:
        yield process


def _reuses_memory(model: LoadedModel) -> bool:
    """Whether the model is small. What it frees is then used again: given back, as glibc gives back
    large pieces, the kernel has to clear it for each result anew, which is half of the time."""
    if isinstance(model, Path):
        return False
    found: Any = model.state_dict  # an exported program has it as a property
    weights = cast("dict[str, Any]", found() if callable(found) else found)
    small = sum(int(tensor.nbytes) for tensor in weights.values()) <= AHEAD_BYTES
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if small and mallopt is not None:
        for option, size_bytes in MALLOC.items():
            mallopt(option, size_bytes)
    return small


def _early_reference(request: str) -> Path | None:
    """The reference, by a model of its own; None where that cannot be run at every size, as one
    that has to see its largest inputs first."""
    from enginefarm.graph.verification.reference import sizes_not_checked

    order = Order.model_validate_json(request)
    folder = order.folder / "beside"
    model = _load(order.placed, folder)
    _reuses_memory(model)
    npz = _reference(order.placed, model, folder, order.placed.outputs)
    return None if sizes_not_checked(npz) else npz


def _result(early: Future[Path | None]) -> Path | None:
    """None where it has failed: the model that was exported says why."""
    try:
        return early.result()
    except (Exception, SystemExit) as error:  # whatever the model's code did there
        print(f"the reference beside the export: {error}", flush=True)
        return None


def _largest(recipe: Recipe, graph: Path, reference: Path) -> dict[str, float] | None:
    """`ranges.observe`, once for all precisions that ask; None where none does."""
    from enginefarm.graph.precisions import precision, ranges

    if not any(precision(name).ranged for name in recipe.precisions):
        return None
    return ranges.of_file(graph, reference)


def reference(request: str) -> str:
    order = Order.model_validate_json(request)
    model = _load(order.placed, order.folder)
    _reuses_memory(model)
    npz = _reference(order.placed, model, order.folder, order.outputs)
    return StageOutput(files={"reference": npz}).model_dump_json()


def slim(request: str) -> str:
    from enginefarm.graph.samples import feeds

    order = Order.model_validate_json(request)
    sample = feeds.sample(order.placed)
    return _slimmed(order.placed, order.graph, order.folder, sample).model_dump_json()


def _slimmed(recipe: Recipe, graph: Path, folder: Path, sample: Arrays) -> StageOutput:
    """sample: a batch of the recipe's data."""
    from enginefarm.graph.exporting.slim import slim_onnx
    from enginefarm.graph.model import onnx_files, operators
    from enginefarm.graph.samples import feeds

    corners = [feeds.sized(sample, recipe, dims) for _, dims in feeds.corners(recipe)]
    done = slim_onnx(graph, folder / "slim", corners)
    named = operators.names(onnx_files.graph_only(done.path))
    notes: list[JsonValue] = [f"the graph is not slimmed: {done.refused}"] if done.refused else []
    values: dict[str, JsonValue] = {"notes": notes, "operators": dict(named)}
    return StageOutput(files=onnx_files_of(done.path), values=values)


def convert(request: str) -> str:
    from enginefarm.graph.precisions import evidence, precision
    from enginefarm.graph.samples import data

    order = Order.model_validate_json(request)
    recipe, found = order.placed, precision(order.precision)
    batches: Iterable[Any] = (
        data.calibration_batches(recipe) if PRECISIONS[found.name].calibrated else ()
    )
    with evidence.of_order(order) as seen:
        done = found.convert(order.graph, order.folder / "out", recipe, batches, seen)
    return StageOutput(files=onnx_files_of(done.path), values=dict(done.details)).model_dump_json()


def _reference(recipe: Recipe, model: Any, folder: Path, outputs: tuple[str, ...]) -> Path:
    from enginefarm.graph.verification.reference import make_reference

    again = None if isinstance(model, Path) else lambda: _load(recipe, folder / "again")
    npz = folder / "reference.npz"
    return make_reference(recipe, model, npz, outputs=outputs, again=again)


def _load(recipe: Recipe, folder: Path) -> Any:
    from enginefarm.graph.exporting.export import load

    return load(recipe, folder).model
