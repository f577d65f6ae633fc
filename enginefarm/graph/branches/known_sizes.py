"""Sizes that are constant over all of the recipe's profiles, and the values that follow from
them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from enginefarm.documents.recipe import Recipe
from enginefarm.graph.model import bounds, onnx_shapes, walk
from enginefarm.graph.model.bounds import Bounds
from enginefarm.graph.model.walk import bodies
from enginefarm.graph.verification.steady import RANDOM


class KnownSizes:
    """Infers shapes, and from these the bounds of values. Values that turn out to be constant go
    back into the inference, until it finds nothing new."""

    def __init__(self, model: ModelProto, recipe: Recipe) -> None:
        self._named = recipe.dim_ranges
        self._opset = walk.opset(model)
        self.light = _light(model, recipe)
        self._shapes: dict[str, bounds.Dims] = {}
        self._constant: dict[str, Any] = {}
        before = -1
        self.taken: dict[str, str] = {}
        """Each If whose condition is known, by name: `then_branch` or `else_branch`."""
        while len(self._constant) > before:
            before = len(self._constant)
            self._shapes = _inferred(self.light)
            self._read(model.graph, {})
            _written(self.light, self._constant)

    def _read(self, graph: GraphProto, outer: Mapping[str, Bounds]) -> None:
        values = dict(outer)
        for tensor in graph.initializer:
            small = _elements(tensor.dims) <= bounds.MOST_ELEMENTS
            made = bounds.of_array(numpy_helper.to_array(tensor)) if small else None
            if made is not None:
                values[tensor.name] = made
        for node in graph.node:
            if node.op_type == "If":
                condition = values.get(node.input[0])
                if condition is not None and condition.exact and condition.low.size == 1:
                    branch = "then_branch" if condition.low.all() else "else_branch"
                    self.taken[node.name] = branch
            found = self._of(node, values)
            if found is not None:
                values[node.output[0]] = found
                if found.exact and node.op_type != "Constant":
                    self._constant[node.output[0]] = found.low
        for node in graph.node:
            for body in bodies(node):
                self._read(body, values)

    def _of(self, node: NodeProto, values: Mapping[str, Bounds]) -> Bounds | None:
        if node.domain not in ("", "ai.onnx") or node.op_type in RANDOM or not node.output:
            return None
        if node.op_type in ("Shape", "Size"):
            dims = self._shapes.get(node.input[0])
            if dims is None:
                return None
            if node.op_type == "Size":
                return bounds.of_size(dims, self._named)
            given = {attribute.name: attribute.i for attribute in node.attribute}
            start, end = given.get("start", 0), given.get("end", len(dims))
            return bounds.of_shape(dims, self._named, start, end)
        made = self._shapes.get(node.output[0])
        if made is None or _elements(made) > bounds.MOST_ELEMENTS:
            return None  # nothing large is computed here
        return bounds.of_node(node, [values.get(name) for name in node.input], self._opset)


def _elements(dims: Iterable[Any]) -> int:
    """The product of the dims; more than any limit if one of them is not known."""
    count = 1
    for dim in dims:
        count *= dim if isinstance(dim, int) else bounds.LARGEST
    return count


def _light(model: ModelProto, recipe: Recipe) -> ModelProto:
    """A copy for inference, without large weights, and with the recipe's sizes and names of dims.

    It leaves out the shapes that the file declares for inner values, which may be wrong, and for
    the inputs of bodies, which may change from one step of a Loop to the next.
    """
    light = onnx_shapes.without_weights(model)
    wanted = {tensor.name: tensor.shape for tensor in recipe.inputs}
    for graph in walk.graphs(light.graph):
        del graph.value_info[:]
        main = graph is light.graph
        for value in (*graph.output, *(() if main else graph.input)):
            value.type.tensor_type.ClearField("shape")
    for value in light.graph.input:
        shape = wanted.get(value.name)
        if shape is not None and len(shape) == len(value.type.tensor_type.shape.dim):
            onnx_shapes.write_shape(value, shape)
    return light


def _inferred(light: ModelProto) -> dict[str, bounds.Dims]:
    """Dims of each value whose rank is known."""
    try:
        inferred = onnx.shape_inference.infer_shapes(light, strict_mode=False, data_prop=True)
    except Exception:  # it crashes on what it does not know; the shapes stay unknown
        return {}
    found: dict[str, bounds.Dims] = {}
    for graph in walk.graphs(inferred.graph):
        for tensor in graph.initializer:
            found[tensor.name] = tuple(tensor.dims)
        for value in (*graph.input, *graph.value_info):
            if value.type.tensor_type.HasField("shape"):
                dims = value.type.tensor_type.shape.dim
                found[value.name] = tuple(_exact_dim(dim) for dim in dims)
    return found


def _written(light: ModelProto, constant: Mapping[str, Any]) -> None:
    """Puts a Constant in place of each node whose result is known."""
    for graph in walk.graphs(light.graph):
        for node in graph.node:
            name = node.output[0] if node.output else ""
            if name in constant and node.op_type != "Constant":
                value = numpy_helper.from_array(constant[name])
                node.CopyFrom(helper.make_node("Constant", [], [name], node.name, value=value))


def _exact_dim(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None
