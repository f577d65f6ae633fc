"""What every precision does with its graph at the end: write it, and count what it computes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from onnx import GraphProto, ModelProto, TensorProto
from pydantic import JsonValue

from enginefarm.errors import PrecisionError
from enginefarm.graph.model import onnx_files, onnx_shapes, operators, walk
from enginefarm.graph.model.emulate import LOWS
from enginefarm.graph.precisions import ConversionReport


def finish(
    model: ModelProto, dest_dir: Path, name: str, details: dict[str, JsonValue] | None = None
) -> ConversionReport:
    """Writes the graph in normal form, and checks it.

    Raises: PrecisionError when the graph is not valid.
    """
    path = onnx_files.write(model, dest_dir)
    onnx_files.check(path, error=PrecisionError, what=f"the {name} graph")
    return ConversionReport(path, details or {})


def wide_nodes(model: ModelProto) -> dict[str, JsonValue]:
    """For the manifest: how many nodes of which operators compute in FP32 (`wide_nodes`), the first
    node of each such operator (`wide_operators`), how many nodes compute in 16 bits
    (`low_nodes`), and how many Casts there are. Bodies of If, Loop and Scan count.

    To an engine, a product of dequantized tensors is not an FP32 product: it computes in 8 bits.
    Neither is a product of weights between two 16-bit Casts: TensorRT-RTX joins the three."""
    found: Counter[str] = Counter()
    first: dict[str, JsonValue] = {}
    ranks = {name: len(tensor.dims) for name, tensor in walk.constants(model.graph)}
    low_nodes = casts = 0
    for graph in walk.graphs(model.graph):
        types = onnx_shapes.known_types([graph])
        joined = _joined(graph, types, {tensor.name for tensor in graph.initializer})
        for node in graph.node:
            made = {types.get(name) for name in node.output}
            if node.op_type == "Cast":
                casts += 1
            elif TensorProto.FLOAT in made and not walk.bodies(node):
                found[node.op_type] += 1
                if node.name not in joined:
                    first.setdefault(operators.name_of(node, ranks), node.name)
            elif not made.isdisjoint(LOWS):
                low_nodes += 1
    return {
        "wide_nodes": dict(sorted(found.items())),
        "wide_operators": dict(sorted(first.items())),
        "low_nodes": low_nodes,
        "casts": casts,
    }


def _joined(graph: GraphProto, types: dict[str, int], weights: set[str]) -> set[str]:
    """Nodes that a builder joins with the DequantizeLinear or the Casts of 16 bits around them."""

    made_by = {name: node for node in graph.node for name in node.output}
    wide_reads = {value.name for value in graph.output}
    for node in walk.nodes(graph):
        if node.op_type != "Cast" or types.get(node.output[0]) not in LOWS:
            wide_reads.update(node.input)

    def of(name: str, kind: str) -> bool:
        node = made_by.get(name)
        return node is not None and node.op_type == kind

    def narrow(name: str) -> bool:
        return name in weights or (of(name, "Cast") and types.get(made_by[name].input[0]) in LOWS)

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
