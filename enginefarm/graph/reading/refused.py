"""Operators and types of an ONNX graph that no toolchain has, and inputs whose values are sizes."""

from __future__ import annotations

from typing import get_args

from onnx import GraphProto, ModelProto, NodeProto

from enginefarm.documents.builder import DType
from enginefarm.documents.recipe import Recipe
from enginefarm.errors import EnginefarmError, SourceError
from enginefarm.graph.model import onnx_shapes, walk
from enginefarm.graph.model.constants import to_float32

ONNX_DOMAINS = ("", "ai.onnx")
WITHOUT_RUNTIMES = (
    "export the model without runtime-specific optimization or quantization, in FP32: the recipe's "
    "`precisions` quantize it; or name a plugin library in `plugins`"
)
FIXES = {
    "ai.onnx.ml": "run trees, linear models and encoders of tables in ONNX Runtime; hummingbird-ml "
    "writes many of them with tensor operators"
}
"""What to do about operators of a domain, where it is not WITHOUT_RUNTIMES."""


def operators(model: ModelProto, recipe: Recipe) -> None:
    """Raises: SourceError for operators that are not ONNX's, unless the recipe has plugins."""
    if recipe.plugins:
        return
    functions = {(function.domain, function.name) for function in model.functions}
    found = [
        node
        for node in walk.nodes(model.graph)
        if node.domain not in ONNX_DOMAINS and (node.domain, node.op_type) not in functions
    ]
    if found:
        first = found[0]
        others = sorted({node.op_type for node in found} - {first.op_type})
        count = f"{len(found)} such nodes" if len(found) > 1 else "one such node"
        raise SourceError(
            f"source: node {walk.label(first)!r} is operator {first.op_type} of domain "
            f"{first.domain}, which engines do not support",
            why="TensorRT's parser does not have it, or it cannot be verified without a GPU; the "
            f"graph has {count}" + (f"; also {', '.join(others)}" if others else ""),
            fix=FIXES.get(first.domain, WITHOUT_RUNTIMES),
        )


def types(model: ModelProto, recipe: Recipe) -> None:
    """In place: a graph of float64 whose inputs the recipe calls float32 becomes one of float32.

    Raises: SourceError for inputs and outputs of a type that engines do not have.
    """
    signature = onnx_shapes.input_signature(model)
    asked = {tensor.name: tensor.dtype for tensor in recipe.inputs}
    if any(
        dtype == "float64" and asked.get(name) == "float32"
        for name, (dtype, _) in signature.items()
    ):
        to_float32(model)
        signature = onnx_shapes.input_signature(model)
    for name, (dtype, _) in signature.items():
        if dtype not in get_args(DType):
            raise _no_such_type("input", name, dtype)
    for value in model.graph.output:
        kind = value.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            raise _no_such_type("output", value.name, str(kind).removesuffix("_type"))
        dtype = onnx_shapes.dtype_of(value.type.tensor_type.elem_type)
        if dtype not in (*get_args(DType), "undefined"):
            raise _no_such_type("output", value.name, dtype)


def _no_such_type(role: str, name: str, dtype: str) -> SourceError:
    fix = f"change the model so that {name!r} has one of these types"
    if dtype == "float64":
        fix = f"end the model with a Cast of {name!r} to float32"
        if role == "input":
            fix = "write `dtype: float32` for this input: the graph is then computed in FP32"
    return SourceError(
        f"{role}s: {name!r} is {dtype} in the graph, a type that engines do not support",
        why=f"TensorRT supports {', '.join(get_args(DType))}",
        fix=fix,
    )


SIZES = {
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Loop": (0,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Upsample": (1,),
}
"""Operator -> the operands that are sizes, counts or bounds."""

CARRIES = {
    *("Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "Div", "Equal", "Expand", "Flatten"),
    *("Floor", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Identity"),
    *("Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow"),
    *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Round"),
    *("ScatterElements", "ScatterND", "Sign", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum"),
    *("Tile", "Transpose", "Unsqueeze", "Where", "Xor"),
}
"""Operators that compute sizes out of sizes."""
TAKE = frozenset(("Gather", "GatherElements", "GatherND", "Slice"))
"""They pass on what they take from, not where they take it."""


def sizes(model: ModelProto, recipe: Recipe, error: type[EnginefarmError]) -> None:
    """Refuses an input whose values become sizes: TensorRT calls it a shape tensor. An engine needs
    a range of such values, a profile has none, and the sizes would come from the wrong place.

    Raises: `error`, which names the input and the first node that reads it as sizes.
    """
    # No other input can be a shape tensor.
    small = [t.name for t in recipe.inputs if len(t.shape) < 2 and "float" not in t.dtype]
    found = read_as_sizes(model.graph, {name: name for name in small})
    if found is not None:
        name, node = found
        raise error(
            f"inputs: the values of {name!r} decide a shape in the model",
            why=f"{node.op_type} {walk.label(node)!r} uses them as sizes; an engine would need a "
            "range of these values, and profiles have only ranges of dims",
            fix=f"make {name!r} a constant of the model, or use an input whose dim has that size",
        )


def read_as_sizes(graph: GraphProto, carried: dict[str, str]) -> tuple[str, NodeProto] | None:
    """The first node that reads values as sizes, and the input that they come from.

    carried: name of a value -> the input whose values it carries."""
    for node in graph.node:
        for operand in SIZES.get(node.op_type, ()):
            if operand < len(node.input) and node.input[operand] in carried:
                return carried[node.input[operand]], node
        for body in walk.bodies(node):
            if (found := read_as_sizes(body, dict(carried))) is not None:
                return found
        operands = node.input[:1] if node.op_type in TAKE else node.input
        source = next((carried[name] for name in operands if name in carried), None)
        if source is not None and node.op_type in CARRIES:
            carried |= dict.fromkeys(node.output, source)
    return None
