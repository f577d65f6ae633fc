"""Writes the recipe's types, dims and names of outputs into an ONNX graph.

A file often knows its dims worse than the recipe does: -1, 0, no name, or one name for two
dims. Toolchains take shapes from the graph, so the recipe's go in.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto, helper

from enginefarm.documents.builder import DTYPES
from enginefarm.documents.recipe import Recipe, TensorSpec
from enginefarm.errors import EnginefarmError, SourceError
from enginefarm.graph.model import onnx_files, onnx_shapes, ort, walk
from enginefarm.graph.model.edit import FreeNames, copied, rename
from enginefarm.graph.reading import refused

SIZES_LEFT_OUT = "enginefarm.sizes_left_out"
"""Key in the model's metadata: the recipe's sizes are not in it, only its names of dims."""


def fit(model: ModelProto, recipe: Recipe, *, fixed: bool = True) -> None:
    """Types, names of outputs, dims: as the recipe says, in place.

    fixed: sizes too, not only names of dims. What contradicts the recipe is left for `export`
    to name.
    Raises: SourceError for operators and types that no toolchain has.
    """
    refused.operators(model, recipe)
    refused.types(model, recipe)
    separate_outputs(model, recipe)
    rename(model, names_of_outputs(model, recipe, SourceError))
    _write_dims(model, recipe, fixed)


def typed_inputs(model: ModelProto, what: str, asked: Sequence[TensorSpec] = ()) -> list[str]:
    """In place: the number of dims and the type of inputs that have none in the file, as the recipe
    says them. Their sizes are for `fit`.

    Returns: the names of these inputs.
    Raises: SourceError for an input that is not a tensor, or that neither of them describes.
    """
    wanted = {tensor.name: tensor for tensor in asked}
    completed: list[str] = []
    for value in onnx_shapes.real_inputs(model):
        kind = value.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            raise SourceError(
                f"{what}: input {value.name!r} is a {str(kind).removesuffix('_type')}",
                why="engines take tensors only",
                fix="export the model with one input for each tensor",
            )
        if not (lacking := _lacking(value)):
            continue
        if value.name not in wanted:
            raise SourceError(
                f"{what}: input {value.name!r} has no {lacking} in the file",
                why="the recipe does not list this input either",
                fix="list it in `inputs`, with its dtype and shape",
            )
        tensor, recipes = value.type.tensor_type, wanted[value.name]
        if not tensor.HasField("shape"):
            onnx_shapes.write_shape(value, [None] * len(recipes.shape))
        if not tensor.elem_type:
            tensor.elem_type = TensorProto.DataType.Value(DTYPES[recipes.dtype].onnx)
        completed.append(value.name)
    return completed


def known_outputs(model: ModelProto) -> None:
    """In place: writes unknown dims (-1, 0) as unknown, and infers the types and shapes that
    outputs lack.

    An output whose number of dims cannot be inferred gets none here, and its own once `export` has
    run the graph.
    """
    for graph in walk.graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in _shape(value):
                if dim.HasField("dim_value") and onnx_shapes.known_dim(dim) is None:
                    dim.Clear()
    lacking = [value for value in model.graph.output if _lacking(value)]
    inferred = {value.name: value for value in onnx_shapes.inferred(model)} if lacking else {}
    for value in lacking:
        if value.name in inferred:
            value.type.CopyFrom(inferred[value.name].type)
        if value.type.WhichOneof("value") in (None, "tensor_type"):
            value.type.tensor_type.shape.SetInParent()


def _lacking(value: Any) -> str:
    """The part of a value's type that is missing; empty for a value that is not a tensor, which is
    refused later."""
    if value.type.WhichOneof("value") not in (None, "tensor_type"):
        return ""
    if not value.type.tensor_type.HasField("shape"):
        return "shape, not even a number of dims,"
    return "" if value.type.tensor_type.elem_type else "type"


def separate_outputs(model: ModelProto, recipe: Recipe) -> None:
    """Makes an output that is an input itself, or is listed twice, a copy: an engine has one tensor
    of each name.

    Raises: SourceError if it is an input and the recipe names no outputs.
    """
    graph, free = model.graph, FreeNames(model)
    inputs, seen = {value.name for value in graph.input}, set[str]()
    for output in graph.output:
        if output.name in inputs and not recipe.outputs:
            raise SourceError(
                f"outputs: {output.name!r} is an input of the graph itself",
                why="an engine has one tensor of each name, an input or an output",
                fix="give this output another name in `outputs`, which lists all outputs in order",
            )
        if output.name in inputs | seen:
            name = free.make(output.name)
            graph.node.append(helper.make_node("Identity", [output.name], [name], f"{name}_copy"))
            output.name = name
        seen.add(output.name)


def names_of_outputs(
    model: ModelProto, recipe: Recipe, error: type[EnginefarmError]
) -> dict[str, str]:
    """Name of each output in the graph -> its name in the recipe.

    Raises: `error` where the recipe names another number of outputs.
    """
    found = [value.name for value in model.graph.output]
    wanted = recipe.outputs or found
    if len(found) != len(wanted):
        raise error(
            f"outputs: the graph has {len(found)} outputs, the recipe names {len(wanted)}",
            why=f"the graph's are {', '.join(found)}",
            fix="name every output of the graph, in its order, or leave `outputs` out",
        )
    return dict(zip(found, wanted, strict=True))


def _write_dims(model: ModelProto, recipe: Recipe, fixed: bool) -> None:
    """The recipe's dims into the inputs, and what follows from them into the outputs."""
    wanted = {tensor.name: tensor.shape for tensor in recipe.inputs}
    renamed: dict[str, int | str | None] = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = wanted.get(value.name, ())
        if len(dims) != len(shape):
            continue
        for dim, size in zip(dims, shape, strict=True):
            known = onnx_shapes.known_dim(dim)
            if isinstance(known, str):
                renamed[known] = size if renamed.get(known, size) == size else None
            if not isinstance(known, int):
                onnx_shapes.set_dim(dim, size if fixed or isinstance(size, str) else None)
    declared = [
        [onnx_shapes.known_dim(dim) for dim in _shape(value)] for value in model.graph.output
    ]
    for graph in walk.graphs(model.graph):
        # A weight is listed here too, and its shape is known: without it, onnx takes the axes of a
        # Slice to be left out, and infers wrong sizes.
        weights = {tensor.name for tensor in graph.initializer}
        for value in graph.value_info:
            if value.type.HasField("tensor_type") and value.name not in weights:
                value.type.tensor_type.ClearField("shape")
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx_shapes.inferred_outputs(model)
    for value, old in zip(model.graph.output, declared, strict=True):
        found = inferred.get(value.name)
        dims = old if found is None else found
        inferred_shape: list[int | str | None] = []
        for axis, size in enumerate(dims):
            was = old[axis] if len(old) == len(dims) else None
            was = renamed.get(was, was) if isinstance(was, str) else was
            inferred_shape.append(was if size is None else size)
        onnx_shapes.write_shape(value, inferred_shape)


