"""Exports a model to ONNX with dynamic shapes, and checks it at every corner of its profiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from onnx import ModelProto, ValueInfoProto

from enginefarm import progress
from enginefarm.documents.recipe import Recipe
from enginefarm.errors import EnginefarmError, ExportError, SourceError
from enginefarm.graph.branches import decided_branches
from enginefarm.graph.exporting import file_notes, torch_export
from enginefarm.graph.exporting.use import check_class_scores
from enginefarm.graph.model import constants, emulate, onnx_files, onnx_shapes, walk
from enginefarm.graph.model.arrays import Arrays
from enginefarm.graph.reading import (
    fitting,
    quantized,
    refused,
    uint8_inputs,
    written_out,
)
from enginefarm.graph.samples import feeds
from enginefarm.graph.sources import Loaded, source

if TYPE_CHECKING:
    from enginefarm.graph.sources import LoadedModel


class Exported(NamedTuple):
    """The files of an export, and the loaded model, from which the reference is computed.

    sample: a batch of the recipe's data.
    notes: what was changed in a file when it was read, and which operators were decomposed because
    the exporter does not support them.
    """

    path: Path
    opset: int
    outputs: tuple[str, ...]
    model: LoadedModel
    sample: Arrays
    notes: tuple[str, ...] = ()


def load(recipe: Recipe, work_dir: Path) -> Loaded:
    """Loads the recipe's source, with notes on how it was read. An ONNX graph gets the recipe's
    dims and output names.

    Raises: SourceError.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    made = source(recipe.source.kind).load(recipe.source, recipe.root, work_dir, recipe.inputs)
    if not isinstance(made.model, Path):
        return made
    return made._replace(model=fitting.fit_file(made.model, recipe, work_dir))


def export_onnx(
    recipe: Recipe, dest_dir: Path, loaded: Callable[[LoadedModel], None] | None = None
) -> Exported:
    """Loads the recipe's source and writes `dest_dir/model.onnx` in normal form.

    onnx.checker checks the graph, its inputs are compared with the recipe's, and it is run at the
    min, opt and max of every profile.

    loaded: is called with the model, before it is exported.
    Raises: SourceError; ExportError; CalibrationError for the data of these runs.
    """
    dest_dir.mkdir(parents=True, exist_ok=True)
    progress.report("export", 0, 4, "load the model")
    model, loading = load(recipe, dest_dir)
    if loaded is not None:
        loaded(model)
    sample = feeds.sample(recipe)
    progress.report("export", 1, 4, "write ONNX")
    error = SourceError if isinstance(model, Path) else ExportError
    if isinstance(model, Path):
        graph, decomposed = onnx_files.read(model, error=error), ()
    else:
        graph, decomposed = torch_export.export(model, recipe, sample)
    _refuse_broken(graph, recipe, error)
    _check_inputs(graph, recipe, error)
    outputs = tuple(output.name for output in graph.graph.output)
    changed = uint8_inputs.convert_first(graph)
    path = model if isinstance(model, Path) else dest_dir / onnx_files.MODEL_NAME
    if changed or not isinstance(model, Path):
        onnx_files.write(graph, path.parent)
    # Written next to the model, not over it: the reference is computed from the original model.
    double = constants.to_float32(graph)
    defined = written_out.write_out(graph)
    if quantized.prepare(graph, error) or double or defined:
        path = onnx_files.write(graph, dest_dir / "fp32")
    graph = onnx_files.graph_only(path)  # ONNX Runtime is about to hold the weights too
    path, decided = decided_branches.decide(path, recipe, sample, dest_dir / "decided")
    if decided:
        graph = onnx_files.graph_only(path)
    progress.report("export", 2, 4, "check")
    _check(path, model, error)
    progress.report("export", 3, 4, "run at every corner")
    ranks = feeds.run_corners(path, recipe, sample, error)
    if isinstance(model, Path) and _wrong_ranks(graph, ranks):
        graph = onnx_files.read(path, error=error)
        for value in _wrong_ranks(graph, ranks):
            onnx_shapes.write_shape(value, [None] * ranks[value.name])
        onnx_files.write(graph, path.parent)
    # With its float64: what that is worth is for the verification to say.
    raised = model if double and isinstance(model, Path) else path
    notes = (*loading, *file_notes.notes(recipe, raised, dest_dir, sample), *decided)
    if double:
        notes = (*notes, "float64 inside the graph is computed in float32")
    for what, names in (
        ("decomposed into operators that can be exported", decomposed),
        ("written out as ONNX defines them", defined),
    ):
        if names:
            notes = (*notes, f"{what}: {', '.join(names)}")
    progress.report("export", 4, 4)
    return Exported(path, walk.opset(graph), outputs, model, sample, notes)


def _check(path: Path, model: LoadedModel, error: type[EnginefarmError]) -> None:
    """Raises: `error` when onnx.checker refuses the graph."""
    try:
        onnx_files.check(path, error=error, what="the exported graph")
    except error as refused:
        low = () if isinstance(model, Path) else emulate.narrow(onnx_files.graph_only(path))
        if not low:
            raise
        raise error(
            refused.what,
            why=f"{refused.why}; the model computes in {' and '.join(low)}",
            fix="return it in FP32 (model.float(), and no torch.autocast in forward): `precisions` "
            "says what engines compute in",
        ) from refused


def _refuse_broken(graph: ModelProto, recipe: Recipe, error: type[EnginefarmError]) -> None:
    bad = onnx_files.broken_tensor(graph)
    if bad is not None:
        raise error(
            f"the weights of {recipe.name} are broken: {bad}",
            fix="use a checkpoint from before the training diverged, or an undamaged file",
        )


def _check_inputs(graph: ModelProto, recipe: Recipe, error: type[EnginefarmError]) -> None:
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
    refused.sizes(graph, recipe, error)
    check_class_scores(recipe, [output.name for output in graph.graph.output], error)


def _wrong_ranks(graph: ModelProto, ranks: dict[str, int]) -> list[ValueInfoProto]:
    """Outputs with another number of dims in the file than in a run. They contradict what shape
    inference finds."""
    return [
        value
        for value in graph.graph.output
        if value.type.tensor_type.HasField("shape")
        and len(value.type.tensor_type.shape.dim) != ranks[value.name]
    ]
