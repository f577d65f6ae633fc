"""Values that leave the range of FP16 when the FP32 graph runs on the reference's inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto, helper

from enginefarm.errors import PrecisionError
from enginefarm.graph.model import ahead, constants, onnx_files, onnx_shapes, ort, walk
from enginefarm.graph.model.arrays import Arrays
from enginefarm.graph.model.edit import FreeNames
from enginefarm.graph.precisions import masks, prepare
from enginefarm.graph.precisions.use import SAME_FROM
from enginefarm.graph.verification.reference import read_reference

PROBES = ("line", "flat", "abs", "max")
MARGIN = 2.0
"""What a node reads may go this much further on other data than on the reference's."""


def of_file(graph: Path, reference: Path) -> dict[str, float] | None:
    """`observe` of a slimmed graph, as every precision with ranges prepares it, on the inputs of a
    reference; None where they prepare it in more than one way.

    Raises: PrecisionError.
    """
    if walk.opset(onnx_files.graph_only(graph)) < SAME_FROM:
        return None
    model = prepare.fp32(graph, "fp16")
    onnx_shapes.infer_types(model)
    return observe(model, (batch.inputs for batch in read_reference(reference)))


def find(model: ModelProto, largest: Mapping[str, float]) -> dict[str, str]:
    """Name of each node of the main graph that reads or makes a value which FP16 does not hold,
    and of those in its bodies, where the value comes from -> the reason. Masks do not count: the
    cast bounds them.

    model: FP32, of `prepare.fp32`, with the dtypes of its values. It is not changed.
    largest: of `observe`.
    """
    ignored = masks.find(model)
    exponentials = {node.output[0] for node in model.graph.node if node.op_type == "Exp"}
    odd: dict[str, str] = {}
    for name, value in largest.items():
        if name in ignored.values:
            continue
        if value > constants.MAX_FP16 / MARGIN:
            odd[name] = f"{name} reaches {value:.3g}; FP16 ends at 65504"
        elif name in exponentials and value**MARGIN > constants.MAX_FP16:
            odd[name] = (
                f"{name} reaches {value:.3g}; FP16 ends at 65504, which Exp reaches where it reads "
                f"a number {MARGIN:g} times as large"
            )
        elif 0 < value < constants.MIN_NORMAL_FP16:
            odd[name] = f"{name} is at most {value:.3g}; FP16 has few bits below 6.1e-5"
    found: dict[str, str] = {}
    for node in model.graph.node:
        for name in (*node.output, *node.input):
            if name not in odd:
                continue
            for meant in walk.nested([node]):
                found.setdefault(meant.name, odd[name])
    return found


def observe(model: ModelProto, batches: Iterable[Arrays]) -> dict[str, float]:
    """The largest |x| of each float value of the main graph, over the batches; values that are
    not finite, or have no elements, are left out.

    It is computed inside the graph, so that no value is kept.
    Raises: PrecisionError when the graph cannot be run.
    """
    probed = onnx_shapes.without_weights(model)  # ONNX Runtime is about to hold them too
    graph, free = probed.graph, FreeNames(probed)
    floats = [
        value.name
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    ]
    probes: dict[str, str] = {}
    del graph.output[:]
    shape, zero = free.make("one_axis"), free.make("one_zero")
    graph.initializer.append(helper.make_tensor(shape, TensorProto.INT64, [1], [-1]))
    graph.initializer.append(helper.make_tensor(zero, TensorProto.FLOAT, [1], [0.0]))
    for name in dict.fromkeys(floats):
        # Flattened and with a zero, a scalar has an axis to reduce, and an empty value a number.
        line, flat, size, largest = (free.make(f"{name}_{x}") for x in PROBES)
        graph.node.append(helper.make_node("Reshape", [name, shape], [line]))
        graph.node.append(helper.make_node("Concat", [line, zero], [flat], axis=0))
        graph.node.append(helper.make_node("Abs", [flat], [size]))
        graph.node.append(helper.make_node("ReduceMax", [size], [largest], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(largest, TensorProto.FLOAT, []))
        probes[name] = largest
    if not probes:
        return {}
    what = "the graph whose ranges are seen"
    session = ort.session_of(probed, error=PrecisionError, what=what, weights=model)
    return _largest(session, probes, batches, ahead.at_once(model))


def _largest(
    session: Any, probes: Mapping[str, str], batches: Iterable[Arrays], at_once: int
) -> dict[str, float]:
    largest: dict[str, float] = {}
    infinite: set[str] = set()

    def run(batch: Arrays) -> Arrays:
        inputs = {tensor.name: batch[tensor.name] for tensor in session.get_inputs()}
        return ort.run(session, inputs, error=PrecisionError, what="the ranges of the reference")

    for _, seen in ahead.each(run, batches, at_once):
        for name, probe in probes.items():
            value = float(seen[probe])
            if math.isfinite(value):
                largest[name] = max(largest.get(name, 0.0), value)
            else:
                infinite.add(name)
    return {name: value for name, value in largest.items() if name not in infinite}
