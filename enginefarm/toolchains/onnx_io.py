"""Inputs and outputs of an ONNX graph, for toolchains that do not tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from enginefarm.documents.builder import DTYPES, DType
from enginefarm.documents.manifest import TensorInfo
from enginefarm.errors import BuildError
from enginefarm.graph.model import onnx_files, onnx_shapes


def onnx_tensors(path: Path) -> tuple[TensorInfo, ...]:
    """-1 for a dim that is symbolic or not known.

    Raises: BuildError for a type that engines do not have.
    """
    model = onnx_files.graph_only(path)
    return (
        *(_tensor(value, "input") for value in onnx_shapes.real_inputs(model)),
        *(_tensor(value, "output") for value in model.graph.output),
    )


def require_graphs(found: tuple[TensorInfo, ...], onnx: Path) -> None:
    """`found`: inputs and outputs of a network or an engine that was made of the graph at `onnx`.

    Raises: BuildError where the graph has others, or of another type or shape: parsers take uint8
    for int8, and leave an output out that is listed twice.
    """
    declared = onnx_tensors(onnx)
    made, wanted = ({(t.role, t.name, t.dtype): t for t in all_} for all_ in (found, declared))
    if made.keys() != wanted.keys():
        others = [f"{role} {name!r} ({dtype})" for role, name, dtype in made.keys() ^ wanted.keys()]
        raise BuildError(
            "the engine's inputs and outputs would differ from the graph's",
            why=f"only one of the two has {', '.join(sorted(others))}",
            fix="change the model so that each of these has a unique name and a type that "
            "TensorRT keeps",
        )
    for key, tensor in made.items():
        if not _may_be(tensor.shape, wanted[key].shape):
            raise BuildError(
                f"the engine's shape of {tensor.name!r} would differ from the graph's",
                why=f"it would be {tensor.shape}, and is {wanted[key].shape} in the graph",
                fix="export the model again: its shapes contradict its operators",
            )


def _may_be(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether a tensor can have both shapes; -1: not known."""
    return len(one) == len(other) and all(
        a == b or -1 in (a, b) for a, b in zip(one, other, strict=True)
    )


def with_dims(tensors: tuple[TensorInfo, ...], path: Path) -> tuple[TensorInfo, ...]:
    """The same, with the names that the graph has for their dynamic dims."""
    if not any(-1 in tensor.shape for tensor in tensors):
        return tensors
    graph = onnx_files.graph_only(path).graph
    names = {value.name: _dims(value) for value in (*graph.input, *graph.output)}
    return tuple(
        tensor.model_copy(update={"dims": names[tensor.name]})
        if len(names.get(tensor.name, ())) == len(tensor.shape)
        else tensor
        for tensor in tensors
    )


def _dims(value: Any) -> tuple[str | None, ...]:
    return tuple(dim.dim_param or None for dim in value.type.tensor_type.shape.dim)


def _tensor(value: Any, role: Literal["input", "output"]) -> TensorInfo:
    from onnx import TensorProto

    kind = value.type.tensor_type
    onnx_name = TensorProto.DataType.Name(kind.elem_type)
    dtypes: list[DType] = [name for name, row in DTYPES.items() if row.onnx == onnx_name]
    if not dtypes:
        raise BuildError(
            f"tensor {value.name!r}: type {onnx_name.lower()} is not one that engines have"
        )
    shape = tuple(dim.dim_value or -1 for dim in kind.shape.dim)
    return TensorInfo(name=value.name, dtype=dtypes[0], shape=shape, role=role)
