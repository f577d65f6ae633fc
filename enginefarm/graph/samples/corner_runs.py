"""Runs a graph at every corner of its recipe's profiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import EnginefarmError, ExportError, SourceError
from enginefarm.graph.model import ort
from enginefarm.graph.samples import feeds

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Arrays


def run_corners(
    path: Path,
    recipe: Recipe,
    sample: Arrays,
    error: type[ExportError] | type[SourceError],
) -> dict[str, int]:
    """Each output -> its number of dims. Raises: `error` when the graph fails at a corner."""
    session = ort.session(path, error=error, what=f"the graph of {recipe.name}")
    ranks: dict[str, int] = {}
    refused: list[tuple[str, EnginefarmError]] = []
    for label, dims in feeds.corners(recipe):
        inputs = feeds.sized(sample, recipe, dims)
        try:
            found = ort.run(session, inputs, error=error, what=label)
        except error as failed:
            if failed.fix:
                raise
            refused.append((label, failed))
        else:
            ranks = {name: array.ndim for name, array in found.items()}
    if not refused:
        return ranks
    label, failed = refused[0]
    likely = (
        "a dim is not as dynamic as the recipe says"
        if ranks
        else "the graph runs at none of the recipe's sizes"
    )
    if recipe.verification_data.random:
        likely += ", or the model does not accept random numbers (provide your own data)"
    raise error(
        f"{label}: {likely}: ONNX Runtime cannot run the graph",
        why=failed.why,
        fix="write that part of the model with other operators, correct the recipe's inputs"
        + (", or fix the dim's size in the recipe" if ranks else ""),
    ) from failed