def _shape(value: Any) -> Any:
    return value.type.tensor_type.shape.dim


def with_sizes(model: ModelProto, recipe: Recipe, folder: Path) -> Path:
    """The model in `folder`, with the recipe's sizes too where nothing in the graph contradicts
    them any more: an If that did may be gone.

    Raises: SourceError where they contradict each other even without sizes.
    """
    left_out = [item for item in model.metadata_props if item.key == SIZES_LEFT_OUT]
    if left_out:
        try:
            made: ModelProto = copied(model)
            for item in left_out:
                made.metadata_props.remove(item)
            return _with_dims(made, recipe, folder, fixed=True)
        except SourceError:
            pass
    return _with_dims(model, recipe, folder, fixed=not left_out)


def _with_dims(model: ModelProto, recipe: Recipe, folder: Path, *, fixed: bool) -> Path:
    _write_dims(model, recipe, fixed)
    path = onnx_files.write(model, folder)
    onnx_files.check(path, error=SourceError, what="the graph in these dims")
    ort.session(path, error=SourceError, what="the graph in these dims")
    return path


def fit_file(path: Path, recipe: Recipe, dest_dir: Path) -> Path:
    """`fit` of the model at `path`, written to `dest_dir/fitted/model.onnx` and checked.

    Where a size contradicts a branch of an If that is never taken, shape inference refuses the
    graph, and so does ONNX Runtime: sizes that the file does not know then stay unknown.
    """
    for fixed in (True, False):
        model = onnx_files.read(path, error=SourceError, field="source.path")
        fit(model, recipe, fixed=fixed)
        if not fixed:
            model.metadata_props.add(key=SIZES_LEFT_OUT, value="1")
        made = onnx_files.write(model, dest_dir / "fitted")
        del model
        try:
            onnx_files.check(made, error=SourceError, what="source.path: the graph in these dims")
            # A large graph is loaded once only, by the export: twice takes minutes.
            if len(onnx_files.files(made)) == 1:
                ort.session(made, error=SourceError, what="source.path")
        except SourceError:
            if not fixed:
                raise
        else:
            break
    return made
