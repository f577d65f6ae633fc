"""Operators and types of an ONNX graph that no toolchain has."""

from __future__ import annotations

from typing import get_args

from onnx import ModelProto

from enginefarm.documents.builder import DType
from enginefarm.documents.recipe import Recipe
from enginefarm.errors import SourceError
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
            f"{first.domain}, which is not among the operators that engines have",
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
        f"{role}s: {name!r} is {dtype} in the graph, a type that engines do not have",
        why=f"TensorRT has {', '.join(get_args(DType))}",
        fix=fix,
    )
