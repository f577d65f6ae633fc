"""What is done to every ONNX file as it is read, before anything else looks at it.

Old files are raised to an IR version and an opset that every later tool reads, and their
weights are taken out of the inputs. GRU, LSTM and RNN with the batch first, which ONNX
Runtime's CPU provider does not have, are written with a Transpose around them.
"""

from __future__ import annotations

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
    version_converter,
)

from enginefarm.errors import EnginefarmError, one_line
from enginefarm.graph.model import onnx_files, onnx_shapes, walk
from enginefarm.graph.model.edit import FreeNames, copied, rewrite
from enginefarm.graph.model.operators import OPSET

IR = 4
"""The first IR version in which weights need not be inputs too: OnnxSlim and others need it."""
OLDEST_THAT_RUNS = 7
"""ONNX Runtime runs no graph of an older opset."""
RESHAPES = 5
"""The first opset in which Reshape takes its shape as an input."""
MOST_STEPS = (1 << 31) - 2
"""The largest count of a Loop that TensorRT's parser takes for one."""
PLACED = 11
"""The first opset in which a Resize says where its pixels are."""
PLACE = "coordinate_transformation_mode"
CAME_AS = "enginefarm.came_as"
"""Key in the model's metadata: the opset that the file came with."""

SIZES = (7, 11, 13, 17, 19, 23)
"""Sizes of dynamic dims where the converter needs some. They differ from each other, and hardly
occur in weights."""
RECURRENT = ("GRU", "LSTM", "RNN")
ALL_STEPS = (2, 0, 1, 3)
"""[steps, directions, batch, hidden] -> [batch, steps, directions, hidden]."""
STATES = (1, 0, 2)
"""[directions, batch, hidden] <-> [batch, directions, hidden]."""


def raised(model: ModelProto, *, error: type[EnginefarmError], what: str) -> ModelProto:
    """The same function at IR 4 and opset 13 or later.

    A graph of opset 7 to 12 that onnx.version_converter cannot convert stays as it is: it runs.
    Raises: `error` for an older one, naming what the converter lacks.
    """
    if not model.opset_import:  # IR 1 and 2 had no such field: it was opset 1
        model.opset_import.add(domain="", version=1)
    came = walk.opset(model)
    weights_out_of_inputs(model.graph)
    model.ir_version = max(model.ir_version, IR)
    if 0 < came < OPSET:
        if came >= RESHAPES:
            _flatten_hardmax(model)
        kept = _emptied(model) if _large(model) else {}
        try:
            model = _converted(model)
        except Exception as cause:
            if came < OLDEST_THAT_RUNS:
                raise error(
                    f"{what}: opset {came} cannot be raised to {OPSET}",
                    why=one_line(cause, 300),
                    fix=f"export the model at opset {OPSET} or later",
                ) from cause
        for tensor in model.graph.initializer:
            if tensor.name in kept:
                tensor.CopyFrom(kept.pop(tensor.name))
        if came < PLACED and walk.opset(model) >= PLACED:
            _place_resizes(model.graph)
    _bounds_of_loops(model)
    _steps_first(model)
    del model.metadata_props[:]
    if walk.opset(model) != came:
        model.metadata_props.add(key=CAME_AS, value=str(came))
    return model


def _converted(model: ModelProto) -> ModelProto:
    """Converts the model. If that fails, it tries again with a size for every dynamic dim: some of
    the converter's steps (an Add of opset 6 that broadcasts) read sizes, and write none."""
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception:
        sized: ModelProto = copied(model)
        sizes: dict[str, int] = {}
        for value in sized.graph.input:
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if not isinstance(onnx_shapes.known_dim(dim), int):
                    name = dim.dim_param or f"{value.name}/{axis}"
                    size = sizes.setdefault(name, SIZES[len(sizes) % len(SIZES)])
                    dim.Clear()
                    dim.dim_value = size
        if not sizes:
            raise
        del sized.graph.value_info[:]
        converted = version_converter.convert_version(sized, OPSET)
        del converted.graph.value_info[:]
        for field in ("input", "output"):
            del getattr(converted.graph, field)[:]
            getattr(converted.graph, field).extend(getattr(model.graph, field))
        return converted


def _place_resizes(graph: GraphProto) -> None:
    """In place: says that pixels count from a corner, as in Upsample and Resize until opset 10.

    onnx.version_converter does not write it, and opset 11 has another default.
    """
    for node in walk.nodes(graph):
        interpolates = walk.value(node, "mode", b"nearest") != b"nearest"
        if node.op_type == "Resize" and interpolates and PLACE not in walk.attributes(node):
            node.attribute.append(helper.make_attribute(PLACE, "asymmetric"))


