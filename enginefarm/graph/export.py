"""A model -> ONNX, with dynamic shapes, checked at every corner of its profiles."""

from __future__ import annotations

import inspect
import logging
import re
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm import progress
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import ToolUse
from enginefarm.errors import ExportError, SourceError, ToolchainError
from enginefarm.graph import came, feeds, fitting, onnx_files, ort, raising
from enginefarm.graph.sources import source

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn
    from torch.export import ExportedProgram

    from enginefarm.graph.sources import LoadedModel


@dataclass(frozen=True)
class ExportReport:
    """What an export left in its folder.

    model is what was loaded, still in memory: the reference is computed from it. notes say
    what was changed in a file as it was read.
    """

    path: Path
    data: Path | None
    opset: int
    tool: ToolUse
    outputs: tuple[str, ...]
    seconds: float
    model: LoadedModel
    notes: tuple[str, ...] = ()


def load(recipe: Recipe, work_dir: Path) -> LoadedModel:
    """The recipe's source. An ONNX graph has the recipe's dims and names of outputs in it.

    Raises: SourceError.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    model = source(recipe.source.kind).load(recipe.source, recipe.root, work_dir)
    return fitting.fit_file(model, recipe, work_dir) if isinstance(model, Path) else model


def export_tool(recipe: Recipe) -> ToolUse:
    """The exporter, its version and arguments. Imports neither torch nor onnx."""
    if recipe.source.kind == "onnx":
        return ToolUse(
            name="onnx",
            version=version("onnx"),
            arguments={
                "opset": raising.OPSET,
                "outputs": list(recipe.outputs),
                "normal_form": 1,
                "reading": 1,
            },
        )
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        raise ToolchainError(
            f"source: {recipe.source.kind}: this model needs PyTorch, and torch is not installed",
            fix="pip install 'enginefarm[farm,torch]', or give the model as ONNX",
        ) from None
    return ToolUse(
        name="torch.onnx",
        version=torch_version,
        arguments={
            "opset": recipe.export.opset,
            "onnxscript": version("onnxscript"),
            "outputs": list(recipe.outputs),
            "normal_form": 1,
        },
    )


def export_onnx(recipe: Recipe, dest_dir: Path) -> ExportReport:
    """Loads the recipe's source and writes `dest_dir/model.onnx` in normal form.

    The graph is checked by onnx.checker, its inputs are compared with the recipe's, and it
    is run at min, opt and max of every profile.

    Raises: SourceError, ExportError, CalibrationError (the data that it is run on).
    """
    started = time.monotonic()
    dest_dir.mkdir(parents=True, exist_ok=True)
    progress.report("export", 0, 4, "load the model")
    model = load(recipe, dest_dir)
    sample = feeds.sample(recipe)
    progress.report("export", 1, 4, "write ONNX")
    error = SourceError if isinstance(model, Path) else ExportError
    if isinstance(model, Path):
        graph = onnx_files.read(model, error=error)
    else:
        graph = _export(model, recipe, sample)
    _refuse_broken(graph, recipe, error)
    _check_inputs(graph, recipe, error)
    outputs = tuple(output.name for output in graph.graph.output)
    path = model if isinstance(model, Path) else onnx_files.write(graph, dest_dir)
    progress.report("export", 2, 4, "check")
    onnx_files.check(path, error=error, what="the exported graph")
    progress.report("export", 3, 4, "run at every corner")
    _run_corners(path, recipe, sample, error)
    notes = came.notes(recipe, path, dest_dir, sample)
    progress.report("export", 4, 4)
    files = onnx_files.files(path)
    return ExportReport(
        path=path,
        data=files[1] if len(files) > 1 else None,
        opset=onnx_files.opset(graph),
        tool=export_tool(recipe),
        outputs=outputs,
        seconds=time.monotonic() - started,
        model=model,
        notes=notes,
    )


def _export(model: nn.Module | ExportedProgram, recipe: Recipe, sample: feeds.Arrays) -> ModelProto:
    from torch.export import ExportedProgram

    torch: Any = import_module("torch")  # its functions are typed in part
    arguments = tuple(
        torch.from_numpy(array) for array in feeds.sized(sample, recipe, _distinct(recipe)).values()
    )
    exported = isinstance(model, ExportedProgram)
    shapes = tuple(
        {axis: dim for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}
        for tensor in recipe.inputs
    )
    if not exported:
        _check_forward(model, recipe)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                () if exported else arguments,
                dynamo=True,
                opset_version=recipe.export.opset,
                dynamic_shapes=None if exported or not any(shapes) else shapes,
                verbose=False,
            )
    except Exception as error:
        raise _failure(error, model, recipe) from error
    assert program is not None
    graph = program.model_proto
    _name_values(graph, recipe)
    return graph


def _name_values(graph: ModelProto, recipe: Recipe) -> None:
    """Gives inputs and outputs the recipe's names. torch would take a name twice when an
    inner value has it already."""
    found = [value.name for value in graph.graph.input]
    if len(found) != len(recipe.inputs):
        raise ExportError(
            f"inputs: the graph has {len(found)} inputs, the recipe {len(recipe.inputs)}",
            why=f"the graph's are {', '.join(found) or 'none'}; one that is not used is dropped",
            fix="list exactly the inputs that the model uses",
        )
    names = dict(zip(found, (tensor.name for tensor in recipe.inputs), strict=True))
    outputs = [value.name for value in graph.graph.output]
    if recipe.outputs:
        if len(outputs) != len(recipe.outputs):
            raise ExportError(
                f"outputs: the graph has {len(outputs)} outputs, the recipe names "
                f"{len(recipe.outputs)}",
                why=f"the graph's are {', '.join(outputs)}",
                fix="name every tensor that the model gives, in order",
            )
        names |= dict(zip(outputs, recipe.outputs, strict=True))
    onnx_files.rename(graph.graph, names)


def _distinct(recipe: Recipe) -> dict[str, int]:
    """A size for each dim, within its range, that no other dim has where that can be: equal
    sizes could be taken for one dim, and a size of 1 for a constant."""
    sizes: dict[str, int] = {}
    for dim in recipe.dynamic_dims:
        bounds = recipe.profiles[0].dims[dim]
        wanted = [bounds.opt, *range(min(bounds.max, bounds.min + 64), bounds.min - 1, -1)]
        free = [size for size in wanted if size > 1 and size not in sizes.values()]
        sizes[dim] = free[0] if free else bounds.opt
    return sizes


def _check_forward(model: nn.Module, recipe: Recipe) -> None:
    try:
        inspect.signature(model.forward).bind(*recipe.inputs)
    except TypeError as error:
        raise ExportError(
            f"inputs: {type(model).__name__}.forward does not take these "
            f"{len(recipe.inputs)} inputs",
            why=str(error),
            fix="list one input for each argument of forward, in its order",
        ) from None


def _failure(error: Exception, model: Any, recipe: Recipe) -> ExportError:
    """torch's error, many pages long, as one that names the dim or the first cause."""
    text = str(error)
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
        text += f"\n{cause}"
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    fixed = re.search(r"(?:inputs|L)\['(\w+)'\]\.(?:shape|size\(\))\[(\d+)\]", text)
    dim = _dim_at(model, recipe, fixed[1], int(fixed[2])) if fixed else None
    if dim is not None and re.search("static|speciali|constant", text):
        return ExportError(
            f"inputs: dim {dim[1]!r} of {dim[0]!r} is not dynamic: the model fixes it",
            why=onnx_files.one_line(cause, 300),
            fix="take the fixed number out of the model's forward, or write it in the recipe "
            f"in place of `{dim[1]}`",
        )
    return ExportError(
        f"torch.onnx.export failed for {recipe.name}",
        why=onnx_files.one_line(f"{type(cause).__name__}: {cause}"),
        fix="the operator or the Python code named above cannot be exported",
    )


