"""The FP32 reference: what the model itself says on the verification data.

One `.npz`: `NNNN/input/NAME`, `NNNN/output/NAME` and `NNNN/labels` for each batch NNNN.
Batches may differ in shape. It is written and read a batch at a time, and its bytes are the
same for the same numbers.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm import progress
from enginefarm.documents.recipe import Recipe
from enginefarm.errors import CalibrationError, ExportError
from enginefarm.graph import data, feeds, ort

if TYPE_CHECKING:
    import numpy as np

    from enginefarm.graph.sources import LoadedModel

    Array = np.ndarray[Any, Any]
    Arrays = dict[str, Array]
    Runner = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class ReferenceBatch:
    """inputs and outputs by name; labels (samples,) where the data is labelled."""

    inputs: Arrays
    outputs: Arrays
    labels: Array | None


def make_reference(
    recipe: Recipe, model: LoadedModel, dest: Path, *, outputs: tuple[str, ...]
) -> Path:
    """Runs the model in FP32 on the recipe's verification data and writes `dest`.

    outputs: the graph's output names, in order (`ExportReport.outputs`).
    Raises: CalibrationError, ExportError.
    """
    run = _runner(model, outputs)
    use, source = recipe.verification, feeds.verification_data(recipe)
    found = data.batches(
        source,
        root=recipe.root,
        inputs=recipe.inputs,
        batches=use.batches,
        batch_size=use.batch_size,
        seed=use.seed,
    )
    with zipfile.ZipFile(dest, "w") as archive:
        for index, batch in enumerate(found):
            inputs, labels = data.split(batch, source)
            _fits(inputs, recipe, index)
            for name, array in inputs.items():
                _add(archive, f"{index:04d}/input/{name}", array)
            for name, array in run(inputs).items():
                _add(archive, f"{index:04d}/output/{name}", array)
            if labels is not None:
                _add(archive, f"{index:04d}/labels", labels)
            progress.report("reference", index + 1, use.batches)
    return dest


def _fits(inputs: Arrays, recipe: Recipe, index: int) -> None:
    """The engine will be run on these inputs: a profile must admit their shapes."""
    why = feeds.misfit(inputs, recipe)
    if why is not None:
        raise CalibrationError(
            f"verification data: batch {index} fits no optimization profile",
            why=why,
            fix="give data within the profiles, or widen a profile",
        )


def read_reference(path: Path) -> Iterator[ReferenceBatch]:
    """The batches, in order; one is in memory at a time.

    Raises: CalibrationError when the file is not a reference.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            names = sorted(archive.files)
            for index in sorted({name.partition("/")[0] for name in names}):
                mine = {name for name in names if name.startswith(f"{index}/")}
                yield ReferenceBatch(
                    inputs=_part(archive, mine, f"{index}/input/"),
                    outputs=_part(archive, mine, f"{index}/output/"),
                    labels=archive[f"{index}/labels"] if f"{index}/labels" in mine else None,
                )
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CalibrationError(
            f"{path.name}: not a reference", why=f"{type(error).__name__}: {error}"
        ) from error


def _part(archive: Any, names: set[str], prefix: str) -> Arrays:
    return {
        name.removeprefix(prefix): archive[name]
        for name in sorted(names)
        if name.startswith(prefix)
    }


def _add(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    import numpy as np

    # ZipInfo's own date is fixed: the bytes do not depend on the clock.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
        np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)


def _runner(model: LoadedModel, outputs: tuple[str, ...]) -> Runner:
    if isinstance(model, Path):
        session = ort.session(model, error=ExportError, what="the reference", plain=True)
        return lambda inputs: ort.run(session, inputs, error=ExportError, what="the reference")
    return _torch_runner(model, outputs)


def _torch_runner(model: Any, outputs: tuple[str, ...]) -> Runner:
    from torch.export import ExportedProgram
    from torch.utils import _pytree as pytree

    torch: Any = import_module("torch")  # its functions are typed in part
    module = model.module() if isinstance(model, ExportedProgram) else model

    def run(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            found = module(*(torch.from_numpy(array.copy()) for array in inputs.values()))
        leaves = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor)]
        if len(leaves) != len(outputs):
            raise ExportError(
                f"the model gives {len(leaves)} tensors, its graph {len(outputs)} outputs",
                fix="return tensors only, each one once",
            )
        return {name: leaf.numpy() for name, leaf in zip(outputs, leaves, strict=True)}

    return run
