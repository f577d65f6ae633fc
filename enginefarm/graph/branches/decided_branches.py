"""Removes the Ifs that the recipe's sizes decide, and Ifs inside other Ifs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import ExportError, SourceError
from enginefarm.graph.branches import known_branches, nested_branches
from enginefarm.graph.model import onnx_files, walk
from enginefarm.graph.reading import fitting
from enginefarm.graph.samples.corner_runs import run_corners

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Arrays


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
    return _take_out(path, recipe, sample, folder.with_name("taken_out"), tuple(lines))


def _take_out(
    path: Path, recipe: Recipe, sample: Arrays, folder: Path, lines: tuple[str, ...]
) -> tuple[Path, tuple[str, ...]]:
    graph = onnx_files.read(path, error=ExportError)
    moved = nested_branches.take_out(graph)
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
