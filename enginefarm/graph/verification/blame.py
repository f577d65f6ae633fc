"""Finds the node that produces the first NaN or infinity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper

from enginefarm.errors import PrecisionError
from enginefarm.graph.model import onnx_files, ort
from enginefarm.graph.model.arrays import Arrays
from enginefarm.graph.model.emulate import emulate
from enginefarm.graph.model.onnx_shapes import infer_types


def first_node(path: Path, inputs: Arrays) -> str:
    """The first node that leaves the range of its 16-bit floats where the same graph in FP32 does
    not, in words; empty when no node of the main graph does.

    Runs the graph twice, with a sum of x·0 after each value: 0 for numbers, NaN otherwise.
    Raises: PrecisionError.
    """
    narrow, names = _flags(path, inputs, rounded=True)
    wide, _ = _flags(path, inputs, rounded=False)
    for tensor, node in names.items():
        if narrow[tensor] and not wide.get(tensor, False):
            return f"first at {node}"
    return ""


def _flags(path: Path, inputs: Arrays, *, rounded: bool) -> tuple[dict[str, bool], dict[str, str]]:
    """Value -> whether it has NaN or infinity, and value -> its node, in the graph's order."""
    model = onnx_files.read(path, error=PrecisionError)
    infer_types(model)
    floats = {
        value.name
        for value in (*model.graph.value_info, *model.graph.output)
        if value.type.tensor_type.elem_type
        in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    }
    makers = _makers(model, floats)
    model = emulate(model, rounded=rounded, outputs_rounded=rounded)
    graph = model.graph
    wanted = {output.name for output in graph.output}
    graph.initializer.append(helper.make_tensor("__zero", TensorProto.FLOAT, [], [0.0]))
    flags: dict[str, str] = {}
    for index, name in enumerate(makers):
        product, flags[name] = f"__times_zero_{index}", f"__flag_{index}"
        graph.node.append(helper.make_node("Mul", [name, "__zero"], [product]))
        graph.node.append(helper.make_node("ReduceSum", [product], [flags[name]], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(flags[name], TensorProto.FLOAT, []))
    session = ort.session_of(model, error=PrecisionError, what="the graph with flags")
    found = ort.run(session, inputs, error=PrecisionError, what="looking for the first infinity")
    assert wanted <= set(found)
    return {name: bool(np.isnan(found[flag])) for name, flag in flags.items()}, makers


def _makers(model: ModelProto, floats: set[str]) -> dict[str, str]:
    """Value -> the user's node that computes it. For a Cast that the precision added, this is the
    node that the Cast reads."""
    made: dict[str, str] = {}
    for node in model.graph.node:
        source = f"node {node.name!r} ({node.op_type})" if node.name else f"a {node.op_type} node"
        if node.op_type == "Cast":
            source = made.get(node.input[0], f"the cast of {node.input[0]!r}")
        made.update((name, source) for name in node.output if name in floats)
    return made
