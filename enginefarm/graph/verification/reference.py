"""The FP32 reference: what the model itself returns for the verification data.

One `.npz`: `NNNN/input/NAME`, `NNNN/output/NAME` and `NNNN/labels` for each batch NNNN. After
the batches of the data come those at the sizes of the profiles (min, opt, max, and an odd one),
with `NNNN/corner`; `not-checked` lists the sizes at which the model itself does not run.
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
from enginefarm.documents.comparing import ComparisonRules
from enginefarm.documents.recipe import Recipe
from enginefarm.errors import CalibrationError, ExportError, ModelError, RecipeError, one_line
from enginefarm.graph.model import onnx_files, ort
from enginefarm.graph.samples import data, data_files, feeds
from enginefarm.graph.sources import forward, in_fp32
from enginefarm.graph.verification import figures, steady

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Array, Arrays
    from enginefarm.graph.sources import LoadedModel

    Runner = Callable[[Arrays], Arrays]

NOT_CHECKED = "not-checked"


@dataclass(frozen=True)
class ReferenceBatch:
    """inputs and outputs by name; labels (samples,) where the data is labeled.

    corner: which size of the profiles it is at; empty for a batch as it comes from the data.
    """

    inputs: Arrays
    outputs: Arrays
    labels: Array | None
    corner: str = ""

    @property
    def samples(self) -> int:
        """Size of the first axis: of the first input, or else output, that has one."""
        arrays = (*self.inputs.values(), *self.outputs.values())
        return next((array.shape[0] for array in arrays if array.ndim), 1)


def make_reference(
    recipe: Recipe,
    model: LoadedModel,
    dest: Path,
    *,
    outputs: tuple[str, ...],
    again: Callable[[], LoadedModel] | None = None,
) -> Path:
    """Runs the model in FP32 on the recipe's verification data and writes `dest`.

    outputs: the graph's output names, in order (`export.Exported.outputs`). again: loads the model
    once more, to see whether it is the same one; None: the file is what it is.
    Raises: ModelError when the model returns other numbers each time, or NaN; CalibrationError,
    ExportError.
    """
    if isinstance(model, Path):
        steady.refuse_random(onnx_files.read(model))
    import numpy as np

    run = _runner(model, outputs, recipe)
    use, source = recipe.verification, recipe.verification_data
    found = data.verification_batches(recipe)
    shapes: list[dict[str, int]] = []
    first: Arrays = {}
    right = 0
    with zipfile.ZipFile(dest, "w") as archive:
        count = 0
        for count, batch in enumerate(found, 1):
            inputs, labels = data.split(batch, source)
            _fits(inputs, recipe, count - 1)
            where = f"batch {count - 1}"
            if not shapes:
                first = inputs
                loaded = None if again is None else (lambda: _runner(again(), outputs, recipe))
                other = feeds.other(inputs, recipe)
                made = _sound(steady.require(run, inputs, model, loaded, other), where)
            else:
                made = _sound(run(inputs), where)
            shapes.append(feeds.dims_of(inputs, recipe))
            labels, found_right = _fits_labels(made, labels, use)
            right += found_right
            write_batch(archive, count - 1, ReferenceBatch(inputs, made, labels))
            progress.report("reference", count, use.batches)
        if source.labels is not None and use.class_scores and not right:
            raise CalibrationError(
                "verification.data: the model itself gets none of the labels right",
                why=f"top-1 of {', '.join(use.class_scores)} never equals {source.labels!r} in "
                f"{count} batches, so that no precision could get worse",
                fix="the labels have to be the indices of the model's own classes, in the order "
                "of the samples",
            )
        skipped: list[str] = []
        for options in (*((corner,) for corner in feeds.corners(recipe)), *feeds.inside(recipe)):
            for label, dims in options:
                if dims in shapes:
                    break
                inputs = feeds.sized(first, recipe, dims)
                try:
                    made = _sound(run(inputs), label)
                except Exception as error:  # of the model itself, whatever it is
                    if not isinstance(model, Path) and _is_program(model) and len(options) == 1:
                        raise ExportError(
                            f"{label}: the program does not accept these sizes",
                            why=one_line(error, 300),
                            fix="export it with a range of sizes that has them (torch.export.Dim), "
                            "or narrow the profile",
                        ) from error
                    skipped.append(f"{label}: {one_line(error, 200)}")
                    continue
                shapes.append(dims)
                write_batch(archive, count, ReferenceBatch(inputs, made, None, label))
                count += 1
                progress.report("reference", count, None, label)
                break
        data_files.add_array(archive, NOT_CHECKED, np.array(skipped, dtype=str))
    return dest


def write_batch(archive: zipfile.ZipFile, index: int, batch: ReferenceBatch) -> None:
    """The batch in the archive of a reference, as number `index`."""
    import numpy as np

    for name, array in batch.inputs.items():
        data_files.add_array(archive, f"{index:04d}/input/{name}", array)
    for name, array in batch.outputs.items():
        data_files.add_array(archive, f"{index:04d}/output/{name}", array)
    if batch.labels is not None:
        data_files.add_array(archive, f"{index:04d}/labels", batch.labels)
    if batch.corner:
        data_files.add_array(archive, f"{index:04d}/corner", np.array(batch.corner))


def _fits_labels(
    outputs: Arrays, labels: Array | None, how: ComparisonRules
) -> tuple[Array | None, int]:
    """The labels, negative where none counts, and how many of them the model's classes equal."""
    right = 0
    for name in (*how.class_scores, *how.slices):
        if name not in outputs:
            raise RecipeError(
                f"verification: no output is called {name!r}",
                fix=f"outputs are {', '.join(outputs)}; name them with `outputs`",
            )
    if labels is not None:
        for name in how.class_scores:
            labels = figures.fit_labels(name, outputs[name].shape, labels, how)
            classes = outputs[name].argmax(how.axis_of_classes(outputs[name].ndim))
            right += int((classes == labels).sum())
    return labels, right


