"""FP32 -> mixed precision: one dtype for each value, a Cast where two meet.

onnxconverter-common was tried first and gives invalid graphs for models with a Cast of their
own, as every text encoder has: docs/decisions/0022.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from enginefarm.errors import PrecisionError
from enginefarm.graph import onnx_files
from enginefarm.graph.precisions.graph import infer_types, keep_initializers
from enginefarm.graph.precisions.wide import wide_operators

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

MAX_FP16, MIN_FP16 = 65504.0, 2.0**-24


@dataclass
class _Cast:
    """The state of one rewrite."""

    model: ModelProto
    low: int
    opset: int
    types: dict[str, int]
    constants: dict[str, TensorProto]
    nodes: list[NodeProto] = field(default_factory=list["NodeProto"])
    made: dict[tuple[str, int], str] = field(default_factory=dict[tuple[str, int], str])


def cast(model: ModelProto, low: int) -> ModelProto:
    """The graph with floats as `low` (a TensorProto type: FLOAT16 or BFLOAT16), in place.

    Inputs and outputs keep their dtypes; WIDE operators, operators whose schema does not
    take `low`, and the bodies of If and Loop stay in FP32.

    Raises: PrecisionError.
    """
    if model.functions:
        import onnx.inliner

        model = onnx.inliner.inline_local_functions(model)
    _constants_to_initializers(model)
    infer_types(model)
    state = _Cast(
        model=model,
        low=low,
        opset=onnx_files.opset(model),
        types=_types(model),
        constants={tensor.name: tensor for tensor in model.graph.initializer},
    )
    for node in model.graph.node:
        _rewrite(state, node)
    _restore_outputs(state)
    copies = [_copy(node) for node in state.nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    del model.graph.value_info[:]
    _drop_unused(model)
    infer_types(model)
    return model


def _rewrite(state: _Cast, node: NodeProto) -> None:
    from onnx import TensorProto

    subgraphs = [g for a in node.attribute for g in ((a.g,) if a.HasField("g") else a.graphs)]
    if subgraphs:
        _feed_subgraphs(state, subgraphs)
    wide = bool(subgraphs) or not _takes(state, node)
    target = TensorProto.FLOAT if wide else state.low
    if node.op_type != "Cast":  # which takes any dtype
        for index, name in enumerate(node.input):
            if state.types.get(name) in (TensorProto.FLOAT, state.low):
                node.input[index] = _as(state, name, target)
    if not wide:
        _lower_attributes(state, node)
    for name in node.output:
        if state.types.get(name) == TensorProto.FLOAT:
            state.types[name] = target
    state.nodes.append(node)


def _takes(state: _Cast, node: NodeProto) -> bool:
    """Whether the node computes in the low precision."""
    import onnx

    if node.op_type in wide_operators(state.low) or node.domain not in ("", "ai.onnx"):
        return False
    try:
        schema = onnx.defs.get_schema(node.op_type, state.opset, node.domain)
    except Exception:
        return False
    name = "tensor(float16)" if state.low == onnx.TensorProto.FLOAT16 else "tensor(bfloat16)"
    floats = [c for c in schema.type_constraints if "tensor(float)" in c.allowed_type_strs]
    return all(name in constraint.allowed_type_strs for constraint in floats)


def _as(state: _Cast, name: str, target: int) -> str:
    """The value in that dtype: itself, a converted weight, or a Cast made once."""
    from onnx import helper

    if state.types[name] == target:
        return name
    key = (name, target)
    if key not in state.made:
        suffix = "low" if target == state.low else "wide"
        made = _free(state, f"{name}_{suffix}")
        if name in state.constants:
            state.model.graph.initializer.append(_lowered(state.constants[name], made, target))
        else:
            state.nodes.append(helper.make_node("Cast", [name], [made], f"{made}_cast", to=target))
        state.types[made] = target
        state.made[key] = made
    return state.made[key]


def _free(state: _Cast, name: str) -> str:
    while name in state.types:
        name += "_"
    return name


def _lowered(tensor: TensorProto, name: str, target: int) -> TensorProto:
    """Rounded to nearest, but a finite number stays finite and one above zero stays above it:
    a mask of -3.4e38 becomes -65504, an epsilon of 1e-12 becomes 6e-8."""
    import ml_dtypes
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    values = numpy_helper.to_array(tensor)
    if target == TensorProto.FLOAT16:
        kept = np.where(np.isfinite(values), np.clip(values, -MAX_FP16, MAX_FP16), values)
        vanishing = (values != 0) & (np.abs(values) < MIN_FP16)
        data = np.where(vanishing, np.copysign(MIN_FP16, values), kept).astype(np.float16).tobytes()
    else:
        data = values.astype(ml_dtypes.bfloat16).tobytes()
    return helper.make_tensor(name, target, tensor.dims, data, raw=True)


def _lower_attributes(state: _Cast, node: NodeProto) -> None:
    from onnx import TensorProto

    for attribute in node.attribute:
        if attribute.name in ("to", "dtype", "output_dtype") and attribute.i == TensorProto.FLOAT:
            attribute.i = state.low
        if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_lowered(attribute.t, attribute.t.name, state.low))


def _feed_subgraphs(state: _Cast, subgraphs: list[Any]) -> None:
    """Bodies of If and Loop are left in FP32: what they read from outside must be FP32."""
    from onnx import TensorProto

    for body in subgraphs:
        for inner in onnx_files.graphs(body):
            for node in inner.node:
                for index, name in enumerate(node.input):
                    if state.types.get(name) == state.low:
                        node.input[index] = _as(state, name, TensorProto.FLOAT)
            for output in inner.output:
                if state.types.get(output.name) == state.low:
                    raise PrecisionError(
                        f"a branch gives {output.name!r} of the outer graph as it is",
                        fix="put an Identity in the branch",
                    )


def _restore_outputs(state: _Cast) -> None:
    """Graph outputs keep name and dtype; what was cut down is cast back under that name."""
    from onnx import TensorProto, helper

    cut = [out.name for out in state.model.graph.output if state.types.get(out.name) == state.low]
    renames = {name: _free(state, f"{name}_low") for name in cut}
    for node in state.nodes:
        node.input[:] = [renames.get(name, name) for name in node.input]
        node.output[:] = [renames.get(name, name) for name in node.output]
    for name, inner in renames.items():
        state.nodes.append(
            helper.make_node("Cast", [inner], [name], f"{name}_cast", to=TensorProto.FLOAT)
        )


def _constants_to_initializers(model: ModelProto) -> None:
    """So that a wide operator reads the FP32 number, and a low one a number rounded once."""
    kept: list[NodeProto] = []
    for node in model.graph.node:
        value = next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)
        if node.op_type == "Constant" and value is not None:
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        else:
            kept.append(_copy(node))
    if len(kept) < len(model.graph.node):
        del model.graph.node[:]
        model.graph.node.extend(kept)


def _types(model: ModelProto) -> dict[str, int]:
    graph = model.graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    for node in graph.node:
        for name in node.output:
            if name and not types.get(name):
                raise PrecisionError(
                    f"the dtype of {name!r} cannot be inferred ({node.op_type})",
                    fix="take the operator out, or use fp32",
                )
    return types


def _drop_unused(model: ModelProto) -> None:
    keep_initializers(model, set(_reads(model)))


def _reads(model: ModelProto) -> Iterator[str]:
    for graph in onnx_files.graphs(model.graph):
        for node in graph.node:
            yield from node.input
        yield from (output.name for output in graph.output)


def _copy(message: Any) -> Any:
    made = type(message)()
    made.CopyFrom(message)
    return made
