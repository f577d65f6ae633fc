"""Replaces an If whose condition depends on sizes alone by the branch that these sizes take.

Exporters write `x.squeeze(0)`, or an RNN that takes inputs with and without a batch, as an If
around the rank or a size of a tensor. TensorRT needs to know the rank of each value when it
builds, and refuses most of these. The reference is computed from the original model, with its
Ifs, at every corner: a branch that was taken wrongly shows there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import ExportError, one_line
from enginefarm.graph.branches.known_sizes import KnownSizes
from enginefarm.graph.model import onnx_shapes, ort, walk
from enginefarm.graph.model.arrays import Arrays
from enginefarm.graph.model.edit import copied, replace_nodes
from enginefarm.graph.model.free_names import name_nodes, unique_values
from enginefarm.graph.model.walk import bodies
from enginefarm.graph.samples import feeds

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
        for body in bodies(node):
            _put(body, taken, folded)