def _sound(outputs: Arrays, where: str) -> Arrays:
    """The outputs, when they are numbers. Infinities are: masks are made of them.

    Raises: ModelError for NaN, ExportError for text.
    """
    import numpy as np

    for name, array in outputs.items():
        if array.dtype.kind not in "fiub":
            raise ExportError(
                f"output {name!r} is of type {array.dtype}, which an engine cannot return",
                fix="return numbers only",
            )
        bad = np.isnan(array) if array.dtype.kind == "f" else np.zeros((), bool)
        if bad.any():
            place = [int(index[0]) for index in np.nonzero(bad)] if array.ndim else []
            raise ModelError(
                f"the model itself returns NaN in FP32: output {name!r}, {where}",
                why=f"{int(bad.sum())} of {array.size} values, first at index {place}",
                fix="correct the model, or the verification data that leads to it; random inputs, "
                "which a recipe without `verification.data` has, can mask out whole rows",
            )
    return outputs


def _fits(inputs: Arrays, recipe: Recipe, index: int) -> None:
    """The engine will be run on these inputs: a profile must admit their shapes."""
    why = feeds.misfit(inputs, recipe)
    if why is not None:
        raise CalibrationError(
            f"verification data: batch {index} fits no optimization profile",
            why=why,
            fix="use data within the profiles, or widen a profile",
        )


def read_reference(path: Path) -> Iterator[ReferenceBatch]:
    """The batches, in order; one is in memory at a time.

    Raises: CalibrationError when the file is not a reference.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            names = sorted(set(archive.files) - {NOT_CHECKED})
            for index in sorted({name.partition("/")[0] for name in names}):
                mine = {name for name in names if name.startswith(f"{index}/")}
                yield ReferenceBatch(
                    inputs=_part(archive, mine, f"{index}/input/"),
                    outputs=_part(archive, mine, f"{index}/output/"),
                    labels=archive[f"{index}/labels"] if f"{index}/labels" in mine else None,
                    corner=str(archive[f"{index}/corner"]) if f"{index}/corner" in mine else "",
                )
    except Exception as error:  # whatever a damaged file makes of numpy and zipfile
        raise CalibrationError(
            f"{path.name} is not a reference", why=f"{type(error).__name__}: {error}"
        ) from error


def sizes_not_checked(path: Path) -> tuple[str, ...]:
    """Sizes inside the profiles at which the model itself does not run, and why."""
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        return tuple(map(str, archive[NOT_CHECKED])) if NOT_CHECKED in archive.files else ()


def _part(archive: Any, names: set[str], prefix: str) -> Arrays:
    return {
        name.removeprefix(prefix): archive[name]
        for name in sorted(names)
        if name.startswith(prefix)
    }


def _is_program(model: LoadedModel) -> bool:
    from torch.export import ExportedProgram

    return isinstance(model, ExportedProgram)


def _runner(model: LoadedModel, outputs: tuple[str, ...], recipe: Recipe) -> Runner:
    if isinstance(model, Path):
        from enginefarm.graph.model import emulate

        if emulate.narrow(onnx_files.graph_only(model)):
            wide = emulate.emulate(onnx_files.read(model), rounded=False)
            session = ort.session_of(wide, error=ExportError, what="the reference", plain=True)
        else:
            session = ort.session(model, error=ExportError, what="the reference", plain=True)
        return lambda inputs: ort.run(session, inputs, error=ExportError, what="the reference")
    return _torch_runner(model, outputs, recipe)


def _torch_runner(model: Any, outputs: tuple[str, ...], recipe: Recipe) -> Runner:
    torch: Any = import_module("torch")  # its functions are typed in part
    names = tuple(tensor.name for tensor in recipe.inputs)
    exported = _is_program(model)
    module = forward.of_program(model) if exported else forward.positional(model, names)
    narrow = any(tensor.dtype in ("float16", "bfloat16") for tensor in recipe.inputs)
    if narrow or in_fp32.narrow(module):
        module = in_fp32.InFp32(module)

    def run(inputs: Arrays) -> Arrays:
        nonlocal module
        given = forward.arguments((inputs[name] for name in names), recipe)
        with torch.inference_mode():
            with in_fp32.watched() as narrow:
                leaves = forward.tensors(module(*given))
            if narrow and not isinstance(module, in_fp32.InFp32):
                module = in_fp32.InFp32(module)
                leaves = forward.tensors(module(*given))
        if len(leaves) != len(outputs):
            raise ExportError(
                f"the model returns {len(leaves)} tensors, its graph has {len(outputs)} outputs",
                fix="return tensors only, each one once",
            )
        # A parameter that the model returns as it is has a gradient even here.
        return {name: leaf.detach().numpy() for name, leaf in zip(outputs, leaves, strict=True)}

    return run
