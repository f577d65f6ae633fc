"""A model -> ONNX, with dynamic shapes, checked at every corner of its profiles."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from enginefarm import progress
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import ToolUse
from enginefarm.errors import ExportError, SourceError, ToolchainError
from enginefarm.graph import (
    feeds,
    file_notes,
    fitting,
    known_branches,
    nested_branches,
    onnx_files,
    onnx_shapes,
    ort,
    raising,
    shape_inputs,
    torch_export,
    unsigned,
)
from enginefarm.graph.sources import source

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

    from enginefarm.graph.sources import LoadedModel


@dataclass(frozen=True)
class ExportReport:
    """What an export left in its folder.

    model is what was loaded, still in memory: the reference is computed from it. notes say
    what was changed in a file as it was read, and which operators were decomposed because the
    exporter refuses them whole.
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
    model = source(recipe.source.kind).load(recipe.source, recipe.root, work_dir, recipe.inputs)
    return fitting.fit_file(model, recipe, work_dir) if isinstance(model, Path) else model


def export_tool(recipe: Recipe) -> ToolUse:
    """The exporter, its version and arguments. Imports neither torch nor onnx."""
    if recipe.source.LOADS == "file":
        return ToolUse(
            name="onnx",
            version=version("onnx"),
            arguments={
                "opset": raising.OPSET,
                "outputs": list(recipe.outputs),
                "normal_form": 1,
                "reading": 6,
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
            "normal_form": 6,
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
        graph, written_out = onnx_files.read(model, error=error), ()
    else:
        graph, written_out = torch_export.export(model, recipe, sample)
    _refuse_broken(graph, recipe, error)
    _check_inputs(graph, recipe, error)
    outputs = tuple(output.name for output in graph.graph.output)
    changed = unsigned.convert_first(graph)
    path = model if isinstance(model, Path) else dest_dir / onnx_files.MODEL_NAME
    if changed or not isinstance(model, Path):
        onnx_files.write(graph, path.parent)
    # Not over the model itself: the reference is computed with its float64 and with its Ifs.
    double = fitting.in_fp32(graph)
    if double:
        path = onnx_files.write(graph, dest_dir / "fp32")
    graph = onnx_files.graph_only(path)  # ONNX Runtime is about to hold the weights too
    path, decided = _decide_branches(path, recipe, sample, dest_dir / "decided")
    if decided:
        graph = onnx_files.graph_only(path)
    progress.report("export", 2, 4, "check")
    onnx_files.check(path, error=error, what="the exported graph")
    progress.report("export", 3, 4, "run at every corner")
    ranks = _run_corners(path, recipe, sample, error)
    if isinstance(model, Path) and _wrong_ranks(graph, ranks):
        graph = onnx_files.read(path, error=error)
        for value in _wrong_ranks(graph, ranks):
            onnx_shapes.write_shape(value, [None] * ranks[value.name])
        onnx_files.write(graph, path.parent)
    # With its float64: what that is worth is for the verification to say.
    raised = model if double and isinstance(model, Path) else path
    notes = (*file_notes.notes(recipe, raised, dest_dir, sample), *decided)
    if double:
        notes = (*notes, "float64 inside the graph is computed in float32")
    if written_out:
        notes = (*notes, f"written out in operators that can be exported: {', '.join(written_out)}")
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


def _decide_branches(
    path: Path, recipe: Recipe, sample: feeds.Arrays, folder: Path
) -> tuple[Path, tuple[str, ...]]:
    """The graph with one branch in place of each If that the recipe's sizes decide, and no If
    inside another one; and what was done, for people. The graph at `path` where there is nothing
    to do, or where the sizes contradict a branch that is left."""
    graph = onnx_files.graph_only(path)
    if not any(node.op_type == "If" for one in onnx_files.graphs(graph.graph) for node in one.node):
        return path, ()
    graph = onnx_files.read(path, error=ExportError)
    lines = known_branches.leave_out(graph, recipe, sample)
    folded = known_branches.fold(graph, recipe)
    if folded:
        lines.insert(0, f"{_ifs(folded)} decided by the recipe's sizes{_names(folded)}")
    if lines:
        try:
            path = fitting.with_sizes(graph, recipe, folder)
        except SourceError:
            return path, ()
    return _take_out(path, recipe, sample, folder.with_name("taken_out"), tuple(lines))


def _take_out(
    path: Path, recipe: Recipe, sample: feeds.Arrays, folder: Path, lines: tuple[str, ...]
) -> tuple[Path, tuple[str, ...]]:
    graph = onnx_files.read(path, error=ExportError)
    moved = nested_branches.take_out(graph)
    if not moved:
        return path, lines
    try:
        made = fitting.with_sizes(graph, recipe, folder)
        _run_corners(made, recipe, sample, ExportError)
    except (SourceError, ExportError):
        return path, lines  # what is computed in vain there cannot be computed at every size
    return made, (*lines, f"{_ifs(moved)} computed before the outer If{_names(moved)}")


def _ifs(names: list[str]) -> str:
    return f"{len(names)} If nodes are" if len(names) > 1 else "one If node is"


def _names(names: list[str]) -> str:
    return f": {', '.join(map(repr, names[:3]))}" + (", …" if len(names) > 3 else "")


def _refuse_broken(
    graph: ModelProto, recipe: Recipe, error: type[ExportError] | type[SourceError]
) -> None:
    bad = onnx_files.broken_tensor(graph)
    if bad is not None:
        raise error(
            f"the weights of {recipe.name} are broken: {bad}",
            fix="use a checkpoint from before the training diverged, or an undamaged file",
        )


def _check_inputs(
    graph: ModelProto, recipe: Recipe, error: type[ExportError] | type[SourceError]
) -> None:
    found = onnx_shapes.input_signature(graph)
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
    _refuse_shape_inputs(graph, recipe, error)
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


def _refuse_shape_inputs(
    graph: ModelProto, recipe: Recipe, error: type[ExportError] | type[SourceError]
) -> None:
    small = [t.name for t in recipe.inputs if len(t.shape) < 2 and "float" not in t.dtype]
    found = shape_inputs.find(graph.graph, small)
    if found is not None:
        raise error(
            f"inputs: the values of {found.input!r} decide a shape in the model",
            why=f"{found.operator} {found.node!r} takes them as sizes; an engine would need a "
            "range of these values, and profiles hold ranges of dims only",
            fix=f"make {found.input!r} a constant of the model, or give an input whose dim has "
            "that size",
        )


def _run_corners(
    path: Path,
    recipe: Recipe,
    sample: feeds.Arrays,
    error: type[ExportError] | type[SourceError],
) -> dict[str, int]:
    """Each output -> its number of dims."""
    session = ort.session(path, error=error, what=f"the graph of {recipe.name}")
    likely = "a dim is not as dynamic as the recipe says"
    if recipe.verification_data.random:
        likely += ", or the model does not take random numbers (give data of yours)"
    ranks: dict[str, int] = {}
    for label, dims in feeds.corners(recipe):
        found = ort.run(
            session,
            feeds.sized(sample, recipe, dims),
            error=error,
            what=label,
            likely=likely,
        )
        ranks = {name: array.ndim for name, array in found.items()}
    return ranks


def _wrong_ranks(graph: ModelProto, ranks: dict[str, int]) -> list[ValueInfoProto]:
    """Outputs whose shape in the file has another number of dims than what they are: whoever
    infers it from the operators finds a contradiction."""
    return [
        value
        for value in graph.graph.output
        if value.type.tensor_type.HasField("shape")
        and len(value.type.tensor_type.shape.dim) != ranks[value.name]
    ]
