"""Emulates 16-bit arithmetic: computes in FP32 and rounds every result.

ONNX Runtime's CPU provider runs most FP16 operators in FP32 and drops the Casts that it put
around them, so that a graph that overflows FP16 looks right there. Here every FP16 or BF16 value
becomes an FP32 value that went through a pair of Casts. ONNX Runtime removes only the pairs that it
inserted itself, which it recognizes by name; tests/unit/graph/model/test_emulate.py compares the
results with numpy's float16 for every level of optimization. docs/decisions/0100.

Tensor cores multiply 16-bit numbers exactly and add in FP32, so that an engine differs from this
only in the order of its additions. Values inside one operator (the steps of an LSTM, the scores of
an Attention) are not rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx.inliner
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from enginefarm.errors import PrecisionError
from enginefarm.graph.model import edit, onnx_shapes, walk
from enginefarm.graph.model.edit import FreeNames, rename, replace_nodes
from enginefarm.graph.model.operators import MOVES

EXACT = MOVES | frozenset(
    (
        *("Abs", "Clip", "Compress", "Concat", "GatherElements", "GatherND", "If", "Loop", "Max"),
        *("MaxPool", "Min", "Neg", "Pad", "Relu", "ReverseSequence", "Scan", "ScatterElements"),
        *("ScatterND", "Sign", "TopK", "Trilu", "Where"),
    )
)
"""Operators that return numbers from their inputs, which rounding would not change. The bodies of
If, Loop and Scan round their own results."""
LOWS: frozenset[int] = frozenset((TensorProto.FLOAT16, TensorProto.BFLOAT16))
"""The TensorProto types of FP16 and BF16."""
PRODUCTS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
"""Operators that engines fuse with the DequantizeLinear nodes before them: the numbers in
between are never stored in 16 bits."""


def emulate(model: ModelProto, *, rounded: bool = True, outputs_rounded: bool = True) -> ModelProto:
    """The graph with FP32 in place of FP16 and BF16, and with every such result rounded.

    FP16 inputs keep their dtype; BF16 inputs, which numpy lacks, become FP32 and are rounded first;
    outputs are FP32. rounded=False rounds only the outputs, and outputs_rounded=False not even
    those. The model is changed in place, unless it has local functions, which are inlined into a
    new model.

    Raises: PrecisionError if a dtype in the graph cannot be inferred.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    results = {output.name for output in model.graph.output} if outputs_rounded else set[str]()
    rewrite = _Emulation(rounded, results, FreeNames(model))
    rewrite.inputs(model)
    onnx_shapes.infer_types(model)
    rewrite.graph(model.graph, {}, main=True)
    for tensor in walk.tensors(model):
        widen(tensor)
    return model


def narrow(model: ModelProto) -> tuple[str, ...]:
    """The names of the 16-bit floats that the graph computes with, such as ("FLOAT16",)."""
    found = {tensor.data_type for tensor in walk.tensors(model)}
    for graph in walk.graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            found.add(value.type.tensor_type.elem_type)
        for node in graph.node:
            found.update(a.i for a in node.attribute if a.name in edit.TYPE_ATTRIBUTES)
    return tuple(sorted(TensorProto.DataType.Name(low) for low in found & LOWS))


class _Emulation:
    """One rewrite. Its new names are unique in the whole model."""

    def __init__(self, rounded: bool, results: set[str], free: FreeNames) -> None:
        self.rounded = rounded
        self.results = results
        self.free = free

    def inputs(self, model: ModelProto) -> None:
        """Adds a Cast after each 16-bit input, which `graph` then treats as any other node."""
        graph = model.graph
        found = [value for value in graph.input if _dtype(value) in LOWS]
        renames = {value.name: self.free.make(f"{value.name}__given") for value in found}
        rename(model, renames)
        casts: list[NodeProto] = []
        for (name, inner), value in zip(renames.items(), found, strict=True):
            value.name = name
            casts.append(
                helper.make_node("Cast", [name], [inner], f"read_{name}", to=_dtype(value))
            )
            if _dtype(value) == TensorProto.BFLOAT16:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        replace_nodes(graph, [*casts, *graph.node])

    def graph(self, graph: GraphProto, outer: dict[str, int], *, main: bool = False) -> None:
        """Rewrites the graph and its bodies in place. outer: dtypes of the values around it."""
        types, fused = outer | onnx_shapes.known_types([graph]), _fused(graph)
        border = graph.output if main else (*graph.input, *graph.output)
        edit.retype(graph, border, LOWS, TensorProto.FLOAT)
        nodes: list[NodeProto] = []
        for node in graph.node:
            for body in walk.bodies(node):
                self.graph(body, types)
            nodes.append(node)
            if self.rounded and (_exact(node) or fused.issuperset(node.output)):
                continue
            for index, name in enumerate(node.output):
                if not self.rounded and not (main and name in self.results):
                    continue
                if name and name not in types:
                    raise PrecisionError(
                        f"the dtype of {name!r} cannot be inferred ({node.op_type})",
                        fix="remove the operator, or use fp32",
                    )
                if types.get(name) in LOWS:
                    node.output[index] = self.free.make(f"{name}__exact")
                    nodes += self.round(node.output[index], name, types[name])
        replace_nodes(graph, nodes)
        del graph.value_info[:]

    def round(self, source: str, result: str, low: int) -> Iterator[NodeProto]:
        """Two Casts: to nearest even, to infinity above the range; subnormals stay."""
        middle = self.free.make(f"{result}__low")
        yield helper.make_node("Cast", [source], [middle], f"round_{result}", to=low)
        yield helper.make_node("Cast", [middle], [result], f"widen_{result}", to=TensorProto.FLOAT)


def _exact(node: NodeProto) -> bool:
    return node.op_type in EXACT and walk.value(node, "reduction", b"none") in (b"", b"none")


def _fused(graph: GraphProto) -> set[str]:
    """Results of DequantizeLinear that only products read."""
    made = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    others = {output.name for output in graph.output}
    for inner in walk.graphs(graph):
        for node in inner.node:
            if inner is not graph or node.op_type not in PRODUCTS:
                others.update(node.input)
    return made - others


def _dtype(value: Any) -> int:
    return value.type.tensor_type.elem_type


def widen(tensor: TensorProto) -> None:
    """In place: 16-bit numbers as the FP32 numbers that they are."""
    if tensor.data_type in LOWS:
        values = numpy_helper.to_array(tensor).astype("float32")
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
