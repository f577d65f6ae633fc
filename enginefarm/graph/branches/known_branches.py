"""Replaces an If whose condition depends on sizes alone by the branch that these sizes take.

Exporters write `x.squeeze(0)`, or an RNN that takes inputs with and without a batch, as an If
around the rank or a size of a tensor. TensorRT needs to know the rank of each value when it
builds, and refuses most of these. The reference is computed from the original model, with its
Ifs, at every corner: a branch that was taken wrongly shows there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import ExportError, one_line
from enginefarm.graph.model import bounds, onnx_shapes, ort, walk
from enginefarm.graph.model.arrays import Arrays
from enginefarm.graph.model.bounds import Bounds
from enginefarm.graph.model.edit import copied, name_nodes, replace_nodes, unique_values
from enginefarm.graph.samples import feeds
from enginefarm.graph.verification.steady import RANDOM

OTHER = {"then_branch": "else_branch", "else_branch": "then_branch"}


def fold(model: ModelProto, recipe: Recipe) -> list[str]:
    """In place: replaces each If whose condition the recipe's sizes decide, in bodies too.

    Returns: the names of these Ifs, in order.
    """
    if not any(node.op_type == "If" for node in walk.nodes(model.graph)):
        return []
    unique_values(model)
    name_nodes(model)
    folded: list[str] = []
    while taken := KnownSizes(model, recipe).taken:
        _put(model.graph, taken, folded)
        for graph in walk.graphs(model.graph):
            del graph.value_info[:]
    return folded


def leave_out(model: ModelProto, recipe: Recipe, sample: Arrays) -> list[str]:
    """In place, before `fold`: replaces an If of the main graph by one branch if the model cannot
    run the other one at any corner of the recipe's profiles.

    A branch cannot run if ONNX's shape inference refuses it with the recipe's sizes and ONNX
    Runtime fails on it at each corner. Models of more than 1 GiB of weights stay as they are.
    sample: real inputs, which are cut to the sizes.
    Returns: a line for each such If, which says why the branch cannot run.
    """
    if not walk.is_small(model):
        return []  # each branch would be in memory once more
    unique_values(model)
    name_nodes(model)
    names = [node.name for node in model.graph.node if node.op_type == "If"]
    decided = KnownSizes(model, recipe).taken if names else {}
    lines: list[str] = []
    for name in names:
        found = None if name in decided else _impossible(model, name, recipe, sample)
        if found is None:
            continue
        branch, why = found
        _put(model.graph, {name: OTHER[branch]}, [])
        lines.append(
            f"{name!r} (If) always takes its {OTHER[branch].removesuffix('_branch')} branch: the "
            f"model cannot run the other one at any size of the recipe ({why})"
        )
    return lines


def _impossible(
    model: ModelProto, name: str, recipe: Recipe, sample: Arrays
) -> tuple[str, str] | None:
    """The branch that cannot run, and why; None where both can, or neither."""
    why = {branch: _contradiction(_alone(model, name, branch), recipe) for branch in OTHER}
    bad = [branch for branch in OTHER if why[branch]]
    if len(bad) != 1 or _runs(_alone(model, name, bad[0]), recipe, sample):
        return None
    return bad[0], why[bad[0]]


def _alone(model: ModelProto, name: str, branch: str) -> ModelProto:
    made: ModelProto = copied(model)
    _put(made.graph, {name: branch}, [])
    return made


def _contradiction(model: ModelProto, recipe: Recipe) -> str:
    """Why the graph cannot have the recipe's sizes; empty if it can. The graph is folded."""
    fold(model, recipe)
    light = KnownSizes(model, recipe).light
    try:
        onnx.shape_inference.infer_shapes(light, strict_mode=True, data_prop=True)
    except Exception as error:
        return one_line(error, 200)
    return ""


def _runs(model: ModelProto, recipe: Recipe, sample: Arrays) -> bool:
    """Whether ONNX Runtime runs the graph at any corner, or cannot say."""
    for value in model.graph.input:
        known = value.type.tensor_type.shape
        onnx_shapes.write_shape(value, [None] * len(known.dim))
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    what = "a branch of an If"
    try:
        session = ort.session_of(model, error=ExportError, what=what, plain=True)
    except ExportError:
        return True
    for _, dims in feeds.corners(recipe):
        try:
            ort.run(session, feeds.sized(sample, recipe, dims), error=ExportError, what=what)
        except ExportError:
            continue
        return True
    return False


def _put(graph: GraphProto, taken: Mapping[str, str], folded: list[str]) -> None:
    """Puts the branch that is taken in place of each If, with its results under the If's names, in
    the graph and in the bodies that stay."""
    nodes: list[NodeProto] = []

    def add(found: Iterable[NodeProto]) -> None:
        for node in found:
            if node.name not in taken or node.op_type != "If":
                nodes.append(node)
                continue
            folded.append(node.name)
            branch = walk.attributes(node)[taken[node.name]].g
            graph.initializer.extend(branch.initializer)
            graph.sparse_initializer.extend(branch.sparse_initializer)
            add(branch.node)
            nodes.extend(
                helper.make_node("Identity", [inner.name], [outer], f"{node.name}_{outer}")
                for inner, outer in zip(branch.output, node.output, strict=True)
                if outer
            )

    add(graph.node)
    replace_nodes(graph, nodes)
    for node in graph.node:
        for body in walk.bodies(node):
            _put(body, taken, folded)


class KnownSizes:
    """Sizes that are constant over all of the recipe's profiles, and the values that follow.

    Infers shapes, and from these the bounds of values. Values that turn out to be constant go
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
            for body in walk.bodies(node):
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
            start, end = walk.value(node, "start", 0), walk.value(node, "end", len(dims))
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
