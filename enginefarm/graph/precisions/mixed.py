"""FP32 -> mixed precision: one dtype for each value, a Cast where two meet.

onnxconverter-common was tried first and writes invalid graphs for models with a Cast of their
own, as every text encoder has: docs/decisions/0110.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from enginefarm.graph.model import constants, walk
from enginefarm.graph.model.edit import FreeNames, drop_unused, rename_inside, replace_nodes
from enginefarm.graph.model.onnx_shapes import dtypes, infer_types
from enginefarm.graph.model.operators import stays_wide
from enginefarm.graph.precisions import masks, rules
from enginefarm.graph.precisions.operands import is_fixed, operands


@dataclass
class _Scope:
    """One graph of the model: the main one, or a body."""

    graph: GraphProto
    nodes: list[NodeProto] = field(default_factory=list["NodeProto"])


@dataclass
class _Cast:
    """The state of one rewrite. Names are unique in the whole model.

    types: dtype of each value as it is by now; declared: as it was before.
    """

    low: int
    opset: int
    keep_wide: Container[str]
    types: dict[str, int]
    declared: dict[str, int]
    constants: dict[str, TensorProto]
    homes: dict[str, _Scope]
    free: FreeNames
    masks: masks.Masks
    movers: set[str] = field(default_factory=set[str])
    made: dict[tuple[str, int], str] = field(default_factory=dict[tuple[str, int], str])

    @property
    def low_name(self) -> str:
        return "tensor(float16)" if self.low == TensorProto.FLOAT16 else "tensor(bfloat16)"


def cast(model: ModelProto, low: int, keep_wide: Container[str] = ()) -> ModelProto:
    """The graph with floats as `low` (a TensorProto type: FLOAT16 or BFLOAT16), in place.

    model: of `prepare.fp32`: FP32, with names of their own for nodes and values.
    keep_wide: names of nodes that stay in FP32, in addition to operators that never take `low`.

    Inputs and outputs of the model and of the bodies of If and Loop keep their dtypes.
    Raises: PrecisionError.
    """
    infer_types(model)
    graphs = list(walk.graphs(model.graph))
    scopes = {id(graph): _Scope(graph) for graph in graphs}
    types = dtypes(graphs)
    state = _Cast(
        low=low,
        opset=walk.opset(model),
        keep_wide=keep_wide,
        types=types,
        declared=dict(types),
        constants=dict(walk.constants(model.graph)),
        homes={name: scopes[id(graph)] for graph in graphs for name in _defined(graph)},
        free=FreeNames(model),
        masks=masks.find(model),
    )
    state.movers = rules.movers(model, lambda node: _computes_wide(state, node), types)
    _graph(state, model.graph, scopes)
    for graph in walk.graphs(model.graph):  # anew: nodes, and the bodies in them, were copied
        del graph.value_info[:]
    drop_unused(model)
    infer_types(model)
    return model


def _defined(graph: GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.initializer))
    yield from (name for node in graph.node for name in node.output if name)


def _graph(state: _Cast, graph: GraphProto, scopes: dict[int, _Scope]) -> None:
    scope = scopes[id(graph)]
    for node in graph.node:
        _lower_scan(state, node)
        for body in walk.bodies(node):
            _graph(state, body, scopes)
        _rewrite(state, scope, node)
    _restore_outputs(state, scope)
    replace_nodes(graph, scope.nodes)


def _lower_scan(state: _Cast, node: NodeProto) -> None:
    """A Scan hands 16 bits to its body and takes them from it: TensorRT-RTX 1.7.1 refuses a Cast
    between the body of a Scan and its border, and takes one in the body of a Loop."""
    if node.op_type != "Scan" or _kept_wide(state, node):
        return
    for body in walk.bodies(node):
        for value in (*body.input, *body.output):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = state.low
        state.types.update((value.name, state.low) for value in body.input if _low(state, value))
        state.declared.update((v.name, state.low) for v in body.output if _low(state, v))


def _low(state: _Cast, value: ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type == state.low


def _rewrite(state: _Cast, scope: _Scope, node: NodeProto) -> None:
    if node.op_type == "Cast":
        _rewrite_cast(state, node)
        scope.nodes.append(node)
        return
    schema = operands(node.op_type, node.domain, state.opset, state.low_name)
    wide = node.name in state.movers or _computes_wide(state, node)
    target = TensorProto.FLOAT if wide else state.low
    floats = (TensorProto.FLOAT, state.low)
    for index, name in enumerate(node.input):
        if state.types.get(name) in floats:
            wanted = TensorProto.FLOAT if is_fixed(schema.fixed_inputs, index) else target
            node.input[index] = _as(state, name, wanted)
    if not wide:
        _lower_attributes(state, node)
    for index, name in enumerate(node.output):
        if state.types.get(name) == TensorProto.FLOAT and not is_fixed(schema.fixed_outputs, index):
            state.types[name] = target
    scope.nodes.append(node)


def _computes_wide(state: _Cast, node: NodeProto) -> bool:
    """Whether the node is FP32, by its schema or because it is kept so. A Cast is neither."""
    if node.op_type == "Cast":
        return False
    schema = operands(node.op_type, node.domain, state.opset, state.low_name)
    return not schema.takes_low or _kept_wide(state, node) or _is_float_by_default(state, node)


def _is_float_by_default(state: _Cast, node: NodeProto) -> bool:
    """Whether the node makes FP32 numbers of no floats, and no attribute says their type, as a
    ConstantOfShape without a value does."""
    floats = (TensorProto.FLOAT, state.low)
    return not (
        walk.bodies(node)
        or any(state.types.get(name) in floats for name in node.input)
        or any(one.name in LOWERED or one.HasField("t") for one in node.attribute)
    )


def _kept_wide(state: _Cast, node: NodeProto) -> bool:
    """Whether the node stays in FP32 though its schema takes the low dtype."""
    if node.name in state.keep_wide or stays_wide(node, state.low):
        return True
    if walk.bodies(node) and node.op_type != "Scan":
        return True
    # What a sequence or an optional holds keeps its dtype.
    if any(state.types.get(name) == -1 for name in (*node.input, *node.output)):
        return True
    if state.low != TensorProto.FLOAT16:
        return False
    held = [state.constants[name] for name in node.input if name in state.constants]
    held += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
    return any(
        tensor.data_type == TensorProto.FLOAT
        and (constants.vanishes(tensor) or constants.overflows(tensor))
        and tensor.name not in state.masks.constants
        and node.name not in state.masks.nodes
        for tensor in held
    )


EXACT = ("UNDEFINED", "BOOL", "INT8", "UINT8")
"""Every number of these is one of FP16 and of BF16 too; larger integers are not."""


def _rewrite_cast(state: _Cast, node: NodeProto) -> None:
    """A Cast takes any dtype. What comes from large integers stays FP32, and so exact."""
    target = walk.attributes(node)["to"]
    if target.i != TensorProto.FLOAT:
        return
    source, result = state.types.get(node.input[0], 0), node.output[0]
    exact = {TensorProto.DataType.Value(name) for name in EXACT}
    if source == state.low:
        # The graph already has the number, and a reader that needs 16 bits uses it as it is.
        state.made[result, state.low] = node.input[0]
    elif source in exact and node.name not in state.keep_wide:
        target.i = state.types[result] = state.low


def _as(state: _Cast, name: str, target: int) -> str:
    """The value in that dtype: itself, a converted weight, or a Cast made once."""
    if state.types[name] == target:
        return name
    key = (name, target)
    if key not in state.made:
        made = state.free.make(f"{name}_{'low' if target == state.low else 'wide'}")
        home = state.homes[name]
        if name in state.constants:
            limit = constants.MASK if name in state.masks.constants else None
            home.graph.initializer.append(
                constants.lowered(state.constants[name], made, target, limit=limit)
            )
        else:
            source = _bounded(state, home, name) if target == state.low else name
            cast_name = state.free.make(f"{made}_cast")
            home.nodes.append(helper.make_node("Cast", [source], [made], cast_name, to=target))
        state.types[made] = target
        state.homes[made] = home
        state.made[key] = made
    return state.made[key]


def _bounded(state: _Cast, home: _Scope, name: str) -> str:
    """The value of a mask that was computed in FP32, before it is narrowed to 16 bits."""
    if name not in state.masks.values:
        return name
    bound, made = state.free.make("mask_bound"), state.free.make(f"{name}_bounded")
    home.graph.initializer.append(
        numpy_helper.from_array(np.array(-constants.MASK, np.float32), bound)
    )
    home.nodes.append(helper.make_node("Max", [name, bound], [made], state.free.make(made)))
    return made


LOWERED = ("to", "dtype", "output_dtype")
"""Not softmax_precision: an Attention that asks for an FP32 Softmax keeps it."""


def _lower_attributes(state: _Cast, node: NodeProto) -> None:
    limit = constants.MASK if node.name in state.masks.nodes else None
    for attribute in node.attribute:
        if attribute.name in LOWERED and attribute.i == TensorProto.FLOAT:
            attribute.i = state.low
        if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(
                constants.lowered(attribute.t, attribute.t.name, state.low, limit=limit)
            )


def _restore_outputs(state: _Cast, scope: _Scope) -> None:
    """Outputs keep their dtype, and those of the model their name: what was cut down is cast
    back under that name. A body's output has no name outside, so that one that is a value of
    the graph around it is cast under another."""
    renames: dict[str, str] = {}
    for output in scope.graph.output:
        name, kind = output.name, state.declared[output.name]
        if state.types[name] == kind or name in renames:
            continue
        if state.homes[name] is not scope:
            output.name = _as(state, name, kind)
            if state.homes[output.name] is not scope:
                inner = state.free.make(f"{output.name}_out")
                scope.nodes.append(
                    helper.make_node("Identity", [output.name], [inner], state.free.make(inner))
                )
                output.name = inner
            continue
        renames[name] = state.free.make(f"{name}_low")
        state.types[renames[name]] = state.types[name]
    rename_inside(scope.nodes, renames)
    for name, inner in renames.items():
        cast_name = state.free.make(f"{name}_cast")
        scope.nodes.append(
            helper.make_node("Cast", [inner], [name], cast_name, to=state.declared[name])
        )
