"""What every precision does to a graph before and after its own work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from enginefarm.errors import PrecisionError, one_line
from enginefarm.graph import onnx_files, onnx_shapes, operators
from enginefarm.graph.functions import bodies
from enginefarm.graph.precisions import ConversionReport

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto


def at_opset(model: ModelProto, opset: int, name: str) -> ModelProto:
    """The model at that opset at least: older ones lack what the precision writes.

    What is said of an output a second time, in value_info, is dropped: OnnxSlim's own inference
    has another rank there for some operators, and the converter would believe it.
    Raises: PrecisionError when onnx.version_converter cannot do it.
    """
    from onnx import version_converter

    if onnx_files.opset(model) >= opset:
        return model
    _forget(model.graph, {output.name for output in model.graph.output})
    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:
        raise PrecisionError(
            f"{name} needs opset {opset}, and the graph, of opset {onnx_files.opset(model)}, "
            "cannot be converted to it",
            why=one_line(error),
            fix=f"export the model at opset {opset}",
        ) from error


def infer_types(model: ModelProto) -> None:
    """Writes the dtype and shape of every tensor into the graph, and into the bodies in it.

    Large weights are left out of the copy that is analyzed: protobuf's limit is 2 GiB.
    Raises: PrecisionError.
    """
    import onnx

    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(onnx_shapes.without_weights(model))
    for graph in onnx_files.graphs(skeleton.graph):
        # onnx's inference of the node around a body then takes an output's own word, and has none.
        untyped = (output for output in graph.output if output.type.WhichOneof("value") is None)
        _forget(graph, {output.name for output in untyped})
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, strict_mode=False, data_prop=True)
        while _typed_by_schema(skeleton, inferred):
            inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except Exception as error:
        raise PrecisionError(
            "types and shapes of the graph cannot be inferred", why=one_line(error)
        ) from error
    pairs = zip(onnx_files.graphs(model.graph), onnx_files.graphs(inferred.graph), strict=True)
    for graph, known in pairs:
        del graph.value_info[:]
        graph.value_info.extend(known.value_info)


def _typed_by_schema(model: ModelProto, inferred: ModelProto) -> bool:
    """Writes into `model` the dtypes that `inferred` lacks and that are those of an input by the
    operator's schema: onnx 1.23 infers none for GroupNormalization. False where there are none."""
    from onnx import defs, helper

    opsets = {entry.domain: entry.version for entry in model.opset_import}
    types = known_types(onnx_files.graphs(inferred.graph))
    found = False
    for graph in onnx_files.graphs(model.graph):
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


def dtypes(graphs: Sequence[GraphProto]) -> dict[str, int]:
    """The dtype of each value, after `infer_types`; -1 for what is not a tensor.

    Raises: PrecisionError where it is not known.
    """
    types = known_types(graphs)
    for graph in graphs:
        for node in graph.node:
            for name in node.output:
                if name and name not in types:
                    raise PrecisionError(
                        f"the dtype of {name!r} cannot be inferred ({node.op_type} {node.name!r})",
                        fix="remove the operator, or use fp32",
                    )
    return types


def _forget(graph: GraphProto, names: Container[str]) -> None:
    """Drops what value_info says of these values."""
    for index in reversed(range(len(graph.value_info))):
        if graph.value_info[index].name in names:
            del graph.value_info[index]


def keep_initializers(graph: GraphProto, names: Container[str]) -> None:
    """Drops every other initializer, in place: copying would need the weights' memory twice."""
    initializers = graph.initializer
    for index in reversed(range(len(initializers))):
        if initializers[index].name not in names:
            del initializers[index]


def drop_unused(model: ModelProto) -> None:
    """Drops weights that nothing reads any more, and Casts, which may feed one another."""
    read, dropped = set(_reads(model)), True
    while dropped:
        dropped = False
        for graph in onnx_files.graphs(model.graph):
            for index in reversed(range(len(graph.node))):
                node = graph.node[index]
                if node.op_type == "Cast" and read.isdisjoint(node.output):
                    del graph.node[index]
                    dropped = True
        read = set(_reads(model))
    for graph in onnx_files.graphs(model.graph):
        keep_initializers(graph, read)


def _reads(model: ModelProto) -> Iterator[str]:
    for graph in onnx_files.graphs(model.graph):
        for node in graph.node:
            yield from node.input
        yield from (output.name for output in graph.output)


def finish(
    model: ModelProto, dest_dir: Path, name: str, details: dict[str, JsonValue] | None = None
) -> ConversionReport:
    """Writes the graph in normal form, and checks it.

    Raises: PrecisionError when the graph is not valid.
    """
    path = onnx_files.write(model, dest_dir)
    onnx_files.check(path, error=PrecisionError, what=f"the {name} graph")
    files = onnx_files.files(path)
    return ConversionReport(
        path=path, data=files[1] if len(files) > 1 else None, details=details or {}
    )


def wide_nodes(model: ModelProto) -> dict[str, JsonValue]:
    """For the manifest: how many nodes of which operators compute in FP32 (`wide_nodes`), the first
    node of each such operator (`wide_operators`), how many nodes compute in 16 bits
    (`low_nodes`), and how many Casts there are. Bodies of If, Loop and Scan count.

    To an engine, a product of dequantized tensors is not an FP32 product: it computes in 8 bits.
    Neither is a product of weights between two 16-bit Casts: TensorRT-RTX joins the three."""
    from onnx import TensorProto

    lows = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    found: Counter[str] = Counter()
    first: dict[str, JsonValue] = {}
    ranks = {tensor.name: len(tensor.dims) for tensor in onnx_files.tensors(model)}
    low_nodes = casts = 0
    for graph in onnx_files.graphs(model.graph):
        types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
        for value in (*graph.input, *graph.output):
            types[value.name] = value.type.tensor_type.elem_type
        joined = _joined(graph, types, {tensor.name for tensor in graph.initializer})
        for node in graph.node:
            made = {types.get(name) for name in node.output}
            if node.op_type == "Cast":
                casts += 1
            elif TensorProto.FLOAT in made and not bodies(node):
                found[node.op_type] += 1
                if node.name not in joined:
                    first.setdefault(operators.name_of(node, ranks), node.name)
            elif not made.isdisjoint(lows):
                low_nodes += 1
    return {
        "wide_nodes": dict(sorted(found.items())),
        "wide_operators": dict(sorted(first.items())),
        "low_nodes": low_nodes,
        "casts": casts,
    }


def _joined(graph: GraphProto, types: dict[str, int], weights: set[str]) -> set[str]:
    """Nodes that a builder joins with the DequantizeLinear or the Casts of 16 bits around them."""
    from onnx import TensorProto

    lows = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    made_by = {name: node for node in graph.node for name in node.output}
    wide_reads = {value.name for value in graph.output}
    for inner in onnx_files.graphs(graph):
        for node in inner.node:
            if node.op_type != "Cast" or types.get(node.output[0]) not in lows:
                wide_reads.update(node.input)

    def of(name: str, kind: str) -> bool:
        node = made_by.get(name)
        return node is not None and node.op_type == kind

    def narrow(name: str) -> bool:
        return name in weights or (of(name, "Cast") and types.get(made_by[name].input[0]) in lows)

    return {
        node.name
        for node in graph.node
        if any(of(name, "DequantizeLinear") for name in node.input)
        or (
            wide_reads.isdisjoint(node.output)
            and not weights.isdisjoint(node.input)
            and all(narrow(name) for name in node.input if name)
        )
    }
