"""Types and dims of the values of an ONNX graph, as far as they are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import ModelProto

LARGE_BYTES = 1 << 16
"""Weights above this are not needed to know shapes."""


def input_signature(model: ModelProto) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Inputs without initializer: name -> (dtype, shape), a dim an int, a name or None."""
    return {value.name: _signature(value) for value in real_inputs(model)}


def real_inputs(model: ModelProto) -> list[Any]:
    """The graph's inputs that are not weights: old files list both."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _signature(value: Any) -> tuple[str, tuple[Any, ...]]:
    kind = value.type.tensor_type
    return dtype_of(kind.elem_type), tuple(known_dim(dim) for dim in kind.shape.dim)


def dtype_of(elem_type: int) -> str:
    """The recipe's word for a TensorProto type; ONNX's own for what recipes do not have."""
    from onnx import TensorProto

    name = TensorProto.DataType.Name(elem_type).lower()  # pyright: ignore[reportArgumentType]
    return {"float": "float32", "double": "float64"}.get(name, name)


def inferred_outputs(model: ModelProto) -> dict[str, list[int | str | None] | None]:
    """Dims of every output as ONNX's shape inference has them; None where it knows no rank."""
    return {
        value.name: [known_dim(dim) for dim in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.HasField("shape")
        else None
        for value in inferred(model)
    }


def inferred(model: ModelProto) -> list[Any]:
    """The outputs, with what ONNX's shape inference adds; none where it fails.

    Large weights are left out of the copy that is analyzed: protobuf's limit is 2 GiB.
    """
    import onnx

    try:
        found = onnx.shape_inference.infer_shapes(without_weights(model), data_prop=True)
    except Exception:  # it crashes on what it does not know; the shapes stay unknown
        return []
    return list(found.graph.output)


def without_weights(model: ModelProto) -> ModelProto:
    """A copy for analysis: the bytes of large initializers are not in it."""
    import onnx

    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) < LARGE_BYTES:
            light.graph.initializer.append(tensor)
            continue
        copy = light.graph.initializer.add()
        copy.name, copy.data_type = tensor.name, tensor.data_type
        copy.dims.extend(tensor.dims)
        copy.data_location = onnx.TensorProto.EXTERNAL
        copy.external_data.add(key="location", value="not-needed")
    return light


def write_shape(value: Any, dims: Sequence[int | str | None]) -> None:
    """The dims of a value, those that are None unknown."""
    shape = value.type.tensor_type.shape
    shape.Clear()
    for size in dims:
        set_dim(shape.dim.add(), size)
    shape.SetInParent()


def set_dim(dim: Any, size: int | str | None) -> None:
    dim.Clear()
    if isinstance(size, int):
        dim.dim_value = size
    elif size is not None:
        dim.dim_param = size


def known_dim(dim: Any) -> int | str | None:
    """The size of a dim, or its name; None for what exporters write where they know neither:
    nothing, -1, 0 and `?`."""
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value > 0 else None
    return dim.dim_param.strip("?") or None
