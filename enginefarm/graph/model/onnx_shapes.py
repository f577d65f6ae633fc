"""Types and dims of the values of an ONNX graph, as far as they are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enginefarm.errors import PrecisionError, one_line
from enginefarm.graph.model import walk

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from onnx import GraphProto, ModelProto

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


def infer_types(model: ModelProto) -> None:
    """Writes the dtype and shape of every tensor into the graph, and into the bodies in it.

    Large weights are left out of the copy that is analyzed: protobuf's limit is 2 GiB.
    Raises: PrecisionError.
    """
    import onnx

    skeleton = without_weights(model)
    for graph in walk.graphs(skeleton.graph):
        # onnx infers the node around a body from the declared types of the body's outputs. Without
        # the entries here it would find none.
        untyped = (output for output in graph.output if output.type.WhichOneof("value") is None)
        forget(graph, {output.name for output in untyped})
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, strict_mode=False, data_prop=True)
        while _typed_by_schema(skeleton, inferred):
            inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except Exception as error:
        raise PrecisionError(
            "types and shapes of the graph cannot be inferred", why=one_line(error)
        ) from error
    pairs = zip(walk.graphs(model.graph), walk.graphs(inferred.graph), strict=True)
    for graph, known in pairs:
        del graph.value_info[:]
        graph.value_info.extend(known.value_info)


def _typed_by_schema(model: ModelProto, inferred: ModelProto) -> bool:
    """Writes into `model` the dtypes that `inferred` lacks and that are those of an input by the
    operator's schema: onnx 1.23 infers none for GroupNormalization. False where there are none."""
    from onnx import defs, helper

    opsets = {entry.domain: entry.version for entry in model.opset_import}
    types = known_types(walk.graphs(inferred.graph))
    found = False
    for graph in walk.graphs(model.graph):
        for node in graph.node:
            lacking = [name for name in node.output if name and name not in types]
            if not lacking or not defs.has(node.op_type, node.domain):
                continue
            schema = defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
            given = {
                formal.type_str: types[name]
                for formal, name in zip(schema.inputs, node.input, strict=False)
                if name in types
            }
            for formal, name in zip(schema.outputs, node.output, strict=False):
                if name in lacking and (dtype := given.get(formal.type_str, 0)) > 0:
                    graph.value_info.append(helper.make_tensor_value_info(name, dtype, None))
                    types[name], found = dtype, True
    return found


def known_types(graphs: Iterable[GraphProto]) -> dict[str, int]:
    """The TensorProto type of each value that has one; -1 for a value that is not a tensor."""
    types: dict[str, int] = {}
    for graph in graphs:
        types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
        for value in (*graph.value_info, *graph.input, *graph.output):
            if value.type.HasField("tensor_type"):
                types[value.name] = value.type.tensor_type.elem_type or types.get(value.name, 0)
            else:
                types[value.name] = -1  # a sequence or an optional
    return {name: dtype for name, dtype in types.items() if dtype}


def known_shapes(graphs: Iterable[GraphProto]) -> dict[str, list[int | str | None]]:
    """The dims of each value, as `known_dim` has them; none for a value of unknown rank."""
    shapes: dict[str, list[int | str | None]] = {}
    for graph in graphs:
        for value in (*graph.value_info, *graph.input):
            shapes[value.name] = [known_dim(dim) for dim in value.type.tensor_type.shape.dim]
        shapes.update((tensor.name, list(tensor.dims)) for tensor in graph.initializer)
    return shapes


def dtypes(graphs: Sequence[GraphProto]) -> dict[str, int]:
    """The dtype of each value, after `infer_types`; -1 for what is not a tensor.

    Raises: PrecisionError where it is not known.
    """
    types = known_types(graphs)
    for node in (node for graph in graphs for node in graph.node):
        for name in node.output:
            if name and name not in types:
                raise PrecisionError(
                    f"the dtype of {name!r} cannot be inferred ({node.op_type} {node.name!r})",
                    fix="remove the operator, or use fp32",
                )
    return types


def forget(graph: GraphProto, names: Container[str]) -> None:
    """Drops what value_info says about these values."""
    for index in reversed(range(len(graph.value_info))):
        if graph.value_info[index].name in names:
            del graph.value_info[index]