def came_as(model: ModelProto) -> int | None:
    """The opset that the file came with, where it was raised from there."""
    found = [item.value for item in model.metadata_props if item.key == CAME_AS]
    return int(found[0]) if found else None


def weights_out_of_inputs(graph: GraphProto) -> None:
    """An input with an initializer is a default that a caller may replace; engines have none."""
    weights = {tensor.name for tensor in graph.initializer}
    kept = [copied(value) for value in graph.input if value.name not in weights]
    if len(kept) < len(graph.input):
        del graph.input[:]
        graph.input.extend(kept)


def _large(model: ModelProto) -> bool:
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    return size > onnx_files.EXTERNAL_ABOVE_BYTES


def _emptied(model: ModelProto) -> dict[str, TensorProto]:
    """Takes the bytes out of large weights, which the converter would copy through a message
    of at most 2 GiB, and returns them by name."""
    kept: dict[str, TensorProto] = {}
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) >= onnx_shapes.LARGE_BYTES:
            kept[tensor.name] = copied(tensor)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="not-needed")
    return kept


def _flatten_hardmax(model: ModelProto) -> None:
    """Until opset 12 a Hardmax is over all axes from its own on, as if they were one.
    onnx.version_converter knows that of Softmax alone."""
    free = FreeNames(model)

    def flattened(node: NodeProto, _: GraphProto) -> list[NodeProto] | None:
        if node.op_type != "Hardmax":
            return None
        axis = walk.value(node, "axis", 1)
        source, result = node.input[0], node.output[0]
        shape, flat, hard = (free.make(f"{result}_{what}") for what in ("shape", "flat", "hard"))
        return [
            helper.make_node("Shape", [source], [shape], shape),
            helper.make_node("Flatten", [source], [flat], flat, axis=axis),
            helper.make_node("Hardmax", [flat], [hard], node.name, axis=1),
            helper.make_node("Reshape", [hard, shape], [result], free.make(f"{result}_back")),
        ]

    rewrite(model, flattened)


def _bounds_of_loops(model: ModelProto) -> None:
    """In place: writes the conditions and counts that TensorRT's parser needs.

    A Loop without a condition ends with its count, and one without a count with its condition. The
    parser needs the condition always, and the count where the body reads the number of its step. It
    takes a count above MOST_STEPS for none."""
    loops = [node for node in walk.nodes(model.graph) if node.op_type == "Loop"]
    if not loops:
        return
    constants = dict(walk.constants(model.graph))
    free = FreeNames(model)
    made = {MOST_STEPS: free.make("most_steps"), True: free.make("go_on")}
    for node in loops:
        count, (body,) = constants.get(node.input[0]), walk.bodies(node)
        steps = numpy_helper.to_array(count).max(initial=0) if count else 0
        if (not node.input[0] or steps > MOST_STEPS) and body.input[0].name in walk.reads(body):
            node.input[0] = made[MOST_STEPS]
        node.input[1] = node.input[1] or made[True]
    read = {name for node in loops for name in node.input}
    for value, name in made.items():
        if name in read:
            kind = np.int64 if value == MOST_STEPS else np.bool_
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, kind), name))


def _steps_first(model: ModelProto) -> None:
    """`layout: 1` of GRU, LSTM and RNN as `layout: 0` between Transposes: the same numbers."""
    free = FreeNames(model)

    def steps_first(node: NodeProto, _: GraphProto) -> list[NodeProto] | None:
        if node.op_type not in RECURRENT or walk.value(node, "layout", 0) != 1:
            return None
        node.attribute.remove(walk.attributes(node)["layout"])
        return _transposed(node, free)

    rewrite(model, steps_first)


def _transposed(node: NodeProto, free: FreeNames) -> list[NodeProto]:
    """The node between Transposes of what it reads and of what it makes."""
    before: list[NodeProto] = []
    after: list[NodeProto] = []
    for index in (0, 5, 6):  # X, initial_h and initial_c: their first two dims are swapped
        if index < len(node.input) and node.input[index]:
            name = free.make(f"{node.input[index]}_steps_first")
            before.append(_transpose(node.input[index], name, STATES))
            node.input[index] = name
    for index, name in enumerate(list(node.output)):
        if name:
            perm = ALL_STEPS if index == 0 else STATES
            node.output[index] = free.make(f"{name}_steps_first")
            after.append(_transpose(node.output[index], name, perm))
    return [*before, node, *after]


def _transpose(source: str, name: str, perm: tuple[int, ...]) -> NodeProto:
    return helper.make_node("Transpose", [source], [name], f"{name}_transpose", perm=perm)
