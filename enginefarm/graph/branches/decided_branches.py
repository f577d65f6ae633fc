"""Removes the Ifs that the recipe's sizes decide, and Ifs inside other Ifs: TensorRT builds none
there.

What an inner If needs is computed before the outer one, whichever branch the outer one takes; the
outer one then selects. The numbers are the same, and work that the other branch would have saved
is done. An If inside a Loop or Scan is built where it is, so that a Loop in a branch that has an If
inside is moved as a whole.
"""

from __future__ import annotations

from pathlib import Path

from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import ExportError, SourceError
from enginefarm.graph.branches import known_branches
from enginefarm.graph.model import onnx_files, walk
from enginefarm.graph.model.arrays import Arrays
from enginefarm.graph.model.edit import FreeNames, copied, name_nodes, replace_nodes, unique_values
from enginefarm.graph.reading import fitting
from enginefarm.graph.reading.raising import MOST_STEPS
from enginefarm.graph.samples.feeds import run_corners


def decide(
    path: Path, recipe: Recipe, sample: Arrays, folder: Path
) -> tuple[Path, tuple[str, ...]]:
    """Writes the graph with one branch in place of each If that the recipe's sizes decide, and
    without an If inside another one.

    Returns its path, and what was done in words. It returns `path` if nothing has to be done, or if
    the sizes contradict a remaining branch.
    """
    graph = onnx_files.graph_only(path)
    if not any(node.op_type == "If" for node in walk.nodes(graph.graph)):
        return path, ()
    graph = onnx_files.read(path, error=ExportError)
    lines = known_branches.leave_out(graph, recipe, sample)
    folded = known_branches.fold(graph, recipe)
    if folded:
        lines.insert(0, f"{_ifs(folded)} decided by the recipe's sizes{_names(folded)}")
    if lines:
        try:
            path = fitting.with_sizes(graph, recipe, folder)
        except SourceError:
            return path, ()
    return _without_nested(path, recipe, sample, folder.with_name("taken_out"), tuple(lines))


def _without_nested(
    path: Path, recipe: Recipe, sample: Arrays, folder: Path, lines: tuple[str, ...]
) -> tuple[Path, tuple[str, ...]]:
    graph = onnx_files.read(path, error=ExportError)
    moved = take_out(graph)
    if not moved:
        return path, lines
    try:
        made = fitting.with_sizes(graph, recipe, folder)
        run_corners(made, recipe, sample, ExportError)
    except (SourceError, ExportError):
        return path, lines  # work that a branch would have skipped fails at some size
    return made, (*lines, f"{_ifs(moved)} computed before the outer If{_names(moved)}")


def _ifs(names: list[str]) -> str:
    return f"{len(names)} If nodes are" if len(names) > 1 else "one If node is"


def _names(names: list[str]) -> str:
    return f": {', '.join(map(repr, names[:3]))}" + (", …" if len(names) > 3 else "")


def take_out(model: ModelProto) -> list[str]:
    """In place; returns the names of the Ifs that were inside a branch, and now are not.

    One that needs a Loop without a limit stays: such a Loop may never end where the outer If does
    not take its branch.
    """
    if not walk.nested_ifs(model.graph):
        return []
    unique_values(model)
    name_nodes(model)
    before = [node.name for node in walk.nested_ifs(model.graph)]
    _take_out(model.graph, FreeNames(model), _endless(model))
    for graph in walk.graphs(model.graph):
        del graph.value_info[:]
    left = {node.name for node in walk.nested_ifs(model.graph)}
    return [name for name in before if name not in left]


def _endless(model: ModelProto) -> set[str]:
    """Names of the Loops that only their condition ends."""
    constants = dict(walk.constants(model.graph))
    found: set[str] = set()
    for node in (node for node in walk.nodes(model.graph) if node.op_type == "Loop"):
        count = constants.get(node.input[0])
        steps = numpy_helper.to_array(count).max(initial=0) if count else 0
        if not node.input[0] or steps >= MOST_STEPS:
            found.add(node.name)
    return found


def _take_out(graph: GraphProto, free: FreeNames, endless: set[str]) -> None:
    """Innermost first."""
    made: list[NodeProto] = []
    for node in graph.node:
        for body in walk.bodies(node) if node.op_type == "If" else ():
            _take_out(body, free, endless)
            made += _moved(body, graph, free, endless)
        made.append(node)
    replace_nodes(graph, made)


def _moved(
    body: GraphProto, graph: GraphProto, free: FreeNames, endless: set[str]
) -> list[NodeProto]:
    """Takes the nodes with an If inside out of the body, with the nodes and weights that they need.

    Returns: these nodes.
    """
    needed: set[str] = set()
    moved: list[NodeProto] = []
    kept: list[NodeProto] = []
    for node in reversed(body.node):
        inside = [*walk.nested([node])]
        if any(one.op_type == "If" for one in inside) or not needed.isdisjoint(node.output):
            if any(one.name in endless for one in inside):
                return []
            needed |= walk.reads_of(node)
            moved.insert(0, copied(node))
        else:
            kept.insert(0, node)
    if not moved:
        return []
    weights = [copied(tensor) for tensor in body.initializer]
    del body.initializer[:]
    graph.initializer.extend(one for one in weights if one.name in needed)
    body.initializer.extend(one for one in weights if one.name not in needed)
    away = {name for node in moved for name in node.output} | {one.name for one in weights}
    away -= {one.name for one in body.initializer}
    for output in body.output:
        if output.name in away:
            name = free.make(f"{output.name}_taken")
            kept.append(helper.make_node("Identity", [output.name], [name], f"{name}_identity"))
            output.name = name
    replace_nodes(body, kept)
    return moved