def _dim_at(model: Any, recipe: Recipe, argument: str, axis: int) -> tuple[str, str] | None:
    """The recipe's input and dim for an argument of forward, as torch names it."""
    arguments = list(inspect.signature(model.forward).parameters)
    if argument not in arguments or arguments.index(argument) >= len(recipe.inputs):
        return None
    tensor = recipe.inputs[arguments.index(argument)]
    dim = tensor.shape[axis] if axis < len(tensor.shape) else None
    return (tensor.name, dim) if isinstance(dim, str) else None


def _refuse_broken(
    graph: ModelProto, recipe: Recipe, error: type[ExportError] | type[SourceError]
) -> None:
    bad = onnx_files.broken_tensor(graph)
    if bad is not None:
        raise error(
            f"the weights of {recipe.name} are broken: {bad}",
            fix="take a checkpoint from before the training diverged, or a sound file",
        )


def _check_inputs(
    graph: ModelProto, recipe: Recipe, error: type[ExportError] | type[SourceError]
) -> None:
    found = onnx_files.input_signature(graph)
    wanted = {tensor.name: tensor for tensor in recipe.inputs}
    if found.keys() != wanted.keys():
        raise error(
            f"inputs: the graph has {', '.join(found) or 'none'}",
            why=f"the recipe has {', '.join(wanted)}"
            + ("" if found else "; an input that the model does not use is dropped"),
            fix="list exactly the inputs that the model uses",
        )
    for name, (dtype, shape) in found.items():
        tensor = wanted[name]
        if dtype != tensor.dtype:
            raise error(f"inputs: {name!r} is {dtype} in the graph, {tensor.dtype} in the recipe")
        if len(shape) != len(tensor.shape):
            raise error(
                f"inputs: {name!r} has {len(shape)} dims in the graph, "
                f"{len(tensor.shape)} in the recipe",
                why=f"the graph says {shape}",
            )
        for axis, (have, want) in enumerate(zip(shape, tensor.shape, strict=True)):
            if isinstance(have, int) and have != want:
                raise error(
                    f"inputs: dim {axis} of {name!r} is fixed to {have} in the graph, and is "
                    f"{want!r} in the recipe",
                    fix=f"write {have} in the recipe, or make the model's dim dynamic",
                )
    check_class_scores(recipe, [output.name for output in graph.graph.output], error)


def check_class_scores(
    recipe: Recipe, outputs: Sequence[str], error: type[ExportError] | type[SourceError]
) -> None:
    """Asked on every run: the graph may be in the store already, made with another recipe.

    Raises: `error` where the recipe names an output that is not there.
    """
    missing = set(recipe.verification.class_scores) - set(outputs)
    if missing:
        raise error(
            f"verification.class_scores: no output is called {', '.join(sorted(missing))}",
            why=f"outputs are {', '.join(outputs)}",
            fix="name the outputs with `outputs`",
        )


def _run_corners(
    path: Path,
    recipe: Recipe,
    sample: feeds.Arrays,
    error: type[ExportError] | type[SourceError],
) -> None:
    session = ort.session(path, error=error, what=f"the graph of {recipe.name}")
    for label, dims in feeds.corners(recipe):
        ort.run(
            session,
            feeds.sized(sample, recipe, dims),
            error=error,
            what=f"{label}: a dim is not as dynamic as the recipe says",
        )


@contextmanager
def _quiet() -> Generator[None]:
    """Keeps the exporter's notes off the console. Errors are raised all the same."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
