"""Inputs and outputs of an ONNX graph, for toolchains that do not tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from enginefarm.documents.builder import DTYPES, DType
from enginefarm.documents.manifest import TensorInfo
from enginefarm.errors import BuildError


def onnx_tensors(path: Path) -> tuple[TensorInfo, ...]:
    """-1 for a dim that is symbolic or not known.

    Raises: BuildError for a type that engines do not have.
    """
    graph = _graph(path)
    weights = {weight.name for weight in graph.initializer}
    return (
        *(_tensor(value, "input") for value in graph.input if value.name not in weights),
        *(_tensor(value, "output") for value in graph.output),
    )


def with_dims(tensors: tuple[TensorInfo, ...], path: Path) -> tuple[TensorInfo, ...]:
    """The same, with the names that the graph has for their dynamic dims."""
    if not any(-1 in tensor.shape for tensor in tensors):
        return tensors
    graph = _graph(path)
    names = {value.name: _dims(value) for value in (*graph.input, *graph.output)}
    return tuple(
        tensor.model_copy(update={"dims": names[tensor.name]})
        if len(names.get(tensor.name, ())) == len(tensor.shape)
        else tensor
        for tensor in tensors
    )


def _graph(path: Path) -> Any:
    import onnx

    model: Any = onnx.load(str(path), load_external_data=False)  # pyright: ignore[reportUnknownMemberType]
    return model.graph


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
